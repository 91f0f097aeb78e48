"""One network trained by several workers of Ray Train, which share its gradients."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Ray Train hands over one report a poll, so its default of 2 s would bound the speed of epochs. It
# also reads these in the driver only.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# Starting processes on a machine busy with other work takes long; the default gives up after 60 s.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")

import ray
import ray.train
import ray.train.torch
from pyarrow.fs import FSSpecHandler, PyFileSystem

from surveyproc.errors import SurveyError
from surveyproc.store.storage import Store
from surveyproc.train.fit import FitSettings, FitState, fit
from surveyproc.train.job import Job, deterministic, history_key, saved_state

MAX_FAILURES = 3
"""Times that workers may die before the training is given up; the next call resumes it still."""
TENSORS = "state.safetensors"
SNAPSHOT = "checkpoint_manager_snapshot.json"


def train_together(job: Job, workers: int, tell: Callable[[str], None]) -> FitState:
    """Train one network by `workers` processes that share its gradients; its last state.

    Goes on from the last checkpoint if there is one.

    Raises
    ------
    SurveyError
        If the training failed, or its workers died more than three times.
    """
    store = Store(job.root)
    place = store.url_of(job.folder)
    _repair(store, job.folder)
    gpus = float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]
    if 0 < gpus < workers:
        tell(
            f"train: {gpus:g} GPUs are too few for training.workers = {workers}, one each: the "
            "network is trained on CPUs"
        )
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"job": asdict(job)},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus >= workers else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus >= workers,
            resources_per_worker={"CPU": _cpus_per_worker(workers)},
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as version 1
            name="ray",
            storage_path=store.path(job.folder),
            # Arrow's own client knows neither the variables nor the patience of ours.
            storage_filesystem=None if store.is_local else PyFileSystem(FSSpecHandler(store.fs)),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise SurveyError(
            f"training failed in {place}: {_cause(error)}; repeat the command to go on from the "
            "last checkpoint"
        ) from error
    if result.checkpoint is None:
        raise SurveyError(f"training in {place} left no checkpoint")
    with result.checkpoint.as_directory() as folder:
        return FitState.from_bytes((Path(folder) / TENSORS).read_bytes())


def _repair(store: Store, folder: str) -> None:
    """Start over if Ray Train was killed while it wrote its record of checkpoints."""
    place = f"{folder}/ray"
    if not store.exists(f"{place}/{SNAPSHOT}"):
        return
    try:
        json.loads(store.read(f"{place}/{SNAPSHOT}"))
    except ValueError:
        store.remove(place)
        store.remove(history_key(folder, 0))


def _cpus_per_worker(workers: int) -> float:
    """CPUs each worker reserves: one, or a share of what is free, so that they always fit.

    The number of workers decides the weights and is never cut down to the machine.
    """
    free = float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]
    total = float(ray.cluster_resources().get("CPU", 1.0))  # type: ignore[no-untyped-call]
    usable = free if free > 0 else total
    return min(1.0, int(1000 * usable / workers) / 1000)


def _cause(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    return str(first).strip().splitlines()[-1] if str(first).strip() else repr(first)


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker: all that is left of the training, a checkpoint after each state."""
    with deterministic():
        _train(config["job"])


def _train(document: dict[str, Any]) -> None:
    fit_settings = {**document["fit"], "rates": tuple(document["fit"]["rates"])}
    job = Job(**{**document, "fit": FitSettings(**fit_settings)})
    store = Store(job.root)
    network, examples, settings = job.load(0)
    context = ray.train.get_context()
    state = None
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as place:
            state = saved_state((Path(place) / TENSORS).read_bytes())
    rank = context.get_world_rank()
    for after in fit(
        network,
        examples,
        settings,
        state,
        rank=rank,
        world=context.get_world_size(),
        device=str(ray.train.torch.get_device()),
    ):
        told = {"epoch": after.epoch, "step": after.step}
        if rank == 0:
            with tempfile.TemporaryDirectory() as place:
                (Path(place) / TENSORS).write_bytes(after.to_bytes())
                ray.train.report(told, checkpoint=ray.train.Checkpoint.from_directory(place))
            store.put_json(history_key(job.folder, 0), after.history)
        else:
            ray.train.report(told)
