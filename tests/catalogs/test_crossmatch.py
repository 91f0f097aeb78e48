from __future__ import annotations

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc.catalogs.crossmatch import nearest


def test_across_ra_zero_and_at_the_poles():
    ra1, dec1 = [359.9999, 12.0, 200.0, 80.0], [0.0, 90.0, -89.9999, 10.0]
    ra2, dec2 = [0.0001, 190.0, 20.0], [0.0, 89.9999, -89.9999]
    index, separation = nearest(ra1, dec1, ra2, dec2, 1.0)
    assert index.tolist() == [0, 1, 2, -1]
    np.testing.assert_allclose(separation[:3], [0.72, 0.36, 0.72], rtol=1e-6)
    assert np.isinf(separation[3])


def test_nothing_matches_nothing_and_nan():
    index, separation = nearest([1.0, np.nan], [1.0, 2.0], [], [], 5.0)
    assert index.tolist() == [-1, -1]
    index, _ = nearest([1.0, np.nan], [1.0, 2.0], [np.nan, 1.0], [1.0, 1.0], 5.0)
    assert index.tolist() == [1, -1]
    assert nearest([], [], [1.0], [1.0], 5.0)[0].shape == (0,)
    assert np.isinf(separation).all()


def test_small_separations_keep_their_precision():
    _, separation = nearest([10.0], [45.0], [10.0], [45.0 + 1e-3 / 3600], 1.0)
    np.testing.assert_allclose(separation, 1e-3, rtol=1e-5)


@given(st.integers(0, 2**31), st.floats(0.1, 3600 * 20))
@settings(max_examples=20, deadline=None)
def test_equals_astropy(seed, radius):
    rng = np.random.default_rng(seed)
    first = SkyCoord(
        rng.uniform(0, 360, 30), np.degrees(np.arcsin(rng.uniform(-1, 1, 30))), unit="deg"
    )
    second = SkyCoord(
        rng.uniform(0, 360, 40), np.degrees(np.arcsin(rng.uniform(-1, 1, 40))), unit="deg"
    )
    index, separation = nearest(first.ra.deg, first.dec.deg, second.ra.deg, second.dec.deg, radius)
    expected, distance, _ = first.match_to_catalog_sky(second)
    inside = distance <= radius * units.arcsec
    assert (index[inside] == expected[inside]).all()
    assert (index[~inside] == -1).all()
    np.testing.assert_allclose(separation[inside], distance.arcsec[inside], rtol=1e-9)
