"""Are class probabilities what they say, and how to make them so. Arrays in, arrays out.

Kinds of calibration: Platt's sigmoid (Platt 1999) and isotonic regression (Zadrozny & Elkan 2002).
Neither may be judged on the objects that it was fitted to: see `cross_calibrated`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import log_softmax

from surveyproc.errors import InputError
from surveyproc.evaluate.classes import LEAST, with_prediction

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Calibration = Callable[[Float], Float]
"""Probabilities of shape (n, k) to others of that shape, whose rows sum to one as well."""

BINS = 10
"""Bins of a reliability curve, as Guo et al. 2017 have them (theirs are 15)."""


def reliability(
    probabilities: ArrayLike, true: ArrayLike, bins: int = BINS
) -> dict[str, list[float]]:
    """How often what was given a probability was so, in equal bins of that probability.

    Parameters
    ----------
    probabilities : array_like of float, shape (n,)
        Not finite = no prediction.
    true : array_like of bool, shape (n,)
        Whether it was so.
    bins : int
        Of equal width on 0 to 1; the last one holds 1 too.

    Returns
    -------
    dict
        Of the bins that hold anything: `probability` (mean), `share` (that was so), `n`.
    """
    p, so = np.asarray(probabilities, np.float64), np.asarray(true, np.float64)
    if p.shape != so.shape or p.ndim != 1:
        raise InputError(f"probabilities and truths have shapes {p.shape} and {so.shape}")
    known = np.isfinite(p)
    p, so = p[known], so[known]
    place = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    n, sum_p, sum_so = (np.bincount(place, one, bins) for one in (np.ones_like(p), p, so))
    some = n > 0
    return {
        "probability": (sum_p[some] / n[some]).tolist(),
        "share": (sum_so[some] / n[some]).tolist(),
        "n": n[some].tolist(),
    }


def calibration_error(probabilities: ArrayLike, index: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: the mean |share - probability| of the bins, by their counts.

    Of every class, and the mean over the classes (class-wise; Nixon et al. 2019, arXiv:1904.01685,
    equation 3); of two classes both have the same. NaN without a prediction.

    Parameters
    ----------
    probabilities : array_like of float, shape (n, k)
        Rows sum to one; a row with a value that is not finite has no prediction.
    index : array_like of int, shape (n,)
        The true classes.
    bins : int
        As in `reliability`.
    """
    p, true = with_prediction(probabilities, index)
    if not len(p):
        return float("nan")
    errors = []
    for place in range(p.shape[1]):
        curve = reliability(p[:, place], true == place, bins)
        gap = np.abs(np.subtract(curve["share"], curve["probability"]))
        errors.append(float(np.average(gap, weights=curve["n"])))
    return float(np.mean(errors))


def fit_platt(probabilities: ArrayLike, index: ArrayLike) -> Float:
    """Slope and offsets of Platt's sigmoid, for any number of classes.

    p'_c is the softmax of a ln p_c + b_c with one slope a and offsets b_c, b_0 = 0; with two
    classes that is the sigmoid of a logit(p) + b (Platt 1999), and a is one over the temperature of
    Guo et al. 2017. They minimise the log loss, against Platt's targets: of N_c objects of class c
    each counts as (N_c + 1) / (N_c + 2) of one, so that few objects give no certainty.

    Parameters
    ----------
    probabilities : array_like of float, shape (n, k)
        Rows with a value that is not finite are left out.
    index : array_like of int, shape (n,)
        The true classes.

    Returns
    -------
    float64 ndarray, shape (1 + k,)
        a > 0, then b_0, ..., b_(k-1).

    Raises
    ------
    InputError
        If a class has no object.
    """
    p, true = with_prediction(probabilities, index)
    k = p.shape[1]
    counts = np.bincount(true, minlength=k)
    if not counts.all():
        raise InputError(f"calibration: class {int(counts.argmin())} has no object")
    logs = np.log(np.maximum(p, LEAST))
    sure = ((counts + 1) / (counts + 2))[true]
    targets = np.repeat(((1 - sure) / (k - 1))[:, None], k, axis=1)
    targets[np.arange(len(true)), true] = sure

    def loss(values: Float) -> tuple[float, Float]:
        slope, offsets = np.exp(values[0]), np.concatenate([[0.0], values[1:]])
        logarithms = log_softmax(slope * logs + offsets, axis=1)
        excess = (np.exp(logarithms) - targets) / len(true)
        by_slope = slope * (excess * logs).sum()
        gradient = np.concatenate([[by_slope], excess.sum(axis=0)[1:]])
        return float(-(targets * logarithms).sum(axis=1).mean()), gradient

    # A slope of exp(+-5) is none that a network in use needs; beyond lies separable data.
    bounds = [(-5.0, 5.0), *[(None, None)] * (k - 1)]
    found = minimize(loss, np.zeros(k), jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.concatenate([[np.exp(found[0]), 0.0], found[1:]])


def apply_platt(probabilities: ArrayLike, values: ArrayLike) -> Float:
    """Probabilities of shape (n, k) by what `fit_platt` gave; NaN where they are."""
    p, numbers = np.asarray(probabilities, np.float64), np.asarray(values, np.float64)
    logs = numbers[0] * np.log(np.maximum(p, LEAST)) + numbers[1:]
    found: Float = np.exp(log_softmax(logs, axis=1))
    return found


def platt(probabilities: ArrayLike, index: ArrayLike) -> Calibration:
    """Calibration by `fit_platt`."""
    values = fit_platt(probabilities, index)
    return lambda p: apply_platt(p, values)


def isotonic(probabilities: ArrayLike, index: ArrayLike) -> Calibration:
    """Calibration by the shares that rise with the probability, class by class.

    Each class against the rest, then divided by their sum (Zadrozny & Elkan 2002). Between the
    objects of the fit it is linear; beyond them constant.

    Parameters
    ----------
    probabilities : array_like of float, shape (n, k)
        Rows with a value that is not finite are left out.
    index : array_like of int, shape (n,)
        The true classes.
    """
    p, true = with_prediction(probabilities, index)
    if not len(p):
        raise InputError("calibration: there is no object to fit it to")
    steps = []
    # Of two classes the first is what is left.
    classes = range(p.shape[1]) if p.shape[1] > 2 else (1,)
    for place in classes:
        levels, inverse, counts = np.unique(p[:, place], return_inverse=True, return_counts=True)
        shares = np.bincount(inverse, true == place) / counts
        steps.append((levels, isotonic_regression(shares, weights=counts).x))

    def calibrated(given: Float) -> Float:
        columns = [
            np.interp(given[:, place], *step) for place, step in zip(classes, steps, strict=True)
        ]
        if given.shape[1] == 2:
            return np.stack([1 - columns[0], columns[0]], axis=1)
        found = np.maximum(np.stack(columns, axis=1), LEAST)
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    return calibrated


KINDS: dict[str, Callable[[ArrayLike, ArrayLike], Calibration]] = {
    "platt": platt,
    "isotonic": isotonic,
}


def cross_calibrated(
    probabilities: ArrayLike,
    index: ArrayLike,
    kind: Literal["platt", "isotonic"] = "platt",
    *,
    parts: int = 5,
) -> Float:
    """Probabilities, each calibrated by what was fitted to the other parts of the objects.

    Parameters
    ----------
    probabilities : array_like of float, shape (n, k)
        Of networks that have not seen these objects.
    index : array_like of int, shape (n,)
        The true classes.
    kind : {'platt', 'isotonic'}
        How.
    parts : int
        Object i of a class, in their order, belongs to part i modulo this number.

    Raises
    ------
    InputError
        If a class has fewer than two objects.
    """
    p, true = np.asarray(probabilities, np.float64), np.asarray(index, np.int64)
    part = np.zeros(len(true), np.int64)
    for place in range(p.shape[1]):
        own = np.flatnonzero(true == place)
        if len(own) < 2:
            raise InputError(f"calibration: class {place} has {len(own)} objects; two are needed")
        part[own] = np.arange(len(own)) % parts
    found = np.full_like(p, np.nan)
    for number in range(min(parts, int(part.max()) + 1)):
        rows = part == number
        found[rows] = KINDS[kind](p[~rows], true[~rows])(p[rows])
    return found
