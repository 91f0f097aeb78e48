"""Indexes of codes: files that are the same for the same rows, and an exact search."""

import numpy as np
import pyarrow as pa
import pytest

from surveyproc.catalogs import neighbours
from surveyproc.errors import ConfigError, StoreError
from surveyproc.products.registry import check_columns
from surveyproc.schemas import Column
from surveyproc.store.storage import Store

COLUMN = Column("looks", "int8", length=4, searched=True)
KEY = "r1/" + neighbours.index_key("looks", 3, 17)


def leaf(codes):
    lists = pa.array(codes, pa.list_(pa.int8()))
    n = len(codes)
    return pa.table(
        {
            "object_id": np.arange(n) + 100,
            "ra": np.arange(n) * 0.5,
            "dec": np.zeros(n),
            "looks": lists,
        }
    )


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_rows_with_a_code_are_found_again(store):
    rows = leaf([[1, 2, 3, 4], None, [-127, 0, 127, 5]])
    data = neighbours.encode(rows, COLUMN, "v1")
    split = pa.concat_tables([rows.slice(0, 1), rows.slice(1)])
    assert neighbours.encode(split, COLUMN, "v1") == data
    store.put(KEY, data)
    index = neighbours.read(store, KEY, "looks", "v1")
    assert index.object_id.tolist() == [100, 102]
    assert index.ra.tolist() == [0.0, 1.0]
    assert index.codes.tolist() == [[1, 2, 3, 4], [-127, 0, 127, 5]]


@pytest.mark.parametrize("codes", [[], [None, None]])
def test_a_partition_without_a_code_has_an_empty_index(store, codes):
    store.put(KEY, neighbours.encode(leaf(codes), COLUMN, "v1"))
    index = neighbours.read(store, KEY, "looks", "v1")
    assert index.codes.shape == (0, 4)
    rows, squares = neighbours.nearest(index.codes, np.zeros(4, np.int8), 3)
    assert (len(rows), len(squares)) == (0, 0)


def test_an_index_of_another_version_or_column_is_refused(store):
    store.put(KEY, neighbours.encode(leaf([[1, 2, 3, 4]]), COLUMN, "v1"))
    with pytest.raises(StoreError, match="looks of version v1, and the release has looks of ver"):
        neighbours.read(store, KEY, "looks", "v2")
    with pytest.raises(StoreError, match=r"is the index of looks .* has others of version v1"):
        neighbours.read(store, KEY, "others", "v1")


def test_an_index_that_is_gone_or_damaged_is_named(store):
    with pytest.raises(StoreError, match=r"Npix=17\.arrow cannot be read .*repeat"):
        neighbours.read(store, KEY, "looks", "v1")
    store.put(KEY, neighbours.encode(leaf([[1, 2, 3, 4]]), COLUMN, "v1")[:100])
    with pytest.raises(StoreError, match=r"Npix=17\.arrow cannot be read .*repeat"):
        neighbours.read(store, KEY, "looks", "v1")


def test_the_search_is_exact_over_blocks_and_gives_ties():
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (40_000, 64)).astype(np.int8)
    codes[39_999] = codes[20_000] = codes[7]
    rows, squares = neighbours.nearest(codes, codes[7], 2)
    assert rows.tolist() == [7, 20_000, 39_999]
    assert squares.tolist() == [0.0, 0.0, 0.0]
    rows, squares = neighbours.nearest(codes, codes[9], 10)
    true = ((codes.astype(np.int64) - codes[9].astype(np.int64)) ** 2).sum(axis=1)
    assert set(rows) == set(np.flatnonzero(true <= np.sort(true)[9]))
    np.testing.assert_array_equal(squares, true[rows])


@pytest.mark.parametrize(("dtype", "length"), [(np.int8, 64), (np.int16, 32)])
def test_the_largest_distance_there_is_is_exact(dtype, length):
    largest = np.iinfo(dtype).max
    codes = np.full((1, length), largest, dtype)
    _, squares = neighbours.nearest(codes, np.full(length, -largest, dtype), 1)
    assert squares.tolist() == [length * (2 * int(largest)) ** 2]


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float32"}, {"length": 65}, {"length": 0}, {"dtype": "int16", "length": 33}],
)
def test_a_column_that_no_index_can_hold_is_refused(change):
    class Theirs:
        name = "theirs"
        columns = (
            Column(**{"name": "x", "dtype": "int8", "length": 8, "searched": True} | change),
        )

        class inputs:
            columns = ()

    with pytest.raises(ConfigError, match=r"products\.theirs: x is to have an index"):
        check_columns([Theirs()], [])
