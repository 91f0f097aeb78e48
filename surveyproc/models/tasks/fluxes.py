"""Fluxes and their errors as a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveyproc.config.sections import TrainingSection
from surveyproc.evaluate.blends import blend_metrics, error_scale, scaled_errors
from surveyproc.evaluate.fluxes import flux_metrics
from surveyproc.models.tasks.base import Float, Labels, Target, Task, Values, finite


class FluxOutput(NamedTuple):
    """Normal distributions of k fluxes of n objects.

    Attributes
    ----------
    flux, error : Tensor, shape (n, k)
        Mean and standard deviation, nJy; errors > 0.
    apart : Tensor, shape (n,), or None
        How far the nearest galaxy is that the network was told of, pixels; -1 if of none.
    """

    flux: Tensor
    error: Tensor
    apart: Tensor | None = None


FluxLoss = Callable[[FluxOutput, Tensor], Tensor]


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
    loss : callable, optional
        (output, true fluxes (n, k) with NaN = missing) to the loss of each object, (n,); by default
        the negative log likelihood of normal distributions.
    positive : bool
        Whether a true flux must be positive, as for a relative loss; others count as missing. A
        training then scales the errors by the rows held out (`evaluate.blends.error_scale`).
    apart : bool
        Whether outputs say how far the nearest galaxy is: a column, by which errors are scaled too.
    """

    kind: ClassVar[str] = "fluxes"

    def __init__(
        self,
        names: Sequence[str],
        *,
        name: str = "fluxes",
        weight: float = 1.0,
        loss: FluxLoss | None = None,
        positive: bool = False,
        apart: bool = False,
    ) -> None:
        self.names, self.name, self.weight = tuple(names), name, weight
        self.targets = (Target(name, len(self.names)),)
        self.positive, self.apart = positive, apart
        self._loss = loss or normal_loss

    def describe(self) -> dict[str, Any]:
        """With `names`, and `apart` if distances are among the values."""
        more = {"apart": True} if self.apart else {}
        return {"name": self.name, "kind": self.kind, "names": list(self.names), **more}

    def loss(self, output: FluxOutput, targets: Mapping[str, Tensor]) -> Tensor:
        """What the network gave as loss, or `normal_loss`."""
        return self._loss(output, targets[self.name])

    def average(self, outputs: Sequence[FluxOutput]) -> FluxOutput:
        """Mean and standard deviation of the mixture of all, each of equal weight."""
        means = torch.stack([output.flux for output in outputs])
        variances = torch.stack([output.error for output in outputs]) ** 2
        return FluxOutput(
            means.mean(dim=0),
            (variances.mean(dim=0) + means.var(dim=0, correction=0)).sqrt(),
            outputs[0].apart,
        )

    def values(self, output: FluxOutput) -> dict[str, NDArray[Any]]:
        """All fluxes, then all errors, then distances."""
        found: dict[str, NDArray[Any]] = {}
        for start, whole in (("flux", output.flux), ("flux_err", output.error)):
            part = whole.float().cpu().numpy()
            found |= {f"{start}_{name}": part[:, k].copy() for k, name in enumerate(self.names)}
        if output.apart is not None:
            found["apart"] = output.apart.float().cpu().numpy()
        return found

    def encode(self, labels: Labels, settings: TrainingSection) -> dict[str, Float]:
        """As they are; zero and negative ones are missing if they must be positive."""
        found = super().encode(labels, settings)
        if self.positive:
            with np.errstate(invalid="ignore"):
                found = {key: np.where(one > 0, one, np.nan) for key, one in found.items()}
        return found

    def fit_calibration(
        self, values: Values, targets: Mapping[str, Float]
    ) -> dict[str, Any] | None:
        """Of every flux what `evaluate.blends.error_scale` says; None unless they are positive."""
        if not self.positive:
            return None
        true, wide = targets[self.name], {k: v.astype(np.float64) for k, v in values.items()}
        return {
            name: error_scale(
                wide[f"flux_{name}"], wide[f"flux_err_{name}"], true[:, k], wide.get("apart")
            )
            for k, name in enumerate(self.names)
        }

    def calibrated(self, values: Values, calibration: Mapping[str, Any]) -> Values:
        """The values with their errors scaled."""
        found = dict(values)
        for name in self.names:
            flux, error = found[f"flux_{name}"], found[f"flux_err_{name}"]
            found[f"flux_err_{name}"] = scaled_errors(
                flux, error, calibration[name], found.get("apart")
            )
        return found

    def metrics(self, values: Values, targets: Mapping[str, Float]) -> dict[str, Any]:
        """Those of `evaluate.fluxes.flux_metrics`, and of `blend_metrics` if positive, by name."""
        true = targets[self.name]
        found: dict[str, dict[str, Any]] = {}
        for k, name in enumerate(self.names):
            one = values[f"flux_{name}"], values[f"flux_err_{name}"], true[:, k]
            found[name] = flux_metrics(*one)
            if self.positive:
                found[name] |= blend_metrics(one[0], one[2], one[1])
        return finite(found)


def normal_loss(output: FluxOutput, flux: Tensor) -> Tensor:
    """Sum over the known fluxes f of ln s + ((f - m) / s)^2 / 2, of means m and errors s.

    The negative log likelihood of normal distributions less a constant.
    """
    known = flux.isfinite()
    pull = (flux.where(known, 0.0) - output.flux) / output.error
    return (output.error.log() + 0.5 * pull**2).where(known, 0.0).sum(dim=1)


def percentage_loss(output: FluxOutput, flux: Tensor, least: Tensor) -> Tensor:
    """Mean over the known fluxes f of 100 |m - f| / f: the MAPE of Boucaud et al. 2019, equation 1.

    Parameters
    ----------
    output : FluxOutput
        With the fluxes m.
    flux : Tensor, shape (n, k)
        True ones, nJy; NaN = missing.
    least : Tensor, shape (k,)
        What |m - f| is divided by where f is less.

    Returns
    -------
    Tensor, shape (n,)
        0 where none is known.
    """
    known = flux.isfinite()
    true = flux.where(known, 1.0)
    share = (100 * (output.flux - true).abs() / true.maximum(least)).where(known, 0.0)
    return share.sum(dim=1) / known.sum(dim=1).clamp(min=1)


def ratio_loss(output: FluxOutput, flux: Tensor) -> Tensor:
    """Mean over the known fluxes f of 100 |ln(m / f)|, of positive means m: about a percentage.

    Half of a flux costs as much as twice it, where `percentage_loss` punishes what is too faint by
    100 at most and what is too bright without bound. It is least at the median.
    """
    known = flux.isfinite()
    off = (output.flux.log() - flux.where(known, 1.0).log()).abs()
    return (100 * off).where(known, 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def error_loss(output: FluxOutput, flux: Tensor) -> Tensor:
    """Mean over the known fluxes f of ln b + |f - m| / b, b = sqrt(2 / pi) s: teaches errors alone.

    Least where b is the mean of |f - m|, to which a normal distribution's s is sqrt(pi / 2) b; the
    means m get no gradient. As `percentage_loss` it is no matter of a few bad fluxes.
    """
    known = flux.isfinite()
    spread = output.error * math.sqrt(2 / math.pi)
    distance = (flux.where(known, 0.0) - output.flux.detach()).abs()
    share = (spread.log() + distance / spread).where(known, 0.0)
    return share.sum(dim=1) / known.sum(dim=1).clamp(min=1)
