from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fitsio
import interleaved
import numpy as np
import pytest
import sample_tables
import where
from hats.io.validation import is_valid_catalog
from sample_tables import KEY, rejected, run, sky_table
from sums import sums

from surveyproc.catalogs import hats, spill
from surveyproc.catalogs.ingest import is_whole, read_catalog
from surveyproc.errors import InputError
from surveyproc.store.storage import Store


@pytest.fixture
def fits(tmp_path):
    path = tmp_path / "source.fits"
    sky_table(3000).write(path)
    return path


def test_second_ingest_writes_nothing(tmp_path, fits):
    root = tmp_path / "store"
    _, first = run(root, fits, partition_rows=500)
    before = sorted(root.rglob("*"))
    for path in before:
        os.utime(path, (1, 1))
    _, second = run(root, fits, partition_rows=500)
    assert second.skipped
    assert not first.skipped
    assert sorted(root.rglob("*")) == before
    assert {path.stat().st_mtime for path in before} == {1}
    _, third = run(root, fits, partition_rows=900)
    assert not third.skipped


def test_lost_leaf_is_made_again(tmp_path, fits):
    store, _ = run(tmp_path / "s", fits, partition_rows=500)
    before = sums(tmp_path / "s" / KEY)
    store.remove(f"{KEY}/{hats.leaf_keys(store, KEY)[1]}")
    _, summary = run(tmp_path / "s", fits, partition_rows=500)
    assert not summary.skipped
    assert sums(tmp_path / "s" / KEY) == before


def test_changed_source_leaves_nothing_stale(tmp_path, fits):
    table = sky_table(3000)
    table["dec"][:10] = np.nan
    table.write(tmp_path / "bad.fits")
    store, _ = run(tmp_path / "s", tmp_path / "bad.fits", partition_rows=300)
    first = read_catalog(store, "test").fingerprint
    assert rejected(store)
    moved = sky_table(700, seed=5)
    moved["ra"] += 90.0
    moved.write(tmp_path / "moved.fits")
    run(tmp_path / "s", tmp_path / "moved.fits", partition_rows=100)
    run(tmp_path / "fresh", tmp_path / "moved.fits", partition_rows=100)
    assert sums(tmp_path / "s" / KEY) == sums(tmp_path / "fresh" / KEY)
    folders = [path for path in (tmp_path / "s" / KEY).rglob("*") if path.is_dir()]
    assert all(any(folder.iterdir()) for folder in folders)
    assert read_catalog(store, "test").fingerprint != first
    assert is_valid_catalog(store.url_of(KEY), strict=True)


# An interrupt may reach a thread between the opening of a file and whoever would close it.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("step", range(0, 40, 3))
def test_failure_at_any_write_then_the_same_command(tmp_path, fits, step, monkeypatch):
    old = sky_table(500, seed=9)
    old.write(tmp_path / "old.fits")
    root = tmp_path / "s"
    run(root, tmp_path / "old.fits", partition_rows=100)
    before = sums(root / KEY)
    run(tmp_path / "fresh", fits, partition_rows=400)
    real = os.replace
    count = 0

    def failing(source, target):
        nonlocal count
        count += 1
        if count > step:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        try:
            run(root, fits, partition_rows=400)
        except KeyboardInterrupt:
            # Before the rows are sorted out the old catalog stands; from then on there is none.
            if sums(root / KEY) != before:
                with pytest.raises(InputError, match="run `surveyproc ingest` first"):
                    read_catalog(Store(str(root)), "test")
    run(root, fits, partition_rows=400)
    Store(str(root)).clear_staging(older_than_s=-1)
    assert sums(root) == sums(tmp_path / "fresh")


# Of processes that import what this module does.
PATH = os.pathsep.join(str(Path(module.__file__).parent) for module in (sample_tables, where))

CHILD = """
import sys
import where
from sample_tables import survey
from surveyproc.catalogs.ingest import ingest_catalog
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
config = survey(sys.argv[1], sys.argv[2], partition_rows=40)
ingest_catalog(Survey(config), where.HERE, rows_per_batch=100, spill_bytes=9000)
"""


@pytest.mark.kill
@pytest.mark.parametrize("sign", [".spill/*/rows/*", "dataset/Norder=*", "dataset/**/Npix=*"])
def test_killed_then_the_same_command(tmp_path, fits, sign):
    run(tmp_path / "fresh", fits, partition_rows=40)
    root = tmp_path / "s"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(fits)],
        env={**os.environ, "PYTHONPATH": PATH},
    )
    while not any((root / KEY).glob(sign)):
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    store, _ = run(root, fits, partition_rows=40)
    store.clear_staging(older_than_s=-1)
    assert sums(root) == sums(tmp_path / "fresh")


def test_bad_new_source_leaves_the_old_catalog_alone(tmp_path, fits):
    root = tmp_path / "s"
    run(root, fits, partition_rows=500)
    before = sums(root)
    cut = tmp_path / "cut.csv"
    cut.write_text("object_id,ra,dec\n" + "1,10.0,2.0\n" * 20 + "2,11")
    with pytest.raises(InputError, match=r"cut\.csv"):
        run(root, cut)
    assert sums(root) == before


MEASURE = r"""
import re, sys
import where
from sample_tables import survey
from surveyproc.catalogs.ingest import ingest_catalog
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
config = survey(sys.argv[1], sys.argv[2], partition_rows=20_000)
ingest_catalog(Survey(config), where.HERE, rows_per_batch=5000, spill_bytes=4_000_000)
# The peak that getrusage gives starts at that of the process which started this one.
print(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
def test_memory_of_ten_times_the_rows(tmp_path):
    used = []
    for rows in (200_000, 2_000_000):
        data = np.zeros(rows, [("object_id", "i8"), ("ra", "f8"), ("dec", "f8"), ("x", "f4", 8)])
        rng = np.random.default_rng(1)
        data["object_id"], data["ra"] = np.arange(rows), rng.uniform(10, 30, rows)
        data["dec"], data["x"] = rng.uniform(0, 20, rows), rng.random((rows, 8))
        path = tmp_path / f"{rows}.fits"
        fitsio.write(path, data)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / str(rows)), str(path)],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONPATH": PATH},
        )
        used.append(int(done.stdout))
    # All rows of the larger catalog would be 112 MB and a few times that in copies. What still
    # fills up between the two are buffers that have a limit: ids of a bucket, rows to spill.
    assert used[1] < used[0] + 60_000


def test_two_ingests_of_one_process_leave_each_other_alone(tmp_path):
    store = Store(str(tmp_path))
    with spill.own_folder(store, KEY) as first:
        store.put(f"{first}/a", b"1")
        with spill.own_folder(store, KEY) as second:
            store.put(f"{second}/b", b"2")
            assert store.read(f"{first}/a") == b"1"
        assert store.read(f"{first}/a") == b"1"
    assert not store.exists(f"{KEY}/.spill")


@pytest.mark.slow
def test_of_two_ingests_at_once_the_later_takes_nothing_away(tmp_path, monkeypatch):
    """Once one of them has ended there is a catalog, whatever the other one is at."""
    sky_table(40).write(tmp_path / "source.fits")
    whole, _ = run(tmp_path / "whole", tmp_path / "source.fits")
    expected = sums(Path(whole.root) / KEY)
    for module in ("surveyproc.places.here", "surveyproc.catalogs.leaves"):
        monkeypatch.setattr(f"{module}.ThreadPoolExecutor", interleaved.Serial, raising=False)
    interleaved.watch(monkeypatch)
    root, ended = tmp_path / "s", []

    def begin():
        shutil.rmtree(root, ignore_errors=True)
        ended.clear()

        def ingest():
            run(root, tmp_path / "source.fits")
            ended.append(True)

        return ingest, ingest

    def look():
        assert is_whole(Store(str(root)), "test") or not ended

    def end(errors):
        assert errors == [None, None]
        assert sums(root / KEY) == expected

    assert interleaved.each_within_the_other(begin, look, end) > 20


def test_spill_of_an_earlier_process_with_our_number_is_removed(tmp_path):
    # A container that was started again: same host name, same process number.
    store = Store(str(tmp_path))
    with spill.own_folder(store, KEY) as folder:
        left = folder[:-8] + "0" * 8
    store.put(f"{left}/a", b"1")
    with spill.own_folder(store, KEY):
        assert not store.exists(left)


def test_records_hold_no_signature_of_the_source(tmp_path, fits, web):
    site = tmp_path / "site"
    site.mkdir()
    shutil.copyfile(fits, site / "source.fits")
    store, _ = run(tmp_path, f"{web(site)}/source.fits?X-Amz-Signature=se/cret")
    written = [path for path in Path(store.path(KEY)).rglob("*") if path.is_file()]
    assert not [path for path in written if b"cret" in path.read_bytes()]
    assert store.read_json(f"{KEY}/ingest.json")["source"] == "source.fits"
    properties = store.read(f"{KEY}/hats.properties").decode()
    assert "surveyproc_source=source.fits" in properties.replace(" ", "")
