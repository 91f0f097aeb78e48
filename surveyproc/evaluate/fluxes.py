"""Metrics of fluxes with errors. Arrays in, numbers out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from surveyproc.errors import InputError
from surveyproc.evaluate.redshift import NORMAL_MAD


def flux_metrics(flux: ArrayLike, error: ArrayLike, true: ArrayLike) -> dict[str, float]:
    """What fluxes and their errors are worth on objects of known flux.

    With r = (flux - true) / true and pulls t = (flux - true) / error:

    - median bias: median(r); NMAD: 1.4826 median(|r - median(r)|), both over true > 0;
    - pull scatter: 1.4826 median(|t - median(t)|), 1 if the errors are right.

    Parameters
    ----------
    flux, error, true : array_like of float, shape (n,)
        In one unit; objects whose true flux is NaN do not count.

    Returns
    -------
    dict
        `n` objects with a flux and an error, `n_missing` without; `median_bias`, `nmad`,
        `pull_scatter`; NaN where there is nothing to count.

    Raises
    ------
    InputError
        If the shapes differ.

    Examples
    --------
    >>> found = flux_metrics([1.1, 2.0, 2.7], [0.1, 0.1, 0.1], [1.0, 2.0, 3.0])
    >>> round(found["nmad"], 5), round(found["pull_scatter"], 4)
    (0.14826, 1.4826)
    """
    f, s, t = (np.asarray(values, np.float64) for values in (flux, error, true))
    if not f.shape == s.shape == t.shape:
        raise InputError(f"fluxes, errors, true fluxes: shapes {f.shape}, {s.shape}, {t.shape}")
    wanted = np.isfinite(t)
    known = wanted & np.isfinite(f) & np.isfinite(s) & (s > 0)
    f, s, t = f[known], s[known], t[known]
    bright = t > 0
    relative = (f[bright] - t[bright]) / t[bright]
    return {
        "n": len(f),
        "n_missing": int((wanted & ~known).sum()),
        "median_bias": float(np.median(relative)) if relative.size else float("nan"),
        "nmad": _scatter(relative),
        "pull_scatter": _scatter((f - t) / s),
    }


def _scatter(values: np.ndarray) -> float:
    if not values.size:
        return float("nan")
    return float(NORMAL_MAD * np.median(np.abs(values - np.median(values))))
