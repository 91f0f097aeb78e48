"""Ids of sources that hold them as text, unsigned numbers or floats, or not at all."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tables import all_rows, rejected, run

from surveyproc import schemas, sky
from surveyproc.catalogs import ids, leaves
from surveyproc.catalogs.spill import at_most_two, collisions
from surveyproc.errors import InputError

TWICE = schemas.flag("duplicate_id")


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50))
def test_unsigned_ids_keep_their_bits(numbers):
    values, check = ids.read(pa.array(numbers, pa.uint64()))
    assert check is None
    assert values.view("u8").tolist() == numbers


@settings(deadline=None)
@given(st.lists(st.text(), max_size=30))
def test_text_ids_are_the_documented_hash(texts):
    column = pa.array(texts, pa.string())
    values, check = ids.read(column)
    for text, value in zip(texts, values.tolist(), strict=True):
        digest = hashlib.sha256(text.strip().encode()).digest()
        assert value == int.from_bytes(digest[:8], "big") >> 1
    assert ((values[:, None] == values) == (check[:, None] == check)).all()
    assert ids.is_absent(column).tolist() == [not text.strip() for text in texts]


@settings(deadline=None)
@given(st.lists(st.floats(), max_size=30), st.sampled_from([pa.float32(), pa.float64()]))
def test_float_ids_are_exact_or_refused(numbers, dtype):
    with np.errstate(over="ignore"):
        column = pa.array(np.array(numbers, dtype.to_pandas_dtype()))
    exact = 2**53 if dtype == pa.float64() else 2**24
    kept = [n for n in column.to_pylist() if not np.isnan(n)]
    wrong = [n for n in kept if np.isinf(n) or n != int(n) or abs(n) >= exact]
    assert ids.strange(column) == (wrong[0] if wrong else None)
    if not wrong:
        known = ~ids.is_absent(column)
        assert ids.read(column)[0][known].tolist() == kept


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=40))
def test_ids_of_places_are_distinct_and_local(where):
    """Rows at one place are numbered; those at another change nothing."""
    places, offsets = np.array(where, np.int64).reshape(-1, 2).T
    index = np.sort((places << 18) + offsets)
    made = ids.of_place(index)
    assert len(set(made.tolist())) == len(made)
    for place in np.unique(index >> 18):
        mine = index >> 18 == place
        assert (ids.of_place(index[mine]) == made[mine]).all()


def test_ids_of_places_fit_and_overflow_is_named():
    last = np.array([12 * 4**29 - 1])
    assert ids.of_place(last)[0] > 0
    with pytest.raises(InputError, match=r"524289 rows lie within 0.2 arcsec"):
        ids.of_place(np.zeros(2**19 + 1, np.int64))


def test_collisions_are_told_from_repetitions():
    number, check = np.array([1, 1, 2, 2, 3]), np.array([5, 6, 7, 7, 8])
    assert collisions(*at_most_two(number, check)).tolist() == [1]


@pytest.mark.parametrize(
    "dtype", [pa.bool_(), pa.timestamp("s"), pa.list_(pa.int64()), pa.date32()]
)
def test_other_types_are_no_ids(dtype):
    with pytest.raises(TypeError, match="neither numbers nor text"):
        ids.origin(dtype)


def table(names, **more):
    rows = len(names)
    return pa.table({"name": names, "ra": np.arange(rows) * 0.1, "dec": np.ones(rows), **more})


def ingest(tmp_path, where, source, **options):
    path = tmp_path / f"{where}.parquet"
    pq.write_table(source, path)
    store, summary = run(tmp_path / where, path, **options)
    return all_rows(store), summary, store


def test_text_ids_stay_as_a_column_and_do_not_depend_on_the_order(tmp_path):
    source = table(["SDSS J1", "b", "a", "a ", None, " "])
    found, summary, store = ingest(tmp_path, "one", source, id="name")
    assert (summary.rows_out, summary.duplicates, summary.rejected) == (4, 2, 2)
    assert [row["reason"] for row in rejected(store)] == ["id is null"] * 2
    assert summary.notes[0].startswith("object_id: made from the text column 'name': the first 63")
    flags = dict(zip(found["name"].to_pylist(), found["catalog_flag"].to_pylist(), strict=True))
    assert flags == {"SDSS J1": 0, "b": 0, "a": TWICE, "a ": TWICE}
    again = ingest(tmp_path, "two", source.take([5, 3, 1, 0, 2, 4]), id="name", batch=1)[0]
    assert again["object_id"].to_pylist() == found["object_id"].to_pylist()


def test_an_id_called_object_id_gets_another_name(tmp_path):
    source = table(["x", "y"]).rename_columns(["object_id", "ra", "dec"])
    found, summary, _ = ingest(tmp_path, "one", source)
    assert found["source_object_id"].to_pylist() == ["x", "y"]
    assert "column 'object_id' is stored as 'source_object_id'" in summary.notes[1]


def test_unsigned_and_float_ids(tmp_path):
    source = table(["x", "y"], big=pa.array([7, 2**64 - 1], pa.uint64()), real=[3.0, 4.0])
    found = ingest(tmp_path, "one", source, id="big")[0]
    assert found["object_id"].to_pylist() == [7, -1]
    assert [int(one) for one in found["big"].to_pylist()] == [7, 2**64 - 1]
    found, summary, _ = ingest(tmp_path, "two", source, id="real")
    assert found["object_id"].to_pylist() == [3, 4]
    # Of the ids there is nothing to say.
    assert [note.split(" ")[2] for note in summary.notes] == ["'big'"]
    with pytest.raises(InputError, match=r"three.parquet: column 'ra' \(catalog.id\).*holds 0.1,"):
        ingest(tmp_path, "three", source, id="ra")


def test_no_ids_are_made_from_places_and_said(tmp_path):
    source = pa.table({"ra": [9.0, 8.0, 9.0, 7.0], "dec": [1.0, 1.0, 1.0, 1.0], "n": [0, 1, 2, 3]})
    found, summary, _ = ingest(tmp_path, "one", source)
    assert summary.notes[0].startswith("object_id: made from the place: HEALPix pixel of order 20")
    assert summary.duplicates == 0
    made = dict(zip(found["n"].to_pylist(), found["object_id"].to_pylist(), strict=True))
    place = sky.healpix29(np.array([9.0]), np.array([1.0]))[0] >> 18 << 19
    assert (made[0], made[2]) == (place, place + 1)
    less = ingest(tmp_path, "two", source.take([0, 2, 3]), id="", partition_rows=1)[0]
    assert dict(zip(less["n"].to_pylist(), less["object_id"].to_pylist(), strict=True)) == {
        n: made[n] for n in (0, 2, 3)
    }


def test_a_collision_ends_the_ingest(tmp_path, monkeypatch):
    """Nobody has two texts with equal 63 bits of SHA-256, so the hash is shortened here."""

    def sha256(text):
        short = bytes(8) + hashlib.sha256(text).digest()[8:]
        return SimpleNamespace(digest=lambda: short)

    monkeypatch.setattr(ids, "hashlib", SimpleNamespace(sha256=sha256))
    with pytest.raises(InputError, match="two different texts give the same object_id 0"):
        ingest(tmp_path, "one", table(["a", "b"]), id="name")


def test_ids_are_spilled_with_what_tells_collisions_only_if_hashed():
    assert leaves.id_schema(ids.TEXT).names == ["id", "check"]
    assert leaves.id_schema(ids.INTEGER).names == ["id"]
