"""Training on Ray Train: data-parallel workers, a checkpoint every epoch, resumed when killed.

A training is known by the hash of its data and settings. Its run lies in
`runs/train-<name>/<hash>/` while it goes on; when it is done, the model package holds the hash, so
that the same training asked for again returns the package that is there.

Two processes may run one training at once: they share the folder and end with the same weights.
The first to finish saves the package and removes the folder; the other one then fails, sees the
package, and returns it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surveyproc import __version__, cluster
from surveyproc.config import TrainingSection
from surveyproc.errors import InputError, StoreError, SurveyError
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.models.base import RedshiftNetwork, build, is_registered
from surveyproc.models.features import FeatureScaling, fit_scaling, network_inputs
from surveyproc.models.inference import predict
from surveyproc.models.package import Package, find_trained, read_tensors, save_package, set_current
from surveyproc.progress import PLAIN_INTERVAL_S
from surveyproc.storage import Store, fingerprint
from surveyproc.train.data import HELD_OUT_SHARE, TrainingSet, sky_split
from surveyproc.train.fit import STATE, FitSettings, FitState, fit

# Ray Train hands over one report a poll, so its default of 2 s would bound the speed of epochs. It
# also reads these in the driver only.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# Starting processes on a machine busy with other work takes long; the default gives up after 60 s.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")

import numpy as np
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch

RECIPE = 1
"""Raised when a change of the loop or the features changes the weights it ends with."""

MAX_FAILURES = 3
"""Times that workers may die before the training is given up; the next call resumes it still."""

SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data.

    Attributes
    ----------
    architecture : str
        Registered name.
    bands : tuple of str
        Bands of the network.
    network : dict
        Settings of the architecture.
    fit : FitSettings
        Epochs, rates, batch, seed, band dropout.
    workers : int
        Ray Train workers; gradients are averaged over them, so another number gives other weights.
    held_out_share : float
        Share of rows held out by sky position.
    """

    architecture: str
    bands: tuple[str, ...]
    network: dict[str, Any]
    fit: FitSettings
    workers: int
    held_out_share: float = HELD_OUT_SHARE

    def fingerprint(self, checksum: str) -> str:
        """Hash of recipe and data."""
        return fingerprint({"recipe": RECIPE, "data": checksum, **asdict(self)})


def train(
    training_set: TrainingSet,
    *,
    settings: TrainingSection,
    store: Store,
    name: str,
    architecture: str | None = None,
    network: Mapping[str, Any] | None = None,
    fit_options: Mapping[str, Any] | None = None,
    address: str = "local",
    say: Callable[[str], None] | None = None,
) -> Package:
    """Train a network and make it the current version of model `name`.

    Asked for again with the same data and settings it returns the package that is there, without
    starting Ray. Killed at any moment and asked for again it goes on from the last epoch, and ends
    with the same weights as an undisturbed training.

    Parameters
    ----------
    training_set : TrainingSet
        Fluxes and redshifts; unusable rows are left out and counted.
    settings : TrainingSection
        `epochs` (of each stage), `batch_size` (over all workers), `workers`, `seed` are read.
    store : Store
        The survey's root.
    name : str
        Name of the model package.
    architecture : str, optional
        Registered name; by default `name` if that is one, else `gaznet-c<bands>`.
    network : mapping, optional
        Settings of the architecture.
    fit_options : mapping, optional
        Other fields of `FitSettings`.
    address : str
        Ray cluster, as for `cluster.session`, unless Ray runs already.
    say : callable, optional
        Told one line an event, and of the epochs at most every five seconds; by default the lines
        are printed on standard error.

    Returns
    -------
    Package
        With the metrics on the held-out rows in `metrics`.

    Raises
    ------
    InputError
        If the set is smaller than a batch or no row is usable.
    ConfigError
        If the architecture or one of its settings is unknown.
    SurveyError
        If the training diverged or its workers died more than three times.
    """
    tell = say or _print
    usable = training_set.usable()
    held_out = sky_split(usable.ra, usable.dec, settings.seed)
    _check_size(usable, held_out, settings)
    x = np.log1p(usable.redshift[~held_out])
    target = {"target_mean": float(x.mean()), "target_std": max(float(x.std()), 1e-3)}
    chosen = architecture or (name if is_registered(name) else f"gaznet-c{len(usable.bands)}")
    recipe = Recipe(
        architecture=chosen,
        bands=usable.bands,
        network={**target, **(network or {})},
        fit=FitSettings(
            settings.epochs, settings.batch_size, settings.seed, **dict(fit_options or {})
        ),
        workers=settings.workers,
    )
    build(recipe.architecture, recipe.bands, recipe.network)
    key = recipe.fingerprint(usable.checksum)
    folder = f"runs/train-{name}/{key}"
    done = find_trained(store, name, key)
    if done is not None:
        tell(f"train {name}: version {done.version} was trained with these data and settings")
        set_current(store, name, done.version)
        store.remove(folder)
        return done
    scaling = fit_scaling(usable.flux[~held_out], usable.flux_err[~held_out], usable.bands)
    tell(f"train {name}: {(~held_out).sum()} rows, {held_out.sum()} held out, {folder}")
    try:
        _write_data(store, folder, usable, held_out, scaling)
        with cluster.session(address), _watch(store, f"{folder}/ray", recipe, name, tell):
            state = _run(store, folder, recipe, tell)
    except (SurveyError, OSError):
        # Another process may have finished this training and removed the folder under us.
        done = find_trained(store, name, key)
        if done is None:
            raise
        tell(f"train {name}: version {done.version} was trained by another process meanwhile")
        store.remove(folder)
        return done
    package = _finish(store, name, recipe, key, usable, held_out, scaling, state)
    tell(f"train {name}: version {package.version}, best epoch {state.best_epoch}")
    store.remove(folder)
    return package


def _check_size(usable: TrainingSet, held_out: Any, settings: TrainingSection) -> None:
    n = int((~held_out).sum())
    if n < settings.batch_size or settings.batch_size < settings.workers or not held_out.any():
        counts = "; ".join(f"{count} rows with {why}" for why, count in usable.dropped.items())
        raise InputError(
            f"the training set has {len(usable)} usable rows, {n} of them for training after the "
            f"split by sky position, and a batch takes training.batch_size = "
            f"{settings.batch_size} on {settings.workers} workers: give more labels or a smaller "
            f"batch" + (f" (left out: {counts})" if counts else "")
        )


def _write_data(
    store: Store, folder: str, usable: TrainingSet, held_out: Any, scaling: FeatureScaling
) -> None:
    """What every worker reads: the same bytes whenever the same training is asked for."""
    if store.exists(f"{folder}/data.safetensors"):
        return
    inputs, _ = network_inputs(usable.flux, scaling)
    tensors = {
        "inputs": torch.from_numpy(inputs),
        "redshift": torch.from_numpy(usable.redshift.astype(np.float32)),
        "held_out": torch.from_numpy(np.asarray(held_out)),
    }
    store.put(f"{folder}/data.safetensors", safetensors.torch.save(tensors))


def _run(store: Store, folder: str, recipe: Recipe, tell: Callable[[str], None]) -> FitState:
    """Run the workers to the end, from the last checkpoint if there is one."""
    epoch = _epochs_done(store, f"{folder}/ray")
    if epoch:
        tell(f"train: goes on after epoch {epoch} of {recipe.fit.total_epochs}")
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"root": store.url_of(""), "folder": folder, "recipe": asdict(recipe)},
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=recipe.workers,
            resources_per_worker={"CPU": _cpus_per_worker(recipe.workers)},
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as version 1
            name="ray",
            storage_path=store.url_of(folder),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise SurveyError(
            f"training failed in {store.url_of(folder)}: {_cause(error)}; repeat the command to go "
            "on from the last finished epoch"
        ) from error
    if result.checkpoint is None:
        raise SurveyError(f"training in {store.url_of(folder)} left no checkpoint")
    with result.checkpoint.as_directory() as place:
        return FitState.load(Path(place))


def _epochs_done(store: Store, place: str) -> int:
    """Epochs of the checkpoint from which Ray Train will go on; 0 if it will start.

    Killed while Ray Train wrote its record of checkpoints, the record is not JSON: it and the
    checkpoints are removed, and the training starts over.
    """
    if not store.exists(f"{place}/{SNAPSHOT}"):
        return 0
    try:
        snapshot = json.loads(store.read(f"{place}/{SNAPSHOT}"))
    except ValueError:
        store.remove(place)
        return 0
    return int(_state_of(store, place, snapshot).get("epoch", 0))


def _state_of(store: Store, place: str, snapshot: dict[str, Any]) -> dict[str, Any]:
    """state.json of the checkpoint that Ray Train's record calls the latest; {} if it is gone."""
    latest = (snapshot.get("latest_checkpoint_result") or {}).get("checkpoint_dir_name", "")
    return store.read_json(f"{place}/{latest}/{STATE}") or {}


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _watch(
    store: Store, place: str, recipe: Recipe, name: str, tell: Callable[[str], None]
) -> Iterator[None]:
    """Tell of the last epoch every five seconds while the block runs.

    Read from the checkpoints: the workers are other processes, and so is what controls them.
    """
    over = threading.Event()

    def watch() -> None:
        told = 0
        while not over.wait(PLAIN_INTERVAL_S):
            try:
                snapshot = store.read_json(f"{place}/{SNAPSHOT}") or {}
                state = _state_of(store, place, snapshot)
            except StoreError:
                continue  # read while it is written
            if state and state["epoch"] != told:
                told = state["epoch"]
                loss = state["history"][-1]["loss"]
                tell(f"train {name}: epoch {told} of {recipe.fit.total_epochs}, loss {loss:.4f}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
    """One Ray Train worker: all epochs that are left, a checkpoint after each."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    document = config["recipe"]
    settings = FitSettings(**{**document["fit"], "rates": tuple(document["fit"]["rates"])})
    where = f"{config['folder']}/data.safetensors"
    data = read_tensors(Store(config["root"]).read(where), where)
    context = ray.train.get_context()
    network = _fresh(document["architecture"], document["bands"], document["network"], settings)
    state = None
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as place:
            state = FitState.load(Path(place))
    rank = context.get_world_rank()
    for after in fit(
        network,
        data["inputs"],
        data["redshift"],
        data["held_out"],
        settings,
        state,
        rank=rank,
        world=context.get_world_size(),
    ):
        if rank == 0:
            with tempfile.TemporaryDirectory() as place:
                after.save(Path(place))
                ray.train.report(
                    after.history[-1], checkpoint=ray.train.Checkpoint.from_directory(place)
                )
        else:
            ray.train.report(after.history[-1])


def _fresh(
    architecture: str, bands: tuple[str, ...], network: dict[str, Any], settings: FitSettings
) -> RedshiftNetwork:
    torch.manual_seed(settings.seed)
    return build(architecture, bands, network)


def _finish(
    store: Store,
    name: str,
    recipe: Recipe,
    key: str,
    usable: TrainingSet,
    held_out: Any,
    scaling: FeatureScaling,
    state: FitState,
) -> Package:
    """Measure the best weights on the held-out rows and save the package."""
    network = build(recipe.architecture, recipe.bands, recipe.network)
    network.load_state_dict(state.best)
    threads = torch.get_num_threads()
    # Several threads beside other work can be a hundred times slower than one.
    torch.set_num_threads(1)
    values, _ = predict(network.eval(), scaling, usable.flux[held_out])
    torch.set_num_threads(threads)
    true = usable.redshift[held_out]
    metrics = {"held_out": {k: redshift_metrics(values[k], true) for k in ("point", "median")}}
    document = json.loads(json.dumps(asdict(recipe)))
    return save_package(
        store,
        name,
        architecture=recipe.architecture,
        settings=recipe.network,
        scaling=scaling,
        tensors=state.best,
        outputs={"schema": "photoz", "pdf": "Gaussian mixture in ln(1 + z), truncated at z = 0"},
        training={
            "fingerprint": key,
            "recipe": {"number": RECIPE, **document},
            "data_checksum": usable.checksum,
            "rows": len(usable),
            "rows_training": int((~held_out).sum()),
            "rows_held_out": int(held_out.sum()),
            "rows_dropped": usable.dropped,
            "split": "whole HEALPix pixels",
            "best_epoch": state.best_epoch,
            "loss_curve": state.history,
            "code": __version__,
        },
        metrics=metrics,
    )
