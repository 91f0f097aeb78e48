"""A disk that fills up while Ray Train writes checkpoints, at every single write of them.

Ray's own code keeps the checkpoints, in this process and for one worker: a real group of workers
takes half a minute to start.
"""

import asyncio
import uuid
from types import SimpleNamespace

import pytest
import ray.train
import ray.train.torch
from failing import Failing
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport
from test_loop import go, same_weights

from surveyproc.config.sections import RunSection
from surveyproc.errors import SurveyError
from surveyproc.places import Places
from surveyproc.store.storage import Store

# Ray calls pydantic as its first version wants it.
pytestmark = pytest.mark.filterwarnings("ignore:The `.*` method is deprecated")

NEVER = 1 << 30


class NoRay(Places):
    """Places of which nobody starts a cluster."""

    def need_ray(self, what, why):
        pass


class Trainer:
    """As `ray.train.torch.TorchTrainer`, with one worker, which is the caller."""

    disk = Failing(NEVER)

    def __init__(self, work, *, train_loop_config, run_config, **_):
        self.work, self.config, self.run = work, train_loop_config, run_config

    def fit(self):
        try:
            files = PyFileSystem(FSSpecHandler(self.disk))
            storage = StorageContext(self.run.storage_path, self.run.name, files)
            manager = CheckpointManager(self.run.checkpoint_config, storage)
            with pytest.MonkeyPatch.context() as patched:
                self.pretend(patched, storage, manager)
                self.work(self.config)
        except Exception as error:
            raise ray.train.TrainingFailedError(str(error)) from error
        return SimpleNamespace(checkpoint=last(manager))

    def pretend(self, patched, storage, manager):
        def report(told, checkpoint):
            kept = storage.persist_current_checkpoint(checkpoint, f"checkpoint_{uuid.uuid4().hex}")

            async def register():
                manager.register_checkpoint(_TrainingReport(kept, told, False))

            asyncio.run(register())

        alone = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        patched.setattr(ray.train, "report", report)
        patched.setattr(ray.train, "get_checkpoint", lambda: last(manager))
        patched.setattr(ray.train, "get_context", lambda: alone)
        patched.setattr(ray.train.torch, "get_device", lambda: "cpu")


def last(manager):
    result = manager.latest_checkpoint_result
    return result and result.checkpoint


@pytest.fixture
def train_together(monkeypatch):
    """Trains in a folder whose disk is full from a write on; writes that were tried."""
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    for resources in ("cluster_resources", "available_resources"):
        monkeypatch.setattr(ray, resources, lambda: {"CPU": 2.0})

    def train(root, first=NEVER):
        Trainer.disk = disk = Failing(first)
        real = Store.put_json

        def put_json(self, key, value):
            if "history-" in key:
                disk.write(self.path(key))
            real(self, key, value)

        with monkeypatch.context() as patched:
            patched.setattr(Store, "put_json", put_json)
            places = NoRay(RunSection(place="here", workers=2))
            package = go(root, None, None, places, workers=2, epochs=1)
        return package, disk.writes

    return train


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_costs_no_model(train_together, tmp_path):
    whole, writes = train_together(tmp_path / "whole")
    assert writes > 10
    for first in range(1, writes + 1):
        root = tmp_path / str(first)
        with pytest.raises(SurveyError, match=r"repeat the command"):
            train_together(root, first)
        again, _ = train_together(root)
        same_weights(again, whole)
