"""Cleaning: what nothing refers to goes, what may be wanted stays."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from surveyproc.images.cube import write_rows
from surveyproc.places.base import under_way
from surveyproc.releases.clean import clean
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.train import cube as training

ROW = {
    "bands": ["g"], "wcs": "", "height": 1, "width": 1, "pixel_scale": 1.0, "ra": 0.0, "dec": 0.0,
    "radius": 1.0, "footprint_ra": [], "footprint_dec": [], "has_weight": False,
    "has_mask": False, "checksum": "", "files": [],
}  # fmt: skip


@pytest.fixture
def store(tmp_path) -> Store:
    """Cubes v1 to v5 of one tile: v5 and v4 are of two surveys' tables, v3 of a release."""
    store = Store(str(tmp_path))
    for number in range(1, 6):
        store.put(f"images/t/v{number}/image/c/0/0/0", bytes(100))
        store.put_json(f"images/t/v{number}/tile.json", {})
    write_rows(store, "one", [{**ROW, "id": "t", "version": "v5"}])
    write_rows(store, "two", [{**ROW, "id": "t", "version": "v4"}])
    store.put("releases/one/r1/hats.properties", b"")
    release(store, [["t", "v3"]])
    return store


def release(store: Store, tiles: list | None, **provenance: str) -> None:
    plan = {"provenance": provenance} | ({} if tiles is None else {"tiles": tiles})
    store.put_json("runs/r1/plan.json", plan)


def test_cubes_of_tables_and_releases_stay(store):
    told = clean(store, dry_run=True)
    assert sorted(told.removed) == ["images/t/v1", "images/t/v2"]
    assert all(nbytes > 100 for nbytes in told.removed.values())
    assert store.names("images/t") == ["v1", "v2", "v3", "v4", "v5"]
    assert clean(store) == replace(told, dry_run=False)
    assert store.names("images/t") == ["v3", "v4", "v5"]
    assert clean(store).removed == {}


def test_a_release_that_does_not_say_what_it_was_made_from_keeps_all_cubes(store):
    release(store, None)
    done = clean(store)
    assert done.removed == {}
    assert "release r1 does not say" in done.left[0]


def test_while_an_ingest_is_under_way_cubes_stay(store):
    with under_way(store, "ingest"):
        done = clean(store)
        assert (done.removed, len(done.left)) == ({}, 1)
    assert len(clean(store).removed) == 2


def test_one_that_was_killed_is_not_waited_for(store):
    program = (
        "import os; from surveyproc.places import under_way\n"
        "from surveyproc.store.storage import Store\n"
        f"with under_way(Store({store.url!r}), 'ingest'): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    assert store.names(f"{layout.UNDER_WAY}/ingest")
    assert len(clean(store).removed) == 2


def test_another_machine_is_waited_for_a_week(store):
    note = f"{layout.UNDER_WAY}/ingest/a.json"
    store.put_json(note, {"item": "ingest", "host": "elsewhere", "process": 1, "born": ""})
    assert clean(store).removed == {}
    older(store, note, days=8)
    assert sorted(clean(store).removed) == ["images/t/v1", "images/t/v2", note]


def test_the_last_training_cube_and_those_of_released_models_stay(store):
    for number in range(4):
        key = f"training/photoz/{number}"
        store.put_json(f"{key}/{training.RECORD}", {})
        older(store, f"{key}/{training.RECORD}", days=4 - number)
    document = json.dumps({"training": {"cube": "training/photoz/1"}}).encode()
    store.put("models/m/abc/model.json", document)
    release(store, [], surveyproc_photoz_version="abc-1234")
    removed = [key for key in clean(store).removed if key.startswith("training")]
    assert removed == ["training/photoz/0", "training/photoz/2"]


def test_what_was_left_unfinished_goes_after_a_week(store):
    store.put("training/photoz/x/images/c/0/0/0/0", b"pixels")
    store.put(".staging/old", b"half a file")
    store.put(".staging/new", b"half a file")
    older(store, ".staging/old", days=1)
    release(store, None)
    assert list(clean(store).removed) == [".staging/old"]
    older(store, "training/photoz/x/images/c/0/0/0/0", days=8)
    assert list(clean(store).removed) == ["training/photoz/x"]


def older(store: Store, key: str, *, days: float) -> None:
    moment = time.time() - 86400 * days
    os.utime(Path(store.path(key)), (moment, moment))
