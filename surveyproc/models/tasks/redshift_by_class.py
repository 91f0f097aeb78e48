"""The redshift of an object if it is of a class, for every class that has redshifts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveyproc.config.sections import TrainingSection
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.models.tasks.base import Float, Labels, Target, Task, Values, finite
from surveyproc.models.tasks.columns import column_name
from surveyproc.models.tasks.pdf import MixtureOutput, log_density, weighted


class GivenClass(NamedTuple):
    """p(z | c) of n objects for every class c that has redshifts.

    Attributes
    ----------
    mixtures : tuple of MixtureOutput
        One a class.
    log_weights : Tensor, shape (n, classes)
        Natural logarithms of p(c) among these classes, which sum to one.
    """

    mixtures: tuple[MixtureOutput, ...]
    log_weights: Tensor

    def joint(self) -> MixtureOutput:
        """p(z) = sum_c p(c) p(z | c), and the mean of the points."""
        return weighted(self.mixtures, self.log_weights)

    @staticmethod
    def average(outputs: Sequence[GivenClass]) -> GivenClass:
        """Of several networks, so that `joint` is the mean of theirs.

        p(z | c) is the mean of the networks' weighted by their p(c).
        """
        logs = torch.stack([one.log_weights for one in outputs])
        mixtures = [
            weighted(same, logs[:, :, place].T)
            for place, same in enumerate(zip(*(one.mixtures for one in outputs), strict=True))
        ]
        return GivenClass(tuple(mixtures), torch.logsumexp(logs, dim=0) - math.log(len(outputs)))


class RedshiftByClassTask(Task):
    """p(z | c), from outputs that are `GivenClass`.

    Learns from the targets of a `ClassTask` and a `RedshiftTask` of the same network, which encode
    them: minus ln p(z | true class).

    Parameters
    ----------
    classes : sequence of str
        Names of the classes that have redshifts.
    places : sequence of int
        Their places among all classes, in the same order.
    """

    kind: ClassVar[str] = "redshift_by_class"
    name = "redshift_by_class"
    targets = (Target("class"), Target("redshift"))

    def __init__(self, classes: Sequence[str], places: Sequence[int]) -> None:
        self.classes, self.places = tuple(classes), tuple(places)

    def describe(self) -> dict[str, Any]:
        """With `classes`."""
        return {"name": self.name, "kind": self.kind, "classes": list(self.classes)}

    def loss(self, output: GivenClass, targets: Mapping[str, Tensor]) -> Tensor:
        """Minus ln p(z | true class); 0 where one is missing or the class has no redshifts."""
        index, z = targets["class"], targets["redshift"]
        x = torch.log1p(z.where(z.isfinite(), 0.0))
        total = torch.zeros_like(x)
        for place, mixture in zip(self.places, output.mixtures, strict=True):
            losses = -log_density(mixture, x)
            total = total + losses.where((index == place) & z.isfinite(), 0.0)
        return total

    def average(self, outputs: Sequence[GivenClass]) -> GivenClass:
        """As `GivenClass.average`."""
        return GivenClass.average(outputs)

    def values(self, output: GivenClass) -> dict[str, NDArray[Any]]:
        """Columns of schemas/photoz_by_class.toml."""
        found: dict[str, dict[str, NDArray[Any]]] = {}
        for name, mixture in zip(self.classes, output.mixtures, strict=True):
            pdf, label = mixture.summarise(), column_name(name)
            columns = {
                "z_median": pdf.median,
                "z_err68_low": pdf.low,
                "z_err68_high": pdf.high,
                "z_quantiles": pdf.quantiles,
            }
            for key, values in columns.items():
                found.setdefault(key, {})[f"{key}_{label}"] = values
        return {name: values for same in found.values() for name, values in same.items()}

    def encode(self, labels: Labels, settings: TrainingSection) -> dict[str, Float]:
        """Nothing: the tasks that these targets belong to do."""
        self._named(labels)
        return {}

    def known(self, targets: Mapping[str, Float]) -> NDArray[np.bool_]:
        """Objects of known redshift and of a class that has redshifts, shape (n,)."""
        return np.isin(targets["class"], self.places) & np.isfinite(targets["redshift"])

    def metrics(self, values: Values, targets: Mapping[str, Float]) -> dict[str, Any]:
        """`redshift_metrics` of the median given the true class, as `median`."""
        medians = np.stack([values[f"z_median_{column_name(one)}"] for one in self.classes], axis=1)
        column = np.searchsorted(self.places, targets["class"].astype(np.int64))
        chosen = medians[np.arange(len(medians)), column]
        return finite({"median": redshift_metrics(chosen, targets["redshift"])})
