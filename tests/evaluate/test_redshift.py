import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from surveyproc.errors import InputError
from surveyproc.evaluate import bootstrap as resampling
from surveyproc.evaluate.redshift import (
    bias,
    binned_metrics,
    bootstrap_errors,
    dz_bias,
    dz_nmad,
    dz_outlier_fraction,
    equal_count_edges,
    nmad,
    outlier_fraction,
    outlier_fractions,
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


def test_functions_of_dz_agree_with_those_of_redshifts_row_by_row():
    dz = np.random.default_rng(0).normal(0.02, 0.1, (3, 50))
    for row, first, second, third in zip(
        dz, dz_nmad(dz), dz_outlier_fraction(dz, 0.05), dz_bias(dz), strict=True
    ):
        zeros = np.zeros(50)
        assert (first, second, third) == (
            nmad(row, zeros),
            outlier_fraction(row, zeros, 0.05),
            bias(row, zeros),
        )


def test_bootstrap_errors_are_those_of_normal_scatter():
    n, sigma = 4000, 0.05
    dz = np.random.default_rng(5).normal(0.0, sigma, n)
    found = bootstrap_errors(dz, np.zeros(n), 0.05, resamples=1000, seed=1)
    share = 2 * norm.cdf(-1)
    expected = {
        "bias_err": sigma / np.sqrt(n),
        "outlier_fraction_err": np.sqrt(share * (1 - share) / n),
        # Of a median of |dz|: half over its density there, which is twice the normal density.
        "nmad_err": 1.4826 * sigma / (4 * norm.pdf(norm.ppf(0.75)) * np.sqrt(n)),
    }
    for name, error in expected.items():
        # The bootstrap of a median converges with n^-1/4 only.
        assert found[name] == pytest.approx(error, rel=0.2 if name == "nmad_err" else 0.08)


def test_bootstrap_errors_are_seeded_and_need_two_objects():
    dz, zeros = np.random.default_rng(5).normal(0.0, 0.1, 100), np.zeros(100)
    assert bootstrap_errors(dz, zeros, seed=3) == bootstrap_errors(dz, zeros, seed=3)
    assert bootstrap_errors(dz, zeros, seed=3) != bootstrap_errors(dz, zeros, seed=4)
    dz[50:] = np.nan
    assert bootstrap_errors(dz, zeros) == bootstrap_errors(dz[:50], zeros[:50])
    assert all(np.isnan(value) for value in bootstrap_errors([0.1], [0.1]).values())


def test_large_samples_are_drawn_in_blocks(monkeypatch):
    sizes = []

    def statistic(first, second):
        sizes.append(first.size)
        np.testing.assert_array_equal(second, first + 1)
        return first.mean(axis=-1)

    monkeypatch.setattr(resampling, "BLOCK", 100)
    sample = np.arange(30.0)
    found = resampling.bootstrap(statistic, [sample, sample + 1], 10, seed=0)
    assert found.shape == (10,)
    assert max(sizes) == 90
    assert sum(sizes) == 300


@settings(deadline=None)
@given(
    arrays(np.float64, st.integers(0, 60), elements=st.floats(-5, 5) | st.just(np.nan)),
    st.integers(1, 8),
)
def test_equal_count_bins_hold_every_finite_value_once(values, bins):
    edges = equal_count_edges(values, bins)
    assert len(edges) <= bins + 1
    if len(edges) > 1:
        zeros = np.zeros(len(values))
        rows = binned_metrics(zeros, zeros, values, edges, resamples=2)
        assert sum(row["n"] for row in rows) == np.isfinite(values).sum()
    else:
        assert len(np.unique(values[np.isfinite(values)])) < 2


def test_equal_counts():
    edges = equal_count_edges(np.random.default_rng(0).random(800), 8)
    rows = binned_metrics(np.zeros(800), np.zeros(800), np.random.default_rng(0).random(800), edges)
    assert [row["n"] for row in rows] == [100] * 8


def test_outlier_fractions_are_those_of_each_threshold():
    zeros, dz = np.zeros(400), np.random.default_rng(5).normal(0, 0.1, 400)
    found = outlier_fractions(dz, zeros, (0.3, 0.1), seed=2)
    for k, threshold in enumerate((0.3, 0.1)):
        assert found["outlier_fractions"][k] == outlier_fraction(dz, zeros, threshold)
        alone = bootstrap_errors(dz, zeros, threshold, seed=2)
        assert found["outlier_fractions_err"][k] == alone["outlier_fraction_err"]
    assert outlier_fractions([0.1], [0.0])["outlier_fractions"] == [0.0, 1.0]
    for values, without in (([0.1], ("_err",)), ([np.nan], ("", "_err"))):
        unknown = outlier_fractions(values, [0.0])
        assert all(np.isnan(unknown[f"outlier_fractions{end}"]).all() for end in without)
