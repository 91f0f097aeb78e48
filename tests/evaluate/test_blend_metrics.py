"""Metrics of blends, by hand and with known noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc.errors import InputError
from surveyproc.evaluate.blends import (
    binned_blends,
    blend_metrics,
    blends_by_kind,
    completeness,
    coverage,
    error_scale,
    flux_names,
    found_blends,
    galaxy_names,
    magnitude_errors,
    mask_overlaps,
    overlap_bias,
    scaled_errors,
    shared_pixels,
)


def test_metrics_by_hand():
    true = 10 ** ((31.4 - np.array([20.0, 20.0, 25.0, 25.0, 25.0])) / 2.5)
    flux = true * [1.0, 10**-0.4, 10**0.4, -1.0, np.nan]
    found = blend_metrics(flux, true)
    assert (found["n"], found["n_missing"]) == (4, 1)
    assert found["mean"] == pytest.approx(0.0)
    assert found["median"] == pytest.approx(0.0)
    # Of the population, and of the positive fluxes alone: dm = 0, 1, -1.
    assert found["std"] == pytest.approx(np.sqrt(2 / 3))
    # A negative flux has no magnitude, yet is a catastrophe.
    assert found["outliers"] == 0.75
    percent = 100 * np.array([0.0, 1 - 10**-0.4, 10**0.4 - 1, 2.0])
    assert found["mape_flux"] == pytest.approx(percent.mean())
    assert found["mape_magnitude"] == pytest.approx(100 * (0 + 1 / 20 + 1 / 25) / 3)


def test_the_two_percentages_are_far_apart():
    random = np.random.default_rng(0)
    true = 10 ** ((31.4 - random.uniform(19, 24, 20_000)) / 2.5)
    found = blend_metrics(true * 10 ** (-0.4 * random.normal(0, 0.1, 20_000)), true)
    assert found["std"] == pytest.approx(0.1, rel=0.03)
    assert found["mape_flux"] == pytest.approx(7.4, rel=0.05)
    assert found["mape_magnitude"] == pytest.approx(0.37, rel=0.05)


@pytest.mark.parametrize("bad", [0.0, -3.0])
def test_true_fluxes_without_a_magnitude_are_named(bad):
    with pytest.raises(InputError, match="1 of 3 true fluxes are zero or negative"):
        blend_metrics([1.0, 1.0, 1.0], [1.0, bad, np.nan])


def test_nothing_known_is_nothing_said():
    found = blend_metrics([1.0, np.nan], [np.nan, 1.0])
    assert (found["n"], found["n_missing"]) == (0, 1)
    assert all(np.isnan(found[key]) for key in ("mean", "std", "mape_flux", "outliers"))
    with pytest.raises(InputError, match="shapes"):
        magnitude_errors([1.0], [1.0, 2.0])


def test_bins_and_types_hold_every_galaxy_once():
    random = np.random.default_rng(1)
    true = random.uniform(1, 2, 300)
    flux, by = true * random.normal(1, 0.1, 300), random.uniform(-2, 2, 300)
    by[:2] = -2, 2
    rows = binned_blends(flux, true, by, np.linspace(-2, 2, 7), 0.1 * true)
    assert sum(row["n"] for row in rows) == 300
    assert (rows[0]["low"], rows[-1]["high"]) == (-2, 2)
    assert all(0.4 < row["coverage"] < 0.95 for row in rows)
    kinds = np.array(["disc", "bulge"])[random.integers(0, 2, 300)]
    found = blends_by_kind(flux, true, kinds)
    assert sorted(found) == ["bulge", "disc"]
    assert found["disc"]["n"] == (kinds == "disc").sum()


def test_masks_by_hand():
    true = np.zeros((2, 2, 2, 2))
    true[0, 0, 0, 0] = true[0, 1, 0, :] = 1
    found = np.zeros((2, 2, 2, 2))
    found[0, 0] = [[0.9, 0.6], [0.4, 0.0]]
    found[0, 1] = [[0.5, 0.5], [0.49, 0.0]]
    np.testing.assert_array_equal(mask_overlaps(found, true), [[0.5, 1.0], [np.nan, np.nan]])
    assert shared_pixels(found).tolist() == [2, 0]
    assert shared_pixels(true).tolist() == [1, 0]
    assert overlap_bias(shared_pixels(found), shared_pixels(true)) == -1.0
    assert np.isnan(overlap_bias([3], [0]))


def test_completeness_is_of_blends_and_rejected_of_the_others():
    random = np.random.default_rng(2)
    p = random.random(20_000)
    blended = random.random(20_000) < 0.2
    assert completeness(p, blended, 0.1) == pytest.approx(0.1, abs=0.02)
    assert completeness(p + blended, blended, 0.1) == 1.0
    assert np.isnan(completeness(p, np.zeros(20_000, bool), 0.1))
    with pytest.raises(InputError, match="shapes"):
        completeness([0.5], [True, False], 0.1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), wrong=st.floats(0.2, 1.0))
def test_scaled_errors_hold_68_percent_also_by_brightness(seed, wrong):
    random = np.random.default_rng(seed)

    def blends(n):
        true = 10 ** random.uniform(2, 4, n)
        # Errors that are wrong by a factor that depends on the flux.
        error = 0.1 * true
        flux = true + error * (true / 1e3) ** 0.3 * random.laplace(0, wrong, n)
        return flux, error, true

    scale = error_scale(*blends(8000))
    flux, error, true = blends(8000)
    better = scaled_errors(flux, error, scale)
    assert coverage(flux, better, true) == pytest.approx(0.6827, abs=0.03)
    # At 1e2 and 1e4 nJy raw errors are wrong in different ways, scaled ones are not.
    for low, high in ((200, 1000), (1000, 5000)):
        some = (flux > low) & (flux < high)
        assert coverage(flux[some], better[some], true[some]) == pytest.approx(0.6827, abs=0.06)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100))
def test_scaled_errors_hold_68_percent_also_by_distance(seed):
    random = np.random.default_rng(seed)

    def blends(n):
        true, apart = 10 ** random.uniform(2, 4, n), random.uniform(0, 10, n)
        # Near pairs are worse than their errors say; of a tenth nobody knows the distance.
        flux = true + 0.1 * true * (1 + 3 * (apart < 2)) * random.normal(0, 1, n)
        return flux, 0.1 * true, true, np.where(random.random(n) < 0.1, -1.0, apart)

    scale = error_scale(*blends(8000))
    flux, error, true, apart = blends(8000)
    better = scaled_errors(flux, error, scale, apart)
    for some in ((apart >= 0) & (apart < 1.5), apart > 2.5):
        assert coverage(flux[some], better[some], true[some]) == pytest.approx(0.6827, abs=0.06)
    # Of the others the brightness alone says something.
    alone = scaled_errors(flux, error, {key: scale[key] for key in ("log_flux", "scale")})
    np.testing.assert_array_equal(better[apart < 0], alone[apart < 0])


def test_few_objects_scale_nothing():
    assert error_scale(*np.ones((3, 49))) == {"log_flux": [0.0], "scale": [1.0]}
    one, true = np.ones(60), 3 + 1e-9 * np.arange(60)
    found = error_scale(one, one, true)
    assert found == {"log_flux": [0.0], "scale": [pytest.approx(2.0)]}
    # Sixty blends of thirty galaxies are not enough.
    assert error_scale(one, one, true[np.arange(60) % 30])["scale"] == [1.0]
    found = {"log_flux": [0.0], "scale": [2.0]}
    assert scaled_errors(np.array([-5.0, 7.0]), np.array([1.0, 3.0]), found).tolist() == [2.0, 6.0]


def test_names():
    assert galaxy_names(1) == ("central",)
    assert flux_names(3, ("r",)) == ("central_r", "companion_r", "companion_2_r")


def test_found_blends_by_hand():
    """Ten objects alone at 0.00 to 0.09; the blends at 0.085 and above, one without an answer."""
    p = np.array([*np.arange(10) / 100, 0.085, 0.5, 0.6, np.nan])
    blended = np.arange(14) >= 10
    apart = np.where(blended, [*np.zeros(10), 1.0, 1.0, 3.0, 3.0], np.nan)
    found = found_blends(p, blended, apart, (0.0, 2.0, 4.0, 6.0))
    assert (found["n"], found["blends"]) == (13, 3)
    at = dict(zip(found["rejected"], found["completeness"], strict=True))
    assert at[0.01] == pytest.approx(2 / 3)
    assert at[0.2] == 1.0
    near, far, none = found["by_separation"]
    assert (near["n"], far["n"], none["n"]) == (2, 1, 0)
    assert near["completeness"][0] == 0.5
    assert far["completeness"][0] == 1.0
    assert np.isnan(none["completeness"]).all()
    assert "by_separation" not in found_blends(p, blended)
