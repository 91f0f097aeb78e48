"""Where the tiles lie: a square grid of overlapping tangent planes across RA = 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from surveyproc.simulate.bands import PIXEL_SCALE

Float = NDArray[np.float64]
CENTRE = (0.0, -31.0)
"""Centre of the field, degrees: half of the survey has RA just below 360."""
DENSITY = 50.0
"""Objects per square arcmin."""
OVERLAP = 20.0
"""Width of the strip that two neighbouring tiles share, arcsec; half of it is the margin around
the field, so that every object has sky around it."""


@dataclass(frozen=True)
class Tile:
    """One square tile, north up, east left.

    Attributes
    ----------
    name : str
        Identifier.
    index : int
        Place in the list of tiles.
    ra, dec : float
        Sky position of the image centre, degrees.
    pixels : int
        Width and height.
    scale : float
        Arcsec a pixel.
    """

    name: str
    index: int
    ra: float
    dec: float
    pixels: int
    scale: float

    @property
    def wcs(self) -> WCS:
        """The tangent projection."""
        return tangent(self.ra, self.dec, self.scale, (self.pixels + 1) / 2)

    def positions(self, ra: Float, dec: Float) -> tuple[Float, Float]:
        """Pixel positions (x, y) of sky positions in degrees; the first pixel's centre is 0, 0."""
        x, y = self.wcs.wcs_world2pix(ra, dec, 0)
        return x, y


def tangent(ra: float, dec: float, scale: float, reference: float) -> WCS:
    """A TAN projection around (ra, dec), degrees, with `scale` arcsec a pixel.

    `reference` is the FITS (1-based) pixel coordinate of the centre on both axes.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [reference, reference]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return wcs


def field_side(objects: int) -> float:
    """Side of the square field that holds `objects` at `DENSITY`, arcsec."""
    return 60.0 * math.sqrt(objects / DENSITY)


def sky(east: Float, north: Float) -> tuple[Float, Float]:
    """Right ascension (0 to 360) and declination, degrees, of offsets from `CENTRE` in arcsec."""
    ra, dec = tangent(*CENTRE, 1.0, 0.0).wcs_pix2world(-np.asarray(east), np.asarray(north), 1)
    return ra % 360.0, dec


def layout(side: float, scale: float = PIXEL_SCALE) -> tuple[Tile, ...]:
    """Tiles that cover a square field of `side` arcsec, in pixels of `scale` arcsec.

    Two by two tiles, three by three from 5 arcmin on, then as many as keep a tile's own share of
    the field below 5 arcmin.
    """
    across = max(2 if side < 300 else 3, math.ceil(side / 300))
    step = side / across
    pixels = math.ceil((step + OVERLAP) / scale)
    middle = (np.arange(across) + 0.5) * step - side / 2
    east, north = np.meshgrid(middle, middle)
    # Rounded to a microarcsecond: headers should not show 5e-31 for 0.
    ra, dec = (np.round(angle, 10) for angle in sky(east.ravel(), north.ravel()))
    digits = max(2, len(str(len(ra) - 1)))
    return tuple(
        Tile(f"t{index:0{digits}d}", index, float(ra[index]), float(dec[index]), pixels, scale)
        for index in range(len(ra))
    )
