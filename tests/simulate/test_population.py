import numpy as np
import pytest
from scipy.integrate import quad
from scipy.spatial import cKDTree

from surveyproc.errors import ConfigError
from surveyproc.simulate.bands import DEFAULT_BANDS, choose
from surveyproc.simulate.population import (
    BLEND_RADIUS,
    BLEND_SHARE,
    ISOLATION,
    R_LIMITS,
    STAR_SHARE,
    Z_MAX,
    Z_MIN,
    Pairs,
    Population,
    populate,
    redshift_density,
    spec_success,
)
from surveyproc.simulate.tiles import field_side

N = 20_000
BANDS = choose(DEFAULT_BANDS)


@pytest.fixture(scope="module")
def people() -> Population:
    return populate(N, field_side(N), BANDS, np.random.default_rng(5))


def test_redshifts_follow_the_stated_density(people: Population) -> None:
    def moment(power: int) -> float:
        return float(quad(lambda z: z**power * redshift_density(np.array(z)), Z_MIN, Z_MAX)[0])

    z = people.z[~people.star]
    mean, square = moment(1) / moment(0), moment(2) / moment(0)
    error = np.sqrt((square - mean**2) / len(z))
    assert abs(z.mean() - mean) < 4 * error
    assert z.min() >= Z_MIN
    assert z.max() <= Z_MAX


def test_magnitudes_keep_the_limits_and_lie_in_r_where_stated(people: Population) -> None:
    assert people.r_mag.min() >= R_LIMITS[0] - 1e-9
    assert people.r_mag.max() <= R_LIMITS[1] + 1e-9
    assert np.isfinite(people.mag).all()
    np.testing.assert_allclose(people.mag[:, 2], people.r_mag, atol=1e-9)
    # Counts rise towards the faint end.
    counts = np.histogram(people.r_mag[~people.star], bins=[18, 20, 22, 24])[0]
    assert (np.diff(counts) > 0).all()


def test_shares_are_as_stated(people: Population) -> None:
    assert people.star.mean() == pytest.approx(STAR_SHARE, abs=0.006)
    assert people.blended.sum() == 2 * round(BLEND_SHARE * N)
    galaxies = ~people.star
    assert people.spec[galaxies].mean() > 0.35
    assert not people.spec[people.star].any()
    expected = spec_success(people.r_mag[galaxies]).mean()
    assert people.spec[galaxies].mean() == pytest.approx(expected, abs=0.015)


def test_spec_selection_ignores_redshift_at_given_brightness(people: Population) -> None:
    faint = (people.r_mag > 23.7) & ~people.star
    median = np.median(people.z[faint])
    near, far = (people.spec[faint & (people.z < median)], people.spec[faint & (people.z > median)])
    assert near.mean() == pytest.approx(far.mean(), abs=0.05)


def test_blended_means_a_neighbour_within_the_radius(people: Population) -> None:
    places = np.stack([people.east, people.north], axis=1)
    nearest = cKDTree(places).query(places, k=2)[0][:, 1]
    assert (people.blended == (nearest <= BLEND_RADIUS)).all()
    assert nearest[people.blended].min() >= 0.8 - 1e-9
    assert nearest[~people.blended].min() >= ISOLATION


def test_a_crowded_sky_has_more_and_nearer_pairs() -> None:
    pairs = Pairs(0.3, 0.3)
    people = populate(3000, field_side(3000), BANDS, np.random.default_rng(5), pairs)
    places = np.stack([people.east, people.north], axis=1)
    nearest = cKDTree(places).query(places, k=2)[0][:, 1]
    assert people.blended.sum() == 1800
    assert (people.blended == (nearest <= BLEND_RADIUS)).all()
    assert 0.3 - 1e-9 <= nearest.min() < 0.31
    assert nearest[~people.blended].min() >= ISOLATION
    for share, least in ((0.5, 0.8), (0.1, 2.0), (-0.1, 0.8)):
        with pytest.raises(ConfigError, match="simulate: pairs: a share of"):
            Pairs(share, least)


def test_early_types_are_brighter_rounder_and_more_concentrated(people: Population) -> None:
    names = np.array(people.type_names())
    assert set(names) == {"E", "Sbc", "Scd", "Im", "star"}
    early, late = names == "E", names == "Im"
    assert min(early.sum(), late.sum()) > 0.04 * N
    assert np.median(people.sersic[early]) >= 3
    assert np.median(people.sersic[late]) <= 1.5
    assert people.axis_ratio[early].min() >= 0.5
    # At low redshift a faint limit shows dwarfs, which are late; far away only the luminous.
    colour = people.mag[:, 1] - people.mag[:, 3]
    middle = (people.z > 0.3) & (people.z < 0.4)
    assert np.median(colour[early & middle]) > np.median(colour[late & middle]) + 0.8
    assert np.nanmin(people.radius) >= 0.1
    assert np.nanmax(people.radius) <= 2.0
    assert np.isnan(people.z[people.star]).all()


def test_objects_do_not_depend_on_the_bands() -> None:
    whole = populate(200, field_side(200), BANDS, np.random.default_rng(2))
    part = populate(200, field_side(200), choose(["g", "K"]), np.random.default_rng(2))
    np.testing.assert_array_equal(part.mag, whole.mag[:, [1, 8]])
    np.testing.assert_array_equal(part.r_mag, whole.r_mag)
