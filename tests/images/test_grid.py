"""Planes on another grid: an aperture holds the flux and the noise of the band's own pixels."""

import numpy as np
import pytest
from astropy.io.fits import Header
from photutils.aperture import CircularAperture

from surveyproc.images.grid import Grid, noise_weight, regrid_flux, regrid_weight


def grid(scale: float, side: int) -> Grid:
    """A tangent plane of `scale` arcsec a pixel, its middle at the same place for every grid."""
    cards = {
        **{"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0},
        **{"CRPIX1": (side + 1) / 2, "CRPIX2": (side + 1) / 2},
        **{"CDELT1": -scale / 3600, "CDELT2": scale / 3600},
    }
    return Grid(str(Header(cards).tostring(sep="\n", endcard=False, padding=False)), (side, side))


COARSE, FINE = grid(1.5, 31), grid(0.25, 186)


@pytest.mark.parametrize("arcsec", [1.5, 3.0, 6.0])
def test_an_aperture_holds_what_the_band_s_own_pixels_give(arcsec):
    image = np.zeros((31, 31), np.float32)
    image[13:18, 13:18] = np.random.default_rng(1).uniform(1, 100, (5, 5))
    moved = regrid_flux(image, COARSE, FINE)
    sums = [
        CircularAperture(at, arcsec / scale).do_photometry(np.nan_to_num(values))[0][0]
        for values, at, scale in ((image, (15.2, 14.7), 1.5), (moved, (93.7, 90.7), 0.25))
    ]
    assert sums[1] == pytest.approx(sums[0], rel=3e-3)


def test_sources_do_not_pass_for_noise():
    """A third of the image is covered by sources too faint for a clip to see."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:96, :96]
    image = rng.normal(0, 1.0, (96, 96))
    for at in rng.uniform(0, 96, (30, 2)):
        image += 4 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 3.0**2))
    weight = noise_weight(image.astype(np.float32), None)
    assert 1 / np.sqrt(np.median(weight)) == pytest.approx(1.0, rel=0.25)


def test_noise_without_weights_is_that_of_the_pixels_before_they_are_moved():
    rng = np.random.default_rng(2)
    image = rng.normal(50, 4.0, (31, 31)).astype(np.float32)
    image[3, 4], image[10, 10] = np.nan, 4000
    weight = noise_weight(image, None)
    assert 1 / np.sqrt(np.median(weight)) == pytest.approx(4.0, rel=0.1)
    variance = 1 / regrid_weight(weight, COARSE, FINE)[60:120, 60:120]
    # 36 fine pixels are one coarse pixel.
    assert np.median(variance) * 36 == pytest.approx(16.0, rel=0.2)
    empty = np.full((31, 31), np.nan, np.float32)
    assert (noise_weight(empty, None) == 0).all()
    assert (noise_weight(np.ones((31, 31), np.float32), None) == 0).all()
