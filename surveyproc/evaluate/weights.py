"""What weight a layer gives to one of its inputs, over many trainings. Arrays in, numbers out.

After de Diego et al. 2021, section 3.3 and figure 8: how much the redshift listens to the class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kurtosis, norm

from surveyproc.errors import InputError
from surveyproc.evaluate.bootstrap import bootstrap

Float = NDArray[np.float64]


def standardised(layers: ArrayLike, inputs: ArrayLike) -> Float:
    """The weight of one input of each training, in units of its own layer's scatter; shape (m,).

    Parameters
    ----------
    layers : array_like of float, shape (m, inputs)
        Weights of the layer in m trainings.
    inputs : array_like of int, shape () or (m,)
        Which input; another one in every training, if they are several.
    """
    w = np.asarray(layers, np.float64)
    if w.ndim != 2 or w.shape[1] < 2:
        raise InputError(f"weights of m trainings have shape {w.shape}; (m, inputs) is needed")
    chosen = w[np.arange(len(w)), np.broadcast_to(np.asarray(inputs), len(w))]
    found: Float = (chosen - w.mean(axis=1)) / w.std(axis=1)
    return found


def weight_summary(weights: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Median, kurtosis (3 for a normal distribution) and shares above 1 and 2, of shape (m,).

    Returns
    -------
    dict
        `median`, `median_error`, `kurtosis`, `kurtosis_error` (scatter of resamples), `above_1`,
        `above_2`, `n`.
    """
    w = np.asarray(weights, np.float64)

    def both(sample: Float) -> Float:
        return np.stack([np.median(sample, axis=1), kurtosis(sample, axis=1, fisher=False)])

    errors = np.std(bootstrap(both, (w,), resamples, seed), axis=1)
    return {
        "n": len(w),
        "median": float(np.median(w)),
        "median_error": float(errors[0]),
        "kurtosis": float(kurtosis(w, fisher=False)),
        "kurtosis_error": float(errors[1]),
        "above_1": float((w > 1).mean()),
        "above_2": float((w > 2).mean()),
    }


def normal_quantiles(values: ArrayLike) -> tuple[Float, Float]:
    """Quantiles of a standard normal, and the sorted values that belong to them: a Q-Q figure.

    At probabilities (i - 1/2) / n (Hazen); both of shape (n,).
    """
    held = np.sort(np.asarray(values, np.float64))
    return norm.ppf((np.arange(len(held)) + 0.5) / len(held)), held
