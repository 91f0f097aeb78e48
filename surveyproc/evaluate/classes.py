"""Metrics of class probabilities. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc.errors import InputError

LEAST = float(np.finfo(np.float32).tiny)
"""Probability that one of zero counts as: -ln of zero would make the mean infinite."""


def with_prediction(
    probabilities: ArrayLike, index: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities, shape (m, k), and classes, (m,), of the objects that have a prediction.

    Parameters
    ----------
    probabilities : array_like of float, shape (n, k)
        A row with a value that is not finite has no prediction.
    index : array_like of int, shape (n,)
        The true classes.

    Raises
    ------
    InputError
        If the shapes do not fit, or there are fewer than two classes.
    """
    p, true = np.asarray(probabilities, np.float64), np.asarray(index, np.int64)
    if p.ndim != 2 or p.shape[1] < 2 or len(p) != len(true):
        raise InputError(f"probabilities of classes of {len(true)} objects have shape {p.shape}")
    known = np.isfinite(p).all(axis=1)
    return p[known], true[known]


def class_metrics(
    probabilities: ArrayLike, index: ArrayLike, classes: Sequence[str]
) -> dict[str, Any]:
    """What class probabilities are worth on objects of known class.

    With p_ic the probability of class c for object i, t_i its class, and the class of highest
    probability the predicted one:

    - accuracy: share of objects whose predicted class is t_i;
    - completeness of c: share of the objects of class c that are predicted to be c (recall);
    - purity of c: share of the objects predicted to be c that are of class c (precision);
    - log loss: mean of -ln p_it;
    - Brier score: mean of sum_c (p_ic - [c = t_i])^2 (Brier 1950, Mon. Weather Rev. 78, 1), from 0
      to 2.

    Parameters
    ----------
    probabilities : array_like of float, shape (n, k)
        Rows sum to one. A row with a value that is not finite has no prediction.
    index : array_like of int, shape (n,)
        The true classes.
    classes : sequence of str, shape (k,)
        Their names.

    Returns
    -------
    dict
        `n` objects with a prediction, `n_missing` without; `accuracy`, `log_loss`, `brier`;
        `completeness` and `purity` by class; `confusion`, k rows (true) of k numbers of objects
        (predicted). NaN where there is nothing to count.

    Raises
    ------
    InputError
        If the shapes do not fit.
    """
    p, true = with_prediction(probabilities, index)
    k, missing = len(classes), len(np.asarray(index)) - len(true)
    if p.shape[1] != k:
        raise InputError(f"probabilities of {p.shape[1]} classes, and {k} names of classes")
    confusion = np.zeros((k, k), np.int64)
    np.add.at(confusion, (true, p.argmax(axis=1)), 1)
    hits = confusion.diagonal().astype(np.float64)
    of_class, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        completeness, purity = hits / of_class, hits / predicted
    n, nothing = len(true), float("nan")
    at_truth = np.maximum(p[np.arange(n), true], LEAST)
    return {
        "n": n,
        "n_missing": missing,
        "accuracy": float(hits.sum() / n) if n else nothing,
        "log_loss": float(-np.log(at_truth).mean()) if n else nothing,
        "brier": float(((p - np.eye(k)[true]) ** 2).sum(axis=1).mean()) if n else nothing,
        "completeness": dict(zip(classes, completeness.tolist(), strict=True)),
        "purity": dict(zip(classes, purity.tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }
