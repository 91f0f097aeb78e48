"""Scores of redshift PDFs, the same for every method: CDFs on a grid, linear between its points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def crps(cdf: NDArray, grid: NDArray, z: NDArray) -> NDArray:
    """Continuous ranked probability score, the integral of (CDF - step at z)^2; shape (n,)."""
    low, high, width = cdf[:, :-1].astype(float), cdf[:, 1:].astype(float), np.diff(grid)
    rows = np.arange(len(z))
    cell = np.clip(np.searchsorted(grid, z, side="right") - 1, 0, len(width) - 1)
    share = np.clip((z - grid[cell]) / width[cell], 0, 1)
    at_z = low[rows, cell] + share * (high[rows, cell] - low[rows, cell])
    below = _squares(low, high) * width
    above = _squares(low - 1, high - 1) * width
    whole = np.arange(len(width))
    score = (below * (whole < cell[:, None]) + above * (whole > cell[:, None])).sum(axis=1)
    score += _squares(low[rows, cell], at_z) * share * width[cell]
    return score + _squares(at_z - 1, high[rows, cell] - 1) * (1 - share) * width[cell]


def _squares(a: NDArray, b: NDArray) -> NDArray:
    """Mean square of a line from a to b."""
    return (a * a + a * b + b * b) / 3


def points(cdf: NDArray, grid: NDArray) -> dict[str, NDArray]:
    """Median, mean and mode of PDFs; the mode over five cells, or the steps of a CDF rule it."""
    rows = np.arange(len(cdf))
    right = np.clip((cdf < 0.5).sum(axis=1), 1, len(grid) - 1)
    low, high = (cdf[rows, k].astype(float) for k in (right - 1, right))
    share = np.clip((0.5 - low) / np.maximum(high - low, 1e-12), 0, 1)
    mass = np.diff(cdf.astype(float), axis=1)
    middle = (grid[1:] + grid[:-1]) / 2
    return {
        "median": grid[right - 1] + share * (grid[right] - grid[right - 1]),
        "mean": (mass * middle).sum(axis=1) / np.maximum(mass.sum(axis=1), 1e-9),
        "mode": grid[2:-2][np.argmax(cdf[:, 4:] - cdf[:, :-4], axis=1)],
    }
