import numpy as np
import pytest

from surveyproc.simulate.bands import PIXEL_SCALE
from surveyproc.simulate.tiles import CENTRE, OVERLAP, field_side, layout, sky


@pytest.mark.parametrize("scale", [0.2, PIXEL_SCALE])
@pytest.mark.parametrize("objects", [10, 400, 3_000, 30_000, 1_000_000])
def test_every_object_lies_well_inside_some_tile(objects: int, scale: float) -> None:
    side = field_side(objects)
    rng = np.random.default_rng(objects)
    ra, dec = sky(*rng.uniform(-side / 2, side / 2, (2, 300)))
    margin = OVERLAP / 4 / scale
    inside = np.zeros(300, dtype=int)
    for tile in layout(side, scale):
        x, y = tile.positions(ra, dec)
        inside += (np.minimum(x, y) > margin) & (np.maximum(x, y) < tile.pixels - 1 - margin)
    assert inside.min() >= 1
    assert tile.pixels * scale <= 325


def test_density_is_constant_and_the_field_straddles_zero() -> None:
    assert field_side(4_000) == pytest.approx(2 * field_side(1_000))
    ra, dec = sky(np.array([-100.0, 0.0, 100.0]), np.array([0.0, 0.0, 50.0]))
    assert ra[0] > 359
    assert 0 < ra[2] < 1  # east is towards larger right ascension
    assert (ra[1] + 1) % 360 == pytest.approx(1.0)
    assert dec[1] == CENTRE[1] < dec[2]
    assert ra[2] * np.cos(np.radians(dec[2])) * 3600 == pytest.approx(100.0, rel=1e-3)
    names = [tile.name for tile in layout(field_side(3_000))]
    assert names == sorted(set(names))
    assert len(names) == 9
