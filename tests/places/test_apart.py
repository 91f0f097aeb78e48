"""Readers that feed networks: every item once, few parts at a time, whoever dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.cloudpickle

from places.troubled import Halves, Squarer
from surveyproc.config.sections import RunSection
from surveyproc.errors import ClusterError, InputError
from surveyproc.places import Item, Places, Stage
from surveyproc.places.apart import PARTS, Apart, _Call, _Flow, _Job, _Process
from surveyproc.places.sides import Network
from surveyproc.store.documents import document

pytestmark = pytest.mark.slow

NUMBERS = range(5)


@pytest.fixture(scope="module")
def cluster(ray_session):
    return ray_session.cluster()


@pytest.fixture
def folder(tmp_path):
    for name in ("alive", "counts"):
        (tmp_path / name).mkdir()
    return tmp_path


def stage(folder, *arguments, **more):
    return Stage("n", Halves, (str(folder), *arguments), **more)


def stream(place, stage, numbers=NUMBERS, **more):
    items = [Item(str(number), number) for number in numbers]
    return sorted(place.stream(items, stage, **more), key=lambda found: found["number"])


def sums(found):
    return [one["sum"] for one in found]


EXPECTED = [6 * number for number in NUMBERS]


def test_one_process_does_both_sides_where_places_are_not_divided(folder):
    found = stream(Places(RunSection(place="here", workers=2)), stage(folder))
    assert sums(found) == EXPECTED
    assert {one["process"] for one in found} == {os.getpid()}
    # What is read is computed before anything else is read, by each of the threads.
    assert {one.name for one in (folder / "counts").iterdir()} <= {"1", "2"}


@pytest.mark.ray
def test_an_item_whose_last_parts_were_not_heard_of_is_given_out_anew(cluster, folder):
    """Its end was; the reader that died meanwhile was already at another one."""
    flow = _Flow(Apart(cluster), [], stage(folder), None)
    reader, network = (_Process(new()) for new in (flow.new_reader, flow.new_network))
    job = _Job(1, Item("2", 2), reader, network, read=True, asked=3, parts=1)
    flow.jobs.add(job)
    call = _Call(reader, "read", lambda _: None, job)
    flow.trouble(call, ray.exceptions.RayActorError())
    assert (flow.jobs, [one.name for one in flow.waiting], job.over) == (set(), ["2"], True)
    ray.kill(network.calls)


@pytest.mark.ray
def test_what_some_read_others_compute_without_a_copy(cluster, folder):
    place = Apart(cluster)
    assert (place.networks, place.readers, place.gpus) == (1, 1, 0)
    found = stream(place, stage(folder))
    assert sums(found) == EXPECTED
    assert len({one["process"] for one in found} - {os.getpid()}) == 1
    assert {(one["copied"], one["device"]) for one in found} == {(False, "cpu")}
    assert stream(place, stage(folder), []) == []


@pytest.mark.ray
@pytest.mark.parametrize("side", ["reading", "computing"])
@pytest.mark.parametrize("networks", [1, 2])
def test_few_parts_are_alive_at_once_whoever_is_slow(cluster, folder, side, networks):
    place = Apart(cluster, networks)
    assert sums(stream(place, stage(folder, side))) == EXPECTED
    most = max(int(one.name) for one in (folder / "counts").iterdir())
    # Of an item for each reader, and of another one for each network.
    assert most <= PARTS * (place.readers + place.networks)
    # What computes slowly always has something to do.
    assert most >= PARTS or side == "reading"
    assert list((folder / "alive").iterdir()) == []


@pytest.mark.ray
def test_parts_that_overtake_others_are_computed_in_their_order(cluster, folder):
    network = Network(ray.cloudpickle.dumps((Halves, (str(folder),))))
    parts = [(index, np.full(1 << 17, 7)) for index in range(6)]
    for index in (1, 3, 0, 2, 5, 4):
        assert network.take(9, index, 7, parts[index]).more == (index != 4)
    assert network.end(9)["sum"] == 42


@pytest.mark.ray
def test_no_more_is_read_than_is_wanted(cluster, folder):
    assert sums(stream(Apart(cluster), stage(folder, "", 2))) == [2 * n for n in NUMBERS]
    assert not (folder / "alive" / "3-5").exists()


@pytest.mark.ray
@pytest.mark.parametrize("side", ["reading", "computing", "ending"])
def test_an_item_whose_process_dies_is_given_out_anew(cluster, folder, side):
    (folder / f"{side}-3").write_text("dies 2")
    assert sums(stream(Apart(cluster), stage(folder))) == EXPECTED
    assert not (folder / f"{side}-3").exists()


@pytest.mark.ray
@pytest.mark.parametrize("side", ["reading", "computing", "ending"])
def test_an_item_that_kills_every_process_is_given_up_and_no_other(cluster, folder, side):
    (folder / f"{side}-3").write_text("dies 99")
    found = stream(Apart(cluster, 2), stage(folder, died=Halves.died, deaths=1))
    assert [one["number"] for one in found if "died" in one] == [3]
    assert [one["sum"] for one in found if "sum" in one] == [n * 6 for n in NUMBERS if n != 3]


@pytest.mark.ray
def test_processes_that_always_die_end_it(cluster, folder):
    (folder / "reading-0").write_text("dies 99")
    with pytest.raises(ClusterError, match="5 worker processes died one after the other with 0"):
        stream(Apart(cluster), stage(folder))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("refuses", InputError, "{side} 3 failed"),
        ("raises", ray.exceptions.RayTaskError, "ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("side", ["reading", "computing", "ending"])
def test_errors_arrive_as_they_are(cluster, folder, side, how, error, words):
    (folder / f"{side}-3").write_text(f"{how} 1")
    with pytest.raises(error, match=words.format(side=side)):
        stream(Apart(cluster), stage(folder))


@pytest.mark.ray
def test_one_after_the_other_if_asked(cluster, folder):
    assert sums(stream(Apart(cluster, 2), stage(folder), most=1)) == EXPECTED
    assert {one.name for one in (folder / "counts").iterdir()} <= {str(n + 1) for n in range(PARTS)}


@pytest.mark.ray
def test_forced_apart_other_work_is_on_ray(ray_session, folder):
    found = Places(RunSection(place="apart", workers=2, networks=1))
    assert sums(stream(found, stage(folder))) == EXPECTED
    list(found.stream([Item("1", 1)], Stage("tiles", Squarer, (7,))))
    units, tiles = found.told()
    assert (units.place, tiles.place) == ("apart", "ray")
    assert units.why == "run.place = 'apart': networks 1, GPUs 0, readers 1 at most"
    assert tiles.why == "run.place = 'apart', but tiles are not read and computed apart"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpus", "gpus", "networks"), [(1, 0, 1), (1, 0, 3), (2, 2, None), (3, 1, 2), (4, 1, None)]
)
def test_clusters_of_all_sizes(folder, cpus, gpus, networks):
    """Of another Ray than that of the tests, with GPUs that nobody has."""
    command = [sys.executable, __file__, str(folder), json.dumps([cpus, gpus, networks])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sums(found["results"]) == EXPECTED
    (told,) = found["told"]
    assert told["place"] == ("apart" if gpus or networks else "ray")
    assert {one["device"] for one in found["results"]} == {"cuda" if gpus else "cpu"}
    wanted = networks or gpus
    assert told["why"].endswith(
        f"networks {wanted}, GPUs {gpus}, readers {max(1, cpus - wanted)} at most"
    )


def main():
    folder, (cpus, gpus, networks) = sys.argv[1], json.loads(sys.argv[2])
    ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    # Unless it is told of networks, the GPUs decide.
    section = RunSection(place="apart" if networks else "auto", networks=networks)
    places = Places(section)
    one = stage(Path(folder), device=True)
    items = [Item(str(number), number, seconds=100) for number in NUMBERS]
    found = sorted(places.stream(items, one), key=lambda found: found["number"])
    print(json.dumps({"results": found, "told": document(places.told())}))


if __name__ == "__main__":
    main()
