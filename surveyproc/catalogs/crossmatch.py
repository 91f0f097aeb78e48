"""The nearest neighbour on the sky: arrays in, arrays out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc import sky


def nearest(
    ra1: ArrayLike, dec1: ArrayLike, ra2: ArrayLike, dec2: ArrayLike, radius_arcsec: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every position of list 1 the nearest one of list 2 within a radius.

    Works on unit vectors, so RA = 0 and the poles need no care.

    Parameters
    ----------
    ra1, dec1 : array of float, shape (n,)
        Degrees. A position that is not finite matches nothing.
    ra2, dec2 : array of float, shape (m,)
        Degrees; m may be 0.
    radius_arcsec : float
        Largest separation of a match, at most 180 degrees.

    Returns
    -------
    index : int64 ndarray, shape (n,)
        Index into list 2, or -1.
    separation : float64 ndarray, shape (n,)
        Arcsec; infinite where there is no match.

    Examples
    --------
    >>> index, separation = nearest([359.9999], [0.0], [90.0, 0.0001], [0.0, 0.0], 1.0)
    >>> int(index[0]), round(float(separation[0]), 3)
    (1, 0.72)
    """
    # A fifth of a second to import, which verbs that match nothing need not pay.
    from scipy.spatial import cKDTree

    first = _vectors(ra1, dec1)
    second = _vectors(ra2, dec2)
    index = np.full(len(first), -1, np.int64)
    separation = np.full(len(first), np.inf)
    usable1 = np.flatnonzero(np.isfinite(first).all(axis=1))
    usable2 = np.flatnonzero(np.isfinite(second).all(axis=1))
    if not len(usable1) or not len(usable2):
        return index, separation
    chord, found = cKDTree(second[usable2]).query(first[usable1])
    arcsec = np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1.0))) * 3600
    # The bound is applied here and not by the tree, whose bound is exclusive.
    inside = arcsec <= radius_arcsec
    index[usable1[inside]] = usable2[found[inside]]
    separation[usable1[inside]] = arcsec[inside]
    return index, separation


def _vectors(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        vectors: NDArray[np.float64] = sky.unit_vectors(
            np.asarray(ra, np.float64), np.asarray(dec, np.float64)
        )
    return vectors
