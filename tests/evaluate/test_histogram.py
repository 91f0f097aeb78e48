"""Histograms add up, keep the order of values, and their distance is that of the samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ks_2samp

from surveyproc.evaluate.histogram import add, buckets, distance, histogram, pack, unpack

FLOATS = arrays(np.float64, st.integers(1, 200), elements=st.floats(allow_nan=False))
COUNTS = st.dictionaries(st.integers(-4000, 4000), st.integers(1, 10**9), max_size=50)


@given(FLOATS)
def test_buckets_keep_order_and_sign(values):
    values = np.sort(values)
    found = buckets(values)
    assert (np.diff(found) >= 0).all()
    np.testing.assert_array_equal(buckets(-values), -found)


@given(FLOATS, st.integers(0, 200))
def test_parts_add_up(values, cut):
    total = histogram(values[:cut])
    add(total, histogram(values[cut:]))
    assert total == histogram(values)


@given(COUNTS)
def test_packed_and_unpacked(counts):
    assert unpack(pack(counts)) == counts


def test_damaged_text_is_refused():
    with pytest.raises(ValueError, match="not a packed histogram"):
        unpack("AAAA")


@given(COUNTS, COUNTS)
def test_distance_is_symmetric_and_between_0_and_1(first, second):
    far = distance(first, second)
    assert 0 <= far <= 1 + 1e-12
    assert far == pytest.approx(distance(second, first))
    assert distance(first, first) == 0


def test_distance_agrees_with_scipy():
    rng = np.random.default_rng(1)
    one, other = rng.lognormal(5, 2, 20_000), rng.lognormal(5.05, 2, 30_000) - 20
    exact = ks_2samp(one, other).statistic
    ours = distance(histogram(one), histogram(other))
    # Edges only: never larger, and smaller by at most what a bucket holds.
    assert ours <= exact + 1e-12
    assert ours == pytest.approx(exact, rel=0.1)
    # What lies on bucket edges alone is exact.
    steps = rng.integers(0, 8, (2, 5000))
    steps[1] += steps[1] > 5
    assert distance(*(histogram(2.0**side) for side in steps)) == pytest.approx(
        ks_2samp(*(2.0**side for side in steps)).statistic
    )


def test_integers_and_infinities():
    assert histogram(np.array([0, 0, 5], np.int32)).keys() == {0, *buckets(np.array([5.0]))}
    ends = buckets(np.array([-np.inf, -1e308, 0, 1e308, np.inf]))
    assert (np.diff(ends) >= 0).all()
