"""Rollback, removal of old releases, and readers who look on."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import small_survey
from small_survey import OTHER

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.errors import GateError, InputError, StoreError
from surveyproc.releases import release
from surveyproc.run.plan import make_plan
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey


@pytest.fixture(scope="module")
def two_releases(tmp_path_factory):
    """A survey with two releases, the second one published. Do not change it."""
    survey = small_survey.make(tmp_path_factory.mktemp("two") / "survey")
    verbs.ingest(Survey(load(survey)))
    verbs.run(Survey(load(survey)))
    verbs.run(Survey(load(survey, [OTHER])))
    return survey


@pytest.fixture
def survey(two_releases, tmp_path):
    shutil.copytree(two_releases.parent, tmp_path / "copy")
    return tmp_path / "copy" / "survey.toml"


def names(survey):
    """All releases, the published one first."""
    listed = verbs.releases(Survey(load(survey))).releases
    return [one.release for one in sorted(listed, key=lambda one: not one.current)]


def test_a_release_that_was_rolled_back_from_is_not_published_again_by_itself(survey):
    second, first = names(survey)
    assert verbs.rollback(Survey(load(survey)), first).release == first
    assert names(survey) == [first, second]
    with pytest.raises(GateError, match=rf"{second} is not published: it was withdrawn") as caught:
        verbs.run(Survey(load(survey, [OTHER])))
    assert caught.value.exit_code == 3
    assert verbs.run(Survey(load(survey))).did == "nothing"
    assert verbs.rollback(Survey(load(survey)), second).release == second
    assert verbs.run(Survey(load(survey, [OTHER]))).did == "nothing"


def test_a_rollback_to_the_later_release_is_not_undone_by_the_next_run(survey):
    """Whichever is older, and whatever clocks said: who rolls back does not want what is left."""
    second, first = names(survey)
    # Going back by configuration is no rollback.
    assert verbs.run(Survey(load(survey))).release == first
    assert verbs.rollback(Survey(load(survey)), second).release == second
    with pytest.raises(GateError, match=rf"{first} is not published: it was withdrawn"):
        verbs.run(Survey(load(survey)))
    assert names(survey) == [second, first]


def test_rollback_to_what_is_not_there_changes_nothing(survey):
    second, first = names(survey)
    with pytest.raises(InputError, match=f"no finished release .* 'rx' .*{first}"):
        verbs.rollback(Survey(load(survey)), "rx")
    leaf = next(survey.parent.glob(f"store/releases/small/{first}/dataset/**/Npix*.parquet"))
    whole = bytearray(leaf.read_bytes())
    whole[len(whole) // 2] ^= 1
    leaf.write_bytes(whole)
    with pytest.raises(StoreError, match=f"{leaf.name} differs from its commit record.*roll back"):
        verbs.rollback(Survey(load(survey)), first)
    leaf.unlink()
    with pytest.raises(StoreError, match=f"{first} is damaged"):
        verbs.rollback(Survey(load(survey)), first)
    assert names(survey) == [second, first]


@pytest.mark.parametrize("key_of", [layout.pointer, layout.withdrawn])
def test_a_rollback_writes_damaged_documents_anew(survey, key_of):
    store, key = Store(load(survey).root), key_of("small")
    _, first = names(survey)
    store.put(key, b"{")
    with pytest.raises(StoreError, match=rf"{key} is not JSON .*; `surveyproc releases --rollback"):
        verbs.run(Survey(load(survey, ["products.photometry.aperture=1.4"])))
    assert verbs.rollback(Survey(load(survey)), first).release == first
    assert verbs.validate(Survey(load(survey))).problems == []


def test_pruning_keeps_the_newest_and_the_published_one(survey):
    store = Store(load(survey).root)
    second, first = names(survey)
    assert release.prune(store, "small", 2) == []
    verbs.rollback(Survey(load(survey)), first)
    assert release.prune(store, "small", 1) == []  # the older one is published
    verbs.rollback(Survey(load(survey)), second)
    assert release.prune(store, "small", 1) == [first]
    assert names(survey) == [second]
    assert not store.exists(f"runs/{first}")
    assert verbs.validate(Survey(load(survey))).problems == []


def test_unfinished_releases_go_after_a_week(survey, monkeypatch):
    store = Store(load(survey).root)
    plan = make_plan(Survey(load(survey)))
    shutil.copytree(store.path(plan.release_key), store.path("releases/small/rold"))
    store.put_json("runs/rold/plan.json", {})
    assert release.prune(store, "small", 3) == []
    week = time.time() - 8 * 86400
    os.utime(store.path("runs/rold/plan.json"), (week, week))
    assert release.prune(store, "small", 3) == ["rold"]
    assert not store.exists("releases/small/rold")


READER = """
import sys
from pathlib import Path
import lsdb
from surveyproc import verbs
from surveyproc.config import load
from surveyproc.survey import Survey
survey, stop = Path(sys.argv[1]), Path(sys.argv[2])
while not stop.exists():
    url = verbs.releases(Survey(load(survey))).current.url
    rows = lsdb.open_catalog(url).compute()
    print(f"{len(rows)} {float(rows['flux_r'].sum()):.3f}", flush=True)
"""


def test_readers_see_one_release_or_the_other_and_never_an_error(survey, tmp_path):
    second, first = names(survey)
    stop, seen = tmp_path / "stop", []
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(survey), str(stop)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    listener = threading.Thread(
        target=lambda: [seen.append(line.strip()) for line in reader.stdout]
    )
    listener.start()
    swaps = 0
    while reader.poll() is None and (len(seen) < 5 or len(set(seen)) < 2):
        verbs.rollback(Survey(load(survey)), (first, second)[swaps % 2])
        swaps += 1
    third = verbs.run(Survey(load(survey, ["products.photometry.aperture=1.6"]))).release
    assert release.prune(Store(load(survey).root), "small", 3) == []
    stop.touch()
    listener.join()
    with reader:
        assert reader.wait() == 0, reader.stderr.read()
    expected = set()
    for name in (first, second, third):
        import lsdb

        rows = lsdb.open_catalog(Path(load(survey).root) / "releases/small" / name).compute()
        expected.add(f"{len(rows)} {float(rows['flux_r'].sum()):.3f}")
    assert len(expected) == 3
    assert set(seen) <= expected
    assert swaps > 4


def test_publication_and_rollback_where_the_disk_knows_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    survey = small_survey.make(tmp_path / "survey")
    verbs.ingest(Survey(load(survey)))
    first = verbs.run(Survey(load(survey))).release
    verbs.run(Survey(load(survey, [OTHER])))
    assert verbs.rollback(Survey(load(survey)), first).release == first
    assert verbs.validate(Survey(load(survey))).problems == []
