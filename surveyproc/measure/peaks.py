"""Peaks of light near the centre of an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import InputError
from surveyproc.measure.classical_blends import COLD, detect

LEAST_APART = 2.0
"""Pixels from the centre at which a peak is another one than the object's own."""


def other_peak(image: NDArray[np.floating], radius: float) -> tuple[float, float] | None:
    """Where a source besides the central one peaks within `radius` pixels of the centre.

    Sources are those of `measure.classical_blends.COLD`. The one nearest to the centre is the
    object, wherever it is. Pixels that are not finite are masked.

    Parameters
    ----------
    image : ndarray of float, shape (side, side)
        Background subtracted, the object at index side // 2.
    radius : float
        Pixels.

    Returns
    -------
    (float, float) or None
        (x, y) of the nearest one from the centre, pixels; None if there is none.
    """
    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise InputError(f"peaks: an image of shape {image.shape} is not (side, side)")
    masked = ~np.isfinite(image)
    if masked.all():
        return None
    sources = detect(image, COLD, masked)
    middle = image.shape[-1] // 2
    x, y = (sources[name] - float(middle) for name in ("xpeak", "ypeak"))
    apart = np.hypot(x, y)
    order = np.argsort(apart, kind="stable")[1:]
    near = order[(apart[order] <= radius) & (apart[order] >= LEAST_APART)]
    return (float(x[near[0]]), float(y[near[0]])) if len(near) else None
