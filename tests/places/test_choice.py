"""Where work runs: in this process what is done before Ray would have begun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from places.troubled import Slow
from surveyproc.config.sections import RunSection
from surveyproc.errors import ConfigError
from surveyproc.places import Item, Places, Stage, choice, opened
from surveyproc.places.choice import LONG_S, START_S, ray_pays
from surveyproc.places.here import Pace

POSITIVE = st.floats(0.01, 1e6)


def places(**run):
    return Places(RunSection(**{"workers": 2, **run}))


@given(seconds=POSITIVE, busy=st.floats(1, 4), workers=st.integers(1, 1000), start=POSITIVE)
def test_ray_pays_where_it_is_faster_or_the_work_is_long(seconds, busy, workers, start):
    faster = start + seconds * busy / workers < seconds
    assert ray_pays(seconds, busy, workers, start) == (faster or seconds > LONG_S)
    # More workers never speak against it, more to start never for it.
    if ray_pays(seconds, busy, workers, start):
        assert ray_pays(seconds, busy, workers + 1, start)
        assert ray_pays(seconds, busy, workers, start / 2)


@pytest.fixture(autouse=True)
def no_ray_yet(monkeypatch):
    # Whether other tests have started one must not matter.
    monkeypatch.setattr(choice, "RUNNING_S", START_S)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("seconds", "workers", "place"),
    [(0.1, 2, "here"), (10, 2, "here"), (1000, 2, "ray"), (5, 64, "here")],
)
def test_small_work_runs_here_and_large_work_on_ray(seconds, workers, place):
    found = places(workers=workers)
    assert found.choose("units", seconds, found.threads) == place
    (told,) = found.told()
    assert found.told() == []
    assert (told.what, told.place) == ("units", place)
    assert "of work" in told.why


def test_the_configuration_beats_the_size(monkeypatch):
    assert places(place="ray").choose("units", 0.1) == "ray"
    assert places(place="here").choose("units", 1e6) == "here"
    # Whoever names a cluster wants the work to be done there.
    assert places(address="auto").choose("units", 0.1) == "ray"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert places().choose("units", 0.1) == "ray"
    with pytest.raises(ConfigError, match=r"run.place = 'here', but training.workers = 2 needs"):
        places(place="here").need_ray("network", "training.workers = 2")


@pytest.mark.ray
def test_work_that_takes_longer_than_expected_goes_on_at_ray(ray_session, monkeypatch):
    monkeypatch.setattr(choice, "RUNNING_S", 0.1)
    monkeypatch.setattr(choice, "LONG_S", 1.0)
    found = places()
    # Said to take a second in all; they take five.
    items = [Item(str(number), number, seconds=0.01) for number in range(100)]
    got = list(found.stream(items, Stage("units", Slow)))
    assert sorted(number for number, _ in got) == list(range(100))
    here = [number for number, process in got if process == os.getpid()]
    assert 2 <= len(here) < 20
    told = found.told()
    assert [one.place for one in told] == ["here", "ray"]
    assert f"the last {100 - len(here)}," in told[-1].why


def test_a_slow_beginning_proves_nothing():
    found, here = places(), choice.Here(2)
    todo = [Item("a", 1, seconds=100.0)]
    here.pace = Pace(expected=0.001, wall=START_S, cpu=START_S)
    assert not found._too_much(todo, here)
    here.pace = Pace(expected=0.001, wall=2 * START_S + 1, cpu=START_S)
    assert found._too_much(todo, here)
    # Nor does the end: what is left is done before Ray would have begun.
    assert not found._too_much([Item("a", 1, seconds=1e-4)], here)


def test_places_inside_places_are_those(monkeypatch):
    monkeypatch.setattr(choice, "_opened", [])
    with opened(RunSection(place="here")) as outer, opened(RunSection(place="ray")) as inner:
        assert inner is outer
    with opened() as another:
        assert another is not outer


def networks(number, **run):
    found = places(**run)
    items = [Item(str(one), one) for one in range(number)]
    stage = Stage("networks", abs, threads=False)
    return found._choose_for(items, stage, 1)


def test_what_cannot_share_a_process_has_one_each_if_there_are_several():
    assert networks(1) == ("here", "one alone, nothing to share out")
    assert networks(2) == ("ray", "2 of them, each with a process of its own")
    assert networks(2, workers=1) == ("here", "one after the other")
    assert networks(2, place="here") == ("here", "run.place = 'here'")


INTERRUPTED = """
import sys, time
from pathlib import Path
from surveyproc.config.sections import RunSection
from surveyproc.places import Item, Ledger, Places, Stage
from surveyproc.store.storage import Store

def work(number):
    Path(sys.argv[1], f"at-{number}").touch()
    while True:
        time.sleep(0.01)

stage = Stage("n", work, ledger=Ledger(Store(sys.argv[1]), "begun"))
places = Places(RunSection(place="here", workers=int(sys.argv[2])))
list(places.stream([Item(str(n), n) for n in range(50)], stage))
"""


@pytest.mark.kill
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_what_is_under_way_and_leaves_no_note(tmp_path, workers):
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), str(workers)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("at-*"))) < min(workers, choice._cores()):
        assert time.monotonic() < until
        time.sleep(0.01)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=30)
    assert driver.returncode in (1, 130, -signal.SIGINT), said
    assert "KeyboardInterrupt" in said
    assert len(list(tmp_path.glob("at-*"))) <= workers
    assert not any(Path(tmp_path, "begun").glob("*")), os.listdir(tmp_path)
