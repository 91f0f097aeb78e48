"""Learning rates from epoch to epoch, as de Diego et al. 2021, section 2.2.1, let them follow.

First the rate is lowered whenever the loss of the rows held out stands still; then a sigmoid is
fitted to the rates of such trainings, which is a fixed schedule for trainings that hold out none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from surveyproc.errors import InputError

FACTOR, PATIENCE, MIN_DELTA = 0.9, 5, 1e-4
"""What the rate is multiplied by after so many epochs (the paper's), in which no loss was lower
than the lowest by so much (the default of Keras, absolute)."""


def plateau_factor(losses: Sequence[float]) -> float:
    """What a plateau makes of the first rate, after epochs of these validation losses.

    As `ReduceLROnPlateau` of Keras.

    Examples
    --------
    >>> plateau_factor([1.0, 0.5, 0.5, 0.5, 0.5, 0.5]), plateau_factor([1.0] + [0.5] * 11)
    (1.0, 0.81)
    """
    lowest, waited, factor = float("inf"), 0, 1.0
    for loss in losses:
        if loss < lowest - MIN_DELTA:
            lowest, waited = loss, 0
            continue
        waited += 1
        if waited >= PATIENCE:
            factor, waited = factor * FACTOR, 0
    return factor


def logistic(epoch: ArrayLike, shape: Sequence[float]) -> NDArray[np.float64]:
    """low + (high - low) / (1 + exp((epoch - middle) / width)).

    Parameters
    ----------
    epoch : array_like
        Finished epochs: 0 for the first one.
    shape : sequence of float
        `high`, `low` (rates), `middle`, `width` (epochs).
    """
    high, low, middle, width = shape
    steps = (np.asarray(epoch, np.float64) - middle) / width
    # Beyond 700 the exponential overflows, and the rate is `low` long before.
    found: NDArray[np.float64] = low + (high - low) / (1.0 + np.exp(np.clip(steps, -700, 700)))
    return found


def fit_logistic(epochs: ArrayLike, rates: ArrayLike) -> tuple[float, float, float, float]:
    """The shape of `logistic` that follows the rates best, by least squares.

    Parameters
    ----------
    epochs, rates : array_like, shape (n,)
        Finished epochs and the rate of the next one, of one training or of several; n >= 4.

    Raises
    ------
    InputError
        If there are fewer than four, or one is not finite.
    """
    x, y = np.asarray(epochs, np.float64).ravel(), np.asarray(rates, np.float64).ravel()
    if x.shape != y.shape or len(x) < 4 or not np.isfinite([x, y]).all():
        raise InputError(f"a sigmoid of four numbers needs four finite rates or more, not {len(y)}")
    scale, reach = float(y.max()), max(float(np.ptp(x)), 1.0)
    start = [1.0, float(y.min()) / scale, float(x.mean()), reach / 6]
    # A schedule falls, within its epochs, to a rate that is none below zero.
    low = [0.0, 0.0, x.min() - reach, 1e-2]
    high = [2.0, 1.0 + 1e-9, x.max() + reach, 2 * reach]
    found = least_squares(lambda s: logistic(x, s) - y / scale, start, bounds=(low, high)).x
    return float(found[0] * scale), float(found[1] * scale), float(found[2]), float(found[3])
