"""One network trained by several workers of Ray Train, which share its gradients."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from safetensors import SafetensorError
from test_loop import (
    Overtaken,
    epochs,
    go,
    kill_driver,
    mark,
    same_weights,
    wait_for,
    went_on_to_the_same,
)

from surveyproc.config.sections import RunSection
from surveyproc.train import curves

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def checkpoints(root):
    return list(Path(root).glob("runs/train-gaznet-c4/*/ray/checkpoint_*/state.safetensors"))


def train_together(root, places, **keys):
    """What was said, and the package."""
    said = []
    return said, go(root, None, said.append, places, workers=2, **{"epochs": 5, **keys})


@pytest.fixture(scope="module")
def undisturbed(ray_session, tmp_path_factory):
    root = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "PLAIN_INTERVAL_S", 0.05)
        return root, *train_together(root, ray_session)


def test_trains_a_usable_model_and_tells_of_epochs(undisturbed):
    root, said, package = undisturbed
    record = package.document["training"]
    assert (len(record["loss_curve"]), record["recipe"]["workers"]) == (10, 2)
    assert package.metrics["held_out"]["redshift"]["median"]["nmad"] < 0.1
    assert any("epoch" in line and "of 10, loss" in line for line in said)
    assert [path.name for path in root.glob("runs/train-gaznet-c4/*/*")] == ["log"]


@pytest.mark.kill
@pytest.mark.slow
def test_killed_with_its_driver_and_repeated_it_goes_on(undisturbed, ray_session, tmp_path):
    kill_driver(tmp_path, lambda: epochs(tmp_path), "workers=2, epochs=5, places=where.on_ray()")
    for state in checkpoints(tmp_path):
        # Not gone on from, if the kill has cut it short.
        with suppress(ValueError, SafetensorError):
            mark(state)
    said, package = train_together(tmp_path, ray_session)
    assert any("goes on after epoch" in line for line in said)
    went_on_to_the_same(package, undisturbed[2])


@pytest.mark.kill
@pytest.mark.slow
def test_a_worker_killed_in_mid_training_changes_nothing(undisturbed, ray_session, tmp_path):
    killed = []

    def kill():
        wait_for(lambda: len(checkpoints(tmp_path)) >= 2)
        # Only workers of the cluster that this process started.
        found = [
            child
            for child in psutil.Process().children(recursive=True)
            if child.cmdline() and child.cmdline()[0].startswith("ray::RayTrainWorker")
        ]
        os.kill(found[0].pid, signal.SIGKILL)
        killed.append(found[0].pid)

    thread = threading.Thread(target=kill)
    thread.start()
    _, package = train_together(tmp_path, ray_session)
    thread.join()
    assert killed
    same_weights(package, undisturbed[2])


@pytest.mark.slow
def test_another_process_that_finishes_first_is_no_harm(undisturbed, ray_session, tmp_path):
    places = Overtaken(RunSection(place="ray", workers=2), undisturbed[0], tmp_path)
    said, package = train_together(tmp_path, places)
    assert any("trained by another process" in line for line in said)
    assert package.version == undisturbed[2].version
    assert not list(tmp_path.glob("runs/train-gaznet-c4/*"))


@pytest.mark.slow
def test_gpus_too_few_for_the_workers_are_told(ray_session, tmp_path, monkeypatch):
    import ray

    resources = {**ray.cluster_resources(), "GPU": 1.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    said, _ = train_together(tmp_path, ray_session, epochs=1)
    assert any("1 GPUs are too few for training.workers = 2" in line for line in said)
