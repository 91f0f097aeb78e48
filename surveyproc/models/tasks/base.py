"""What a task is: one thing that a network is asked for, from its labels to its columns.

A task owns its targets (what the label table must tell), its loss and weight, how the outputs of
several networks become one, the columns that it writes, and its metrics. Everything else (the loop,
packages, inference, products) knows tasks only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import ConfigError, InputError

Labels = Mapping[str, NDArray[Any]]
"""Columns of a label table by target: float64, (n,) or (n, k), NaN = unknown; text: objects."""
Values = Mapping[str, NDArray[Any]]
"""What inference hands over of a task, by the column's name without the model's prefix."""
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """What a task learns from.

    Attributes
    ----------
    name : str
        Its key in `training.targets`; also its name in what losses are given.
    length : int
        Label columns that it takes; 0 for one value an object.
    optional : bool
        Whether the task can be trained without it.
    """

    name: str
    length: int = 0
    optional: bool = False

    @property
    def key(self) -> str:
        """The key of survey.toml that names its columns."""
        return "training.redshift" if self.name == "redshift" else f"training.targets.{self.name}"


class Task(ABC):
    """Base of all tasks, ours and those of third parties.

    A third party's kind says in `describe` which columns it writes, because a plan, which imports
    no network, must know them: see `surveyproc.models.tasks.columns`.

    Attributes
    ----------
    kind : str
        What sort of task it is.
    name : str
        Its key in what the network's `forward` returns.
    weight : float
        Of its loss among those of other tasks.
    targets : tuple of Target
        What it learns from.
    unlabelled : bool
        Whether it learns without targets; if not, and there are none, it has no loss.
    fitted : Module or None
        What `fit` chooses, in buffers that are kept among the network's weights.
    pixels : bool
        Whether its target is an image of the cutout's size, which a training cube holds and no
        label table does.
    """

    kind: ClassVar[str]
    pixels: ClassVar[bool] = False
    name: str
    weight: float = 1.0
    targets: tuple[Target, ...] = ()
    unlabelled: bool = False
    fitted: nn.Module | None = None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Its entry in model.json, JSON-able: `name`, `kind`, and what its columns depend on."""

    @abstractmethod
    def average(self, outputs: Sequence[Any]) -> Any:
        """The outputs of several networks for the same objects as one, of the same type."""

    @abstractmethod
    def values(self, output: Any) -> dict[str, NDArray[Any]]:
        """Its columns of n objects, on the CPU: float32 (n,) or (n, k), or objects of str, (n,).

        By the names that `columns.task_columns` gives them, without the model's prefix. Whole
        numbers have the column's type; a list of them without a value holds the smallest of it.
        """

    def loss(self, output: Any, targets: Mapping[str, Tensor]) -> Tensor:
        """Loss of each object, shape (n,): 0, and no gradient, where its target is missing.

        Parameters
        ----------
        output : object
            The task's part of what `forward` returned.
        targets : mapping of str to float32 Tensor, shape (n,) or (n, k)
            All targets of the network, by name; NaN = missing.
        """
        raise NotImplementedError(f"task {self.name!r} has no loss")

    def encode(self, labels: Labels, settings: TrainingSection) -> dict[str, Float]:
        """Its targets as numbers, (n,) or (n, k), NaN where the label table holds no use.

        Parameters
        ----------
        labels : mapping of str to ndarray
            As the label table has them.
        settings : TrainingSection
            Of which some limit what is trained with.

        Raises
        ------
        ConfigError
            If a target has no label column.
        InputError
            If a column holds what is no such target.
        """
        return {
            target.name: self._numbers(target, labels[target.name])
            for target in self._named(labels)
        }

    def known(self, targets: Mapping[str, Float]) -> NDArray[np.bool_]:
        """Objects that it can learn from, shape (n,), of targets as `encode` gives them."""
        first = np.isfinite(targets[self.targets[0].name])
        return np.asarray(first.any(axis=tuple(range(1, first.ndim))))

    def lacking(self, targets: Mapping[str, Float]) -> str:
        """What the rows that one network is trained with do not tell; empty if they will do.

        Parameters
        ----------
        targets : mapping of str to float64 ndarray
            From `encode`, of those rows.
        """
        return ""

    def learned(self, labels: Labels) -> Sequence[str] | None:
        """Names of its outputs that only the label table tells; None if it knows them.

        The network is then built again, with the names in its setting `classes`, a mapping of
        tasks to names.
        """
        return None

    def fit(self, outputs: NDArray[np.float32]) -> None:
        """Choose what is `fitted`, by the trained network's outputs for the training set.

        Parameters
        ----------
        outputs : float32 ndarray, shape (n, ...)
            What `forward` gave for the task, if that is a Tensor.
        """
        raise NotImplementedError(f"task {self.name!r} has nothing to fit")

    def metrics(self, values: Values, targets: Mapping[str, Float]) -> dict[str, Any]:
        """What the values are worth on objects whose targets are known; JSON-able.

        None where undefined.

        Parameters
        ----------
        values : mapping of str to ndarray
            From `values`.
        targets : mapping of str to float64 ndarray
            From `encode`, of the same objects.
        """
        return {}

    def fit_calibration(
        self, values: Values, targets: Mapping[str, Float]
    ) -> dict[str, Any] | None:
        """What makes the values better where their targets are known; None if nothing does.

        Parameters
        ----------
        values, targets : mapping of str to ndarray
            As in `metrics`, of objects that the network has not seen.

        Returns
        -------
        dict or None
            JSON-able: the package keeps it, and `predict` gives what `calibrated` makes of it.
        """
        return None

    def calibrated(self, values: Values, calibration: Mapping[str, Any]) -> Values:
        """The values by what `fit_calibration` gave."""
        raise NotImplementedError(f"task {self.name!r} has no calibration")

    def _named(self, labels: Labels) -> list[Target]:
        """The targets that there are labels of."""
        for target in self.targets:
            if target.name not in labels and not target.optional:
                raise ConfigError(self._lacks(target))
        return [target for target in self.targets if target.name in labels]

    def _lacks(self, target: Target) -> str:
        return (
            f"task {self.name!r} learns from {target.name!r}, which no label column is named for: "
            f"set {target.key}" + (f" to {target.length} columns" if target.length else "")
        )

    def _numbers(self, target: Target, values: NDArray[Any]) -> Float:
        """Labels of numbers, of the shape that the target has."""
        if values.dtype.kind not in "biuf":
            raise InputError(
                f"task {self.name!r}: {target.key} names a column of text, and {target.name!r} is "
                "a number"
            )
        shape = (target.length,) if target.length else ()
        if shape == (1,) and values.ndim == 1:
            # A list of one column is read as that column.
            values = values[:, None]
        if values.shape[1:] != shape:
            raise InputError(
                f"task {self.name!r}: {target.key} names {_many(values.shape[1:])}; "
                f"{target.name!r} is {_many(shape)}"
            )
        return np.asarray(values, np.float64)


def _many(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} columns" if shape else "one column"


def check_targets(tasks: Iterable[Task], named: Iterable[str]) -> None:
    """Refuse label columns that no task learns from, and tasks without theirs.

    Parameters
    ----------
    tasks : iterable of Task
        Of one network.
    named : iterable of str
        The targets that survey.toml names columns for.

    Raises
    ------
    ConfigError
        Naming task, target and key.
    """
    tasks, names = list(tasks), list(named)
    if not names and any(task.targets for task in tasks):
        raise ConfigError(
            "training: no label column is named: set training.redshift or training.targets"
        )
    for task in tasks:
        task._named(dict.fromkeys(names, np.empty(0)))
    known = [target for task in tasks for target in task.targets]
    for name in names:
        if name not in [target.name for target in known]:
            wanted = ", ".join(target.key for target in known) or "none"
            raise ConfigError(
                f"{Target(name).key}: no task of this network learns from {name!r}; its keys are "
                f"{wanted}"
            )
    if not known and not any(task.unlabelled for task in tasks):
        raise ConfigError("no task of this network learns anything: there is nothing to train")


def finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as JSON has them: None where a number is not finite, also in nested ones."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return finite(value)
        if isinstance(value, list):
            return [plain(one) for one in value]
        return value if not isinstance(value, float) or np.isfinite(value) else None

    return {key: plain(value) for key, value in metrics.items()}
