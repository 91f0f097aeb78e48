"""GaZNet-C: redshifts from magnitudes and colours (Li et al. 2022, A&A 666, A85), any band set.

What the paper states (section 2.1): "two blocks each made of four fully connected layers separated
by a flatten layer"; inputs are n magnitudes and n - 1 adjacent colours; Huber loss with delta
0.001, Adam, two stages of learning rate (section 3.1).

What is ours, because the paper states nothing or leaves it for later: widths, activations and
initialisation; one mask input for each band; the regression in ln(1 + z); the mixture-density head
(Bishop 1994) that gives a PDF, and the weight between the two losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from surveyproc.errors import ConfigError
from surveyproc.models.base import Network, Reads, checked, register
from surveyproc.models.features import input_count
from surveyproc.models.tasks.pdf import MixtureOutput, log_density
from surveyproc.models.tasks.redshift import RedshiftTask


@dataclass(frozen=True)
class GaZNetCSettings:
    """Settings of `GaZNetC`, which says what they are."""

    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=8, max_length=8)] = (
        *(128, 128, 128, 128),
        *(64, 64, 64, 64),
    )
    components: NonNegativeInt = 3
    huber_delta: PositiveFloat = 0.001
    point_weight: NonNegativeFloat = 5.0


LOG_SIGMA_RANGE = (math.log(1e-3), math.log(1.0))
X_MAX = math.log1p(20.0)

TARGET = (0.4, 0.2)
"""Scale of the outputs of a network that has seen no training set."""


class GaZNetC(Network):
    """Eight fully connected layers in two groups, then a point estimate and a mixture.

    Parameters
    ----------
    bands : sequence of str
        The n bands; the network has 3n - 1 inputs.
    widths : sequence of int
        Widths of the eight layers (ours).
    components : int
        Gaussians of the mixture in x = ln(1 + z) (ours). With 0 there is a point estimate and no
        PDF, and the loss is the paper's.
    huber_delta : float
        Where the Huber loss of the redshift turns from quadratic to linear (paper: 0.001).
    point_weight : float
        Weight of the Huber loss, divided by its delta, beside the mixture's likelihood (ours).

    Attributes
    ----------
    target : Tensor, shape (2,)
        Mean and standard deviation of ln(1 + z) over the training set: the scale of the outputs.
    """

    target: Tensor

    def __init__(
        self,
        bands: Sequence[str],
        *,
        widths: Sequence[int],
        components: int,
        huber_delta: float,
        point_weight: float,
    ) -> None:
        super().__init__()
        self.reads = Reads(features=tuple(bands))
        self.tasks = (mixture_task(components, huber_delta, point_weight),)
        self.register_buffer("target", torch.tensor(TARGET))
        self.first, self.flatten, self.second = catalog_path(input_count(len(bands)), widths)
        self.head = mixture_head(widths[-1], components)

    def forward(self, features: Tensor) -> dict[str, MixtureOutput]:
        """Point estimate and mixture of inputs of shape (n, 3 bands - 1)."""
        raw = self.head(self.second(self.flatten(self.first(features))))
        return {"redshift": mixture_output(raw, self.target)}

    def set_targets(self, targets: Mapping[str, Tensor]) -> None:
        """Set `target` from the redshifts of the training set."""
        self.target.copy_(target_scale(targets["redshift"]))


def mixture_head(inputs: int, components: int) -> nn.Linear:
    """The last layer: one raw point estimate, then raw weights, means and log sigmas."""
    head = nn.Linear(inputs, 1 + 3 * components)
    with torch.no_grad():
        # Components start at different redshifts, or they would all learn the same.
        spread = torch.linspace(-1.0, 1.0, components) if components > 1 else 0.0
        head.bias.zero_()
        head.bias[1 + components : 1 + 2 * components] = spread
    return head


def mixture_task(components: int, huber_delta: float, point_weight: float) -> RedshiftTask:
    """The redshift as a task, by `huber_and_likelihood`; with a PDF if there are components."""
    loss = partial(huber_and_likelihood, huber_delta=huber_delta, point_weight=point_weight)
    return RedshiftTask(loss, pdf=components > 0)


def target_scale(redshift: Tensor) -> Tensor:
    """Mean and standard deviation of ln(1 + z) of the known redshifts, shape (2,), float32."""
    x = torch.log1p(redshift[redshift.isfinite()].double())
    return torch.stack([x.mean(), x.std(unbiased=False).clamp(min=1e-3)]).float()


def mixture_output(raw: Tensor, target: Tensor) -> MixtureOutput:
    """Point estimate and mixture from what `mixture_head` gave, shape (n, 1 + 3 components).

    `target` holds mean and standard deviation of ln(1 + z) over the training set.
    """
    raw = raw.float()
    target_mean, target_std = target[0], target[1]
    k = (raw.shape[1] - 1) // 3
    x = (target_mean + target_std * raw[:, 0]).clamp(-math.log(2.0), X_MAX)
    means = target_mean + target_std * raw[:, 1 + k : 1 + 2 * k]
    sigmas = raw[:, 1 + 2 * k :] + (0.3 * target_std).log()
    return MixtureOutput(
        point=torch.expm1(x),
        log_weights=functional.log_softmax(raw[:, 1 : 1 + k], dim=1),
        # Means cannot be negative, so at least half of every component lies at z >= 0.
        means=functional.softplus(means, beta=50.0).clamp(max=X_MAX),
        sigmas=sigmas.clamp(*LOG_SIGMA_RANGE).exp(),
    )


def huber_and_likelihood(
    output: MixtureOutput, redshift: Tensor, huber_delta: float, point_weight: float
) -> Tensor:
    """point_weight * Huber / huber_delta of the point estimate - ln p of the mixture, shape (n,).

    Without a mixture Huber / huber_delta alone.

    See `GaZNetC` for the two numbers.
    """
    huber = functional.huber_loss(output.point, redshift, delta=huber_delta, reduction="none")
    if not output.means.shape[1]:
        return huber / huber_delta
    return point_weight * huber / huber_delta - log_density(output, torch.log1p(redshift))


def catalog_path(inputs: int, widths: Sequence[int]) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Four dense layers, a flatten layer, and the rest of the dense layers."""
    sizes = [inputs, *widths]
    return dense_layers(sizes[:5]), nn.Flatten(), dense_layers(sizes[4:])


def dense_layers(sizes: Sequence[int]) -> nn.Sequential:
    """Dense layers from sizes[0] inputs to sizes[-1] outputs, SiLU after each."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.SiLU()]
    return nn.Sequential(*layers)


@register("gaznet-c*")
def gaznet_c(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> GaZNetC:
    """GaZNet-C of `bands`; `settings` are fields of `GaZNetCSettings`.

    Raises
    ------
    ConfigError
        If a setting is unknown or has a wrong value, there are fewer than two bands, or the name
        holds another number of bands.
    """
    if name != f"gaznet-c{len(bands)}":
        raise ConfigError(
            f"architecture {name!r} does not fit {len(bands)} bands ({', '.join(bands)}): "
            f"that network is 'gaznet-c{len(bands)}'"
        )
    if len(bands) < 2:
        raise ConfigError("gaznet-c: at least two bands are needed for a colour")
    return GaZNetC(bands, **asdict(checked(GaZNetCSettings, settings, name)))
