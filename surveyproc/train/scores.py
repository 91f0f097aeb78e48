"""What trained networks say of labelled objects that they were not trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surveyproc.errors import InputError
from surveyproc.models.base import Network
from surveyproc.models.ensemble import Ensemble
from surveyproc.models.features import FeatureScaling
from surveyproc.models.inference import Read, device_here, predict
from surveyproc.models.tasks.base import Task, Values
from surveyproc.models.tasks.masks import MaskTask
from surveyproc.train.data import TrainingSet
from surveyproc.train.examples import BandDropout, Examples

Int = NDArray[np.int64]
Float = NDArray[np.float64]
Calibrations = dict[str, dict[str, Any]]

PARTS = 5
"""Parts of the rows held out, each judged by the calibration of the others."""

FITTED_ROWS = 16_384
"""Training objects, at most, by which tasks fit what they fit: the codes of embeddings."""


def measure(
    networks: Sequence[Network],
    scaling: FeatureScaling | None,
    usable: TrainingSet,
    fold: Int,
    test: TrainingSet | None,
) -> tuple[dict[str, Any], Calibrations]:
    """Metrics of the networks on the rows they held out, and of their mean on the test rows.

    Calibrations of tasks that have one are fitted to the rows held out. Metrics of these are of
    values calibrated by what was fitted to four fifths of them, the others each time.

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
    calibrations : dict
        By task, for the mean of all networks.
    """
    tasks, metrics = networks[0].tasks, {}
    calibrations: Calibrations = {}
    folds = int(fold.max()) + 1
    if folds:
        with _one_thread():
            parts = [
                _predict(_mean(networks[part::folds]), scaling, usable, fold == part)
                for part in range(folds)
            ]
        values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        order = np.concatenate([np.flatnonzero(fold == part) for part in range(folds)])
        known = usable.take(order).targets
        calibrations, crossed = _calibrate(tasks, values, known)
        metrics["held_out"] = _metrics(tasks, crossed, known)
    if test is not None:
        with _one_thread():
            values = _predict(_mean(networks), scaling, test, np.ones(len(test), bool))
        for task in tasks:
            if task.name in calibrations:
                values |= task.calibrated(values, calibrations[task.name])
        metrics["test"] = _metrics(tasks, values, test.targets)
    return metrics, calibrations


def _calibrate(
    tasks: Sequence[Task], values: Values, targets: Mapping[str, Float]
) -> tuple[Calibrations, Values]:
    """Calibrations of all rows, and the values by those of the other parts of the rows."""
    found: Calibrations = {}
    crossed = dict(values)
    part = np.arange(len(next(iter(values.values())))) % PARTS
    for task in tasks:
        fits = [task.fit_calibration(*_rows(part != k, values, targets)) for k in range(PARTS)]
        whole = task.fit_calibration(values, targets)
        if whole is None or None in fits:
            continue
        found[task.name] = whole
        for number, fit in enumerate(fits):
            rows = part == number
            own, _ = _rows(rows, values, targets)
            for key, column in task.calibrated(own, fit or {}).items():
                crossed[key] = crossed[key].copy()
                crossed[key][rows] = column
    return found, crossed


def _rows(
    rows: NDArray[np.bool_] | slice, values: Values, targets: Mapping[str, Float]
) -> tuple[Values, dict[str, Float]]:
    """Values and targets of some rows."""
    return (
        {key: column[rows] for key, column in values.items()},
        {name: column[rows] for name, column in targets.items()},
    )


def fit_outputs(
    networks: Sequence[Network], scaling: FeatureScaling | None, usable: TrainingSet, fold: Int
) -> None:
    """Let tasks that have something to fit do so, by what each network says of its training rows.

    Parameters
    ----------
    networks, scaling, usable, fold
        As `measure` takes them; the tasks are changed.
    """

    def raw(task: Task, output: Any) -> dict[str, NDArray[Any]]:
        return {task.name: output.float().cpu().numpy()} if task.fitted is not None else {}

    folds = max(int(fold.max()) + 1, 1)
    for number, network in enumerate(networks):
        if tasks := [task for task in network.tasks if task.fitted is not None]:
            training = np.flatnonzero(fold != number % folds)
            rows = some_of(training, FITTED_ROWS, len(usable))
            with _one_thread():
                outputs = _predict(network, scaling, usable, rows, raw)
                for task in tasks:
                    task.fit(outputs[task.name])


def some_of(rows: Int, most: int, n: int) -> NDArray[np.bool_]:
    """About `most` of the rows, evenly taken, as a mask of shape (n,)."""
    some = np.zeros(n, bool)
    some[rows[:: max(1, len(rows) // most)]] = True
    return some


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads beside other work can be a hundred times slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    read: Read | None = None,
) -> dict[str, NDArray[Any]]:
    """What the network says of the rows of a bool mask."""
    flux = errors = reddening = None
    if scaling is not None:
        flux, errors = flux_of(usable, scaling.bands)
    if network.reads.reddening:
        reddening = np.zeros(len(usable)) if usable.reddening is None else usable.reddening

    # Where networks of images are trained, see `train.apart`.
    device = device_here() if network.reads.cutout else "cpu"

    def of(index: Int, images: NDArray[np.float32] | None) -> dict[str, NDArray[Any]]:
        given = [None if a is None else a[index] for a in (flux, reddening, errors, usable.places)]
        found, _ = predict(network, scaling, given[0], images, *given[1:], device=device, read=read)
        return found

    if not network.reads.cutout:
        return of(np.flatnonzero(rows), None)
    parts, order = [], []
    for some, images, masks in cutouts_of(usable, network, rows):
        order.append(some.numpy())
        values = of(some.numpy(), images.numpy())
        for task in network.tasks:
            if isinstance(task, MaskTask) and task.name in values:
                values |= task.compare(values.pop(task.name), masks[task.name].numpy())
        parts.append(values)
    back = np.argsort(np.concatenate(order), kind="stable")
    return {key: np.concatenate([part[key] for part in parts])[back] for key in parts[0]}


def _metrics(
    tasks: Sequence[Task], values: Values, targets: Mapping[str, Float]
) -> dict[str, dict[str, Any]]:
    """Metrics of every task on the rows whose target is known; none of one without targets."""
    found = {}
    for task in tasks:
        if task.targets:
            rows = slice(None) if task.pixels else task.known(targets)
            found[task.name] = task.metrics(*_rows(rows, values, targets))
    return found
