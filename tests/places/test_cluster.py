"""Work on a Ray cluster: every item once, processes that die come back, none waits in a queue."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import patient_workers
import psutil
import pytest
import ray

from places.troubled import Deadly, DiesOnce, Refuser, Squarer, Waits, refuse
from surveyproc.errors import ClusterError, InputError
from surveyproc.places import Item, Stage
from surveyproc.places.cluster import session

pytestmark = pytest.mark.ray


def stream(cluster, numbers, worker, *arguments, **more):
    items = [Item(str(number), number) for number in numbers]
    return list(cluster.stream(items, Stage("n", worker, arguments, **more)))


@pytest.fixture(scope="module")
def cluster(ray_session):
    return ray_session.cluster()


def test_every_item_once_by_processes_that_stay_between_stages(cluster):
    first, second = (stream(cluster, range(20), Squarer, offset) for offset in (7, 8))
    assert sorted(row["square"] for row in first) == [n**2 + 7 for n in range(20)]
    assert sorted(row["square"] for row in second) == [n**2 + 8 for n in range(20)]
    assert {row["process"] for row in second} <= {row["process"] for row in first}
    assert len({row["process"] for row in [*first, *second]}) <= 2


def test_a_ray_of_our_own_is_closed_to_other_users_and_machines(cluster):
    """Ray opens its folders to all, and listens on all interfaces, unless somebody sees to it."""
    # Started beside us; its processes are children of this one.
    ours = {os.getpid(), *(one.pid for one in psutil.Process().children(recursive=True))}
    listening = [
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.pid in ours
    ]
    assert len(listening) > 3
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    session_folder = Path(ray._private.worker._global_node.get_session_dir_path())
    assert stat.S_IMODE(session_folder.parent.parent.stat().st_mode) == 0o700


def test_a_function_is_a_worker_too(cluster):
    assert sorted(stream(cluster, [4, -8], abs)) == [4, 8]
    assert stream(cluster, [], abs) == []


def test_few_long_items_go_one_to_a_process(cluster, tmp_path):
    # Each waits for the other: queued behind one another in one process, neither would end.
    assert len(set(stream(cluster, range(2), Waits, str(tmp_path)))) == 2


def test_one_after_the_other_if_asked(cluster):
    items = [Item(str(number), number) for number in range(6)]
    assert list(cluster.stream(items, Stage("n", abs), 1)) == list(range(6))


@pytest.mark.parametrize("worker", [refuse, Refuser])
def test_our_own_errors_arrive_as_they_are(cluster, worker):
    with pytest.raises(InputError, match="number 4 is not welcome") as caught:
        stream(cluster, [4], worker)
    assert caught.value.exit_code == 2


def test_a_defect_of_ours_comes_with_its_traceback(cluster):
    with pytest.raises(ray.exceptions.RayTaskError, match="bad operand type"):
        stream(cluster, ["text"], abs)


def test_a_killed_worker_loses_nothing(cluster, tmp_path):
    got = stream(cluster, range(8), DiesOnce, str(tmp_path / "died"))
    assert (tmp_path / "died").exists()
    assert sorted(got) == list(range(8))


def test_an_item_that_kills_every_process_is_given_up(cluster):
    got = stream(cluster, range(6), Deadly, died=Deadly.died, deaths=2)
    assert sorted(got) == [-3, 0, 1, 2, 4, 5]


def test_processes_that_die_at_their_start_do_so_no_more_than_a_few_times(cluster):
    with pytest.raises(ClusterError, match="5 worker processes died one after the other with 7"):
        stream(cluster, [7], Deadly, True)


def test_session_inside_a_session_shares_it(cluster):
    with session() as inner:
        assert inner.workers == cluster.workers
    assert ray.is_initialized()


NICE = """
import os, sys
from surveyproc.places import Item, Stage
from surveyproc.places.cluster import session
with session(workers=1, niceness=int(sys.argv[1])) as cluster:
    print(*cluster.stream([Item("", 0)], Stage("n", os.nice)))
"""


@pytest.mark.slow
def test_workers_of_our_own_ray_are_as_nice_as_they_are_told_to_be():
    command = [sys.executable, "-c", NICE, "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == [str(os.nice(0) + 7)], done.stderr


def test_workers_of_our_own_ray_are_as_nice_as_we_are_unless_told_otherwise(cluster):
    assert stream(cluster, [0], os.nice) == [os.nice(0)]


def test_an_address_where_no_cluster_is_gives_a_clear_error():
    code = (
        "from surveyproc.places.cluster import session\n"
        "from surveyproc.errors import ClusterError\n"
        "try:\n"
        "    with session('127.0.0.1:1'):\n"
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


@pytest.mark.slow
def test_nothing_that_takes_long_is_ended_for_it(survey_copy):
    """Ray Data ends what does not move for a while; a network, a unit, a tile may take hours."""
    shutil.rmtree(survey_copy.parent / "store" / "images")
    limit = {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": str(patient_workers.LIMIT_S)}
    done = subprocess.run(
        [sys.executable, patient_workers.__file__, str(survey_copy)],
        env={**os.environ, **limit},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"tiles": 4, "did": "published", "ray.data": False}
