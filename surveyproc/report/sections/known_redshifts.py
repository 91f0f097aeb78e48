"""Photometric redshifts against known ones: those of the [truth] table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.catalogs.labels import Matches, read_labels
from surveyproc.evaluate.redshift import OUTLIER_THRESHOLD, redshift_metrics
from surveyproc.report import figures
from surveyproc.report.sections.base import Pass, Section, Shown


class KnownRedshifts(Section):
    """Every model that has a redshift of some of the objects with a known one."""

    template = "known_redshifts.html"

    def __init__(self, shown: Shown) -> None:
        config = shown.config
        assert config.truth is not None
        self.columns = schemas.redshift_columns(shown.columns)
        self.matches = Matches(read_labels(config.truth, config), self.columns)

    def gather(self) -> Iterator[Pass]:
        """One pass; kept are the objects that match a label."""
        yield self.matches.reads, self.matches.add

    def values(self) -> dict[str, Any]:
        """`n` known redshifts; `models`: `name` of the column, `figure`, `metrics`."""
        predicted, targets = self.matches.found()
        known = targets["redshift"]
        models = []
        for name in self.columns:
            good = np.isfinite(predicted[name])
            if good.any():
                figure = draw(predicted[name][good], known[good])
                metrics = redshift_metrics(predicted[name], known)
                models.append({"name": name, "figure": figure, "metrics": metrics})
        return {"n": len(known), "threshold": OUTLIER_THRESHOLD, "models": models}


def draw(predicted: NDArray[np.float64], known: NDArray[np.float64]) -> bytes:
    """Predicted against known redshift, shape (n,), with the limits of outliers; a PNG."""
    figure, axis = plt.subplots(figsize=(4.7, 4.2))
    top = float(np.nanpercentile(np.concatenate([predicted, known]), 99.8)) * 1.05
    hexes = axis.hexbin(
        known, predicted, gridsize=60, extent=(0, top, 0, top), mincnt=1, cmap="viridis",
        norm=LogNorm(),
    )  # fmt: skip
    line = np.array([0.0, top])
    axis.plot(line, line, color=figures.INK, lw=1)
    for sign in (-1, 1):
        limit = line + sign * OUTLIER_THRESHOLD * (1 + line)
        axis.plot(line, limit, color=figures.INK, lw=0.8, ls="--")
    axis.set_xlim(0, top)
    axis.set_ylim(0, top)
    axis.set_xlabel("known redshift")
    axis.set_ylabel("photometric redshift")
    figure.colorbar(hexes, ax=axis, label="objects", shrink=0.85)
    return figures.png(figure)
