import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc.errors import InputError
from surveyproc.evaluate.compare import paired_bootstrap
from surveyproc.evaluate.redshift import dz_bias, dz_nmad, dz_outlier_fraction

METRICS = st.sampled_from([dz_nmad, dz_outlier_fraction, dz_bias])


def errors(seed, n, scatter):
    return np.random.default_rng(seed).normal(0.01, scatter, n)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 200), METRICS)
def test_equal_predictions_have_no_gain_and_p_1(seed, n, metric):
    dz = errors(seed, n, 0.1)
    found = paired_bootstrap(dz, dz, metric, resamples=100)
    assert (found.delta, found.p_value) == (0.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(2, 200), METRICS)
def test_exchange_mirrors_the_test(seed, n, metric):
    first, second = errors(seed, n, 0.1), errors(seed + 1000, n, 0.12)
    found = paired_bootstrap(first, second, metric, resamples=400, seed=seed)
    mirrored = paired_bootstrap(second, first, metric, resamples=400, seed=seed)
    assert mirrored.delta == -found.delta
    assert (mirrored.baseline, mirrored.candidate) == (found.candidate, found.baseline)
    # Equality but for resamples that lie on the limit, which count for both.
    assert found.p_value + mirrored.p_value >= 1.0
    if metric is not dz_outlier_fraction and n > 20:
        assert found.p_value + mirrored.p_value == pytest.approx(1.0)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99))
def test_a_clearly_better_model_is_found(seed):
    baseline = errors(seed, 1000, 0.1)
    found = paired_bootstrap(baseline, 0.7 * baseline, dz_nmad, resamples=1500, seed=seed)
    assert found.gain == pytest.approx(0.3)
    assert found.p_value < 0.001


def test_p_is_that_of_a_normal_difference():
    # The mean of n paired differences has a known error: p = P(Z >= delta / error).
    n = 2000
    generator = np.random.default_rng(2)
    candidate = generator.normal(0.5, 0.1, n)
    difference = generator.normal(0.0, 0.1, n)
    difference += 0.1 / np.sqrt(n) * 1.5 - difference.mean()
    found = paired_bootstrap(candidate + difference, candidate, dz_bias)
    assert found.resamples == 10_000
    assert found.p_value == pytest.approx(0.0668, abs=0.012)


def test_bias_is_better_the_closer_to_zero_whatever_its_sign():
    dz = errors(1, 500, 0.01)
    dz -= dz.mean()
    found = paired_bootstrap(dz - 0.04, dz + 0.01, dz_bias, resamples=500)
    assert found.gain == pytest.approx(0.75)
    assert found.p_value == 0.0


def test_any_metric_and_pairs_with_a_missing_error():
    first, second = errors(1, 100, 0.1), errors(2, 100, 0.2)
    first[:10], second[5:20] = np.nan, np.inf
    found = paired_bootstrap(first, second, lambda dz: np.sqrt(np.mean(dz**2, axis=-1)))
    assert (found.n, found.n_missing) == (80, 20)
    assert found.baseline == pytest.approx(np.sqrt(np.mean(first[20:] ** 2)))
    assert found.delta < 0
    assert found.p_value > 0.9


def test_what_cannot_be_compared():
    with pytest.raises(InputError, match="same objects"):
        paired_bootstrap([0.1], [0.1, 0.2], dz_nmad)
    with pytest.raises(InputError, match="nothing to compare"):
        paired_bootstrap([0.1, np.nan], [np.nan, 0.1], dz_nmad)
    assert np.isnan(paired_bootstrap([0.0], [0.1], dz_bias).gain)
