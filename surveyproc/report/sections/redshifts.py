"""Photometric redshifts: N(z)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.report import figures
from surveyproc.report.sections.base import Pass, Section, Shown

BINS = 80


class Redshifts(Section):
    """Objects a bin of redshift, of every model."""

    template = "redshifts.html"

    def __init__(self, shown: Shown) -> None:
        self.counts = {name: np.zeros(BINS) for name in schemas.redshift_columns(shown.columns)}
        self.highest = 0.0

    def gather(self) -> Iterator[Pass]:
        """How far the redshifts go, then their histograms."""
        yield list(self.counts), self._reach
        self.edges = np.linspace(0.0, max(self.highest, 0.1), BINS + 1)
        yield list(self.counts), self._count

    def values(self) -> dict[str, Any]:
        """`redshifts`: the figure."""
        return {"redshifts": draw(self.counts, self.edges)}

    def _reach(self, table: pa.Table) -> None:
        for name in self.counts:
            top = float(np.nanmax(figures.floats(table[name]), initial=0.0))
            self.highest = max(self.highest, top)

    def _count(self, table: pa.Table) -> None:
        for name, counts in self.counts.items():
            counts += np.histogram(figures.floats(table[name]), self.edges)[0]


def draw(counts: Mapping[str, NDArray[np.float64]], edges: NDArray[np.float64]) -> bytes:
    """N(z) of every column of redshifts, the first one filled; a PNG."""
    figure, axis = plt.subplots(figsize=(4.7, 3.4))
    names = list(counts)
    axis.stairs(counts[names[0]], edges, fill=True, color=figures.SOFT)
    for name, colour in zip(names, figures.colours(len(names)), strict=True):
        axis.stairs(counts[name], edges, color=colour, label=name)
    axis.legend(frameon=False, fontsize=8)
    axis.set_xlabel("photometric redshift")
    axis.set_ylabel("objects a bin")
    return figures.png(figure)
