"""Metrics of predicted shares of votes. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc.errors import InputError
from surveyproc.evaluate.roc import area

BINS = 10
"""Equal bins of the predicted share, 0 to 1, in which calibration is measured."""

HALF = 0.5
"""Share of the votes from which on an answer is taken for true."""


def roc_area(score: ArrayLike, true: ArrayLike) -> float:
    """`roc.area` of the scores that there are, NaN where it is not defined.

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
    value, label = value[known], label[known]
    return area(value, label) if label.any() and not label.all() else float("nan")


def roc_table(
    predicted: Mapping[str, ArrayLike], true: ArrayLike, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Areas of several models on the same objects, answer by answer.

    Parameters
    ----------
    predicted : mapping of str to array_like of float, shape (n, k)
        Scores by the name of the model: without and with an augmentation, say.
    true : array_like of bool, shape (n, k)
        What is so.
    names : sequence of str, shape (k,)
        The answers.

    Returns
    -------
    list of dict
        One an answer: `name`, `n` true ones, the area of each model by its name, and `difference`
        of the last to the first.

    Raises
    ------
    InputError
        If the shapes do not fit.
    """
    truth = np.asarray(true, bool)
    scores = {model: np.asarray(one, np.float64) for model, one in predicted.items()}
    for model, one in scores.items():
        if one.shape != truth.shape or truth.shape[1:] != (len(names),):
            raise InputError(f"{model}: scores of {len(names)} answers have shape {one.shape}")
    rows = []
    for k, name in enumerate(names):
        areas = {model: roc_area(one[:, k], truth[:, k]) for model, one in scores.items()}
        first, last = next(iter(areas.values())), areas[list(areas)[-1]]
        rows.append(
            {"name": name, "n": int(truth[:, k].sum()), **areas, "difference": last - first}
        )
    return rows


def vote_metrics(
    predicted: ArrayLike,
    true: ArrayLike,
    names: Sequence[str],
    thresholds: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """What predicted shares of votes are worth.

    Parameters
    ----------
    predicted, true : array_like of float, shape (n, k)
        Shares within 0 and 1; pairs of which one is NaN do not count.
    names : sequence of str, shape (k,)
        The answers.
    thresholds : mapping of str to float
        Answer to the predicted share above which an object has the feature.

    Returns
    -------
    dict
        `n` and `n_missing`: objects with a prediction and without one, of those with any known
        share; `rmse`: sqrt(mean((predicted - true)^2)) by answer; `mean_rmse`: their mean, over the
        answers that have one; `calibration_error`: sum over bins of the predicted share of
        |mean(predicted) - mean(true)| times the bin's part of all pairs (Naeini et al. 2015, AAAI
        29, 2901, for shares); `roc_area` by answer, taking the answers that have at least half of
        the votes for true (ours); by answer with a threshold `passing`, the share of the objects
        above it, and `completeness` and `purity` of these. NaN where there is nothing to count.

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
    at_threshold: dict[str, dict[str, float]] = {"passing": {}, "completeness": {}, "purity": {}}
    for k, name in enumerate(names):
        if name in thresholds:
            above, has = p[known[:, k], k] > thresholds[name], f[known[:, k], k] >= HALF
            both = float((above & has).sum())
            for key, part, whole in (
                ("passing", float(above.sum()), len(above)),
                ("completeness", both, int(has.sum())),
                ("purity", both, int(above.sum())),
            ):
                at_threshold[key][name] = part / whole if whole else float("nan")
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
        **(at_threshold if thresholds else {}),
    }


def calibration_error(p: NDArray[np.float64], f: NDArray[np.float64]) -> float:
    """As in `vote_metrics`, of pairs of known shares or probabilities and truths, shape (n,)."""
    if not len(p):
        return float("nan")
    place = np.clip((p * BINS).astype(np.int64), 0, BINS - 1)
    gaps = np.bincount(place, p - f, BINS)
    return float(np.abs(gaps).sum() / len(p))
