"""Metrics of predicted shares of votes. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc.errors import InputError

BINS = 10
"""Equal bins of the predicted share, 0 to 1, in which calibration is measured."""


def vote_metrics(predicted: ArrayLike, true: ArrayLike, names: Sequence[str]) -> dict[str, Any]:
    """What predicted shares of votes are worth.

    Parameters
    ----------
    predicted, true : array_like of float, shape (n, k)
        Shares within 0 and 1; pairs of which one is NaN do not count.
    names : sequence of str, shape (k,)
        The answers.

    Returns
    -------
    dict
        `n` and `n_missing`: objects with a prediction and without one, of those with any known
        share; `rmse`: sqrt(mean((predicted - true)^2)) by answer; `mean_rmse`: their mean, over the
        answers that have one; `calibration_error`: sum over bins of the predicted share of
        |mean(predicted) - mean(true)| times the bin's part of all pairs (Naeini et al. 2015, AAAI
        29, 2901, for shares). NaN where there is nothing to count.

    Raises
    ------
    InputError
        If the shapes do not fit.
    """
    p, f = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if p.shape != f.shape or p.shape[1:] != (len(names),):
        raise InputError(f"shares of {len(names)} answers: shapes {p.shape} and {f.shape}")
    wanted = np.isfinite(f)
    known = wanted & np.isfinite(p)
    squares = np.where(known, np.nan_to_num(p) - np.nan_to_num(f), 0.0) ** 2
    counts = known.sum(axis=0)
    with np.errstate(invalid="ignore"):
        rmse = np.sqrt(squares.sum(axis=0) / counts)
    rows = wanted.any(axis=1)
    seen = known.any(axis=1)
    return {
        "n": int((rows & seen).sum()),
        "n_missing": int((rows & ~seen).sum()),
        "mean_rmse": float(rmse[counts > 0].mean()) if counts.any() else float("nan"),
        "calibration_error": _calibration_error(p[known], f[known]),
        "rmse": dict(zip(names, rmse.tolist(), strict=True)),
    }


def _calibration_error(p: NDArray[np.float64], f: NDArray[np.float64]) -> float:
    if not len(p):
        return float("nan")
    place = np.clip((p * BINS).astype(np.int64), 0, BINS - 1)
    gaps = np.bincount(place, p - f, BINS)
    return float(np.abs(gaps).sum() / len(p))
