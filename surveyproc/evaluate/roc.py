"""How well a probability tells two classes apart, at all thresholds. Arrays in, numbers out.

After de Diego et al. 2021, section 3.1. There the positive class is the early type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from surveyproc.errors import InputError
from surveyproc.evaluate.bootstrap import bootstrap
from surveyproc.evaluate.classes import with_prediction

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Roc:
    """A ROC curve from (0, 0) to (1, 1), float64 arrays of shape (m,).

    Attributes
    ----------
    threshold : ndarray
        Falling; objects at or above it are called positive. Infinite at the first point.
    true_positive, false_positive : ndarray
        Shares of the positive and of the negative objects that are called positive.
    """

    threshold: Float
    true_positive: Float
    false_positive: Float


def roc(score: ArrayLike, positive: ArrayLike) -> Roc:
    """The ROC curve, with a point for every score that occurs.

    Parameters
    ----------
    score : array_like of float, shape (n,)
        The higher, the likelier positive; finite.
    positive : array_like of bool, shape (n,)
        Which objects are positive.

    Raises
    ------
    InputError
        If the shapes differ, a score is not finite, or a class has no object.
    """
    s, yes = _checked(score, positive)
    order = np.argsort(-s, kind="stable")
    s, yes = s[order], yes[order]
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)
    hits = np.cumsum(yes)[last]
    false = last + 1 - hits
    return Roc(
        np.append(np.inf, s[last]),
        np.append(0.0, hits / yes.sum()),
        np.append(0.0, false / (~yes).sum()),
    )


def area(score: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: the share of pairs that are in the right order, ties a half.

    The statistic of Mann & Whitney (Hanley & McNeil 1982); raises as `roc`.

    Examples
    --------
    >>> area([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875
    """
    s, yes = _checked(score, positive)
    n = int(yes.sum())
    ranks = rankdata(s)[yes].sum()
    return float((ranks - n * (n + 1) / 2) / (n * (len(s) - n)))


def mean_area(probabilities: ArrayLike, index: ArrayLike) -> float:
    """Mean over the classes of the area of each against the rest.

    Of two classes that is the area of either.

    Parameters
    ----------
    probabilities : array_like of float, shape (n, k)
        Rows with a value that is not finite are left out.
    index : array_like of int, shape (n,)
        The true classes.

    Returns
    -------
    float
        NaN if a class has no object, or all.
    """
    p, true = with_prediction(probabilities, index)
    counts = np.bincount(true, minlength=p.shape[1])
    if not counts.all() or (counts > 0).sum() < 2:
        return float("nan")
    return float(np.mean([area(p[:, c], true == c) for c in range(p.shape[1])]))


def youden(curve: Roc) -> tuple[float, float]:
    """Youden's J, the largest true positive share + true negative share - 1, and its threshold.

    Of several thresholds with that J the highest (Youden 1950).
    """
    gain = curve.true_positive - curve.false_positive
    # Equal ones may differ by a rounding.
    best = int((gain > gain.max() - 1e-12).argmax())
    return float(gain[best]), float(curve.threshold[best])


def contingency(
    score: ArrayLike,
    positive: ArrayLike,
    threshold: float,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The table of Tables 3 and 5 of the paper at a threshold, and the rates of its Table 6.

    Parameters
    ----------
    score : array_like of float, shape (n,)
        As in `roc`.
    positive : array_like of bool, shape (n,)
        Which objects are positive.
    threshold : float
        Objects at or above it are called positive.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        `table`: rows called positive and called negative, columns truly so; `accuracy`,
        `true_positive`, `true_negative`, each a mapping of `value`, `binomial` (its standard error
        sqrt(q (1 - q) / N)) and `bootstrap` (the scatter of resamples of the objects).
    """
    s, yes = _checked(score, positive)
    called = s >= threshold
    table = [
        [int((called & yes).sum()), int((called & ~yes).sum())],
        [int((~called & yes).sum()), int((~called & ~yes).sum())],
    ]

    def rates(right: Float, kind: Float) -> Float:
        among_yes, among_no = kind.sum(axis=1), (1 - kind).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack(
                [
                    right.mean(axis=1),
                    (right * kind).sum(axis=1) / among_yes,
                    (right * (1 - kind)).sum(axis=1) / among_no,
                ]
            )

    right = (called == yes).astype(np.float64)
    kind = yes.astype(np.float64)
    values = rates(right[None], kind[None])[:, 0]
    scatter = np.nanstd(bootstrap(rates, (right, kind), resamples, seed), axis=1)
    numbers = (len(s), int(yes.sum()), int((~yes).sum()))
    found: dict[str, Any] = {"table": table}
    for name, value, n, spread in zip(
        ("accuracy", "true_positive", "true_negative"), values, numbers, scatter, strict=True
    ):
        binomial = float(np.sqrt(value * (1 - value) / n))
        found[name] = {"value": float(value), "binomial": binomial, "bootstrap": float(spread)}
    return found


def accuracy_at(true_positive: ArrayLike, true_negative: ArrayLike, prevalence: ArrayLike) -> Float:
    """Accuracy where the classes are mixed otherwise: the rates of a classifier do not change.

    A = (R_pos + r R_neg) / (r + 1), r negative objects for each positive one (the equation of
    section 3.1).

    Parameters
    ----------
    true_positive, true_negative : array_like
        Shares of either class that are called so.
    prevalence : array_like
        Positive objects among all, 0 to 1: 1 / (r + 1).
    """
    share = np.asarray(prevalence, np.float64)
    found: Float = share * np.asarray(true_positive) + (1 - share) * np.asarray(true_negative)
    return found


def iso_accuracy(accuracy: float, prevalence: float, true_negative: ArrayLike) -> Float:
    """True positive share of the classifiers of one accuracy: a line in the ROC plane.

    Parameters
    ----------
    accuracy : float
        Of all points of the line.
    prevalence : float
        Positive objects among all, above 0.
    true_negative : array_like
        Where; NaN is returned where no share from 0 to 1 has the accuracy.
    """
    line = (accuracy - (1 - prevalence) * np.asarray(true_negative, np.float64)) / prevalence
    # Rounding must not cut the ends off.
    slack = 1e-12
    return np.where((line >= -slack) & (line <= 1 + slack), np.clip(line, 0, 1), np.nan)


def _checked(score: ArrayLike, positive: ArrayLike) -> tuple[Float, NDArray[np.bool_]]:
    s, yes = np.asarray(score, np.float64), np.asarray(positive, bool)
    if s.shape != yes.shape or s.ndim != 1:
        raise InputError(f"scores and classes have shapes {s.shape} and {yes.shape}")
    if not np.isfinite(s).all():
        raise InputError(f"{int((~np.isfinite(s)).sum())} scores are not finite: leave them out")
    if yes.all() or not yes.any():
        raise InputError(f"of {len(yes)} objects {int(yes.sum())} are positive: both are needed")
    return s, yes
