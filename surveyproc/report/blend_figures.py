"""Figures of the photometry of blends, after figures 5 to 11 of Boucaud et al. 2019; all PNGs.

Fluxes have shape (n, k): n blends of k galaxies, the central one first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from surveyproc.evaluate.blends import binned_blends, blend_metrics, galaxy_names
from surveyproc.report import figures
from surveyproc.schemas import AB_ZEROPOINT_NJY

Float = NDArray[np.float64]
Found = Mapping[str, Float]
"""Fluxes by the name of the method."""
BINS = 6


def draw_magnitudes(true: Float, found: Found, chosen: Mapping[str, NDArray[np.bool_]]) -> bytes:
    """Magnitudes in the blend against those of the galaxies alone; a row of panels a choice.

    Parameters
    ----------
    true, found :
        nJy.
    chosen : mapping of str to bool ndarray, shape (n, k)
        Galaxies of each row of panels, by what it is called.
    """
    figure, axes = _panels(len(chosen), len(found))
    for line, (label, rows) in zip(axes, chosen.items(), strict=True):
        for axis, (method, flux) in zip(line, found.items(), strict=True):
            known = rows & np.isfinite(true) & (flux > 0)
            one, other = _magnitude(true[known]), _magnitude(flux[known])
            axis.plot(one, other, ".", ms=3, color=figures.ACCENT)
            ends = [one.min(), one.max()] if known.any() else [19, 24]
            axis.plot(ends, ends, color=figures.INK, lw=0.8, ls="--")
            told = blend_metrics(np.where(rows, flux, np.nan)[rows], true[rows])
            axis.set_title(
                f"{method}, {label}: {told['mean']:+.3f} ± {told['std']:.3f} mag,\n"
                f"{100 * told['outliers']:.1f} % outliers, MAPE of flux {told['mape_flux']:.1f} %",
                fontsize=8,
            )
            axis.set_xlabel("magnitude alone")
            axis.set_ylabel("magnitude in the blend")
    return figures.png(figure)


def draw_binned(true: Float, found: Found, by: Float, label: str) -> bytes:
    """Median (solid) and scatter (dotted) of dm in bins of a quantity; a panel a galaxy."""
    names = galaxy_names(true.shape[1])
    figure, axes = _panels(1, len(names))
    edges = _edges(by)
    for k, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        for (method, flux), colour in zip(found.items(), figures.colours(len(found)), strict=True):
            _lines(axis, flux[:, k], true[:, k], by[:, k], edges, method, colour)
        axis.set_title(name, fontsize=9)
        _name_axes(axis, label)
    return figures.png(figure)


def draw_by_kind(true: Float, found: Found, by: Float, kind: NDArray[Any], label: str) -> bytes:
    """As `draw_binned`, of both galaxies together: a panel a method, a colour a type."""
    figure, axes = _panels(1, len(found))
    edges = _edges(by)
    kinds = [one for one in np.unique(kind) if one]
    for axis, (method, flux) in zip(axes[0], found.items(), strict=True):
        for name, colour in zip(kinds, figures.colours(len(kinds)), strict=True):
            rows = kind == name
            _lines(axis, flux[rows], true[rows], by[rows], edges, str(name), colour)
        axis.set_title(method, fontsize=9)
        _name_axes(axis, label)
    return figures.png(figure)


def draw_masks(
    images: NDArray[np.float32], true: NDArray[Any], found: Float, overlaps: Float
) -> bytes:
    """Blends, shape (n, y, x), true masks and those found, (n, k, y, x), with their IoU."""
    galaxies = true.shape[1]
    figure, axes = _panels(len(images), 1 + 2 * galaxies, 1.6)
    for row, line in enumerate(axes):
        level = np.nanstd(images[row])
        line[0].imshow(np.arcsinh(images[row] / (level or 1.0)), cmap="gray", origin="lower")
        for k, name in enumerate(galaxy_names(galaxies)):
            line[1 + k].imshow(true[row, k] > 0.5, cmap="gray", origin="lower")
            line[1 + galaxies + k].imshow(found[row, k] >= 0.5, cmap="gray", origin="lower")
            line[1 + k].set_title(f"true {name}", fontsize=7)
            line[1 + galaxies + k].set_title(f"{name}, IoU {overlaps[row, k]:.2f}", fontsize=7)
        for axis in line:
            axis.set_axis_off()
    return figures.png(figure)


def draw_overlaps(overlaps: Float) -> bytes:
    """Histogram of the IoU of each galaxy's mask, shape (n, k)."""
    figure, axes = _panels(1, 1)
    axis = axes[0, 0]
    names = galaxy_names(overlaps.shape[1])
    for k, (name, colour) in enumerate(zip(names, figures.colours(len(names)), strict=True)):
        known = overlaps[:, k][np.isfinite(overlaps[:, k])]
        axis.hist(known, np.linspace(0, 1, 26), histtype="step", color=colour, label=name)
    axis.set_xlabel("IoU of the mask")
    axis.set_ylabel("blends")
    axis.legend(frameon=False, fontsize=8)
    return figures.png(figure)


def draw_completeness(found: Mapping[str, Any], unit: str = "") -> bytes:
    """What `evaluate.blends.found_blends` gives: the share of blends found against the loss.

    Of all blends, and of those of each bin of the separation, whose unit is named, if there are
    some.
    """
    figure, axes = _panels(1, 1)
    axis = axes[0, 0]
    parts = [row for row in found.get("by_separation", []) if row["n"]]
    rejected = found["rejected"]
    every, *others = figures.colours(1 + len(parts))
    axis.plot(rejected, found["completeness"], "o-", color=every, label="all")
    for row, colour in zip(parts, others, strict=True):
        label = f"{row['low']:.2g} to {row['high']:.2g} {unit} ({row['n']})"
        axis.plot(rejected, row["completeness"], ":", color=colour, label=label)
    axis.set_xscale("log")
    axis.set_ylim(0, 1)
    axis.set_xlabel("share of other objects rejected")
    axis.set_ylabel("share of blends found")
    axis.legend(frameon=False, fontsize=7)
    return figures.png(figure)


def _panels(rows: int, columns: int, side: float = 3.2) -> tuple[Any, Any]:
    return plt.subplots(rows, columns, figsize=(side * columns, side * rows), squeeze=False)


def _magnitude(flux: Float) -> Float:
    return np.asarray(AB_ZEROPOINT_NJY - 2.5 * np.log10(flux))


def _edges(by: Float) -> list[float]:
    known = by[np.isfinite(by)]
    if not known.size or known.min() == known.max():
        return [0.0, 1.0]
    return [float(one) for one in np.linspace(known.min(), known.max(), BINS + 1)]


def _lines(
    axis: Any, flux: Float, true: Float, by: Float, edges: Sequence[float], label: str, colour: Any
) -> None:
    rows = binned_blends(flux, true, by, edges)
    middle = [(row["low"] + row["high"]) / 2 for row in rows]
    axis.plot(middle, [row["median"] for row in rows], "o-", ms=3, color=colour, label=label)
    axis.plot(middle, [row["std"] for row in rows], ":", color=colour)


def _name_axes(axis: Any, label: str) -> None:
    axis.axhline(0.0, color=figures.INK, lw=0.6)
    axis.set_xlabel(label)
    axis.set_ylabel("median, and scatter (dotted), mag")
    axis.legend(frameon=False, fontsize=7)
