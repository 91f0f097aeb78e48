"""Median ratios from histograms, and bounds that are wrong as rarely as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from surveyproc.evaluate.ratio import BRIGHT, CHANCE, LEAST, bounds, counted, log_ratios, median

RATIOS = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=60)


@given(RATIOS, st.lists(st.floats(0.1, 10.0), max_size=60))
def test_the_median_and_its_bounds_hold_that_of_numpy(one, other):
    logs = np.log(one), np.log(other)
    counts = counted(logs[0]) + counted(logs[1])
    every = np.sort(np.concatenate(logs))
    # The middle value of the lower half and of the upper one; their bins are 12 % wide at most.
    low, high = every[(len(every) - 1) // 2], every[len(every) // 2]
    assert low - 0.12 <= np.log(median(counts)) <= high + 0.12
    found = bounds(counts)
    assert (found is None) == (len(every) < LEAST)
    if found is not None:
        rank = int(binom.ppf(CHANCE, len(every), 0.5))
        assert found[0] <= np.exp(every[rank - 1]) * (1 + 1e-12)
        assert found[1] >= np.exp(every[-rank]) * (1 - 1e-12)


@pytest.mark.parametrize("ratio", [0.5, 0.95, 1.0, 1.05, 3.0])
def test_a_pure_change_of_scale_is_found_from_few_objects(ratio):
    counts = counted(np.full(LEAST, np.log(ratio)))
    far = 0.002 if abs(ratio - 1) < 0.1 else 0.03
    assert median(counts) == pytest.approx(ratio, rel=far)
    low, high = bounds(counts)
    assert ratio * (1 - 2 * far) < low < ratio < high < ratio * (1 + 2 * far)


def test_false_alarms_are_as_rare_as_stated():
    # Both releases at the lower limit of what is bright: the largest scatter that there can be.
    beyond = norm.sf(np.log(1.03) / (np.sqrt(2) / BRIGHT))
    n = np.arange(LEAST, 3000)
    rank = binom.ppf(CHANCE, n, 0.5)
    # An alarm is `rank` objects at most on the inner side of the limit; either side may be passed.
    assert 2 * binom.cdf(rank - 1, n, 1 - beyond).max() < 1e-6
    assert np.flatnonzero(binom.ppf(CHANCE, np.arange(50), 0.5))[0] == LEAST


def test_a_shift_of_5_percent_is_seen_through_noise():
    rng = np.random.default_rng(1)
    flux = 20.0 * rng.pareto(1.5, 400) + 20.0
    old, new = flux + rng.normal(0, 1, 400), 1.05 * flux + rng.normal(0, 1, 400)
    low, _ = bounds(counted(log_ratios(old, np.ones(400), new, np.ones(400))))
    assert low > 1.03


def test_what_counts_as_bright():
    old = np.array([100.0, 100.0, 10.0, np.nan, 100.0, -5.0])
    new = np.array([110.0, -3.0, 10.0, 100.0, np.nan, 100.0])
    error = np.ones(6)
    found = log_ratios(old, error, new, error)
    np.testing.assert_allclose(found[:2], [np.log(1.1), -np.inf])
    assert np.isnan(found[2:5]).all()
    assert found[5] == np.inf
    assert counted(found).sum() == 3
    assert np.isnan(median(counted(found[2:5])))
