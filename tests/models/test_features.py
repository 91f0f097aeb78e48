import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc.errors import InputError
from surveyproc.measure.magnitudes import flux_from_magnitude
from surveyproc.models.features import (
    FeatureScaling,
    asinh_magnitudes,
    fit_scaling,
    input_count,
    log_errors,
    magnitudes_and_colours,
    network_inputs,
)

BANDS = tuple("ugrizYJHK")


@pytest.fixture
def flux():
    return np.exp(np.random.default_rng(1).normal(6.0, 1.0, (200, 9)))


def test_nine_bands_give_seventeen_features_and_nine_masks(flux):
    inputs, outside = network_inputs(flux, fit_scaling(flux, None, BANDS))
    assert inputs.shape == (200, 17 + 9) == (200, input_count(9))
    assert inputs.dtype == np.float32
    assert not outside.any()
    np.testing.assert_allclose(inputs[:, :17].mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(inputs[:, :17].std(axis=0), 1.0, atol=1e-4)
    assert (inputs[:, 17:] == 1).all()


@settings(deadline=None)
@given(st.floats(10.0, 30.0))
def test_bright_asinh_magnitude_is_the_magnitude(magnitude):
    flux = flux_from_magnitude([[magnitude]])
    softening = 1e-3 * flux[0]
    assert asinh_magnitudes(flux, softening)[0, 0] == pytest.approx(magnitude, abs=1e-5)


def test_ab_zero_point():
    assert flux_from_magnitude(31.4) == pytest.approx(1.0)
    assert flux_from_magnitude(8.9) == pytest.approx(1e9)


def test_zero_and_negative_flux_stay_finite_and_ordered():
    found = asinh_magnitudes(np.array([[-100.0], [0.0], [100.0]]), np.array([10.0]))[:, 0]
    assert np.isfinite(found).all()
    assert found[0] > found[1] > found[2]


def test_colours_are_of_neighbours(flux):
    softening = np.full(9, 1.0)
    raw = magnitudes_and_colours(flux, softening)
    np.testing.assert_allclose(raw[:, 9], raw[:, 0] - raw[:, 1])
    np.testing.assert_allclose(raw[:, 16], raw[:, 7] - raw[:, 8])


def test_missing_band_is_zero_with_its_colours_and_mask(flux):
    scaling = fit_scaling(flux, None, BANDS)
    whole, _ = network_inputs(flux, scaling)
    for gap in (np.nan, np.inf):
        holed = flux.copy()
        holed[3, 4] = gap
        inputs, outside = network_inputs(holed, scaling)
        gone = [4, 9 + 3, 9 + 4, 17 + 4]
        assert (inputs[3, gone] == 0).all()
        rest = np.setdiff1d(np.arange(26), gone)
        np.testing.assert_array_equal(inputs[3, rest], whole[3, rest])
        np.testing.assert_array_equal(np.delete(inputs, 3, 0), np.delete(whole, 3, 0))
        assert not outside.any()


def test_outside_training_range_is_flagged_and_held_at_the_edge(flux):
    scaling = fit_scaling(flux, None, BANDS)
    far = flux[:2].copy()
    far[0, 0] *= 1e6
    inputs, outside = network_inputs(far, scaling)
    assert outside.tolist() == [True, False]
    edge = (scaling.low[0] - scaling.mean[0]) / scaling.std[0]
    assert inputs[0, 0] == pytest.approx(edge, rel=1e-5)


def test_float32_copy_of_the_training_set_is_inside(flux):
    _, outside = network_inputs(flux.astype(np.float32), fit_scaling(flux, None, BANDS))
    assert not outside.any()


def test_softening_is_the_median_error_where_known(flux):
    errors = np.full_like(flux, 7.0)
    errors[:, 0] = np.nan
    scaling = fit_scaling(flux, errors, BANDS)
    assert scaling.softening[1] == 7.0
    assert scaling.softening[0] == pytest.approx(0.01 * np.median(flux[:, 0]))


def test_scaling_survives_json(flux):
    scaling = fit_scaling(flux, None, BANDS)
    again = FeatureScaling.from_json(json.loads(json.dumps(scaling.to_json())))
    np.testing.assert_array_equal(network_inputs(flux, again)[0], network_inputs(flux, scaling)[0])


def test_broken_scaling_names_the_key(flux):
    document = fit_scaling(flux, None, BANDS).to_json()
    with pytest.raises(InputError, match="mean"):
        FeatureScaling.from_json({**document, "mean": [1.0]})
    with pytest.raises(InputError, match="std"):
        FeatureScaling.from_json({k: v for k, v in document.items() if k != "std"})


def test_band_without_any_flux_is_named(flux):
    flux[:, 2] = np.nan
    with pytest.raises(InputError, match="'r'"):
        fit_scaling(flux, None, BANDS)


def test_bands_that_never_come_together_have_a_dead_colour(flux):
    flux[::2, 0] = np.nan
    flux[1::2, 1] = np.nan
    inputs, outside = network_inputs(flux, fit_scaling(flux, None, BANDS))
    assert (inputs[:, 9] == 0).all()
    assert not outside.any()


def test_log_errors_do_not_depend_on_the_flux_but_need_one():
    found = log_errors(np.array([30.0, -4.0, np.nan, 1.0, 1.0]), np.array([5.0, 5.0, 5.0, 0.0, -1]))
    np.testing.assert_allclose(found, [np.log(5), np.log(5), np.nan, np.nan, np.nan])


def test_errors_are_standardised_inputs_after_the_masks(flux):
    errors = flux * np.exp(np.random.default_rng(2).normal(-3.0, 0.5, flux.shape))
    scaling = fit_scaling(flux, errors, BANDS, errors=True)
    inputs, _ = network_inputs(flux, scaling, errors)
    assert inputs.shape == (200, input_count(9, errors=True)) == (200, scaling.inputs)
    np.testing.assert_allclose(inputs[:, 26:].mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(inputs[:, 26:].std(axis=0), 1.0, atol=1e-4)
    plain, _ = network_inputs(flux, fit_scaling(flux, errors, BANDS))
    np.testing.assert_array_equal(inputs[:, :26], plain)


def test_unknown_errors_are_zero(flux):
    errors = 0.1 * flux * np.linspace(0.5, 2.0, 200)[:, None]
    scaling = fit_scaling(flux, errors, BANDS, errors=True)
    whole, _ = network_inputs(flux, scaling, errors)
    holed, gone = errors.copy(), flux.copy()
    holed[3, :4] = [np.nan, np.inf, 0.0, -1.0]
    gone[3, 8] = np.nan
    inputs, _ = network_inputs(gone, scaling, holed)
    assert (inputs[3, [26, 27, 28, 29, 34]] == 0).all()
    np.testing.assert_array_equal(inputs[3, 30:34], whole[3, 30:34])
    none, _ = network_inputs(flux, scaling)
    assert (none[:, 26:] == 0).all()


def test_scaling_with_errors_survives_json(flux):
    errors = 0.1 * flux * np.linspace(0.5, 2.0, 200)[:, None]
    scaling = fit_scaling(flux, errors, BANDS, errors=True)
    document = json.loads(json.dumps(scaling.to_json()))
    again = FeatureScaling.from_json(document)
    np.testing.assert_array_equal(
        network_inputs(flux, again, errors)[0], network_inputs(flux, scaling, errors)[0]
    )
    with pytest.raises(InputError, match="error_std"):
        FeatureScaling.from_json({k: v for k, v in document.items() if k != "error_std"})


def test_equal_errors_of_all_objects_say_nothing(flux):
    bright = 1e6 * np.ones_like(flux) * np.linspace(1.0, 1.0 + 1e-9, 200)[:, None]
    scaling = fit_scaling(bright, 0.01 * bright, BANDS, errors=True)
    inputs, _ = network_inputs(bright, scaling, 0.01 * bright)
    np.testing.assert_allclose(inputs[:, 26:], 0.0, atol=1e-6)


def test_band_without_any_error_is_named_where_errors_are_wanted(flux):
    errors = 0.1 * flux
    errors[:, 2] = np.nan
    with pytest.raises(InputError, match="'r'"):
        fit_scaling(flux, errors, BANDS, errors=True)
    with pytest.raises(InputError, match="'u'"):
        fit_scaling(flux, None, BANDS, errors=True)
    fit_scaling(flux, errors, BANDS)
