"""Resampling with replacement, the same rows from every sample, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Seed = int | Sequence[int]

BLOCK = 1 << 20
"""Values drawn at once (or one resample, if that is more): 8 MB an array, within a CPU's cache."""


def bootstrap(
    statistic: Callable[..., Float], samples: Sequence[Float], resamples: int, seed: Seed
) -> Float:
    """Values of a statistic over resamples of paired samples (Efron & Tibshirani 1994, chapter 6).

    Parameters
    ----------
    statistic : callable
        Takes one array of shape (k, n) for each sample, k resamples at once, and gives an array
        whose last axis has length k.
    samples : sequence of float64 ndarray, each of shape (n,), n > 0
        Row i of all samples is the same object: a resample takes it from all or from none.
    resamples : int
        How many resamples, each of n rows.
    seed : int or sequence of int
        The same seed gives the same values.

    Returns
    -------
    float64 ndarray, shape (..., resamples)
        What `statistic` gives.
    """
    n = len(samples[0])
    generator = np.random.default_rng(seed)
    size = max(1, BLOCK // n)
    parts = []
    for start in range(0, resamples, size):
        rows = generator.integers(0, n, (min(size, resamples - start), n), dtype=np.int32)
        parts.append(statistic(*(sample[rows] for sample in samples)))
    return np.concatenate(parts, axis=-1)
