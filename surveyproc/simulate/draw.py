"""One image from a table of objects, with GalSim."""

from __future__ import annotations

from functools import cache

import galsim
import numpy as np
from numpy.typing import NDArray

from surveyproc.simulate.bands import Band

Float = NDArray[np.float64]
TRUNCATION = 5.0
"""Galaxies end at this many half-light radii, as profiles in many photometry codes do. The flux and
the half-light radius are those of the truncated profile, so no light is lost outside the stamp."""
MOFFAT_BETA = 3.5
REACH = 15.0
"""Objects this far outside an image, arcsec, may still put light into it."""
_ACCURACY = galsim.GSParams(folding_threshold=4e-3, maxk_threshold=4e-3)


@cache
def _profile(index: float) -> galsim.GSObject:
    """The Sersic profile of unit half-light radius and flux."""
    # One object a Sersic index, stretched for each galaxy: GalSim keeps its Fourier table.
    return galsim.Sersic(index, half_light_radius=1.0, trunc=TRUNCATION, gsparams=_ACCURACY)


@cache
def psf(fwhm: float) -> galsim.GSObject:
    """The Moffat PSF, beta = 3.5 (between Kolmogorov's 4.8 and the 2.5 of poor optics)."""
    return galsim.Moffat(beta=MOFFAT_BETA, fwhm=fwhm, gsparams=_ACCURACY)


def galaxy(radius: float, index: float, axis_ratio: float, angle: float) -> galsim.GSObject:
    """A galaxy of unit flux on an image with north up and east left.

    Parameters
    ----------
    radius : float
        Half-light radius along the major axis, arcsec.
    index : float
        Sersic index.
    axis_ratio : float
        Minor over major axis.
    angle : float
        Position angle, degrees from north to east, which is counterclockwise here.
    """
    # GalSim's shear keeps the area, so the round profile has the geometric mean of both axes.
    shear = galsim.Shear(q=axis_ratio, beta=(angle + 90.0) * galsim.degrees)
    return _profile(index).dilate(radius * axis_ratio**0.5).shear(shear)


def draw(
    pixels: int,
    band: Band,
    x: Float,
    y: Float,
    flux: Float,
    shapes: Float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """The image of a table of objects, with noise.

    Parameters
    ----------
    pixels : int
        Width and height of the image.
    band : Band
        Gives PSF, noise and size of the pixels.
    x, y : ndarray of float64, shape (n,)
        Pixel positions; the centre of the first pixel is (0, 0). They may lie outside.
    flux : ndarray of float64, shape (n,)
        Total flux, counts.
    shapes : ndarray of float64, shape (n, 4)
        Radius (arcsec), Sersic index, axis ratio, position angle (degrees); NaN: a point.
    rng : numpy.random.Generator
        The noise.

    Returns
    -------
    ndarray of float32, shape (pixels, pixels)
        Counts, (y, x). The sky is subtracted. Gaussian noise of `band.sky_sigma` everywhere and no
        shot noise of the objects: the sky dominates at these magnitudes.
    """
    # GalSim's first pixel is centred on (1, 1) by default; here it is (0, 0).
    image = galsim.ImageD(pixels, pixels, xmin=0, ymin=0, scale=band.scale)
    point = psf(band.fwhm)
    for row in range(len(x)):
        shape = shapes[row]
        model = point
        if np.isfinite(shape[0]):
            model = galsim.Convolve(galaxy(*shape), point, gsparams=_ACCURACY)
        centre = galsim.PositionD(x[row], y[row])
        # `center` shifts the profile within its pixel; the stamp is as large as the profile needs.
        stamp = (model * flux[row]).drawImage(center=centre, scale=band.scale, dtype=np.float64)
        seen = stamp.bounds & image.bounds
        if seen.isDefined():
            image[seen] += stamp[seen]
    noise = rng.standard_normal((pixels, pixels), dtype=np.float32)
    drawn: NDArray[np.float32] = (image.array + band.sky_sigma * noise).astype(np.float32)
    return drawn
