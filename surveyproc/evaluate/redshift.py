"""Metrics of redshift point estimates. Numpy only: usable on any two arrays.

Everything rests on the scaled error dz = (z_pred - z_true) / (1 + z_true), as in Li et al. 2022
(GaZNet, A&A 666, A85, section 3). Their equation 3 prints the mean bias with absolute bars, but
their tables hold negative values, so the bias here is the signed mean.

A prediction that is missing (NaN, infinite or masked) is never dropped in silence: every summary
counts it as `n_missing` beside the `n` objects that the other numbers rest on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc.errors import InputError

Float = NDArray[np.float64]

OUTLIER_THRESHOLD = 0.15
"""|dz| above which a prediction is catastrophic (Li et al. 2022, section 3)."""

NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution divided by its median absolute deviation."""


def scaled_error(z_pred: ArrayLike, z_true: ArrayLike) -> Float:
    """dz = (z_pred - z_true) / (1 + z_true), float64, shape (n,); NaN where a value is missing."""
    predicted, true = _pair(z_pred, z_true)
    with np.errstate(invalid="ignore", over="ignore"):
        dz: Float = (predicted - true) / (1.0 + true)
    dz[~np.isfinite(dz)] = np.nan
    return dz


def nmad(z_pred: ArrayLike, z_true: ArrayLike) -> float:
    """Normalised median absolute deviation: 1.4826 median(|dz - median(dz)|).

    Computed over the objects with a finite dz; NaN if there is none. Li et al. 2022, section 3.

    Examples
    --------
    >>> round(nmad([0.1, 0.2, 0.3], [0.0, 0.0, 0.0]), 5)
    0.14826
    """
    dz = _finite(scaled_error(z_pred, z_true))
    return float(NORMAL_MAD * np.median(np.abs(dz - np.median(dz)))) if dz.size else float("nan")


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
    return float(np.mean(np.abs(dz) > threshold)) if dz.size else float("nan")


def bias(z_pred: ArrayLike, z_true: ArrayLike) -> float:
    """Mean dz, with its sign (positive: predicted too far), over finite dz; NaN if none."""
    dz = _finite(scaled_error(z_pred, z_true))
    return float(np.mean(dz)) if dz.size else float("nan")


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


def binned_metrics(
    z_pred: ArrayLike,
    z_true: ArrayLike,
    values: ArrayLike,
    edges: Sequence[float] | Float,
    threshold: float = OUTLIER_THRESHOLD,
) -> list[dict[str, float]]:
    """Metrics in bins of any column (true redshift, magnitude, signal to noise, ...).

    Parameters
    ----------
    z_pred, z_true : array_like, shape (n,)
        Predicted and true redshifts.
    values : array_like, shape (n,)
        The column that is binned.
    edges : sequence of float, shape (m + 1,)
        Increasing bin edges; a bin holds low <= value < high, the last one its upper edge too.

    Returns
    -------
    list of dict
        One entry a bin: `low`, `high` and the keys of `redshift_metrics`.

    Raises
    ------
    InputError
        If shapes differ, or `edges` does not increase.
    """
    predicted, true = _pair(z_pred, z_true)
    column = np.asarray(values, dtype=np.float64)
    limits = np.asarray(edges, dtype=np.float64)
    if column.shape != true.shape:
        raise InputError(f"binned column has shape {column.shape}, redshifts {true.shape}")
    if limits.size < 2 or not np.all(np.diff(limits) > 0):
        raise InputError("bin edges must increase, and there must be at least two")
    table: list[dict[str, float]] = []
    for k, (low, high) in enumerate(pairwise(limits)):
        last = k == limits.size - 2
        inside = (column >= low) & ((column < high) | (last & (column == high)))
        row = redshift_metrics(predicted[inside], true[inside], threshold)
        table.append({"low": float(low), "high": float(high), **row})
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
