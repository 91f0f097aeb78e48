"""How many peaks of light an image has near its centre."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import InputError
from surveyproc.measure.classical_blends import COLD, detect

LEAST_APART = 2.0
"""Pixels from the centre at which a peak is another one than the object's own."""


def has_other_peak(image: NDArray[np.floating], radius: float) -> bool:
    """Whether a source besides the central one peaks within `radius` pixels of the centre.

    Sources are those of `measure.classical_blends.COLD`. The one nearest to the centre is the
    object, wherever it is. Pixels that are not finite are masked.

    Parameters
    ----------
    image : ndarray of float, shape (side, side)
        Background subtracted, the object at index side // 2.
    radius : float
        Pixels.
    """
    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise InputError(f"peaks: an image of shape {image.shape} is not (side, side)")
    masked = ~np.isfinite(image)
    if masked.all():
        return False
    sources = detect(image, COLD, masked)
    if len(sources) < 2:
        return False
    middle = image.shape[-1] // 2
    apart = np.hypot(sources["ypeak"] - middle, sources["xpeak"] - middle)
    others = np.sort(apart)[1:]
    return bool(((others <= radius) & (others >= LEAST_APART)).any())
