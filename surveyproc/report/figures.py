"""Figures of the report: arrays in, PNG bytes out."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from surveyproc.report.summary import MAG_EDGES, Summary

INK, ACCENT, SOFT = "#1b2a41", "#2f6f9f", "#9ab8cf"
plt.rcParams.update(
    {
        "font.size": 10,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)


def sky_map(summary: Summary) -> bytes:
    """Objects a cell beside the share of flagged objects, east to the left."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2))
    half = summary.half_width
    extent = (-half, half, -half, half)
    counts = np.where(summary.sky > 0, summary.sky, np.nan)
    share = np.where(
        summary.sky > 0, 100 * summary.sky_flagged / np.maximum(summary.sky, 1), np.nan
    )
    for axis, values, label, colours, top in (
        (axes[0], counts, "objects a cell", "viridis", None),
        (axes[1], share, "flagged objects, %", "magma", 100.0),
    ):
        image = axis.imshow(
            values, origin="lower", extent=extent, cmap=colours, vmin=0, vmax=top, aspect="equal"
        )
        axis.invert_xaxis()
        axis.set_xlabel(f"east of RA {summary.centre[0]:.4f}, deg")
        axis.set_ylabel(f"north of Dec {summary.centre[1]:.4f}, deg")
        figure.colorbar(image, ax=axis, label=label, shrink=0.85)
    return _png(figure)


def redshift_histogram(summary: Summary) -> bytes:
    """N(z) of the release, one for each column of redshifts."""
    figure, axis = plt.subplots(figsize=(4.7, 3.4))
    names = list(summary.redshifts)
    axis.stairs(summary.redshifts[names[0]], summary.z_edges, fill=True, color=SOFT)
    for name, colour in zip(names, _colours(len(names)), strict=True):
        axis.stairs(summary.redshifts[name], summary.z_edges, color=colour, label=name)
    axis.legend(frameon=False, fontsize=8)
    axis.set_xlabel("photometric redshift")
    axis.set_ylabel("objects a bin")
    return _png(figure)


def magnitude_histogram(summary: Summary) -> bytes:
    """Number counts in every band."""
    figure, axis = plt.subplots(figsize=(4.7, 3.4))
    spectrum = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, max(len(summary.magnitudes), 1)))
    for (band, counts), colour in zip(summary.magnitudes.items(), spectrum, strict=True):
        axis.stairs(counts, MAG_EDGES, color=colour, label=band)
    axis.set_xlabel("magnitude, AB")
    axis.set_ylabel("objects a bin")
    axis.legend(ncols=3, frameon=False, fontsize=8)
    return _png(figure)


def redshift_against_truth(
    predicted: NDArray[np.float64], known: NDArray[np.float64], outlier: float = 0.15
) -> bytes:
    """Predicted against known redshift with the outlier limits |dz| = `outlier`."""
    figure, axis = plt.subplots(figsize=(4.7, 4.2))
    top = float(np.nanpercentile(np.concatenate([predicted, known]), 99.8)) * 1.05
    hexes = axis.hexbin(
        known, predicted, gridsize=60, extent=(0, top, 0, top), mincnt=1, cmap="viridis",
        norm=LogNorm(),
    )  # fmt: skip
    line = np.array([0.0, top])
    axis.plot(line, line, color=INK, lw=1)
    for sign in (-1, 1):
        axis.plot(line, line + sign * outlier * (1 + line), color=INK, lw=0.8, ls="--")
    axis.set_xlim(0, top)
    axis.set_ylim(0, top)
    axis.set_xlabel("known redshift")
    axis.set_ylabel("photometric redshift")
    figure.colorbar(hexes, ax=axis, label="objects", shrink=0.85)
    return _png(figure)


def _colours(n: int) -> list[Any]:
    """The accent, then colours that are told from it."""
    return [ACCENT, *plt.get_cmap("Dark2")(np.arange(1, max(n, 1)))][:n]


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()
