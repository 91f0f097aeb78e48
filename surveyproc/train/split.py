"""Which labelled rows a training learns from, holds out, and sets aside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import InputError
from surveyproc.models.base import Network
from surveyproc.train.data import TrainingSet
from surveyproc.train.examples import NO_DISTORTION
from surveyproc.train.fit import FitSettings

Int = NDArray[np.int64]


def set_aside(
    usable: TrainingSet, settings: TrainingSection
) -> tuple[TrainingSet, TrainingSet | None]:
    """The rows of the training, and those of the final test if there is one."""
    if not settings.test_share:
        return usable, None
    if usable.held_out is not None:
        raise InputError("training.test_share: the test of this training set is a set of its own")
    rows = usable.split(settings.seed, settings.test_share)
    return usable.take(~rows), usable.take(rows)


def folds_of(usable: TrainingSet, settings: TrainingSection) -> Int:
    """The fold in which each row is held out, shape (n,); -1 for none."""
    if usable.held_out is not None:
        if settings.folds > 1:
            raise InputError("training.folds: this training set says itself which rows to hold out")
        return np.where(usable.held_out, 0, -1)
    if settings.folds > 1:
        return usable.folds(settings.seed, settings.folds)
    if not settings.held_out_share:
        return np.full(len(usable), -1)
    held = usable.split(settings.seed, settings.held_out_share)
    return np.where(held, 0, -1)


def check_size(usable: TrainingSet, fold: Int, settings: TrainingSection) -> None:
    """That every network has a batch of rows, and rows held out; InputError otherwise."""
    folds = range(settings.folds)
    n = min(int((fold != part).sum()) for part in folds)
    wanted = usable.held_out is None and (settings.folds > 1 or settings.held_out_share > 0)
    held = not wanted or all((fold == part).any() for part in folds)
    if n < settings.batch_size or settings.batch_size < settings.workers or not held:
        counts = "; ".join(f"{count} rows with {why}" for why, count in usable.dropped.items())
        raise InputError(
            f"the training set has {len(usable)} usable rows, {n} of them for training after the "
            f"split, and a batch takes training.batch_size = {settings.batch_size} on "
            f"{settings.workers} workers: give more labels or a smaller batch"
            + (f" (left out: {counts})" if counts else "")
        )
    if settings.folds * settings.members == 1 and settings.batch_size % settings.workers:
        raise InputError(
            f"training.batch_size = {settings.batch_size} cannot be shared evenly by "
            f"training.workers = {settings.workers}"
        )


def check_rows(usable: TrainingSet, fold: Int, folds: int, network: Network) -> None:
    """That every network can learn each task from the rows it is given; InputError otherwise."""
    for part in range(folds):
        rows = fold != part
        targets = {name: values[rows] for name, values in usable.targets.items()}
        for task in network.tasks:
            if lacking := task.lacking(targets) if task.targets else "":
                which = f"network {part + 1} of {folds}: " if folds > 1 else ""
                raise InputError(f"{which}task {task.name!r}: {lacking}")


def check_cutout(usable: TrainingSet, network: Network, fit: FitSettings) -> None:
    """That the cutouts are as the network and the training want them; InputError otherwise."""
    side, held = network.reads.cutout, usable.cube
    if held is None:
        return
    if side > held.cutout:
        raise InputError(
            f"the network reads {side} x {side} pixels, and the cutouts of {held.key} have "
            f"{held.cutout} x {held.cutout}: set its cutout to {held.cutout}, or make larger ones"
        )
    told, known = network.reads.neighbours, 0 if usable.places is None else usable.places.shape[1]
    if told and told != known:
        raise InputError(
            f"the network is told the places of {told} neighbours, and {held.key} has those of "
            f"{known}: train it with blends of {told + 1} galaxies (`surveyproc blends`)"
        )
    for task in network.tasks:
        if task.pixels and (planes := held.pixel_targets[task.name]) != task.targets[0].length:
            raise InputError(
                f"task {task.name!r} has {task.targets[0].length} planes, and those of {held.key} "
                f"{planes}: give the network as many galaxies"
            )
    beside = [task.name for task in network.tasks if task.pixels]
    beside += ["places of neighbours"] * (told > 0)
    if beside and fit.distortion != NO_DISTORTION:
        raise InputError(
            f"training.zoom, dimming, shrinking: {', '.join(beside)} of {held.key} "
            "would not lie on the distorted images: leave them out"
        )
