"""Blends with truth: what is added up, who may meet whom, how far apart, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc.errors import ConfigError, InputError
from surveyproc.simulate.blends import (
    PACKAGE,
    PAPER,
    Blends,
    Rule,
    add,
    choose,
    left_alone,
    split,
    turned,
)
from surveyproc.simulate.galaxies import KINDS, Sky, drawn, half_light
from surveyproc.simulate.parents import DILATION, Parents, from_stamps, isolate


def spots(n=40, side=32, bands=1, seed=0):
    """Gaussian galaxies about pixel side // 2, from magnitude 20 to 25."""
    random = np.random.default_rng(seed)
    y, x = np.indices((side, side)) - side // 2
    sigma = random.uniform(1.0, 3.0, n)
    shape = np.exp(-(x**2 + y**2) / (2 * sigma[:, None, None] ** 2))
    shape /= shape.sum(axis=(1, 2), keepdims=True)
    flux = 10 ** random.uniform(2.5, 4.5, (n, bands))
    return Parents(
        images=(flux[:, :, None, None] * shape[:, None]).astype(np.float32),
        flux=flux,
        mask=shape > 0.2 * shape.max(axis=(1, 2), keepdims=True),
        radius=1.1774 * sigma,
        kind=np.full(n, "spot"),
        bands=tuple("gri")[:bands],
        select=0,
        psf=np.full(n, np.nan),
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    galaxies=st.integers(2, 4),
    rule=st.sampled_from([PAPER, PACKAGE, Rule(least=2.0, most=3.0, turn=True)]),
)
def test_galaxies_meet_by_the_rule(seed, galaxies, rule):
    parents = spots(side=64)
    pool = np.arange(5, 40)
    rng = np.random.default_rng(seed)
    made = choose(parents, pool, 50, rule, galaxies=galaxies, rng=rng)
    assert set(made.members.ravel()) <= set(pool)
    mag, radius = parents.magnitude[made.members], parents.radius[made.members]
    distance = made.distances()
    assert (made.shift[:, 0] == 0).all()
    for k in range(1, galaxies):
        assert (np.abs(mag[:, k] - mag[:, 0]) < rule.magnitudes).all()
        larger = np.maximum(radius[:, 0], radius[:, k])
        smaller = np.minimum(radius[:, 0], radius[:, k])
        most = np.minimum(rule.most * (larger if rule.most_of == "larger" else smaller), 32)
        least = np.minimum(rule.least * larger, 0.8 * most)
        assert (distance[:, k] >= least - 1e-9).all()
        assert (distance[:, k] >= 1).all()
        assert (distance[:, k] <= most + 1e-9).all()
        for j in range(k):
            assert (made.members[:, j] != made.members[:, k]).all()
            assert (made.shift[:, j] != made.shift[:, k]).any(axis=1).all()
    assert (np.diff(mag[:, 1:], axis=1) >= 0).all(), "companions by brightness"


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 300), share=st.floats(0.05, 0.6), seed=st.integers(0, 9))
def test_no_galaxy_is_in_two_parts(n, share, seed):
    parts = split(n, (share, 0.2), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert len(parts[0]) == round(share * n)


@settings(max_examples=25, deadline=None)
@given(turn=st.integers(0, 7), side=st.integers(4, 9))
def test_turns_move_pixels_about_the_centre(turn, side):
    stamp = np.zeros((2, side, side))
    stamp[:, side // 2, side // 2] = 1.0
    np.testing.assert_array_equal(turned(stamp, turn), stamp)
    stamp = np.random.default_rng(turn).normal(size=(side, side))
    again = turned(stamp, turn)
    np.testing.assert_array_equal(np.sort(again, axis=None), np.sort(stamp, axis=None))
    assert turn == 0 or not np.array_equal(again, stamp)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), bands=st.integers(1, 3), turn=st.booleans())
def test_the_flux_of_the_sum_is_the_sum_of_the_fluxes(seed, bands, turn):
    parents = spots(bands=bands, seed=seed)
    rng = np.random.default_rng(seed)
    rule = Rule(least=0.5, most=2.0, turn=turn)
    made = choose(parents, np.arange(40), 20, rule, galaxies=3, rng=rng)
    images, masks = add(parents, made)
    assert images.dtype == np.float32
    np.testing.assert_allclose(
        images.sum(axis=(2, 3)), parents.flux[made.members].sum(axis=1), rtol=2e-3
    )
    # The brightest pixel of every galaxy lies in its own mask, where its centre was moved to.
    for k in range(3):
        centre = 16 + made.shift[:, k]
        assert masks[np.arange(20), k, centre[:, 0], centre[:, 1]].all()


def test_what_leaves_the_stamp_does_not_come_back():
    parents = spots()
    made = Blends(np.array([[0, 1]]), np.array([[[0, 0], [16, -30]]]), np.zeros((1, 2), int))
    images, masks = add(parents, made)
    alone = parents.images[0]
    np.testing.assert_array_equal(images[0, :, :, 10:], alone[:, :, 10:])
    assert not masks[0, 1, :, 10:].any()


def test_noise_is_as_loud_as_asked_for():
    parents = spots(bands=2)
    made = choose(parents, np.arange(40), 30, rng=np.random.default_rng(1))
    quiet, _ = add(parents, made)
    sigma = np.tile([[0.5, 4.0]], (30, 1))
    loud, _ = add(parents, made, sigma=sigma, rng=np.random.default_rng(2))
    np.testing.assert_allclose((loud - quiet).std(axis=(0, 2, 3)), [0.5, 4.0], rtol=0.03)


def test_only_galaxies_of_one_psf_meet():
    parents = replace(spots(), psf=np.arange(40) % 2 + 2.0)
    made = choose(parents, np.arange(40), 100, galaxies=3, rng=np.random.default_rng(0))
    psf = parents.psf[made.members]
    assert (psf == psf[:, :1]).all()
    assert len(np.unique(psf)) == 2


@pytest.mark.parametrize(
    ("galaxies", "rule", "error", "match"),
    [
        (1, PAPER, ConfigError, "two galaxies at least, not 1"),
        (2, Rule(magnitudes=1e-9), InputError, "none of 40 galaxies has 1 companions"),
        (40, Rule(magnitudes=0.5), InputError, "none of 40 galaxies has 39 companions"),
        (
            14,
            Rule(magnitudes=9, least=9),
            InputError,
            r"no place for the galaxies of 5 of 5 blends",
        ),
    ],
)
def test_rules_that_nothing_satisfies_are_named(galaxies, rule, error, match):
    rng = np.random.default_rng(0)
    with pytest.raises(error, match=match):
        choose(spots(), np.arange(40), 5, rule, galaxies=galaxies, rng=rng)


def test_identical_centres_are_refused():
    made = Blends(np.array([[0, 1]]), np.zeros((1, 2, 2), int), np.zeros((1, 2), int))
    with pytest.raises(InputError, match="have one centre"):
        add(spots(), made)
    with pytest.raises(ConfigError, match="a limit that nothing satisfies"):
        Rule(most=0.0)


def crowded(side=64, seed=0):
    """A galaxy in the centre, a neighbour 20 pixels away, noise of 1."""
    random = np.random.default_rng(seed)
    y, x = np.indices((side, side))

    def spot(yc, xc, flux, sigma=2.0):
        return (
            flux / (2 * np.pi * sigma**2) * np.exp(-((x - xc) ** 2 + (y - yc) ** 2) / 2 / sigma**2)
        )

    alone = spot(32, 32, 3000.0)
    neighbour = spot(32, 52, 4000.0)
    noise = random.normal(0, 1, (side, side))
    return alone, neighbour, noise


@pytest.mark.parametrize("fill", ["pixels", "noise"])
def test_neighbours_are_taken_out(fill):
    alone, neighbour, noise = crowded()
    image = np.stack([alone + neighbour + noise, 2 * (alone + neighbour) + 3 * noise])
    found = isolate(image, 0, np.random.default_rng(9), fill=fill)
    where = neighbour > 0.5
    louder = np.sqrt(2) if fill == "noise" else 1.0
    for plane, sigma in zip(found.image, (1.0, 3.0), strict=True):
        assert abs(plane[where].mean()) < 0.3 * sigma
        spread = plane[where].std() / sigma
        assert spread == pytest.approx(1.0, abs=0.15)
        # The package adds its noise to the rest of the stamp as well.
        assert plane[:20, :20].std() == pytest.approx(louder * sigma, rel=0.15)
    assert found.mask[32, 32]
    assert not found.mask[32, 45:].any()
    np.testing.assert_allclose(found.flux, [3000, 6000], rtol=0.05)
    assert found.radius == pytest.approx(2.35, rel=0.15)
    assert found.ellipse[:2] == pytest.approx((32, 32), abs=0.5)
    assert found.ellipse.flux(alone) == pytest.approx(3000, rel=0.05)


def test_a_neighbour_is_not_widened_into_the_galaxy():
    alone, neighbour, noise = crowded()
    near = np.roll(neighbour, -9, axis=1)
    found = isolate((alone + near + noise)[None], 0, np.random.default_rng(0))
    assert found.image[0][found.mask] == pytest.approx((alone + near + noise)[found.mask])
    assert DILATION == 5


def test_stamps_of_no_use_are_left_out_and_counted():
    alone, neighbour, noise = crowded()
    good, empty, hole = alone + noise, neighbour + noise, (alone + noise).copy()
    hole[3, 3] = np.nan
    images = np.stack([good, empty, hole, noise * 0])[:, None]
    found = from_stamps(images, ("r",), "r", kind=np.array(["a", "b", "c", "d"]))
    assert (len(found), found.kind.tolist()) == (1, ["a"])
    assert found.dropped == {
        "without a galaxy in the centre": 2,
        "with pixels that are not finite": 1,
    }
    with pytest.raises(InputError, match=r"no stamp can be the parent of a blend: 1 with pixels"):
        from_stamps(images[2:3], ("r",), "r")
    with pytest.raises(InputError, match="band 'K' is not among r"):
        from_stamps(images, ("r",), "K")
    with pytest.raises(InputError, match=r"shape \(4, 1, 64, 64\) is not \(n, 2 bands"):
        from_stamps(images, ("r", "i"), "r")
    with pytest.raises(InputError, match=r"flux has shape \(1, 2\), not \(1, 1\)"):
        replace(found, flux=np.ones((1, 2)))
    with pytest.raises(InputError, match=r"1 of 1 galaxies have no positive flux in band r, by"):
        replace(found, flux=np.zeros((1, 1)))


@pytest.mark.parametrize("bright", [3e4, 1e6])
def test_a_stamp_beside_a_saturated_star_is_left_out(bright):
    """Its glare has no neighbour's edge that could be taken out."""
    alone, _, noise = crowded()
    y, x = np.indices((64, 64))
    distance = np.hypot(x - 52, y - 32)
    star = np.minimum(bright * np.exp(-distance / 4), 2e4)
    with pytest.raises(InputError, match="1 without a galaxy in the centre"):
        from_stamps((alone + star + noise)[None, None], ("r",), "r")
    masked = np.where(distance < 8, np.nan, alone + star + noise)
    with pytest.raises(InputError, match="1 with pixels that are not finite"):
        from_stamps(masked[None, None], ("r",), "r")


def test_drawn_galaxies_have_the_flux_and_size_that_is_said():
    found = drawn(60, side=128, skies=(Sky(), Sky(4.0, 0.5)), bands=("V", "H"), seed=3)
    assert set(found.kind) == set(KINDS)
    light = found.images.sum(axis=(2, 3)) / found.flux
    assert (light > 0.95).all()
    assert np.median(light) == pytest.approx(1.0, abs=2e-3)
    assert ((found.magnitude > 19) & (found.magnitude < 23.5)).all()
    np.testing.assert_allclose(found.radius, half_light(found.images[:, 0], found.flux[:, 0]))
    peak = found.images[:, 0].reshape(60, -1).argmax(axis=1)
    smooth = found.kind != "irregular"
    assert (np.abs(np.stack(np.divmod(peak, 128)) - 64)[:, smooth] <= 1).all()
    again = drawn(60, side=128, skies=(Sky(), Sky(4.0, 0.5)), bands=("V", "H"), seed=3)
    np.testing.assert_array_equal(found.images, again.images)
    with pytest.raises(ConfigError, match="2 bands, and 1 skies"):
        drawn(1, bands=("a", "b"))


@pytest.mark.parametrize(
    "psfs",
    [{"skies": (Sky(), Sky(np.nan))}, {"skies": (Sky(), Sky(0.0))}, {"fwhms": (2.0, np.nan)}],
)
def test_a_band_without_psf_is_named(psfs):
    given = {"skies": (Sky(), Sky()), "bands": ("V", "H"), **psfs}
    with pytest.raises(ConfigError, match=r"band [VH] has no PSF: a width of (nan|0) pixels"):
        drawn(2, side=32, **given)


def test_galaxies_of_unknown_psf_meet_each_other_alone():
    parents = replace(spots(), psf=np.where(np.arange(40) % 2, 2.0, np.nan))
    made = choose(parents, np.arange(40), 100, rng=np.random.default_rng(0))
    unknown = np.isnan(parents.psf[made.members])
    assert (unknown[:, 0] == unknown[:, 1]).all()


def test_other_psfs_give_other_sizes():
    found = drawn(40, side=64, fwhms=(2.0, 8.0))
    wide = found.psf == 8.0
    assert wide.sum() == 20
    assert np.median(found.radius[wide]) > np.median(found.radius[~wide])


def test_real_galaxies_can_be_parents(survey_data):
    stamps = survey_data / "kids_viking_field" / "isolated_galaxies_9band_64px_uJy.npz"
    with np.load(stamps) as held:
        images, bands = held["images"][:20] * 1e3, tuple(str(band) for band in held["bands"])
    found = from_stamps(images, bands, "r")
    assert len(found) == 20
    assert ((found.magnitude > 17) & (found.magnitude < 24)).all()
    made = choose(found, np.arange(20), 10, rng=np.random.default_rng(0))
    assert add(found, made)[0].shape == (10, 9, 64, 64)


def test_a_galaxy_alone_has_as_much_noise_as_a_blend_of_real_stamps():
    """Or a network would tell them by it."""
    random = np.random.default_rng(0)
    parents = spots(n=40)
    stamps = parents.images + random.normal(0, 1.0, parents.images.shape).astype(np.float32)
    parents = replace(parents, images=stamps)
    made = choose(parents, np.arange(40), 200, Rule(), rng=np.random.default_rng(1))
    some = left_alone(made, 0.5, np.random.default_rng(2))
    alone = (some.members < 0).any(axis=1)
    assert 70 < alone.sum() < 130
    assert (some.members[:, 0] == made.members[:, 0]).all()
    images, masks = add(parents, some, rng=np.random.default_rng(3))
    assert masks[~alone].any(axis=(2, 3)).all()
    assert not masks[alone, 1:].any()
    # The corner of each, where no galaxy is.
    corner = images[..., :4, :4].std(axis=(1, 2, 3))
    assert corner[alone].mean() == pytest.approx(np.sqrt(2), rel=0.05)
    light = images[alone].sum(axis=(1, 2, 3))
    true = parents.flux[some.members[alone, 0]].sum(axis=1)
    np.testing.assert_allclose(light, true, atol=6 * np.sqrt(2 * images[0].size))
