from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc.images.grid import Grid, same_grid
from surveyproc.sky import (
    cap,
    depth,
    local_pixel_scale,
    owners,
    pixel_positions,
    unit_vectors,
    wcs_from_header,
)


def wcs_text(ra: float, dec: float, shape: tuple[int, int], scale: float = 0.3, **more) -> str:
    cards = {
        "CTYPE1": "'RA---TAN'",
        "CTYPE2": "'DEC--TAN'",
        "CRPIX1": (shape[1] + 1) / 2,
        "CRPIX2": (shape[0] + 1) / 2,
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CDELT1": -scale / 3600,
        "CDELT2": scale / 3600,
        **more,
    }
    return "\n".join(
        f"{key:8s}= {value:.12E}" if isinstance(value, float) else f"{key:8s}= {value}"
        for key, value in cards.items()
    )


@dataclass(frozen=True)
class Patch:
    id: str
    wcs: str
    shape: tuple[int, int]
    pixel_scale: float
    ra: float
    dec: float
    radius: float


def patch(name: str, ra: float, dec: float, shape=(200, 300), scale: float = 0.3) -> Patch:
    text = wcs_text(ra, dec, shape, scale)
    grid = Grid(text, shape)
    return Patch(name, text, shape, grid.pixel_scale, *grid.circle())


def inside(tile: Patch, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ra, dec = wcs_from_header(tile.wcs).all_pix2world(x, y, 0)
    return np.asarray(ra), np.asarray(dec)


centres = st.tuples(st.floats(0, 360), st.floats(-90, 90))


@settings(max_examples=40, deadline=None)
@given(centre=centres, where=st.tuples(st.floats(0.001, 0.999), st.floats(0.001, 0.999)))
def test_anything_within_a_tile_belongs_to_it_anywhere_on_the_sky(centre, where):
    tile = patch("a", *centre)
    x, y = np.array([where[0] * 300 - 0.5]), np.array([where[1] * 200 - 0.5])
    ra, dec = inside(tile, x, y)
    for turn in (0.0, 360.0, -360.0):
        index, found_x, found_y = owners([tile], ra + turn, dec)
        assert index.tolist() == [0]
        np.testing.assert_allclose([found_x, found_y], [x, y], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(centre=centres, x=st.floats(-400, 700), y=st.floats(-400, 600))
def test_outside_is_nobodys(centre, x, y):
    tile = patch("a", *centre)
    ra, dec = inside(tile, np.array([x]), np.array([y]))
    index, _, _ = owners([tile], ra, dec)
    d = depth(np.array([x]), np.array([y]), tile.shape)[0]
    if abs(d) > 1e-4:
        assert index[0] == (0 if d > 0 else -1)


@settings(max_examples=25, deadline=None)
@given(
    centre=centres,
    shifts=st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 99),
)
def test_the_deepest_tile_owns_whatever_the_order(centre, shifts, order, seed):
    first = patch("0", *centre)
    tiles = [first]
    for number, (dx, dy) in enumerate(shifts, start=1):
        ra, dec = inside(first, np.array([149.5 + dx]), np.array([99.5 + dy]))
        tiles.append(patch(str(number), float(ra[0]), float(dec[0]), scale=0.2))
    rng = np.random.default_rng(seed)
    ra, dec = inside(first, rng.uniform(-20, 320, 50), rng.uniform(-20, 220, 50))
    index, x, y = owners(tiles, ra, dec)
    shuffled = list(tiles)
    order.shuffle(shuffled)
    again, x2, y2 = owners(shuffled, ra, dec)
    names = [tiles[i].id if i >= 0 else None for i in index]
    assert names == [shuffled[i].id if i >= 0 else None for i in again]
    np.testing.assert_array_equal(x, x2)
    np.testing.assert_array_equal(y, y2)
    depths = np.array(
        [
            depth(*pixel_positions(wcs_from_header(t.wcs), ra, dec), t.shape) * t.pixel_scale
            for t in tiles
        ]
    )
    best = depths.max(axis=0)
    for i, place in enumerate(index):
        if place >= 0:
            assert depths[place, i] == best[i]
        else:
            assert not best[i] >= 0


def test_ties_go_to_the_smallest_id():
    one, two = patch("b", 10, 0), patch("a", 10, 0)
    index, _, _ = owners([one, two], np.array([10.0]), np.array([0.0]))
    assert index.tolist() == [1]


@pytest.mark.parametrize("dec", [90.0, -90.0])
def test_a_tile_over_a_pole(dec):
    tile = patch("pole", 0.0, dec)
    ra = np.array([0.0, 90.0, 180.0, 270.0, 123.0])
    index, x, y = owners([tile], ra, np.full(5, dec - np.sign(dec) * 20 * 0.3 / 3600))
    assert (index == 0).all()
    np.testing.assert_allclose(np.hypot(x - 149.5, y - 99.5), 20, rtol=1e-4)


def test_what_does_not_project_is_nan():
    wcs = wcs_from_header(wcs_text(0.0, 30.0, (200, 300)))
    ra = np.array([0.0, 180.0, np.nan, 0.0, np.inf, 0.0])
    dec = np.array([30.0, -30.0, 30.0, np.nan, 0.0, 91.0])
    x, y = pixel_positions(wcs, ra, dec)
    assert np.isfinite(x).tolist() == [True, False, False, False, False, False]
    assert np.isnan(y).tolist() == np.isnan(x).tolist()
    index, _, _ = owners([patch("a", 0.0, 30.0)], ra, dec)
    assert index.tolist() == [0, -1, -1, -1, -1, -1]


def test_distortions_are_inverted():
    sip = wcs_text(
        5.0,
        5.0,
        (1000, 1000),
        CTYPE1="'RA---TAN-SIP'",
        CTYPE2="'DEC--TAN-SIP'",
        A_ORDER=2,
        B_ORDER=2,
        A_2_0="1.0E-6",
        B_0_2="-2.0E-6",
    )
    tpv = wcs_text(
        5.0,
        5.0,
        (1000, 1000),
        CTYPE1="'RA---TPV'",
        CTYPE2="'DEC--TPV'",
        PV1_1=1.004,
        PV2_1=1.003,
        PV1_7=0.003,
    )
    x, y = np.array([10.0, 500.0, 990.0]), np.array([20.0, 400.0, 910.0])
    for text in (sip, tpv):
        wcs = wcs_from_header(text)
        ra, dec = wcs.all_pix2world(x, y, 0)
        assert (
            abs(
                ra[0]
                - wcs_from_header(wcs_text(5.0, 5.0, (1000, 1000))).all_pix2world(x, y, 0)[0][0]
            )
            > 1e-6
        )
        np.testing.assert_allclose(pixel_positions(wcs, ra, dec), [x, y], atol=1e-3)


def test_pixel_scale_and_grids():
    text = wcs_text(200.0, -45.0, (500, 500), 0.263)
    assert local_pixel_scale(wcs_from_header(text), 249.5, 249.5) == pytest.approx(0.263, rel=1e-6)
    shifted = wcs_text(200.0, -45.0, (500, 500), 0.263, CRPIX1=250.6)
    assert same_grid(Grid(text, (500, 500)), Grid(text + "\nEQUINOX = 2000.0", (500, 500)))
    assert not same_grid(Grid(text, (500, 500)), Grid(shifted, (500, 500)))
    assert not same_grid(Grid(text, (500, 500)), Grid(text, (500, 501)))


def test_cap_holds_all_and_stays_below_360():
    ra, dec = np.array([359.9, 0.1, 0.0]), np.array([-1.0, -1.0, 1.0])
    lon, lat, radius = cap(ra, dec)
    assert 0 <= lon < 360
    chord = np.linalg.norm(
        unit_vectors(ra, dec) - unit_vectors(np.array(lon), np.array(lat)), axis=-1
    )
    assert (chord <= 2 * np.sin(np.radians(radius) / 2) + 1e-12).all()


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_cap_of_objects_beside_a_pole(pole):
    dec = np.full(3, pole - np.sign(pole) * 1e-7)
    lon, lat, radius = cap(np.array([10.0, 11.0, 12.0]), dec)
    assert abs(lat - dec[0]) < 1e-9
    assert radius < 1e-8
    assert 10 <= lon <= 12


def test_many_tiles_and_objects():
    tiles = [patch(f"{i}-{j}", 30 + 0.02 * i, 0.015 * j) for i in range(20) for j in range(20)]
    rng = np.random.default_rng(0)
    index, _, _ = owners(tiles, rng.uniform(30, 30.38, 20_000), rng.uniform(0, 0.28, 20_000))
    assert (index >= 0).all()
    assert np.unique(index).size > 390
