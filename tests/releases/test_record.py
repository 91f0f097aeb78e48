"""The records of releases keep their form: old ones are read, new ones have the same keys."""

import pytest

from surveyproc.errors import StoreError
from surveyproc.releases.pointer import pointed_to
from surveyproc.releases.record import Release, finished
from surveyproc.store import layout
from surveyproc.store.storage import Store

FIRST = {
    "release": "r1",
    "path": "releases/test/r1",
    "rows": 3,
    "rejected": 1,
    "duplicates": 0,
    "partitions": 2,
    "rows_per_second": 10.5,
    "published": "2026-01-01",
    "products": {"photometry": "1"},
    "flags": {"photometry": {"any": 1}},
}
"""What the first releases recorded."""
LATER = {
    "metadata": {},
    "damaged": [],
    "searched": {},
    "band_flags": {},
    "kinds": {},
    "tables": {},
    "pixels": [],
    "quarantined": [],
}


def test_records_of_the_first_releases_are_read_and_what_is_written_has_their_keys(tmp_path):
    store = Store(str(tmp_path))
    store.put_json(layout.done("r1"), FIRST)
    found = finished(store, "r1")
    assert (found.url, found.flags) == (f"{tmp_path}/releases/test/r1", FIRST["flags"])
    assert found.record == FIRST | LATER
    store.put_json(layout.pointer("test"), found.record | {"of a later version": 1})
    assert pointed_to(store, "test") == found == Release(url=found.url, **FIRST)
    assert finished(store, "r2") is None


@pytest.mark.parametrize("damaged", [{"path": "releases/test/r1"}, {}, ["r1"]])
def test_a_damaged_record_is_named(tmp_path, damaged):
    store = Store(str(tmp_path))
    store.put_json(layout.pointer("test"), damaged)
    with pytest.raises(StoreError, match=r"current\.json is damaged .*; `surveyproc releases"):
        pointed_to(store, "test")
