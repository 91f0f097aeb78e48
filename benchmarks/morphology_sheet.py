"""The ten galaxies of KiDS+VIKING that networks of Galaxy Zoo 1 are surest of, class by class.

    python benchmarks/morphology_sheet.py DATA WORK [--backbone residual] [--widths W ...]
        [--cutout 48] [--zoom 1.2] [--turning DEGREES]

The networks are those that `morphology.py classes` left in WORK; the picture is WORK/sheet.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from astropy.table import Table
from astropy.visualization import make_lupton_rgb
from morphology import GZ1, network, probabilities, suited
from PIL import Image

import surveyproc
from surveyproc import verbs
from surveyproc.survey import Survey

KIDS = """
[survey]
name = "kids"
root = "{root}"
[images]
tiles = ["{data}/kids_viking_field/tiles/*.fits.fz"]
bands = ["u", "g", "r", "i", "Z", "Y", "J", "H", "Ks"]
zeropoint_range = [0.0, 45.0]
[catalog]
source = "{data}/kids_viking_field/sources.fits"
[[products]]
name = "photometry"
"""
GZ_R50 = 5.0
"""About the half-light radius of a galaxy in a stamp of gz1, pixels."""


def composites(data: Path, work: Path, cutout: int) -> tuple[np.ndarray, Any]:
    """gri composites of the field's galaxies on the scale of the stamps of gz1, and their rows.

    Brighter than r = 21.5, extended (half-light radius of 2.2 pixels or more; stars have 1.7), not
    flagged, and away from the edge. The cutout's side is as many half-light radii as a stamp's.
    """
    (work / "kids.toml").write_text(KIDS.format(root=work / "kids", data=data.absolute()))
    survey = surveyproc.open(work / "kids.toml")
    if not (work / "kids").exists():
        verbs.ingest(Survey(survey.config))
    table = Table.read(data / "kids_viking_field/sources.fits")
    table = table[(table["mag_r"] < 21.5) & (table["r50_r"] > 2.2) & (table["flag"] == 0)]
    batch = survey.cutouts(table["ra"], table["dec"], 128, ["g", "r", "i"])
    whole = np.isfinite(batch.images[:, :, 34:94, 34:94]).all(axis=(1, 2, 3))
    made, table = [], table[whole]
    for planes, r50 in zip(batch.images[whole], table["r50_r"], strict=True):
        # The weights of SDSS, i.e. of the stamps of Galaxy Zoo.
        g, r, i = np.array([7.8, 5.7, 4.9])[:, None, None] / 5.7 * np.nan_to_num(planes)
        core = np.mean([g, r, i], axis=0)[61:68, 61:68].max()
        rgb = make_lupton_rgb(i, r, g, stretch=0.25 * core, Q=8)
        half = cutout / 2 * r50 / GZ_R50
        box = (64.5 - half, 64.5 - half, 64.5 + half, 64.5 + half)
        image = Image.fromarray(rgb).resize((cutout, cutout), Image.Resampling.LANCZOS, box)
        made.append(np.asarray(image, np.float32).transpose(2, 0, 1))
    return np.stack(made), table


def sheet(options: argparse.Namespace) -> None:
    """The ten most confident of each class of gz1, by the mean of the networks that there are."""
    work, cutout = options.work, options.cutout
    images, table = composites(options.data, work, cutout)
    names = sorted(set(GZ1.values()))
    each = []
    told: dict[str, Any] = {"average": True, "cutout": cutout}
    told |= suited(options.zoom, options.turning)
    told |= {"widths": options.widths} if options.widths else {}
    for weights in sorted(work.glob(f"gz1_images-1.0-{options.backbone}-{cutout}-*.pt")):
        made = network(options.backbone, names, **told)
        made.load_state_dict(torch.load(weights, map_location="cpu"))
        each.append(probabilities(made.eval(), images, names))
    p = np.mean(each, axis=0)
    print(len(each), "networks,", len(images), "galaxies; most probable classes:")
    print(dict(zip(names, np.bincount(p.argmax(axis=1), minlength=len(names)), strict=True)))
    axis_ratio = np.asarray(table["b"] / table["a"])
    figure, axes = plt.subplots(len(names), 10, figsize=(15, 5.4))
    for k, name in enumerate(names):
        best = np.argsort(-p[:, k])[:10]
        print(name, "b/a of the ten", np.round(np.sort(axis_ratio[best]), 2))
        for place, row in zip(axes[k], best, strict=True):
            place.imshow(images[row].transpose(1, 2, 0).astype(np.uint8), origin="lower")
            place.set_title(f"{name} {p[row, k]:.2f}\nr = {table['mag_r'][row]:.1f}", fontsize=8)
            place.axis("off")
    figure.tight_layout()
    figure.savefig(work / "sheet.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cutout", type=int, default=48)
    parser.add_argument("--zoom", type=float, default=1.2, help="largest of the training")
    parser.add_argument("--turning", type=float, default=0.0, help="largest of the training")
    parser.add_argument("--backbone", default="residual")
    parser.add_argument("--widths", nargs="+", type=int, help="of our own backbones' blocks")
    options = parser.parse_args()
    options.work = options.work.absolute()
    sheet(options)


if __name__ == "__main__":
    main()
