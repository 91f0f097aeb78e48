"""Neighbours on the pixels of the tile that an object is taken from."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from astropy.wcs import WCS

from surveyproc import sky
from surveyproc.catalogs.around import nearest_others
from surveyproc.products.base import Batch
from surveyproc.run.nearby import with_neighbours


def tile_of(name, angle, side=200):
    """A tile turned by an angle, x to the east where that is 180 degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [0.001, 60.0]
    wcs.wcs.crpix = [side / 2, side / 2]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    wcs.wcs.cd = 0.2 / 3600 * np.array([[-c, s], [s, c]])
    header = wcs.to_header()
    text = "\n".join(str(card) for card in header.cards)
    return SimpleNamespace(id=name, wcs=text, shape=(side, side))


@pytest.mark.parametrize("angle", [0.0, 37.0, 180.0])
def test_they_lie_where_the_tile_has_them(angle):
    tile, other = tile_of("here", angle), tile_of("other", 90.0)
    random = np.random.default_rng(3)
    x, y = random.uniform(80, 120, (2, 40))
    ra, dec = sky.sky_positions(sky.wcs_from_header(tile.wcs), x, y)
    vectors, ids = sky.unit_vectors(ra, dec), np.arange(40)
    around = nearest_others(ids, vectors, ids, vectors, radius=1.5, most=2)
    index = np.array([5, 3, 20])
    batch = Batch(
        columns={},
        flags=np.zeros(3, np.int32),
        positions=np.array([[x[5], y[5]], [x[3], y[3]], [np.nan, np.nan]]),
        tiles=np.array(["here", "here", None], object),
    )
    reader = SimpleNamespace(tiles=[other, tile])
    found = with_neighbours(batch, index, pa.table({"ra": ra, "dec": dec}), around, reader)
    assert found.neighbour_pixels.shape == (3, 2, 2)
    for row, own in enumerate(index[:2]):
        for place, one in enumerate(around.ids[own]):
            if np.isnan(around.offsets[own, place, 0]):
                assert np.isnan(found.neighbour_pixels[row, place]).all()
                continue
            expected = [x[one] - np.floor(x[own] + 0.5), y[one] - np.floor(y[own] + 0.5)]
            np.testing.assert_allclose(found.neighbour_pixels[row, place], expected, atol=1e-4)
    assert np.isfinite(found.neighbour_pixels[:2]).any()
    # No tile covers the last one.
    assert np.isnan(found.neighbour_pixels[2]).all()
