"""What trained networks say of labelled objects that they were not trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surveyproc.errors import InputError
from surveyproc.models.base import Network
from surveyproc.models.ensemble import Ensemble
from surveyproc.models.features import FeatureScaling
from surveyproc.models.inference import predict
from surveyproc.models.tasks.base import Task, Values
from surveyproc.models.tasks.masks import MaskTask
from surveyproc.train.data import TrainingSet
from surveyproc.train.examples import BandDropout, Examples

Int = NDArray[np.int64]
Float = NDArray[np.float64]


def measure(
    networks: Sequence[Network],
    scaling: FeatureScaling | None,
    usable: TrainingSet,
    fold: Int,
    test: TrainingSet | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics of the networks on the rows they held out, and of their mean on the test rows.

    Tasks that correct their values do so by the rows held out.

    Parameters
    ----------
    networks : sequence of Network
        All of them, in evaluation mode; network k held out fold k % folds. The networks of one
        fold are judged by their mean.
    scaling : FeatureScaling or None
        Of the fluxes; None if they read none.
    usable : TrainingSet
        Rows of the training.
    fold : int64 ndarray, shape (n,)
        The fold in which each row is held out; -1 for none.
    test : TrainingSet or None
        Rows on which nothing depended.

    Returns
    -------
    metrics : dict
        `held_out`, and `test`, where there are such rows: the metrics of every task that has
        targets, by its name, on the rows whose target is known. None where undefined.
    calibration : dict
        What tasks correct their values by, by name; {} if none does.
    """
    threads = torch.get_num_threads()
    # Several threads beside other work can be a hundred times slower than one.
    torch.set_num_threads(1)
    tasks, metrics = networks[0].tasks, {}
    calibration: dict[str, Any] = {}
    folds = int(fold.max()) + 1
    if folds:
        parts = [
            _predict(_mean(networks[part::folds]), scaling, usable, fold == part)
            for part in range(folds)
        ]
        values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        order = np.concatenate([np.flatnonzero(fold == part) for part in range(folds)])
        targets = usable.take(order).targets
        for task in tasks:
            found = task.calibrate(values, targets) if task.targets else None
            if found is not None:
                calibration[task.name] = found
        metrics["held_out"] = _metrics(tasks, values, targets, calibration)
    if test is not None:
        values = _predict(_mean(networks), scaling, test, np.ones(len(test), bool))
        metrics["test"] = _metrics(tasks, values, test.targets, calibration)
    torch.set_num_threads(threads)
    return metrics, calibration


def _mean(networks: Sequence[Network]) -> Network:
    """Several networks as one."""
    return Ensemble(networks).eval() if len(networks) > 1 else networks[0]


def flux_of(usable: TrainingSet, bands: tuple[str, ...]) -> tuple[Float, Float]:
    """Fluxes and errors of the bands that a network reads."""
    index = [usable.bands.index(band) for band in bands]
    return usable.flux[:, index], usable.flux_err[:, index]


def cutouts_of(usable: TrainingSet, network: Network, rows: NDArray[np.bool_]) -> Any:
    """(rows, images, masks) of the chosen rows, as the network reads them."""
    if usable.cube is None:
        raise InputError("this network reads images: train it with the survey's own objects")
    examples = Examples(
        network.reads,
        {"cube_row": torch.from_numpy(usable.cube_row)},
        {},
        torch.zeros(len(usable), dtype=torch.bool),
        usable.cube,
        BandDropout(0.0, 0.0),
        0,
    )
    return examples.images(torch.from_numpy(rows), 256)


def _predict(
    network: Network,
    scaling: FeatureScaling | None,
    usable: TrainingSet,
    rows: NDArray[np.bool_],
) -> dict[str, NDArray[Any]]:
    """What the network says of the rows of a bool mask."""
    flux = errors = reddening = None
    if scaling is not None:
        flux, errors = flux_of(usable, scaling.bands)
    if network.reads.reddening:
        reddening = np.zeros(len(usable)) if usable.reddening is None else usable.reddening

    # Where networks of images are trained, see `train.apart`.
    device = "cuda" if network.reads.cutout and torch.cuda.is_available() else "cpu"

    def of(index: Int, images: NDArray[np.float32] | None) -> dict[str, NDArray[Any]]:
        given = [None if a is None else a[index] for a in (flux, reddening, errors)]
        values, _ = predict(network, scaling, given[0], images, given[1], given[2], device=device)
        return values

    if not network.reads.cutout:
        return of(np.flatnonzero(rows), None)
    parts, order = [], []
    for some, images, masks in cutouts_of(usable, network, rows):
        order.append(some.numpy())
        values = of(some.numpy(), images.numpy())
        for task in network.tasks:
            if isinstance(task, MaskTask) and task.name in masks:
                values |= task.compare(values.pop(task.name), masks[task.name].numpy())
        parts.append(values)
    back = np.argsort(np.concatenate(order), kind="stable")
    return {key: np.concatenate([part[key] for part in parts])[back] for key in parts[0]}


def _metrics(
    tasks: Sequence[Task],
    values: Values,
    targets: Mapping[str, Float],
    calibration: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Metrics of every task on the rows whose target is known; none of one without targets."""
    found = {}
    for task in tasks:
        if task.name in calibration:
            values = task.corrected(values, calibration[task.name])
        if task.targets:
            rows = slice(None) if task.pixels else task.known(targets)
            found[task.name] = task.metrics(
                {key: column[rows] for key, column in values.items()},
                {name: column[rows] for name, column in targets.items()},
            )
    return found
