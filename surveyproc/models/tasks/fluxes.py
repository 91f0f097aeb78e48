"""Fluxes and their errors as a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from surveyproc.evaluate.fluxes import flux_metrics
from surveyproc.models.tasks.base import Float, Target, Task, Values, finite


class FluxOutput(NamedTuple):
    """Normal distributions of k fluxes of n objects.

    Attributes
    ----------
    flux, error : Tensor, shape (n, k)
        Mean and standard deviation, nJy; errors > 0.
    """

    flux: Tensor
    error: Tensor


class FluxTask(Task):
    """k fluxes with errors, from a `FluxOutput`.

    Parameters
    ----------
    names : sequence of str
        Of the fluxes: bands, say, or components in bands.
    name : str
        Name of the task and its target: k columns, nJy.
    weight : float
        Of the loss.
    """

    kind: ClassVar[str] = "fluxes"

    def __init__(self, names: Sequence[str], *, name: str = "fluxes", weight: float = 1.0) -> None:
        self.names, self.name, self.weight = tuple(names), name, weight
        self.targets = (Target(name, len(self.names)),)

    def describe(self) -> dict[str, Any]:
        """With `names`."""
        return {"name": self.name, "kind": self.kind, "names": list(self.names)}

    def loss(self, output: FluxOutput, targets: Mapping[str, Tensor]) -> Tensor:
        """Sum over the known fluxes f of ln s + ((f - m) / s)^2 / 2, of means m and errors s.

        The negative log likelihood of normal distributions less a constant.
        """
        flux = targets[self.name]
        known = flux.isfinite()
        pull = (flux.where(known, 0.0) - output.flux) / output.error
        return (output.error.log() + 0.5 * pull**2).where(known, 0.0).sum(dim=1)

    def average(self, outputs: Sequence[FluxOutput]) -> FluxOutput:
        """Mean and standard deviation of the mixture of all, each of equal weight."""
        means = torch.stack([output.flux for output in outputs])
        variances = torch.stack([output.error for output in outputs]) ** 2
        return FluxOutput(
            means.mean(dim=0),
            (variances.mean(dim=0) + means.var(dim=0, correction=0)).sqrt(),
        )

    def values(self, output: FluxOutput) -> dict[str, NDArray[Any]]:
        """All fluxes, then all errors."""
        found: dict[str, NDArray[Any]] = {}
        for start, whole in (("flux", output.flux), ("flux_err", output.error)):
            part = whole.float().cpu().numpy()
            found |= {f"{start}_{name}": part[:, k].copy() for k, name in enumerate(self.names)}
        return found

    def metrics(self, values: Values, targets: Mapping[str, Float]) -> dict[str, Any]:
        """Those of `evaluate.fluxes.flux_metrics`, by name."""
        true = targets[self.name]
        return finite(
            {
                name: flux_metrics(values[f"flux_{name}"], values[f"flux_err_{name}"], true[:, k])
                for k, name in enumerate(self.names)
            }
        )
