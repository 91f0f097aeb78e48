"""Classes that exclude each other as a task: the probability of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.evaluate.calibration import apply_platt, calibration_error, fit_platt
from surveyproc.evaluate.classes import class_metrics
from surveyproc.evaluate.roc import mean_area
from surveyproc.models.tasks.base import Float, Labels, Target, Task, Values, finite
from surveyproc.models.tasks.columns import column_name

MOST_CLASSES = 256
"""More different labels than these are a column of something else."""

LEAST = 2
"""Examples of each class that a network needs."""

LEAST_ROWS = 10
"""Held-out objects of each class below which a calibration would learn their noise."""


class ClassTask(Task):
    """The class of an object, from logits of shape (n, classes).

    Labels are text, the classes' names; or numbers (whole ones; a boolean is 0 or 1): the classes'
    names too if those are numbers, else their places in `classes`, from 0. Null, empty text, NaN
    and negative numbers are no labels.

    Parameters
    ----------
    classes : sequence of str
        Names in the order of the logits. Without any they are those of the label table, sorted,
        and the network is built again with them: see `Task.learned`.
    name : str
        Name of the task, of its target, and of the column with the most probable class.
    weight : float
        Of the loss.
    calibrate : bool
        Whether a training fits Platt's sigmoid to the rows held out (`evaluate.calibration`), by
        which probabilities then are what they say. The package keeps it; without such rows, or with
        fewer than `LEAST_ROWS` of a class, there is none.

    Raises
    ------
    ConfigError
        If two classes have one name, or names that make one column.
    """

    kind: ClassVar[str] = "classes"

    def __init__(
        self,
        classes: Sequence[str] = (),
        *,
        name: str = "class",
        weight: float = 1.0,
        calibrate: bool = False,
    ) -> None:
        self.calibrate = calibrate
        self.classes, self.name, self.weight = tuple(classes), name, weight
        self.targets = (Target(name),)
        columns = [column_name(one) for one in self.classes]
        for number, column in enumerate(columns):
            if column in columns[:number]:
                raise ConfigError(
                    f"task {name!r}: classes {self.classes[columns.index(column)]!r} and "
                    f"{self.classes[number]!r} would both be column p_{column}"
                )

    def describe(self) -> dict[str, Any]:
        """With `classes`."""
        return {"name": self.name, "kind": self.kind, "classes": list(self.classes)}

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy -ln p of the true class, 0 where that is missing."""
        known = targets[self.name].isfinite()
        index = targets[self.name].where(known, 0.0).long()
        losses = functional.cross_entropy(output, index, reduction="none")
        return losses.where(known, 0.0)

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """Logits of the mean probabilities."""
        logs = [output.float().log_softmax(dim=1) for output in outputs]
        return torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logs))

    def values(self, output: Tensor) -> dict[str, NDArray[Any]]:
        """Probability of each class, and the name of the most probable one."""
        return self._columns(output.float().softmax(dim=1).cpu().numpy())

    def fit_calibration(
        self, values: Values, targets: Mapping[str, Float]
    ) -> dict[str, Any] | None:
        """`platt`, the values of `evaluate.calibration.fit_platt`."""
        p, true = self._known(values, targets)
        if not self.calibrate or np.bincount(true, minlength=p.shape[1]).min() < LEAST_ROWS:
            return None
        return {"platt": fit_platt(p, true).tolist()}

    def calibrated(self, values: Values, calibration: Mapping[str, Any]) -> Values:
        """The columns with Platt's sigmoid applied to the probabilities."""
        p = apply_platt(self._probabilities(values), calibration["platt"])
        return self._columns(p.astype(np.float32))

    def _probabilities(self, values: Values) -> NDArray[Any]:
        return np.stack([values[f"p_{column_name(one)}"] for one in self.classes], axis=1)

    def _known(
        self, values: Values, targets: Mapping[str, Float]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Probabilities and places of the objects that have both."""
        p, index = self._probabilities(values), targets[self.name]
        known = np.isfinite(index) & np.isfinite(p).all(axis=1)
        return p[known], index[known].astype(np.int64)

    def _columns(self, p: NDArray[Any]) -> dict[str, NDArray[Any]]:
        best = np.where(np.isfinite(p).all(axis=1), p.argmax(axis=1), -1)
        found: dict[str, NDArray[Any]] = {
            f"p_{column_name(one)}": p[:, number].copy() for number, one in enumerate(self.classes)
        }
        return found | {self.name: np.array([*self.classes, ""], object)[best]}

    def learned(self, labels: Labels) -> Sequence[str] | None:
        """The labels that there are, sorted (numbers as such), unless the classes are known.

        Raises
        ------
        InputError
            If there are fewer than two, or more than any classification has.
        """
        if self.classes:
            return None
        (target,) = self._named(labels)
        values = labels[target.name]
        if values.dtype.kind == "O":
            names = sorted({text for text in values if text})
        else:
            whole = self._numbers(target, values)
            names = [f"{one:g}" for one in np.unique(whole[np.isfinite(whole) & (whole >= 0)])]
        if not 2 <= len(names) <= MOST_CLASSES:
            some = ", ".join(repr(name) for name in names[:5])
            raise InputError(
                f"task {self.name!r}: the column of {target.key} holds {len(names)} different "
                f"classes ({some or 'none'}{', ...' if len(names) > 5 else ''}); from 2 to "
                f"{MOST_CLASSES} are needed"
            )
        return names

    def encode(self, labels: Labels, settings: TrainingSection) -> dict[str, Float]:
        """Places of the labels in `classes`, (n,); NaN where there is no label.

        Raises
        ------
        InputError
            Also if a label is none of the classes.
        """
        (target,) = self._named(labels)
        values = labels[target.name]
        if values.dtype.kind == "O":
            texts = [text or "" for text in values]
        else:
            numbers = self._numbers(target, values)
            known = np.isfinite(numbers) & (numbers >= 0)
            texts = [f"{one:g}" if good else "" for one, good in zip(numbers, known, strict=True)]
        place = {name: number for number, name in enumerate(self.classes)}
        if values.dtype.kind != "O" and not all(name.isdigit() for name in self.classes):
            place = {str(number): number for number in range(len(self.classes))}
        strange = sorted(set(texts) - set(place) - {""})
        if strange:
            raise InputError(
                f"task {self.name!r}: {strange[0]!r} in the column of {target.key} is none of the "
                f"classes {', '.join(self.classes)}"
            )
        return {target.name: np.array([place.get(text, np.nan) for text in texts], np.float64)}

    def lacking(self, targets: Mapping[str, Float]) -> str:
        """The class with less than two examples, if there is one."""
        values = targets[self.name]
        known = values[np.isfinite(values)].astype(np.int64)
        counts = np.bincount(known, minlength=len(self.classes))
        if counts.min(initial=LEAST) >= LEAST:
            return ""
        told = ", ".join(f"{n} {name}" for name, n in zip(self.classes, counts, strict=True))
        few = ("no object", "one object")[counts.min()]
        return (
            f"{few} of class {self.classes[int(counts.argmin())]!r} is left to train with after "
            f"the split, and {LEAST} are the least ({told}): give more labels of it, leave it out, "
            "or hold out less"
        )

    def metrics(self, values: Values, targets: Mapping[str, Float]) -> dict[str, Any]:
        """Those of `evaluate.classes.class_metrics`, `area` and `calibration_error`."""
        p, index = self._probabilities(values), targets[self.name].astype(np.int64)
        more = {"area": mean_area(p, index), "calibration_error": calibration_error(p, index)}
        return finite(class_metrics(p, index, self.classes) | more)
