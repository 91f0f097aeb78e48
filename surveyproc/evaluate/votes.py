"""Metrics of predicted shares of votes. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from surveyproc.errors import InputError

BINS = 10
"""Equal bins of the predicted share, 0 to 1, in which calibration is measured."""

HALF = 0.5
"""Share of the votes from which on an answer is taken for true."""


def roc_area(score: ArrayLike, true: ArrayLike) -> float:
    """Area under the receiver operating characteristic: P(score of a true one > of a false one).

    Ties count half (Mann & Whitney 1947, Ann. Math. Stat. 18, 50).

    Parameters
    ----------
    score : array_like of float, shape (n,)
        Higher = rather true; those that are not finite do not count.
    true : array_like of bool, shape (n,)
        What is so.

    Returns
    -------
    float
        NaN if all are true, or all false.

    Examples
    --------
    >>> roc_area([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    value, label = np.asarray(score, np.float64), np.asarray(true, bool)
    known = np.isfinite(value)
    label = label[known]
    positive, negative = int(label.sum()), int((~label).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(value[known])
    return float((ranks[label].sum() - positive * (positive + 1) / 2) / (positive * negative))


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
        29, 2901, for shares); `roc_area` by answer, taking the answers that have at least half of
        the votes for true (ours). NaN where there is nothing to count.

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
        "calibration_error": calibration_error(p[known], f[known]),
        "rmse": dict(zip(names, rmse.tolist(), strict=True)),
        "roc_area": {
            name: roc_area(p[known[:, k], k], f[known[:, k], k] >= HALF)
            for k, name in enumerate(names)
        },
    }


def calibration_error(p: NDArray[np.float64], f: NDArray[np.float64]) -> float:
    """As in `vote_metrics`, of pairs of known shares or probabilities and truths, shape (n,)."""
    if not len(p):
        return float("nan")
    place = np.clip((p * BINS).astype(np.int64), 0, BINS - 1)
    gaps = np.bincount(place, p - f, BINS)
    return float(np.abs(gaps).sum() / len(p))
