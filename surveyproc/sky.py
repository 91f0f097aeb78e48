"""HEALPix and WCS geometry, and which tile owns an object where tiles overlap."""

from __future__ import annotations

import numpy as np
from hats.pixel_math.spatial_index import compute_spatial_index
from numpy.typing import NDArray

Float = NDArray[np.float64]


def healpix29(ra: Float, dec: Float) -> NDArray[np.int64]:
    """HEALPix nested pixel at order 29 of each position (degrees, ICRS), as HATS defines it."""
    pixels: NDArray[np.int64] = compute_spatial_index(np.asarray(ra), np.asarray(dec))
    return pixels.astype(np.int64, copy=False)


def unit_vectors(ra: Float, dec: Float) -> Float:
    """Cartesian unit vectors, shape (n, 3), of positions in degrees."""
    lon, lat = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def cap(ra: Float, dec: Float) -> tuple[float, float, float]:
    """A circle on the sky that holds all positions: (ra, dec, radius), degrees.

    The centre is the direction of the mean unit vector, so that RA = 0 needs no special care.
    """
    vectors = unit_vectors(ra, dec)
    centre = vectors.mean(axis=0)
    norm = float(np.linalg.norm(centre))
    centre = centre / norm if norm > 1e-9 else np.array([0.0, 0.0, 1.0])
    # The chord keeps its precision where the cosine of a small angle does not.
    chord = np.linalg.norm(vectors - centre, axis=-1).max()
    radius = float(np.degrees(2 * np.arcsin(min(1.0, chord / 2))))
    return (
        float(np.degrees(np.arctan2(centre[1], centre[0])) % 360.0),
        float(np.degrees(np.arcsin(np.clip(centre[2], -1, 1)))),
        radius,
    )
