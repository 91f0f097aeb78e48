"""The Ray session and `stream`: every item once, processes that die come back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray

from surveyproc import cluster
from surveyproc.errors import ClusterError, InputError


class Squarer:
    def __init__(self, offset: int):
        self.offset = offset

    def __call__(self, number):
        return {"number": number, "square": number**2 + self.offset}


class DiesOnce:
    """Kills its own process the first time it sees item 3."""

    def __init__(self, marker: str):
        self.marker = Path(marker)

    def __call__(self, number):
        if number == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"number": number}


def halve(number):
    return number / 2


def test_class_workers_see_every_item_once(workers):
    items = list(range(20))
    got = list(cluster.stream(items, Squarer, workers=workers, arguments=(7,)))
    assert sorted(row["number"] for row in got) == list(range(20))
    assert all(row["square"] == row["number"] ** 2 + 7 for row in got)


def test_function_workers(workers):
    got = list(cluster.stream([4, 8], halve, workers=workers))
    assert sorted(got) == [2.0, 4.0]


def refuse(number):
    raise InputError(f"number {number} is not welcome")


class Refuser:
    def __call__(self, number):
        return refuse(number)


@pytest.mark.parametrize("worker", [refuse, Refuser])
def test_our_own_errors_arrive_as_they_are(workers, worker):
    with pytest.raises(InputError, match="number 4 is not welcome") as caught:
        list(cluster.stream([4], worker, workers=workers))
    assert caught.value.exit_code == 2


def test_nothing_to_do(workers):
    assert list(cluster.stream([], halve, workers=workers)) == []


def test_a_killed_worker_loses_nothing(workers, tmp_path):
    items = list(range(8))
    got = list(
        cluster.stream(items, DiesOnce, workers=workers, arguments=(str(tmp_path / "died"),))
    )
    assert (tmp_path / "died").exists()
    assert sorted(row["number"] for row in got) == list(range(8))


class Deadly:
    """Kills every process that touches item 3, or that makes one if told so."""

    def __init__(self, at_once: bool):
        if at_once:
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    @staticmethod
    def died(number):
        return -number


def test_an_item_that_kills_every_process_is_given_up(workers):
    got = list(
        cluster.stream(
            range(6), Deadly, workers=workers, arguments=(False,), died=Deadly.died, deaths=2
        )
    )
    assert sorted(got) == [-3, 0, 1, 2, 4, 5]


def test_processes_that_die_at_their_start_do_so_no_more_than_a_few_times(workers):
    with pytest.raises(ClusterError, match="5 worker processes died one after the other with 7"):
        list(cluster.stream([7], Deadly, workers=workers, arguments=(True,)))


def test_a_result_that_does_not_come_holds_up_no_other(workers, tmp_path):
    """As when it was lost and the last bundle must be asked for before it can be made again."""
    asked_for_all = tmp_path / "asked-for-all"

    @ray.remote(num_cpus=0)
    def made_again():
        while not asked_for_all.exists():
            time.sleep(0.1)
        return pa.table({"result": [b"late"]})

    def bundles():
        for ref in (made_again.remote(), ray.put(pa.table({"result": [b"early"]}))):
            yield SimpleNamespace(blocks=[SimpleNamespace(ref=ref)])
        asked_for_all.touch()

    assert list(cluster._arrived(bundles())) == [b"early", b"late"]


def test_session_inside_a_session_shares_it(workers):
    with cluster.session() as inner:
        assert inner >= workers
    assert ray.is_initialized()


def test_an_address_where_no_cluster_is_gives_a_clear_error():
    code = (
        "from surveyproc import cluster\n"
        "from surveyproc.errors import ClusterError\n"
        "try:\n"
        "    with cluster.session('127.0.0.1:1'):\n"
        "        print('attached')\n"
        "except ClusterError as error:\n"
        "    print(error)\n"
    )
    # Another process: this one is attached to the tests' cluster already.
    environment = {**os.environ, "RAY_ADDRESS": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert "run.address: no Ray cluster at '127.0.0.1:1'" in done.stdout
