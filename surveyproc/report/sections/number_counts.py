"""Photometry: number counts in every band."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveyproc.report import figures
from surveyproc.report.sections.base import Pass, Section, Shown
from surveyproc.schemas import AB_ZEROPOINT_NJY

EDGES = np.arange(14.0, 28.01, 0.2)


class NumberCounts(Section):
    """Objects a bin of AB magnitude, of every band of the survey that the release has."""

    template = "number_counts.html"

    def __init__(self, shown: Shown) -> None:
        bands = [band for band in shown.config.bands if f"flux_{band}" in shown.columns]
        self.counts = {band: np.zeros(len(EDGES) - 1) for band in bands}

    def gather(self) -> Iterator[Pass]:
        """One pass over the fluxes."""
        yield [f"flux_{band}" for band in self.counts], self._count

    def values(self) -> dict[str, Any]:
        """`number_counts`: the figure; None if no band is left."""
        return {"number_counts": draw(self.counts) if self.counts else None}

    def _count(self, table: pa.Table) -> None:
        for band, counts in self.counts.items():
            flux = figures.floats(table[f"flux_{band}"])
            magnitude = AB_ZEROPOINT_NJY - 2.5 * np.log10(flux[flux > 0])
            counts += np.histogram(magnitude, EDGES)[0]


def draw(counts: Mapping[str, NDArray[np.float64]]) -> bytes:
    """Number counts of every band, edges `EDGES`; a PNG."""
    figure, axis = plt.subplots(figsize=(4.7, 3.4))
    spectrum = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(counts)))
    for (band, values), colour in zip(counts.items(), spectrum, strict=True):
        axis.stairs(values, EDGES, color=colour, label=band)
    axis.set_xlabel("magnitude, AB")
    axis.set_ylabel("objects a bin")
    axis.legend(ncols=3, frameon=False, fontsize=8)
    return figures.png(figure)
