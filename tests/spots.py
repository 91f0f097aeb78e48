"""A product that wants a device and writes columns, a table and pixels; as a program, a command.

In a module of its own: other processes import it by name. As a program it runs a command on a Ray
of a given size: `python spots.py CPUS GPUS run survey.toml`, or without Ray if that has no CPUs.
Batches are small, so that a unit has several.
"""

import os
import sys
from pathlib import Path

import numpy as np

from surveyproc.config.sections import ProductSection
from surveyproc.products.base import Inputs, PixelArray, RowTable, device
from surveyproc.run import unit
from surveyproc.schemas import Column

unit.IMAGE_ROWS = 8


class Section(ProductSection):
    pass


class Spots:
    """The bright pixels of each object; a row for every one of them."""

    Section, reads, writes = Section, "cutouts in r", "bright pixels"
    name, version, wants_device = "spots", "1", True
    inputs = Inputs(bands=("r",), cutout=9, columns=("flux_r",))
    columns = (Column("spots_number", "int32"), Column("spots_flag", "int32"))
    tables = (RowTable("spots_found", (Column("nanojansky", "float32"),)),)
    pixels = (PixelArray("spots_mask", (9, 9), "uint8"),)

    @classmethod
    def build(cls, section, survey):
        product = cls()
        product.told = Path(survey.config.root).parent / "devices"
        return product

    def prepare(self):
        self.told.mkdir(exist_ok=True)
        (self.told / f"{device()}-{os.getpid()}").touch()

    def compute(self, batch):
        images = np.nan_to_num(batch.images[:, 0])
        bright = images > np.maximum(images.mean(axis=(1, 2)), 1)[:, None, None]
        row, y, x = np.nonzero(bright)
        return {
            "spots_number": bright.sum(axis=(1, 2)) + (batch.columns["flux_r"] > 0),
            "spots_flag": batch.flags,
            "spots_found": {"row": row, "nanojansky": images[row, y, x]},
            "spots_mask": bright.astype(np.uint8),
        }


def install(folder: Path) -> None:
    """Make `folder` one that, on the path, brings the product."""
    metadata = folder / "spots-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: spots\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[surveyproc.products]\nspots = spots:Spots\n")


if __name__ == "__main__":
    from surveyproc.cli.app import main

    cpus, gpus = int(sys.argv[1]), int(sys.argv[2])
    if cpus:
        import ray

        ray.init(num_cpus=cpus, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    sys.argv = ["surveyproc", *sys.argv[3:]]
    main()
