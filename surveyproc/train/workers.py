"""Networks trained by Ray: one by several workers at once, or the members of an ensemble.

What the workers read lies in the training's folder: `data.safetensors` (all rows) and
`start-<k>.safetensors` (member k before its first step), the same bytes whenever the same training
is asked for.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from surveyproc import cluster
from surveyproc.errors import SurveyError
from surveyproc.models.base import RedshiftNetwork, build
from surveyproc.models.package import read_tensors
from surveyproc.storage import Store
from surveyproc.train.cube import TrainingCube
from surveyproc.train.examples import BandDropout, Examples
from surveyproc.train.fit import FitSettings, FitState, fit

# Ray Train hands over one report a poll, so its default of 2 s would bound the speed of epochs. It
# also reads these in the driver only.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# Starting processes on a machine busy with other work takes long; the default gives up after 60 s.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")

import ray
import ray.train
import ray.train.torch
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem

MAX_FAILURES = 3
"""Times that workers may die before the training is given up; the next call resumes it still."""

DATA, TENSORS, PROGRESS = "data.safetensors", "state.safetensors", "state.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"
SAVE_INTERVAL_S = 2.0


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; everything else lies in the folder.

    Attributes
    ----------
    root, folder : str
        The store, and the training's folder in it.
    architecture, bands, network :
        What `build` needs.
    fit : FitSettings
        Of member 0; member k has its seed plus k.
    folds : int
        Member k holds out the rows of fold k % folds.
    cube : str or None
        Key of the training cube.
    """

    root: str
    folder: str
    architecture: str
    bands: tuple[str, ...]
    network: dict[str, Any]
    fit: FitSettings
    folds: int
    cube: str | None

    def load(self, member: int) -> tuple[RedshiftNetwork, Examples, FitSettings]:
        """Network before its first step, examples and settings of one member."""
        store = Store(self.root)
        settings = replace(self.fit, seed=self.fit.seed + member)
        network = build(self.architecture, self.bands, self.network)
        start = f"{self.folder}/start-{member}.safetensors"
        network.load_state_dict(read_tensors(store.read(start), start))
        where = f"{self.folder}/{DATA}"
        tensors = read_tensors(store.read(where), where)
        held_out = tensors.pop("fold") == member % self.folds
        examples = Examples(
            reads=network.reads,
            tensors=tensors,
            held_out=held_out,
            cube=None if self.cube is None else TrainingCube.open(store, self.cube),
            dropout=BandDropout(settings.dropped_rows, settings.dropped_bands),
            seed=settings.seed,
        )
        return network, examples, settings


def train_members(
    job: Job, members: int, processes: int, tell: Callable[[str], None]
) -> list[FitState]:
    """Train the members of an ensemble, so many side by side as there are processes.

    Gives the last state of each.

    A member that was interrupted goes on from its last saved state.
    """
    store = Store(job.root)
    free = float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]
    for member, epochs in cluster.stream(
        range(members),
        _Member,
        workers=processes,
        arguments=(job,),
        gpus=min(1.0, free / min(members, processes)),
    ):
        tell(f"train: member {member + 1} of {members} ends after epoch {epochs}")
    return [FitState.from_bytes(store.read(_member_key(job, k))) for k in range(members)]


class _Member:
    """Trains single members; their states lie in the store."""

    def __init__(self, job: Job) -> None:
        self.job, self.store = job, Store(job.root)
        _deterministic()

    def __call__(self, member: int) -> tuple[int, int]:
        network, examples, settings = self.job.load(member)
        key = _member_key(self.job, member)
        last = FitState.from_bytes(self.store.read(key)) if self.store.exists(key) else None
        saved = time.monotonic()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for state in fit(network, examples, settings, last, device=device):
            last = state
            over = settings.stage(state.epoch) is None
            if over or time.monotonic() - saved > SAVE_INTERVAL_S:
                self.store.put(key, state.to_bytes())
                saved = time.monotonic()
        return member, len(last.history) if last else 0


def _member_key(job: Job, member: int) -> str:
    return f"{job.folder}/member-{member}.safetensors"


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
    history = progress(store, job.folder, repair=True).get("history", [])
    if history:
        # Not their number: a stage may have ended early.
        tell(f"train: goes on after epoch {history[-1]['epoch']} of {job.fit.total_epochs}")
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


def progress(store: Store, folder: str, *, repair: bool = False) -> dict[str, Any]:
    """`history` in the checkpoint from which `train_together` would go on; {} if there is none.

    Killed while Ray Train wrote its record of checkpoints, the record is not JSON. `repair` then
    removes it and the checkpoints, and the training starts over.
    """
    place = f"{folder}/ray"
    if not store.exists(f"{place}/{SNAPSHOT}"):
        return {}
    try:
        snapshot = json.loads(store.read(f"{place}/{SNAPSHOT}"))
    except ValueError:
        if repair:
            store.remove(place)
        return {}
    latest = (snapshot.get("latest_checkpoint_result") or {}).get("checkpoint_dir_name", "")
    return store.read_json(f"{place}/{latest}/{PROGRESS}") or {}


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


def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker: all that is left of the training, a checkpoint after each state."""
    _deterministic()
    document = config["job"]
    fit_settings = {**document["fit"], "rates": tuple(document["fit"]["rates"])}
    job = Job(**{**document, "fit": FitSettings(**fit_settings)})
    network, examples, settings = job.load(0)
    context = ray.train.get_context()
    state = None
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as place:
            state = FitState.from_bytes((Path(place) / TENSORS).read_bytes())
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
                (Path(place) / PROGRESS).write_text(json.dumps({"history": after.history}))
                ray.train.report(told, checkpoint=ray.train.Checkpoint.from_directory(place))
        else:
            ray.train.report(told)
