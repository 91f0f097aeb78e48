"""Is one model better than another on the same objects? A paired bootstrap test.

After Ait Ouahmed et al. 2023, section 6 and appendix D, who follow Efron & Tibshirani 1994.
Their appendix D writes the difference as multimodal - baseline (equation D.1), their section 6 as
baseline - multimodal. All their metrics are better the closer they are to zero, so the second sign
is the one that makes a positive difference a gain, and equation D.3 a test of a gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from surveyproc.errors import InputError
from surveyproc.evaluate.bootstrap import Float, bootstrap
from surveyproc.evaluate.redshift import (
    OUTLIER_THRESHOLD,
    dz_bias,
    dz_nmad,
    dz_outlier_fraction,
    scaled_error,
)

RESAMPLES = 10_000
"""Resamples of the published test (K of appendix D)."""


@dataclass(frozen=True)
class Gain:
    """What a candidate gains over a baseline in one metric.

    Attributes
    ----------
    n, n_missing : int
        Objects used, and left out.
    baseline, candidate : float
        The metric's values.
    delta : float
        |baseline| - |candidate|.
    gain : float
        delta / |baseline| (equation 2); NaN if that is zero.
    p_value : float
        Share of resamples that would make as much of chance alone.
    resamples : int
        How many were drawn.
    """

    n: int
    n_missing: int
    baseline: float
    candidate: float
    delta: float
    gain: float
    p_value: float
    resamples: int


def paired_bootstrap(
    dz_baseline: ArrayLike,
    dz_candidate: ArrayLike,
    metric: Callable[[Float], Float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Gain:
    """Gain of a candidate over a baseline in one metric, and whether chance could have made it.

    With M the metric, delta = |M_baseline| - |M_candidate| on the objects, and delta* the same on
    a resample of them, p is the share of resamples with delta* - delta >= delta (equation D.3):
    delta* scatters about delta, delta* - delta as delta would if there were no gain.

    Parameters
    ----------
    dz_baseline, dz_candidate : array_like, shape (n,)
        Scaled errors of the same objects in the same order (`scaled_error`). Objects for which one
        of them is not finite are left out of both.
    metric : callable
        Arrays of shape (..., n) to shape (...), along the last axis; better the closer to zero:
        `dz_nmad`, `dz_outlier_fraction`, `dz_bias` or any other.
    resamples : int
        K; the smallest p that can be told from zero is 1 / K.
    seed : int
        The same seed gives the same p.

    Returns
    -------
    Gain
        Equal predictions have delta 0 and p 1. Exchanging the two changes the sign
        of delta and p into 1 - p, up to resamples where delta* is exactly 2 delta.

    Raises
    ------
    InputError
        If the shapes differ or no object has both errors.
    """
    first = np.asarray(dz_baseline, dtype=np.float64)
    second = np.asarray(dz_candidate, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(
            f"errors of the baseline have shape {first.shape}, of the candidate {second.shape}; "
            "both must be one-dimensional and belong to the same objects"
        )
    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        raise InputError("no object has a redshift of both models: nothing to compare")
    samples = [first[both], second[both]]

    def delta_of(one: Float, other: Float) -> Float:
        return np.asarray(np.abs(metric(one)) - np.abs(metric(other)))

    baseline, candidate = (float(metric(sample)) for sample in samples)
    delta = abs(baseline) - abs(candidate)
    drawn = bootstrap(delta_of, samples, resamples, seed)
    return Gain(
        n=int(both.sum()),
        n_missing=int((~both).sum()),
        baseline=baseline,
        candidate=candidate,
        delta=delta,
        gain=delta / abs(baseline) if baseline else float("nan"),
        p_value=float(np.mean(drawn - delta >= delta)),
        resamples=resamples,
    )


def gains(
    z_baseline: ArrayLike,
    z_candidate: ArrayLike,
    z_true: ArrayLike,
    threshold: float = OUTLIER_THRESHOLD,
) -> dict[str, Gain]:
    """`paired_bootstrap` of every point metric: `nmad`, `outlier_fraction`, `bias`.

    Parameters
    ----------
    z_baseline, z_candidate, z_true : array_like, shape (n,)
        Redshifts of the same objects.
    threshold : float
        |dz| above which an object is an outlier.

    Raises
    ------
    InputError
        If the shapes differ or no object has all three.
    """
    metrics: dict[str, Callable[[Float], Float]] = {
        "nmad": dz_nmad,
        "outlier_fraction": lambda dz: dz_outlier_fraction(dz, threshold),
        "bias": dz_bias,
    }
    first, second = scaled_error(z_baseline, z_true), scaled_error(z_candidate, z_true)
    return {name: paired_bootstrap(first, second, metric) for name, metric in metrics.items()}
