"""The classical answer on pairs that are easy, too near, too many, or none at all."""

import numpy as np
import pytest

from surveyproc.errors import InputError
from surveyproc.measure.classical_blends import COLD, HOT, classical_fluxes, detect


def image(*spots, side=64, seed=0):
    """Gaussian galaxies (y, x from the centre, flux) in noise of 1."""
    y, x = np.indices((side, side)) - side // 2
    found = np.random.default_rng(seed).normal(0, 1, (side, side))
    for dy, dx, flux in spots:
        found += flux / 8 / np.pi * np.exp(-((y - dy) ** 2 + (x - dx) ** 2) / 8)
    return found


@pytest.mark.parametrize("fluxes", [(5000.0, 3000.0), (3000.0, 5000.0)])
@pytest.mark.parametrize("place", [(0, 15), (-12, 12), (20, -3)])
def test_two_sources_go_to_the_nearer_galaxy(fluxes, place):
    found, n = classical_fluxes(image((0, 0, fluxes[0]), (*place, fluxes[1])), 2.4, place)
    assert n == 2
    # Isophotal fluxes lose what is below the threshold.
    assert (found < fluxes).all()
    np.testing.assert_allclose(found, fluxes, rtol=0.15)


def test_a_lone_source_is_the_central_galaxy_or_not():
    at_centre, n = classical_fluxes(image((0, 0, 5000.0)), 3.0, (0, 20))
    assert (n, np.isnan(at_centre).tolist()) == (1, [False, True])
    beside, n = classical_fluxes(image((0, 6, 5000.0)), 3.0, (0, 6))
    assert (n, np.isnan(beside).tolist()) == (1, [True, False])


def test_hot_finds_what_cold_leaves_together():
    pair = image((0, 0, 9000.0), (0, 9, 300.0))
    assert len(detect(pair, COLD)) < len(detect(pair, HOT))
    found, n = classical_fluxes(pair, 2.4, (0, 9))
    assert n >= 2
    assert np.isfinite(found).all()


def test_of_many_sources_the_two_brightest_count():
    faint = [(-20, k, 400.0) for k in (-20, 0, 20)]
    # The faint ones come first in the list, which is where the public script goes wrong.
    found, n = classical_fluxes(image(*faint, (0, 0, 5000.0), (18, 0, 4000.0)), 2.4, (18, 0))
    assert n == 5
    np.testing.assert_allclose(found, [5000, 4000], rtol=0.15)


def test_nothing_is_found_where_nothing_is():
    found, n = classical_fluxes(image(), 2.4, (0, 10))
    assert (n, np.isnan(found).all()) == (0, True)


def test_missing_pixels_are_named():
    with pytest.raises(InputError, match="finite pixels"):
        detect(np.full((32, 32), np.nan), COLD)
