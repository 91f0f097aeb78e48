import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from surveyproc.errors import InputError
from surveyproc.evaluate.redshift import (
    bias,
    binned_metrics,
    nmad,
    outlier_fraction,
    redshift_metrics,
    scaled_error,
)

SAMPLES = arrays(np.float64, st.integers(3, 40), elements=st.floats(0.0, 3.0))


def test_values_worked_out_by_hand():
    true = np.array([0.0, 1.0, 1.0, 3.0, 0.0])
    predicted = np.array([0.1, 1.2, 0.8, 3.0, 0.5])
    np.testing.assert_allclose(scaled_error(predicted, true), [0.1, 0.1, -0.1, 0.0, 0.5])
    # Median 0.1; absolute deviations 0, 0, 0.2, 0.1, 0.4; their median 0.1.
    assert nmad(predicted, true) == pytest.approx(0.14826)
    assert outlier_fraction(predicted, true) == pytest.approx(0.2)
    assert bias(predicted, true) == pytest.approx(0.12)


def test_threshold_itself_is_no_outlier():
    assert outlier_fraction([0.25, 0.5], [0.0, 0.0], threshold=0.25) == 0.5


@settings(deadline=None)
@given(SAMPLES, st.floats(-0.1, 0.1))
def test_shift_of_dz_moves_bias_and_leaves_scatter(true, shift):
    noise = np.sin(np.arange(len(true))) * 0.1
    first = true + noise * (1 + true)
    second = first + shift * (1 + true)
    assert bias(second, true) == pytest.approx(bias(first, true) + shift, abs=1e-9)
    assert nmad(second, true) == pytest.approx(nmad(first, true), abs=1e-9)


@settings(deadline=None)
@given(SAMPLES, st.floats(0.1, 10.0))
def test_scale_of_dz_scales_bias_and_scatter(true, scale):
    noise = np.cos(np.arange(len(true))) * 0.1
    first, second = true + noise * (1 + true), true + scale * noise * (1 + true)
    assert nmad(second, true) == pytest.approx(scale * nmad(first, true), abs=1e-9)
    assert bias(second, true) == pytest.approx(scale * bias(first, true), abs=1e-9)


def test_missing_predictions_are_counted_not_hidden():
    true = np.array([0.5, 0.5, 0.5, np.nan])
    found = redshift_metrics(np.array([0.5, np.nan, np.inf, 0.5]), true)
    assert (found["n"], found["n_missing"]) == (1, 2)
    masked = np.ma.array([0.5, 0.7, 0.5, 0.5], mask=[False, True, False, False])
    assert redshift_metrics(masked, true)["n_missing"] == 1


def test_nothing_predicted_gives_nan():
    found = redshift_metrics([np.nan], [1.0])
    assert (found["n"], found["n_missing"]) == (0, 1)
    assert all(np.isnan(found[key]) for key in ("nmad", "outlier_fraction", "bias"))


def test_bins_hold_every_object_once():
    true = np.linspace(0.0, 1.0, 21)
    table = binned_metrics(true + 0.01, true, true, [0.0, 0.5, 1.0])
    assert [row["n"] for row in table] == [10, 11]
    assert table[0]["high"] == table[1]["low"] == 0.5


def test_wrong_shapes_and_edges_are_named():
    with pytest.raises(InputError, match="shape"):
        redshift_metrics([0.1, 0.2], [0.1])
    with pytest.raises(InputError, match="edges"):
        binned_metrics([0.1], [0.1], [0.1], [1.0, 0.0])
    with pytest.raises(InputError, match="binned column"):
        binned_metrics([0.1], [0.1], [0.1, 0.2], [0.0, 1.0])
