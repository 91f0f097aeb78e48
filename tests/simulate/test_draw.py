from dataclasses import replace

import numpy as np
import pytest
import sep

from surveyproc.simulate.bands import BANDS, PIXEL_SCALE, Band
from surveyproc.simulate.draw import MOFFAT_BETA, draw

QUIET = replace(BANDS["r"], depth=45.0)


def one(
    x: float, y: float, shape: tuple[float, ...], pixels: int = 201, band: Band = QUIET
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    image = draw(
        pixels,
        band,
        np.array([x]),
        np.array([y]),
        np.array([1000.0]),
        np.array([shape]),
        np.random.default_rng(0),
    )
    return image.astype(np.float64)


POINT = (np.nan,) * 4


@pytest.mark.parametrize(
    "shape",
    [POINT, (0.3, 1.0, 0.6, 30.0), (1.5, 1.0, 0.25, 120.0), (1.0, 4.0, 0.9, 0.0)],
)
def test_flux_and_position_are_those_asked_for(shape: tuple[float, ...]) -> None:
    x, y = 97.3, 104.85
    image = one(x, y, shape)
    assert image.sum() == pytest.approx(1000.0, rel=0.01)
    rows, columns = np.indices(image.shape)
    # Pixel (0, 0) is the first pixel's centre, as numpy and astropy's origin 0 have it.
    assert (columns * image).sum() / image.sum() == pytest.approx(x, abs=0.02)
    assert (rows * image).sum() / image.sum() == pytest.approx(y, abs=0.02)


def test_a_star_holds_the_light_of_a_moffat_in_every_aperture() -> None:
    image = one(100.2, 99.7, POINT)
    alpha = QUIET.fwhm / (2 * np.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    for radius in (0.7, 1.2, 3.0):
        flux, _, _ = sep.sum_circle(image, [100.2], [99.7], radius / PIXEL_SCALE, subpix=0)
        inside = 1 - (1 + (radius / alpha) ** 2) ** (1 - MOFFAT_BETA)
        # The pixel's own width widens the smallest aperture's profile a little.
        assert flux[0] / 1000 == pytest.approx(inside, abs=0.025 if radius < 1 else 0.01)


def test_half_of_the_light_lies_within_the_half_light_ellipse() -> None:
    radius, ratio = 1.9, 0.6
    image = one(100.0, 100.0, (radius, 1.0, ratio, 90.0), band=replace(QUIET, fwhm=0.2))
    major = radius / PIXEL_SCALE
    # Position angle 90 degrees: along east-west, which is the x axis.
    flux, _, _ = sep.sum_ellipse(image, [100.0], [100.0], major, major * ratio, 0.0, 1.0)
    assert flux[0] / 1000 == pytest.approx(0.5, abs=0.01)


def test_position_angle_turns_from_north_to_east_which_is_left() -> None:
    image = one(100.0, 100.0, (1.5, 1.0, 0.3, 30.0))
    rows, columns = np.indices(image.shape) - 100.0
    assert (rows * columns * image).sum() < 0  # up and left
    assert (rows**2 * image).sum() > (columns**2 * image).sum()  # nearer to north


def test_an_object_outside_puts_its_wings_in_and_one_far_away_does_no_harm() -> None:
    near, far = one(-3.0, 50.0, (1.5, 1.0, 0.8, 0.0)), one(-900.0, 50.0, POINT)
    assert 100 < near.sum() < 500
    assert abs(far).max() < 1e-3


def test_noise_has_the_stated_deviation() -> None:
    band = BANDS["K"]
    none = np.empty(0)
    image = draw(300, band, none, none, none, np.empty((0, 4)), np.random.default_rng(1))
    assert image.dtype == np.float32
    assert image.std() == pytest.approx(band.sky_sigma, rel=0.01)
    assert abs(image.mean()) < 4 * band.sky_sigma / 300
