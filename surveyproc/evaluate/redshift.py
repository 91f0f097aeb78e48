"""Metrics of redshift point estimates. Numpy only: usable on any two arrays.

Everything rests on the scaled error dz = (z_pred - z_true) / (1 + z_true), as in Li et al. 2022
(GaZNet, A&A 666, A85, section 3). Their equation 3 prints the mean bias with absolute bars, but
their tables hold negative values, so the bias here is the signed mean. Ait Ouahmed et al. 2023
(section 5.1) use the same metrics, with an outlier threshold of 0.05 for the SDSS and 0.15
elsewhere; they count |dz| equal to the threshold as an outlier, we (as Li et al.) do not.

The functions of dz (`dz_nmad`, `dz_outlier_fraction`, `dz_bias`) work along the last axis, so that
all resamples of a bootstrap are done at once; the others take redshifts.

A prediction that is missing (NaN, infinite or masked) is never dropped in silence: every summary
counts it as `n_missing` beside the `n` objects that the other numbers rest on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from surveyproc.errors import InputError
from surveyproc.evaluate.bootstrap import Float, Seed, bootstrap

OUTLIER_THRESHOLD = 0.15
"""|dz| above which a prediction is catastrophic (Li et al. 2022, section 3)."""

OUTLIER_THRESHOLDS = (OUTLIER_THRESHOLD, 0.05)
"""Those that are always reported; the second is of Ait Ouahmed et al. 2023 for the SDSS."""

NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution divided by its median absolute deviation."""

RESAMPLES = 200
"""Resamples behind a standard error; more are seldom needed (Efron & Tibshirani 1994, 6.4)."""


def scaled_error(z_pred: ArrayLike, z_true: ArrayLike) -> Float:
    """dz = (z_pred - z_true) / (1 + z_true), float64, shape (n,); NaN where a value is missing."""
    predicted, true = _pair(z_pred, z_true)
    with np.errstate(invalid="ignore", over="ignore"):
        dz: Float = (predicted - true) / (1.0 + true)
    dz[~np.isfinite(dz)] = np.nan
    return dz


def dz_nmad(dz: Float) -> Float:
    """Normalised median absolute deviation, 1.4826 median(|dz - median(dz)|).

    Parameters
    ----------
    dz : float64 ndarray, shape (..., n), finite, n > 0

    Returns
    -------
    float64 ndarray, shape (...)
    """
    spread = np.abs(dz - np.median(dz, axis=-1, keepdims=True))
    return np.asarray(NORMAL_MAD * np.median(spread, axis=-1))


def dz_outlier_fraction(dz: Float, threshold: float = OUTLIER_THRESHOLD) -> Float:
    """Share of |dz| > `threshold` along the last axis; shapes as in `dz_nmad`."""
    return np.asarray(np.mean(np.abs(dz) > threshold, axis=-1))


def dz_bias(dz: Float) -> Float:
    """Mean dz, with its sign, along the last axis; shapes as in `dz_nmad`."""
    return np.asarray(np.mean(dz, axis=-1))


def nmad(z_pred: ArrayLike, z_true: ArrayLike) -> float:
    """`dz_nmad` over the objects with a finite dz; NaN if there is none.

    Examples
    --------
    >>> round(nmad([0.1, 0.2, 0.3], [0.0, 0.0, 0.0]), 5)
    0.14826
    """
    dz = _finite(scaled_error(z_pred, z_true))
    return float(dz_nmad(dz)) if dz.size else float("nan")


def outlier_fraction(
    z_pred: ArrayLike, z_true: ArrayLike, threshold: float = OUTLIER_THRESHOLD
) -> float:
    """Share of objects with |dz| > `threshold`, over those with a finite dz; NaN if none.

    Examples
    --------
    >>> outlier_fraction([0.1, 0.2, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0])
    0.5
    """
    dz = _finite(scaled_error(z_pred, z_true))
    return float(dz_outlier_fraction(dz, threshold)) if dz.size else float("nan")


def bias(z_pred: ArrayLike, z_true: ArrayLike) -> float:
    """Mean dz, with its sign (positive: predicted too far), over finite dz; NaN if none."""
    dz = _finite(scaled_error(z_pred, z_true))
    return float(dz_bias(dz)) if dz.size else float("nan")


def redshift_metrics(
    z_pred: ArrayLike, z_true: ArrayLike, threshold: float = OUTLIER_THRESHOLD
) -> dict[str, float]:
    """All point-estimate metrics of one sample.

    Parameters
    ----------
    z_pred, z_true : array_like, shape (n,)
        Predicted and true redshifts. Rows without a finite true one are not part of the sample.
    threshold : float
        |dz| above which an object is an outlier.

    Returns
    -------
    dict
        `n` (objects with a prediction), `n_missing` (objects without), `nmad`,
        `outlier_fraction`, `bias`; the last three are NaN if `n` is 0.

    Raises
    ------
    InputError
        If the shapes differ or are not one-dimensional.
    """
    predicted, true = _pair(z_pred, z_true)
    known = np.isfinite(true)
    predicted, true = predicted[known], true[known]
    used = np.isfinite(scaled_error(predicted, true))
    return {
        "n": int(used.sum()),
        "n_missing": int((~used).sum()),
        "nmad": nmad(predicted, true),
        "outlier_fraction": outlier_fraction(predicted, true, threshold),
        "bias": bias(predicted, true),
    }


def bootstrap_errors(
    z_pred: ArrayLike,
    z_true: ArrayLike,
    threshold: float = OUTLIER_THRESHOLD,
    *,
    resamples: int = RESAMPLES,
    seed: Seed = 0,
) -> dict[str, float]:
    """Standard errors of the metrics: their scatter over resamples of the objects.

    Parameters
    ----------
    z_pred, z_true : array_like, shape (n,)
        Predicted and true redshifts; objects without a finite dz are left out.
    threshold : float
        |dz| above which an object is an outlier.
    resamples : int
        Bootstrap resamples, at least 2.
    seed : int or sequence of int
        The same seed gives the same errors.

    Returns
    -------
    dict
        `nmad_err`, `outlier_fraction_err`, `bias_err`; NaN for fewer than two objects.
    """
    names = ("nmad_err", "outlier_fraction_err", "bias_err")
    dz = _finite(scaled_error(z_pred, z_true))
    if dz.size < 2:
        return dict.fromkeys(names, float("nan"))

    def metrics(drawn: Float) -> Float:
        return np.stack([dz_nmad(drawn), dz_outlier_fraction(drawn, threshold), dz_bias(drawn)])

    errors = np.std(bootstrap(metrics, [dz], resamples, seed), axis=-1, ddof=1)
    return dict(zip(names, errors.tolist(), strict=True))


def outlier_fractions(
    z_pred: ArrayLike,
    z_true: ArrayLike,
    thresholds: Sequence[float] = OUTLIER_THRESHOLDS,
    *,
    resamples: int = RESAMPLES,
    seed: Seed = 0,
) -> dict[str, list[float]]:
    """Outlier fractions at several thresholds, with standard errors.

    Parameters
    ----------
    z_pred, z_true : array_like, shape (n,)
        Predicted and true redshifts; objects without a finite dz are left out.
    thresholds : sequence of float, shape (m,)
        |dz| above which an object is an outlier.
    resamples, seed : int
        Of the standard errors; equal ones draw the same objects as in `bootstrap_errors`.

    Returns
    -------
    dict
        `outlier_fractions` and `outlier_fractions_err`, m values each in the order of the
        thresholds; NaN where `redshift_metrics` and `bootstrap_errors` give it.
    """
    dz = _finite(scaled_error(z_pred, z_true))

    def shares(drawn: Float) -> Float:
        return np.stack([dz_outlier_fraction(drawn, threshold) for threshold in thresholds])

    unknown = np.full(len(thresholds), np.nan)
    errors = unknown
    if dz.size > 1:
        errors = np.std(bootstrap(shares, [dz], resamples, seed), axis=-1, ddof=1)
    return {
        "outlier_fractions": (shares(dz) if dz.size else unknown).tolist(),
        "outlier_fractions_err": errors.tolist(),
    }


def equal_count_edges(values: ArrayLike, bins: int) -> Float:
    """Edges of `bins` bins that hold equally many of the finite `values`, up to ties.

    Returns
    -------
    float64 ndarray, shape (m + 1,)
        Increasing, m <= bins; of length 0 or 1 if there are no two different values to bin.
    """
    column = _finite(_plain(values))
    if not column.size:
        return column
    return np.unique(np.quantile(column, np.linspace(0.0, 1.0, bins + 1)))


def binned_metrics(
    z_pred: ArrayLike,
    z_true: ArrayLike,
    values: ArrayLike,
    edges: Sequence[float] | Float,
    threshold: float = OUTLIER_THRESHOLD,
    *,
    thresholds: Sequence[float] = OUTLIER_THRESHOLDS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Metrics in bins of any column (true redshift, magnitude, signal to noise, ...).

    Parameters
    ----------
    z_pred, z_true : array_like, shape (n,)
        Predicted and true redshifts.
    values : array_like, shape (n,)
        The column that is binned.
    edges : sequence of float, shape (m + 1,)
        Increasing bin edges; a bin holds low <= value < high, the last one its upper edge too.
        Objects whose value is missing or outside all bins are in none.
    threshold : float
        |dz| above which an object is an outlier.
    thresholds : sequence of float
        Those of `outlier_fractions`.
    resamples, seed : int
        Of the standard errors, see `bootstrap_errors`.

    Returns
    -------
    list of dict
        One entry a bin: `low`, `high` and the keys of `redshift_metrics`, `bootstrap_errors` and
        `outlier_fractions`.

    Raises
    ------
    InputError
        If shapes differ, or `edges` does not increase.
    """
    predicted, true = _pair(z_pred, z_true)
    column = _plain(values)
    limits = np.asarray(edges, dtype=np.float64)
    if column.shape != true.shape:
        raise InputError(f"binned column has shape {column.shape}, redshifts {true.shape}")
    if limits.size < 2 or not np.all(np.diff(limits) > 0):
        raise InputError("bin edges must increase, and there must be at least two")
    table: list[dict[str, Any]] = []
    for k, (low, high) in enumerate(pairwise(limits)):
        last = k == limits.size - 2
        inside = (column >= low) & ((column < high) | (last & (column == high)))
        inner, drawn = (predicted[inside], true[inside]), (seed, k)
        table.append(
            {
                "low": float(low),
                "high": float(high),
                **redshift_metrics(*inner, threshold),
                **bootstrap_errors(*inner, threshold, resamples=resamples, seed=drawn),
                **outlier_fractions(*inner, thresholds, resamples=resamples, seed=drawn),
            }
        )
    return table


def _pair(z_pred: ArrayLike, z_true: ArrayLike) -> tuple[Float, Float]:
    predicted, true = _plain(z_pred), _plain(z_true)
    if predicted.shape != true.shape or predicted.ndim != 1:
        raise InputError(
            f"predicted redshifts have shape {predicted.shape}, true ones {true.shape}; "
            "both must be one-dimensional and equally long"
        )
    return predicted, true


def _plain(values: Any) -> Float:
    """Float64 without a mask: masked entries become NaN."""
    filled: Any = np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
    return np.asarray(filled, dtype=np.float64)


def _finite(dz: Float) -> Float:
    return dz[np.isfinite(dz)]
