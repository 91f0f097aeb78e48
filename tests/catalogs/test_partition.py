from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from surveyproc.catalogs.partition import Assigner, SkyCounts, choose
from surveyproc.catalogs.spill import at_most_two, bucket, repeated

INDEXES = st.lists(
    st.one_of(st.integers(0, 12 * 4**29 - 1), st.integers(0, 4**19)), min_size=1, max_size=200
).map(lambda values: np.array(values, np.int64))


@given(INDEXES, st.integers(1, 50))
def test_partitions_are_disjoint_cover_all_and_keep_the_limit(indexes, limit):
    counts = SkyCounts()
    counts.add(indexes)
    chosen = choose(counts.pixels, counts.counts, counts.order, limit)
    number = Assigner(chosen)(indexes)
    assert (number >= 0).all()
    assert np.bincount(number, minlength=len(chosen)).tolist() == [part[2] for part in chosen]
    assert all(rows <= limit or order == counts.order for order, _, rows in chosen)
    ends = [(pixel + 1) << 2 * (29 - order) for order, pixel, _ in chosen]
    starts = [pixel << 2 * (29 - order) for order, pixel, _ in chosen]
    assert all(stop <= start for stop, start in zip(ends[:-1], starts[1:], strict=True))


@given(INDEXES, st.integers(1, 50))
def test_no_partition_could_be_its_parent(indexes, limit):
    counts = SkyCounts()
    counts.add(indexes)
    for order, pixel, _ in choose(counts.pixels, counts.counts, counts.order, limit):
        if order:
            shift = 2 * (29 - order + 1)
            assert (indexes >> shift == pixel >> 2).sum() > limit


@given(INDEXES, st.integers(1, 40), st.integers(1, 60))
def test_counts_do_not_depend_on_batches(indexes, most, size):
    whole, parts = SkyCounts(max_occupied=most), SkyCounts(max_occupied=most)
    whole.add(indexes)
    for start in range(0, len(indexes), size):
        parts.add(indexes[start : start + size])
    assert whole.order == parts.order
    assert (whole.pixels == parts.pixels).all()
    assert (whole.counts == parts.counts).all()
    assert len(whole.pixels) <= max(most, 12)


@given(st.lists(st.integers(-5, 5), max_size=50), st.integers(0, 8))
def test_repeated_ids(values, bits):
    ids = np.array(values, np.int64)
    expected = sorted({value for value in values if values.count(value) > 1})
    assert repeated(ids).tolist() == expected
    assert repeated(*at_most_two(ids)).tolist() == expected
    numbers = bucket(ids, bits)
    assert ((numbers >= 0) & (numbers < 2**bits)).all()


def test_buckets_are_even():
    for ids in (np.arange(100_000), np.arange(100_000) * 2**20):
        counts = np.bincount(bucket(ids, 5), minlength=32)
        assert counts.min() > 0.8 * counts.mean()
        assert counts.max() < 1.2 * counts.mean()
