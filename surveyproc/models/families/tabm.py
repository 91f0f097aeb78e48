"""TabM: a catalog network that is an ensemble at the price of about one network (ours).

Not from the papers that the other networks follow. What it rests on:

- K networks that share their weight matrices and differ by vectors on the inputs and outputs of
  each layer (TabM: Gorishniy, Kotelnikov & Babenko 2025, arXiv:2410.24210; the layer is that of
  BatchEnsemble: Wen, Tran & Ba 2020). Embeddings and heads are each member's own here. Each member
  has a loss of its own; the PDF is the mean of the members' PDFs.
- Periodic embeddings of numbers, with a linear layer and ReLU for each input (PLR: Gorishniy,
  Rubachev & Babenko 2022, arXiv:2203.05556), the number itself beside them; a smooth clip
  x / sqrt(1 + (x / 3)^2) (Holzmueller, Grinsztajn & Steinwart 2024, arXiv:2407.04491).
- A mixture of Gaussians in ln(1 + z) (Bishop 1994), trained by its log likelihood and its
  continuous ranked probability score in closed form (Grimit et al. 2006, Q. J. R. Meteorol. Soc.
  132, 2925).

The errors as inputs and the weight between the two losses are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt, StrictBool
from torch import Tensor, nn
from torch.nn import functional

from surveyproc.errors import ConfigError
from surveyproc.models.base import Network, Reads, checked, register
from surveyproc.models.families.gaznet import LOG_SIGMA_RANGE, TARGET, X_MAX, target_scale
from surveyproc.models.features import input_count
from surveyproc.models.tasks.pdf import MixtureOutput
from surveyproc.models.tasks.redshift import RedshiftTask


@dataclass(frozen=True)
class TabMSettings:
    """Settings of `TabM`, which says what they are."""

    members: PositiveInt = 12
    width: PositiveInt = 192
    depth: PositiveInt = 3
    components: PositiveInt = 5
    frequencies: PositiveInt = 12
    embedding: PositiveInt = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    errors: StrictBool = True


FREQUENCY_SCALE = 0.3
"""Standard deviation of the frequencies at the start, per standardised unit."""
CLIP = 3.0
LIKELIHOOD = 0.6
"""Weight of the log likelihood; the rest is that of the CRPS, in units of a tenth of the spread of
ln(1 + z)."""
CRPS_UNIT = 0.1


class TabM(Network):
    """Members with shared matrices, each ending in a mixture of Gaussians in ln(1 + z).

    Parameters
    ----------
    bands : sequence of str
        The n bands; the network has 4n - 1 inputs, 3n - 1 without errors.
    members, width, depth : int
        Members; width and number of the hidden layers.
    components : int
        Gaussians of each member.
    frequencies, embedding : int
        Periodic functions, and outputs, of the embedding of each input.
    dropout : float
        After each hidden layer.
    errors : bool
        Whether it reads the errors of the fluxes. Better without them where it is applied to
        another survey than it was trained in, whose errors mean something else.

    Attributes
    ----------
    target : Tensor, shape (2,)
        Mean and standard deviation of ln(1 + z) over the training set: the scale of the outputs.
    """

    fit_options: ClassVar[Mapping[str, Any]] = {
        "rates": (2e-3,),
        "schedule": "cosine",
        "weight_decay": 2e-2,
        "clip_norm": 1.0,
        "ema": 0.995,
        "dropped_rows": 0.0,
    }
    target: Tensor

    def __init__(
        self,
        bands: Sequence[str],
        *,
        members: int,
        width: int,
        depth: int,
        components: int,
        frequencies: int,
        embedding: int,
        dropout: float,
        errors: bool,
    ) -> None:
        super().__init__()
        self.reads = Reads(features=tuple(bands), errors=errors)
        self.tasks = (RedshiftTask(self._loss),)
        self.members, self.components = members, components
        self.register_buffer("target", torch.tensor(TARGET))
        inputs = input_count(len(bands), errors=errors)
        self.embedding = _Embedding(members, inputs, frequencies, embedding)
        sizes = [inputs * (1 + embedding), *[width] * depth]
        self.layers = nn.ModuleList(
            _Shared(members, n_in, n_out, first=number == 0)
            for number, (n_in, n_out) in enumerate(pairwise(sizes))
        )
        self.dropout = nn.Dropout(dropout)
        bound = 0.3 / math.sqrt(width)
        self.head_weight = nn.Parameter(
            torch.empty(members, width, 3 * components).uniform_(-bound, bound)
        )
        # Components start at different redshifts, or they would all learn the same.
        bias = torch.zeros(members, 1, 3 * components)
        bias[:, 0, components : 2 * components] = torch.linspace(-1.0, 1.0, components)
        self.head_bias = nn.Parameter(bias)

    def forward(self, features: Tensor) -> dict[str, MixtureOutput]:
        """Mixtures of all members side by side, of inputs of shape (n, inputs)."""
        x = features / torch.sqrt(1.0 + (features / CLIP) ** 2)
        hidden = self.embedding(x.expand(self.members, -1, -1))
        for layer in self.layers:
            hidden = self.dropout(functional.silu(layer(hidden)))
        raw = torch.baddbmm(self.head_bias, hidden, self.head_weight).float()
        weights, means, sigmas = raw.chunk(3, dim=2)
        mean, std = self.target
        log_weights = weights.log_softmax(dim=2) - math.log(self.members)
        means = functional.softplus(mean + std * means, beta=50.0).clamp(max=X_MAX)
        sigmas = (sigmas + (0.3 * std).log()).clamp(*LOG_SIGMA_RANGE).exp()
        flat = [part.transpose(0, 1).flatten(1) for part in (log_weights, means, sigmas)]
        point = torch.expm1((flat[0].exp() * flat[1]).sum(dim=1))
        return {"redshift": MixtureOutput(point, *flat)}

    def _loss(self, output: MixtureOutput, redshift: Tensor) -> Tensor:
        """Mean over the members of likelihood and CRPS, shape (n,); truncation is left aside."""
        n = len(redshift)
        shape = (n, self.members, self.components)
        weights, means, sigmas = (
            part.reshape(shape) for part in (output.log_weights, output.means, output.sigmas)
        )
        weights = weights + math.log(self.members)
        y = torch.log1p(redshift)[:, None]
        score = crps(weights, means, sigmas, y) / (CRPS_UNIT * self.target[1])
        scaled = (y[..., None] - means) / sigmas
        likelihood = torch.logsumexp(weights - 0.5 * scaled**2 - sigmas.log(), dim=2)
        likelihood = likelihood - 0.5 * math.log(2 * math.pi)
        return ((1 - LIKELIHOOD) * score - LIKELIHOOD * likelihood).mean(dim=1)

    def set_targets(self, targets: Mapping[str, Tensor]) -> None:
        """Set `target` from the redshifts of the training set."""
        self.target.copy_(target_scale(targets["redshift"]))


class _Shared(nn.Module):
    """A linear layer of K members with one matrix; members scale its inputs and outputs.

    In the first layer the scales of the inputs start at random, which is all that tells the members
    apart at the start; elsewhere they start at one.
    """

    def __init__(self, members: int, n_in: int, n_out: int, *, first: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(n_in, n_out).uniform_(-bound, bound))
        bias = torch.empty(1, 1, n_out).uniform_(-bound, bound)
        self.bias = nn.Parameter(bias.repeat(members, 1, 1))
        shape = (members, 1, n_in)
        self.scale_in = nn.Parameter(torch.randn(shape) if first else torch.ones(shape))
        self.scale_out = nn.Parameter(torch.ones(members, 1, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale_in) @ self.weight * self.scale_out + self.bias


class _Embedding(nn.Module):
    """Each input beside a ReLU of linear maps of its cosines and sines."""

    def __init__(self, members: int, n: int, frequencies: int, outputs: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(members, 1, n, frequencies) * FREQUENCY_SCALE)
        waves = 2 * frequencies + 1
        mix = torch.empty(members, n, waves, outputs).uniform_(-1, 1) / math.sqrt(waves)
        self.mix_weight = nn.Parameter(mix)
        self.mix_bias = nn.Parameter(torch.zeros(members, n, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi * x[..., None] * self.frequency
        waves = torch.cat([x[..., None], angle.cos(), angle.sin()], dim=-1).transpose(1, 2)
        mixed = torch.relu(waves @ self.mix_weight + self.mix_bias).transpose(1, 2)
        return torch.cat([x, mixed.flatten(2)], dim=-1)


def crps(log_weights: Tensor, means: Tensor, sigmas: Tensor, y: Tensor) -> Tensor:
    """CRPS of Gaussian mixtures, shape (..., components), at y, shape (...).

    E|X - y| - E|X - X'| / 2 in closed form (Grimit et al. 2006, equation 5).
    """
    weights = log_weights.exp()
    first = (weights * _mean_distance(means - y[..., None], sigmas)).sum(-1)
    i, j = torch.triu_indices(means.shape[-1], means.shape[-1], device=means.device)
    pairs = _mean_distance(
        means[..., i] - means[..., j], torch.hypot(sigmas[..., i], sigmas[..., j])
    )
    share = torch.where(i == j, 0.5, 1.0) * weights[..., i] * weights[..., j]
    return first - (share * pairs).sum(-1)


def _mean_distance(mean: Tensor, sigma: Tensor) -> Tensor:
    """E|X| of a normal X."""
    scaled = mean / sigma
    tail = math.sqrt(2 / math.pi) * sigma * torch.exp(-0.5 * scaled * scaled)
    return mean * torch.erf(scaled / math.sqrt(2.0)) + tail


@register("tabm*")
def tabm(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> TabM:
    """TabM of `bands`; `settings` are fields of `TabMSettings`.

    Raises
    ------
    ConfigError
        If a setting is unknown or cannot be used, or there are fewer than two bands.
    """
    if len(bands) < 2:
        raise ConfigError(f"{name}: at least two bands are needed for a colour")
    return TabM(bands, **asdict(checked(TabMSettings, settings, name)))
