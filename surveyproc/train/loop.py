"""A training from table to package: in this process or in many, resumed when killed.

A training is known by the hash of its data and settings. Its run lies in
`runs/train-<name>/<hash>/` while it goes on; when it is done, the model package holds the hash, so
that the same training asked for again returns the package that is there.

Two processes may run one training at once: they share the folder and end with the same weights.
The first to finish saves the package and removes the folder; the other one then fails, sees the
package, and returns it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from surveyproc import __version__
from surveyproc.config.sections import TrainingSection
from surveyproc.errors import SurveyError
from surveyproc.images.stamp_kind import KIND
from surveyproc.models.base import Network, build, is_registered
from surveyproc.models.features import FeatureScaling, fit_scaling, network_inputs
from surveyproc.models.package import (
    FORMAT,
    Package,
    find_trained,
    load_package,
    save_package,
    set_current,
)
from surveyproc.models.tasks.base import Task, check_targets
from surveyproc.places import Places, opened
from surveyproc.store import layout
from surveyproc.store.storage import Store, fingerprint
from surveyproc.train.apart import train_apart
from surveyproc.train.curves import watched_epochs, write_log
from surveyproc.train.data import TrainingSet
from surveyproc.train.fit import FitSettings, FitState
from surveyproc.train.job import DATA, TARGET, Job
from surveyproc.train.scores import cutouts_of, fit_outputs, flux_of, measure, some_of
from surveyproc.train.split import check_cutout, check_rows, check_size, folds_of, set_aside

RECIPE = 6
"""Raised when a change of the loop or the features changes the weights it ends with."""

SCALING_ROWS = 4096
"""Training objects, at most, from which the statistics of the pixels are taken."""

Int = NDArray[np.int64]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data.

    Attributes
    ----------
    architecture : str
        Registered name.
    bands : tuple of str
        Bands at hand.
    network : dict
        Settings of the architecture, names of classes that the labels told among them.
    fit : FitSettings
        Epochs, rates, batch, seed, band dropout.
    workers : int
        Processes that share the gradients of a network; another number gives other weights. 1 if
        there are several networks.
    folds, members : int
        Parts of the sky that are held out in turn, and networks of each.
    held_out_share : float
        Share of the rows that each network holds out, by sky position.
    """

    architecture: str
    bands: tuple[str, ...]
    network: dict[str, Any]
    fit: FitSettings
    workers: int
    folds: int
    members: int
    held_out_share: float

    @property
    def networks(self) -> int:
        """Networks in all; network k holds out fold k % folds."""
        return self.folds * self.members

    def fingerprint(self, checksum: str) -> str:
        """Hash of recipe and data."""
        known = {"recipe": RECIPE, "format": FORMAT, "data": checksum}
        return fingerprint({**known, **asdict(self)})


def train(
    training_set: TrainingSet,
    *,
    settings: TrainingSection,
    store: Store,
    name: str,
    survey: str = "",
    architecture: str | None = None,
    network: Mapping[str, Any] | None = None,
    fit_options: Mapping[str, Any] | None = None,
    places: Places | None = None,
    say: Callable[[str], None] | None = None,
) -> Package:
    """Train a network and make it the current version of model `name`.

    Asked for again with the same data and settings it returns the package that is there. Killed at
    any moment and asked for again it goes on from the last checkpoint, and ends with the same
    weights as an undisturbed training.

    Parameters
    ----------
    training_set : TrainingSet
        Fluxes and labels; unusable rows are left out and counted.
    settings : TrainingSection
        How to train; the labels and bands that it names are in the set already.
    store : Store
        The survey's root.
    name : str
        Name of the model package.
    survey : str
        Name of the survey that it is trained for, kept in its record.
    architecture : str, optional
        Registered name; by default `name` if that is one, else `gaznet-c<bands>`.
    network : mapping, optional
        Settings of the architecture.
    fit_options : mapping, optional
        Other fields of `FitSettings`; they beat the settings.
    places : Places, optional
        Where the work may run; by default wherever it suits.
    say : callable, optional
        Told one line an event, and of the epochs at most every five seconds; by default the lines
        are printed on standard error.

    Returns
    -------
    Package
        With its `metrics` on the rows held out, which chose the best epoch, and on those of the
        test, which nothing depends on; each if there are such rows.

    Raises
    ------
    InputError
        If the set is smaller than a batch or no row is usable.
    ConfigError
        If the architecture or one of its settings is unknown, or a task has no labels.
    SurveyError
        If the training diverged or its workers died more than three times.
    """
    tell = say or _print
    bands = training_set.bands
    chosen = architecture or (name if is_registered(name) else f"gaznet-c{len(bands)}")
    made, chosen_settings = _built(chosen, training_set, network or {})
    fit = _fit_settings(settings, made.fit_options, fit_options or {})
    chosen_settings |= made.suited(fit.distortion)
    usable, test = set_aside(_usable(training_set, made, settings), settings)
    recipe = Recipe(
        architecture=chosen,
        bands=bands,
        network=chosen_settings,
        fit=fit,
        workers=settings.workers if settings.folds * settings.members == 1 else 1,
        folds=settings.folds,
        members=settings.members,
        held_out_share=settings.held_out_share if settings.folds == 1 else 1 / settings.folds,
    )
    fold = folds_of(usable, settings)
    check_size(usable, fold, settings)
    check_rows(usable, fold, settings.folds, made)
    check_cutout(usable, made, recipe.fit)
    start = None if settings.start is None else load_package(store, settings.start)
    known = [usable.checksum, test.checksum if test else "", start.version if start else ""]
    key = recipe.fingerprint("".join(known))
    folder = layout.training(name, key)
    done = find_trained(store, name, key)
    if done is not None:
        tell(f"train {name}: version {done.version} was trained with these data and settings")
        set_current(store, name, done.version)
        _clear(store, folder)
        return done
    scaling = _scaling(usable, fold, recipe, made)
    job = Job(
        root=store.url_of(""),
        folder=folder,
        architecture=recipe.architecture,
        bands=recipe.bands,
        network=recipe.network,
        fit=recipe.fit,
        folds=recipe.folds,
        cube=None if usable.cube is None else (usable.cube.store.url_of(""), usable.cube.key),
    )
    counts = [
        f"{int((fold >= 0).sum())} of them held out"
        + (f" in {recipe.folds} folds" if recipe.folds > 1 else "")
    ]
    counts += [f"{len(test)} for the test"] if test else []
    counts += [f"{count} left out: {why}" for why, count in usable.dropped.items()]
    tell(f"train {name}: {len(usable)} rows, {', '.join(counts)}; {folder}")
    try:
        _write_data(store, job, usable, fold, scaling)
        _write_starts(store, job, usable, fold, recipe, start)
        epochs = recipe.fit.total_epochs
        with watched_epochs(store, folder, name, recipe.networks, epochs, tell):
            states = _trained(job, recipe, places, tell)
    except (SurveyError, OSError):
        # Another process may have finished this training and removed the folder under us.
        done = find_trained(store, name, key)
        if done is None:
            raise
        tell(f"train {name}: version {done.version} was trained by another process meanwhile")
        _clear(store, folder)
        return done
    for member, state in enumerate(states):
        write_log(store, folder, member, state.history)
    package = _finish(store, name, survey, recipe, key, usable, test, fold, scaling, states, start)
    tell(f"train {name}: version {package.version}")
    _clear(store, folder)
    return package


def _trained(
    job: Job, recipe: Recipe, places: Places | None, tell: Callable[[str], None]
) -> list[FitState]:
    """The last state of every network of the recipe."""
    with opened() if places is None else nullcontext(places) as where:
        if recipe.workers == 1:
            return train_apart(job, recipe.networks, where)
        where.need_ray("networks", f"training.workers = {recipe.workers}")
        from surveyproc.train.together import train_together

        return [train_together(job, recipe.workers, tell)]


def _fit_settings(
    settings: TrainingSection, suited: Mapping[str, Any], options: Mapping[str, Any]
) -> FitSettings:
    """What suits the network, unless the settings say otherwise, unless `options` do."""
    keys = {"patience", "precision", "accumulate", "dropped_rows", "dropped_bands"}
    keys |= {"shift", "zoom", "dimming", "shrinking", "turning"}
    said = settings.model_dump(include=keys & settings.model_fields_set, exclude_none=True)
    said |= {key: tuple(one) for key, one in said.items() if isinstance(one, list)}
    if settings.learning_rates:
        said["rates"] = tuple(settings.learning_rates)
    chosen = {**suited, **said, **options}
    return FitSettings(settings.epochs, settings.batch_size, settings.seed, **chosen)


def _built(
    architecture: str, training_set: TrainingSet, settings: Mapping[str, Any]
) -> tuple[Network, dict[str, Any]]:
    """The network, and its settings with the names of classes that only the labels tell."""
    made = build(architecture, training_set.bands, settings)
    check_targets(made.tasks, [*training_set.targets, *_masks(made, training_set)])
    learned = {task.name: task.learned(training_set.targets) for task in made.tasks}
    names = {task: list(classes) for task, classes in learned.items() if classes is not None}
    if not names:
        return made, dict(settings)
    told = {**settings, "classes": {**settings.get("classes", {}), **names}}
    return build(architecture, training_set.bands, told), told


def _masks(network: Network, training_set: TrainingSet) -> list[str]:
    """Targets of the network's tasks that the training cube holds as images."""
    held = {} if training_set.cube is None else training_set.cube.pixel_targets
    return [task.name for task in network.tasks if task.pixels and task.name in held]


def _known(task: Task, usable: TrainingSet) -> NDArray[np.bool_]:
    """Rows that a task can learn from; every object of a cube has its pixels and its masks."""
    whole = task.pixels or task.unlabelled
    return np.ones(len(usable), bool) if whole else task.known(usable.targets)


def _usable(training_set: TrainingSet, network: Network, settings: TrainingSection) -> TrainingSet:
    """The rows that some task can learn from, their targets as numbers."""
    targets: dict[str, Float] = {}
    tasks = [task for task in network.tasks if task.targets or task.unlabelled]
    for task in tasks:
        targets |= task.encode(training_set.targets, settings)
    encoded = replace(training_set, targets=targets)
    known = np.any([_known(task, encoded) for task in tasks], axis=0)
    what = " or ".join(task.name for task in tasks)
    return encoded.usable(known, what)


def _scaling(
    usable: TrainingSet, fold: Int, recipe: Recipe, network: Network
) -> FeatureScaling | None:
    """Scaling of the fluxes from the rows that are trained with; of several folds, from all."""
    bands = network.reads.features
    if not bands:
        return None
    rows = fold != 0 if recipe.folds == 1 else np.ones(len(fold), bool)
    flux, errors = flux_of(usable, bands)
    return fit_scaling(flux[rows], errors[rows], bands, errors=network.reads.errors)


def _tensors(usable: TrainingSet, fold: Int, scaling: FeatureScaling | None) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        f"{TARGET}{name}": values.astype(np.float32) for name, values in usable.targets.items()
    }
    arrays["fold"] = fold
    if scaling is not None:
        flux, errors = flux_of(usable, scaling.bands)
        arrays["features"], _ = network_inputs(flux, scaling, errors)
    reddening = np.zeros(len(usable)) if usable.reddening is None else usable.reddening
    arrays["reddening"] = np.nan_to_num(reddening.astype(np.float32), nan=0.0)
    if usable.cube_row is not None:
        arrays["cube_row"] = usable.cube_row
    if usable.places is not None:
        arrays["places"] = usable.places.astype(np.float32)
    return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}


def _write_data(
    store: Store, job: Job, usable: TrainingSet, fold: Int, scaling: FeatureScaling | None
) -> None:
    where = f"{job.folder}/{DATA}"
    if not store.exists(where):
        store.put(where, safetensors.torch.save(_tensors(usable, fold, scaling)))


def _write_starts(
    store: Store,
    job: Job,
    usable: TrainingSet,
    fold: Int,
    recipe: Recipe,
    start: Package | None,
) -> None:
    """Every network before its first step: weights, and statistics of its training rows."""
    for member in range(recipe.networks):
        where = f"{job.folder}/start-{member}.safetensors"
        if store.exists(where):
            continue
        torch.manual_seed(recipe.fit.seed + member)
        network = build(recipe.architecture, recipe.bands, recipe.network)
        network.begin_training()
        training = np.flatnonzero(fold != member % recipe.folds)
        network.set_targets(
            {name: torch.from_numpy(one[training]) for name, one in usable.targets.items()}
        )
        if network.reads.cutout:
            some = some_of(training, SCALING_ROWS, len(usable))
            network.set_images(images for _, images, _ in cutouts_of(usable, network, some))
        if start is not None:
            network.load_state_dict(start.begin(network.state_dict(), member))
        store.put(where, safetensors.torch.save(network.state_dict()))


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _clear(store: Store, folder: str) -> None:
    """Remove all of a finished training's folder but the logs."""
    names = store.names(folder)
    if "log" not in names:
        store.remove(folder)
    for name in names:
        if name != "log":
            store.remove(f"{folder}/{name}")


def _pixel_scale(usable: TrainingSet) -> float | None:
    """Arcsec a pixel of the cutouts; None without, or where stamps do not tell it."""
    scale = np.nan if usable.cube is None else usable.cube.pixel_scale
    return float(scale) if np.isfinite(scale) else None


def _split(usable: TrainingSet) -> str:
    """What lies on one side of the split as a whole."""
    if usable.held_out is not None:
        return "galaxies"
    return "whole HEALPix pixels" if usable.group is None else "objects"


def _finish(
    store: Store,
    name: str,
    survey: str,
    recipe: Recipe,
    key: str,
    usable: TrainingSet,
    test: TrainingSet | None,
    fold: Int,
    scaling: FeatureScaling | None,
    states: list[FitState],
    start: Package | None,
) -> Package:
    """Measure the best weights on the rows they were not trained with, and save the package."""
    networks = []
    for state in states:
        network = build(recipe.architecture, recipe.bands, recipe.network)
        network.load_state_dict(state.best)
        networks.append(network.eval())
    fit_outputs(networks, scaling, usable, fold)
    metrics, calibrations = measure(networks, scaling, usable, fold, test)
    folds = range(recipe.folds)
    document = json.loads(json.dumps(asdict(recipe)))
    curves = [state.history for state in states]
    return save_package(
        store,
        name,
        architecture=recipe.architecture,
        settings=recipe.network,
        bands=recipe.bands,
        scaling=scaling,
        members=[network.state_dict() for network in networks],
        pixel_scale=_pixel_scale(usable),
        absent_bands="mask" if recipe.fit.dropped_rows else "refuse",
        training={
            "fingerprint": key,
            "survey": survey,
            "recipe": {"number": RECIPE, **document},
            "data_checksum": usable.checksum,
            "cube": None if usable.cube is None else usable.cube.key,
            KIND: None if usable.cube is None else usable.cube.record.get(KIND),
            "start": None if start is None else f"{start.name}@{start.version}",
            "rows": len(usable),
            "rows_training": [int((fold != part).sum()) for part in folds],
            "rows_held_out": [int((fold == part).sum()) for part in folds],
            "rows_test": 0 if test is None else len(test),
            "rows_dropped": usable.dropped,
            "rows_known": {
                task.name: int(_known(task, usable).sum())
                for task in networks[0].tasks
                if task.targets or task.unlabelled
            },
            "split": _split(usable),
            "best_epoch": [state.best_epoch for state in states],
            "loss_curve": curves[0] if len(curves) == 1 else curves,
            "code": __version__,
        },
        metrics=metrics,
        calibrations=calibrations,
    )
