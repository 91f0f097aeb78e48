"""A product of one's own: peaks of light in every cutout, and the pixels that they belong to.

Writes a number of peaks an object, a table with a row a peak, and a mask an object.
"""

import numpy as np
from scipy import ndimage

from surveyproc.config.sections import ProductSection
from surveyproc.errors import ConfigError
from surveyproc.products.base import Inputs, PixelArray, RowTable
from surveyproc.schemas import Column, flag
from surveyproc.store.storage import fingerprint


class PeaksSection(ProductSection):
    """Its keys in survey.toml, beside name and kind."""

    band: str
    size: int = 24
    threshold: float = 5.0  # in units of the cutout's scatter


class Peaks:
    """Local maxima above a threshold."""

    Section = PeaksSection
    reads = "cutouts of one band"
    writes = "peaks_n, the table peaks, the mask peaks_mask"

    def __init__(self, name, band, size, threshold):
        self.name, self.threshold = name, threshold
        self.inputs = Inputs(bands=(band,), cutout=size)
        self.columns = (
            Column("peaks_n", "int32", description="Peaks in the cutout."),
            Column(f"{name}_flag", "int32", description="Flags of the peaks."),
        )
        place = {"dtype": "float32", "unit": "pix"}
        self.tables = (
            RowTable(
                "peaks",
                (
                    Column("x", **place, description="From the object along x."),
                    Column("y", **place, description="From the object along y."),
                    Column("flux", "float32", "nJy", description="Of the brightest pixel."),
                ),
            ),
        )
        self.pixels = (
            PixelArray("peaks_mask", (size, size), "uint8", "", "1 above the threshold"),
        )
        self.version = fingerprint([1, name, band, size, threshold])

    @classmethod
    def build(cls, section, survey):
        """The product of a section of survey.toml."""
        bands = survey.config.images.bands
        if section.band not in bands:
            raise ConfigError(f"products.{section.name}.band: there are {', '.join(bands)}")
        return cls(section.name, section.band, section.size, section.threshold)

    def prepare(self):
        """Nothing to load."""

    def compute(self, batch):
        """All that it writes of a batch of objects."""
        image = batch.images[:, 0]
        seen = np.isfinite(image)
        empty = ~seen.any(axis=(1, 2))
        pixels = np.where(seen, image, 0.0)
        scatter = 1.4826 * np.median(np.abs(pixels), axis=(1, 2), keepdims=True)
        mask = seen & (pixels > self.threshold * scatter)
        highest = ndimage.maximum_filter(pixels, size=(1, 3, 3)) == pixels
        row, y, x = np.nonzero(mask & highest)
        middle = image.shape[-1] // 2
        flags = batch.flags | np.where(empty, flag("no_image"), 0).astype(np.int32)
        return {
            "peaks_n": np.bincount(row, minlength=len(image)).astype(np.int32),
            f"{self.name}_flag": flags,
            "peaks": {
                "row": row,
                "x": (x - middle).astype(np.float32),
                "y": (y - middle).astype(np.float32),
                "flux": pixels[row, y, x].astype(np.float32),
            },
            "peaks_mask": mask.astype(np.uint8),
        }
