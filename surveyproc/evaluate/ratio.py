"""Ratios of the fluxes of the same objects in two tables, as histograms that can be added up.

Only bright objects count: those with a signal-to-noise ratio of BRIGHT in one of the tables. What
the histogram of a tile says of its median ratio is distribution-free: by the sign test, the true
median lies below (above) the bounds with a probability of CHANCE at most, whatever the errors are
and whether they are known or not. Two releases of the same sky, with independent Gaussian errors
that are no larger than BRIGHT allows, have bounds beyond a ratio of 1.03, or 1 / 1.03, with a
probability below 1e-6, for any number of objects. Under LEAST objects there are no bounds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BRIGHT = 20.0
CHANCE = 1e-4
LEAST = 14
"""Objects of which one half, all on one side, are less likely than CHANCE: 2^-14."""
# Bins of asinh(ln ratio / SOFT): 0.1 % wide at a ratio of 1, 0.3 % at 1.05, 5 % far from it.
SOFT, STEP, HALF = 0.02, 0.05, 120

Float = NDArray[np.float64]
Counts = NDArray[np.int64]


def log_ratios(old: Float, old_err: Float, new: Float, new_err: Float) -> Float:
    """Logarithm of new over old, shape (n,); NaN for objects that are not bright.

    What is bright in one table and not positive in the other has an infinite one.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        bright = np.maximum(old / old_err, new / new_err) >= BRIGHT
        ratios = np.log(np.maximum(new, 0)) - np.log(np.maximum(old, 0))
    return np.where(bright, ratios, np.nan)


def counted(ratios: Float) -> Counts:
    """Histogram of logarithms of ratios, shape (2 HALF + 1,); NaN are left out."""
    number = np.rint(np.arcsinh(ratios[~np.isnan(ratios)] / SOFT) / STEP)
    places = np.clip(number, -HALF, HALF).astype(np.int64) + HALF
    return np.bincount(places, minlength=2 * HALF + 1)


def median(counts: Counts) -> float:
    """The median ratio, interpolated in its bin; NaN of none."""
    total = int(counts.sum())
    if not total:
        return float("nan")
    above = np.cumsum(counts)
    place = int(np.searchsorted(above, total / 2))
    share = (total / 2 - (above[place] - counts[place])) / counts[place]
    return _ratio(place - 0.5 + share)


def bounds(counts: Counts) -> tuple[float, float] | None:
    """Between which ratios the true median lies; None if there are fewer than LEAST objects.

    Each of them is wrong with a probability of CHANCE at most.
    """
    total = int(counts.sum())
    if total < LEAST:
        return None
    from scipy.stats import binom

    # Of n objects fewer than `rank` lie below their true median with a probability under CHANCE.
    rank = int(binom.ppf(CHANCE, total, 0.5))
    above = np.cumsum(counts)
    low = int(np.searchsorted(above, rank))
    high = int(np.searchsorted(above, total - rank + 1))
    return _ratio(low - 0.5), _ratio(high + 0.5)


def _ratio(place: float) -> float:
    """The ratio at a place among the bins, whose middles are whole numbers."""
    return float(np.exp(SOFT * np.sinh((place - HALF) * STEP)))
