"""Places of neighbours as planes beside the cutouts that show them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def marked(places: NDArray[np.floating], side: int) -> NDArray[np.float32]:
    """Planes that are 1 in the pixel nearest to a place, and 0 elsewhere.

    Parameters
    ----------
    places : ndarray of float, shape (n, m, 2)
        (x, y) minus the central pixel (index side // 2), in pixels; not finite = unknown.
    side : int
        Of the planes.

    Returns
    -------
    float32 ndarray, shape (n, m, side, side)
        Axes y, x. Empty where a place is unknown or lies outside.

    Examples
    --------
    >>> marked(np.array([[[1.0, -0.6]]]), 3)[0, 0].astype(int).tolist()
    [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    """
    n, m, _ = places.shape
    planes = np.zeros((n, m, side, side), np.float32)
    pixel = np.floor(np.nan_to_num(places, nan=np.inf) + 0.5) + side // 2
    row, plane = np.nonzero(((pixel >= 0) & (pixel < side)).all(axis=2))
    x, y = pixel[row, plane].astype(np.int64).T
    planes[row, plane, y, x] = 1.0
    return planes
