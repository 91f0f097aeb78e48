"""The Ray session and `stream`: every item once, processes that die come back."""

import os
import signal
from pathlib import Path

import ray

from surveyproc import cluster


class Squarer:
    def __init__(self, offset: int):
        self.offset = offset

    def __call__(self, row):
        return {"number": row["item"]["number"], "square": row["item"]["number"] ** 2 + self.offset}


class DiesOnce:
    """Kills its own process the first time it sees item 3."""

    def __init__(self, marker: str):
        self.marker = Path(marker)

    def __call__(self, row):
        if row["item"]["number"] == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"number": row["item"]["number"]}


def halve(row, divisor):
    return {"half": row["item"]["number"] / divisor}


def test_class_workers_see_every_item_once(workers):
    items = [{"number": n} for n in range(20)]
    got = list(cluster.stream(items, Squarer, workers=workers, arguments=(7,)))
    assert sorted(row["number"] for row in got) == list(range(20))
    assert all(row["square"] == row["number"] ** 2 + 7 for row in got)


def test_function_workers(workers):
    got = list(
        cluster.stream([{"number": 4}, {"number": 8}], halve, workers=workers, arguments=(2,))
    )
    assert sorted(row["half"] for row in got) == [2.0, 4.0]


def test_nothing_to_do(workers):
    assert list(cluster.stream([], halve, workers=workers)) == []


def test_a_killed_worker_loses_nothing(workers, tmp_path):
    items = [{"number": n} for n in range(8)]
    got = list(
        cluster.stream(items, DiesOnce, workers=workers, arguments=(str(tmp_path / "died"),))
    )
    assert (tmp_path / "died").exists()
    assert sorted(row["number"] for row in got) == list(range(8))


def test_session_inside_a_session_shares_it(workers):
    with cluster.session() as inner:
        assert inner >= workers
    assert ray.is_initialized()
