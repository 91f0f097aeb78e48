"""Pixels that hold exact zeros because nothing was observed there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# So many zeros that touch each other are no measurement: the noise of a pixel is never zero.
MIN_PIXELS = 64
# Zeros that follow a pixel which is none, as a share of such pixels: more of them, and zero is a
# value like others (photons counted one by one, noise cut off at zero, small integers).
MAX_SHARE = 0.05


def zeros_are_gaps(rows: NDArray[Any]) -> bool:
    """Whether zeros are so rare among measured pixels that many together are none.

    Where a pixel is measured its neighbour mostly is too, so the share of zeros among neighbours
    of pixels that are not zero tells how often zero is measured, however large the gaps are.

    Parameters
    ----------
    rows : ndarray, shape (n, nx)
        A sample of an image's rows.
    """
    zero = rows == 0
    followed = ~zero[:, :-1] & zero[:, 1:]
    return int(followed.sum()) <= MAX_SHARE * int((~zero[:, :-1]).sum())


def gaps(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels of regions of at least MIN_PIXELS exact zeros that touch along their sides.

    Parameters
    ----------
    image : float32 ndarray, shape (ny, nx)

    Returns
    -------
    bool ndarray, shape (ny, nx)
    """
    zero: NDArray[np.bool_] = image == 0
    if np.count_nonzero(zero) < MIN_PIXELS:
        return np.zeros_like(zero)
    from scipy import ndimage

    labels, _ = ndimage.label(zero)
    large = np.bincount(labels.ravel()) >= MIN_PIXELS
    large[0] = False  # what is not zero
    return np.asarray(large[labels])
