"""Several nodes on this machine: killed, added, short of memory, their results lost."""

import json
import random
import subprocess
import sys
import time
from collections import Counter

import bulky_worker
import paused_worker
import psutil
import pytest
from paused_worker import STAGES, pause_at, paused, worked
from ray_nodes import Nodes
from sums import leaves

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.run.plan import make_plan
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

TIMEOUT_S = 300
pytestmark = [pytest.mark.cluster, pytest.mark.kill, pytest.mark.slow, pytest.mark.timeout(600)]
ROOM = 4 << 30
"""Bytes that a cluster may take before its nodes kill workers."""


@pytest.fixture(scope="module")
def started():
    nodes = Nodes()
    yield nodes
    nodes.end()


@pytest.fixture
def nodes(started):
    started.fill()
    return started


def start(program, *arguments):
    """A program of the tests, with pipes to talk to it."""
    pipe = subprocess.PIPE
    command = [sys.executable, program.__file__, *arguments]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def drive(survey, nodes, *settings):
    """The program that runs the survey, started."""
    return start(paused_worker, survey, nodes.address, "--set", "run.workers=3", *settings)


def ended(driver, answer=""):
    """What the program printed, if it ended well."""
    out, err = driver.communicate(answer, timeout=TIMEOUT_S)
    assert driver.returncode == 0, err
    return out


def wait_for(found, driver):
    until = time.monotonic() + TIMEOUT_S
    while not (value := found()):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    return value


@pytest.mark.parametrize("place", ["ray", "apart"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_node_dies_while_its_unit_is_at(stage, place, nodes, survey_copy, published_survey):
    store = Store(load(survey_copy).root)
    pause_at(store, stage)
    # A lost node is not held against its unit: its one attempt is not used up.
    settings = ("run.attempts=1", f"run.place={place}")
    driver = drive(survey_copy, nodes, *(word for one in settings for word in ("--set", one)))
    victim = wait_for(lambda: paused(store), driver)
    nodes.kill(victim["node"])
    # One JSON document, whatever Ray has to say of the node.
    assert json.loads(ended(driver))["did"] == "published"
    assert leaves(survey_copy) == leaves(published_survey)
    assert verbs.validate(Survey(load(survey_copy))).problems == []


def test_a_node_that_comes_late_takes_part(nodes, survey_copy, published_survey):
    store = Store(load(survey_copy).root)
    for name in list(nodes.alive)[1:]:
        nodes.kill(name)
    (first,) = nodes.alive
    pause_at(store, "reading")
    driver = drive(survey_copy, nodes)
    # The only node has its only process waiting: nothing goes on unless another comes.
    assert wait_for(lambda: paused(store), driver)["node"] == first
    nodes.fill(2)
    (second,) = set(nodes.alive) - {first}
    wait_for(lambda: second in worked(store), driver)
    psutil.Process(paused(store)["pid"]).kill()
    ended(driver)
    assert leaves(survey_copy) == leaves(published_survey)


@pytest.mark.parametrize("place", ["ray", "apart"])
def test_workers_killed_again_and_again(place, nodes, survey_copy, published_survey):
    rng = random.Random(5)
    settings = ("run.attempts=50", f"run.place={place}")
    driver = drive(survey_copy, nodes, *(word for one in settings for word in ("--set", one)))
    killed = 0
    while driver.poll() is None and killed < 6:
        time.sleep(rng.uniform(1.0, 3.0))
        killed += nodes.kill_worker(rng)
    ended(driver)
    assert killed
    assert leaves(survey_copy) == leaves(published_survey)
    config = load(survey_copy)
    store = Store(config.root)
    assert store.names(f"{make_plan(Survey(config)).run_key}/attempts") == []


def test_workers_killed_for_memory_come_back_when_there_is_room(survey_copy, published_survey):
    memory = psutil.virtual_memory()
    if memory.available < 2 * ROOM:
        pytest.skip(f"needs {2 * ROOM >> 30} GiB of free memory")
    share = 1 - (memory.available - ROOM) / memory.total
    nodes = Nodes(memory_usage_threshold=share, memory_monitor_refresh_ms=200)
    try:
        store = Store(load(survey_copy).root)
        pause_at(store, "inference")
        driver = drive(survey_copy, nodes, "--set", "run.attempts=50")
        waiting = wait_for(lambda: paused(store), driver)["pid"]
        filled = []

        def fill_until_it_is_gone():
            if psutil.virtual_memory().available > memory.available - ROOM:
                filled.append(b"x" * (100 << 20))
            return not psutil.pid_exists(waiting)

        wait_for(fill_until_it_is_gone, driver)
        filled.clear()
        ended(driver)
    finally:
        nodes.end()
    assert leaves(survey_copy) == leaves(published_survey)


def test_the_head_dies_and_the_same_command_finishes(survey_copy, published_survey):
    nodes = Nodes(gcs_rpc_server_reconnect_timeout_s=5)
    try:
        store = Store(load(survey_copy).root)
        pause_at(store, "inference")
        driver = drive(survey_copy, nodes)
        wait_for(lambda: paused(store) and worked(store), driver)
        nodes.kill_head()
        driver.communicate(timeout=TIMEOUT_S)
        assert driver.returncode != 0
    finally:
        nodes.end()
    done = verbs.run(Survey(load(survey_copy)))
    assert done.units_resumed > 0
    assert leaves(survey_copy) == leaves(published_survey)


def test_results_lost_with_their_node_are_made_again(nodes, tmp_path):
    driver = start(bulky_worker, nodes.address, str(tmp_path))
    # Nobody asks for more than the first result yet, so no process gets a second item.
    wait_for(lambda: len(list(tmp_path.iterdir())) >= bulky_worker.WORKERS, driver)
    _, first = driver.stdout.readline().split()
    holders = Counter(path.name.split("-")[0] for path in tmp_path.iterdir())
    victim, *_ = (name for name, _ in holders.most_common() if name != first)
    nodes.kill(victim)
    assert json.loads(ended(driver, "go on\n")) == list(range(bulky_worker.ITEMS))
    assert len(list(tmp_path.iterdir())) > bulky_worker.ITEMS
