"""Work in this process: every item once, and what a crash leaves for the next command."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from places.troubled import Deadly, DiesOnce, Refuser, Squarer, refuse
from surveyproc.errors import ClusterError, InputError
from surveyproc.places import Item, Ledger, Stage
from surveyproc.places.here import Here
from surveyproc.store.storage import Store


def items(numbers, **more):
    return [Item(str(number), number, **more) for number in numbers]


def results(here, numbers, worker, *arguments, **more):
    stage = Stage("n", worker, arguments, **more)
    return list(here.stream(items(numbers), stage))


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Store(str(tmp_path / "store")), "begun")


@pytest.mark.parametrize("threads", [1, 2])
def test_every_item_once_in_this_process(threads):
    got = results(Here(threads), range(20), Squarer, 7)
    assert sorted(row["square"] for row in got) == [n**2 + 7 for n in range(20)]
    assert {row["process"] for row in got} == {os.getpid()}


def test_a_function_is_a_worker_too():
    assert sorted(results(Here(2), [4, -8], abs)) == [4, 8]
    assert results(Here(2), [], abs) == []


def test_each_thread_has_its_own_worker_and_all_work_at_once():
    meeting = threading.Barrier(2, timeout=60)

    class Meets:
        def __call__(self, number):
            meeting.wait()
            return id(self)

    assert len(set(results(Here(2), range(2), Meets))) == 2


def test_with_one_thread_items_are_done_by_who_asks_and_in_order():
    def where(number):
        return number, threading.current_thread()

    assert results(Here(1), range(3), where) == [(n, threading.current_thread()) for n in range(3)]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_next_item_is_taken_only_when_there_is_a_thread_for_it(threads):
    taken = []

    def hand_out():
        for item in items(range(5)):
            taken.append(item.name)
            yield item

    done = Here(threads).stream(hand_out(), Stage("n", abs))
    next(done)
    assert len(taken) <= threads + 1


@pytest.mark.parametrize("worker", [refuse, Refuser])
@pytest.mark.parametrize("threads", [1, 2])
def test_errors_arrive_as_they_are_and_leave_no_note(ledger, threads, worker):
    with pytest.raises(InputError, match="number 4 is not welcome"):
        results(Here(threads), [4], worker, ledger=ledger)
    assert ledger.store.names("begun") == []


def test_what_is_under_way_is_noted_and_nothing_else(ledger):
    def seen(number):
        (name,) = ledger.store.names("begun")
        return ledger.store.read_json(f"begun/{name}")["item"]

    assert results(Here(1), range(3), seen, ledger=ledger) == ["0", "1", "2"]
    assert ledger.store.names("begun") == []
    assert ledger.left() == {}


CRASH = """
import sys
from places.troubled import DiesOnce
from surveyproc.places import Item, Ledger, Stage
from surveyproc.places.here import Here
from surveyproc.store.storage import Store
stage = Stage("n", DiesOnce, (sys.argv[1],), ledger=Ledger(Store(sys.argv[2]), "begun"))
for number in Here(int(sys.argv[3])).stream([Item(str(n), n) for n in range(5)], stage):
    print(number, flush=True)
"""


@pytest.mark.kill
@pytest.mark.parametrize("threads", [1, 2])
def test_a_crash_ends_the_command_and_the_next_one_gives_the_item_a_process_of_its_own(
    ledger, tmp_path, threads
):
    marker = tmp_path / "died"
    command = [sys.executable, "-c", CRASH, str(marker), str(tmp_path / "store"), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == -9, done.stderr
    left = ledger.left()
    assert "3" in left
    assert len(left) <= threads
    rows = results(Here(threads), range(5), Squarer, 0, ledger=ledger)
    assert sorted(row["square"] for row in rows) == [0, 1, 4, 9, 16]
    elsewhere = {str(row["number"]) for row in rows if row["process"] != os.getpid()}
    assert elsewhere == left.keys()
    assert ledger.left() == {}


def test_notes_of_processes_that_live_are_left_alone(ledger):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        note = ledger.begin("3")
        document = ledger.store.read_json(note)
        ledger.store.put_json(note, {**document, **_told_by(other.pid)})
        assert ledger.left() == {}
        # The same number, but another process had it before.
        ledger.store.put_json(note, {**document, **_told_by(other.pid), "born": "long ago"})
        assert ledger.left() == {"3": [note]}
    finally:
        other.communicate(b"\n")
    ledger.store.put_json(note, {**document, "process": other.pid})
    assert ledger.left() == {"3": [note]}


def _told_by(process):
    from surveyproc.places.base import _process

    return _process(process)


def test_an_item_that_killed_a_process_before_has_one_of_its_own(ledger):
    stage = Stage("n", Deadly, died=Deadly.died, deaths=1, ledger=ledger)
    given = [Item("1", 1), Item("3", 3, apart=True)]
    assert sorted(Here(2).stream(given, stage)) == [-3, 1]
    with pytest.raises(ClusterError, match="2 worker processes died"):
        list(Here(1).stream(given[1:], Stage("n", Deadly, deaths=2)))


def test_an_item_apart_that_dies_once_is_done_by_the_next_process(tmp_path):
    stage = Stage("n", DiesOnce, (str(tmp_path / "died"),))
    assert list(Here(1).stream([Item("3", 3, apart=True)], stage)) == [3]


def test_torch_has_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        results(Here(1), [1], torch.set_num_threads)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_pace_is_that_of_the_items_without_the_making_of_workers():
    class Slow:
        def __init__(self):
            time.sleep(0.3)

        def __call__(self, number):
            return number

    here = Here(1)
    list(here.stream(items(range(4), seconds=0.5), Stage("n", Slow)))
    assert here.pace.expected == 2.0
    assert here.pace.wall < 0.3


def test_errors_of_a_process_apart_arrive_as_they_are():
    with pytest.raises(InputError, match="number 4 is not welcome"):
        list(Here(1).stream([Item("4", 4, apart=True)], Stage("n", refuse)))
    with pytest.raises(RuntimeError, match="bad operand type"):
        list(Here(1).stream([Item("x", "x", apart=True)], Stage("n", abs)))


def test_an_interrupt_leaves_no_thread_waiting():
    begun = threading.Barrier(2, timeout=60)

    def work(number):
        if number > 1:
            return number
        begun.wait()
        if number:
            raise KeyboardInterrupt
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.001)

    started = time.monotonic()
    for _ in range(20):
        with pytest.raises(KeyboardInterrupt):
            results(Here(2), range(2), work)
        # The other one may have nothing to do when it comes.
        with pytest.raises(KeyboardInterrupt):
            results(Here(2), [2, 3], _interrupts_at_3)
    assert time.monotonic() - started < 30


def _interrupts_at_3(number):
    if number == 3:
        raise KeyboardInterrupt
    return number


def test_whoever_stops_asking_waits_for_no_thread():
    both = threading.Barrier(2, timeout=60)

    def work(number):
        both.wait()
        until = time.monotonic() + 60
        while number and time.monotonic() < until:
            time.sleep(0.001)
        return number

    started = time.monotonic()
    found = Here(2).stream(items(range(2)), Stage("n", work))
    assert next(found) == 0
    found.close()
    assert time.monotonic() - started < 30
