"""Summaries of redshift PDFs that are truncated Gaussian mixtures in x = ln(1 + z).

Quantiles need no grid in z: x -> z is monotone, so they are the x-quantiles carried over. Each is
found by linear inversion of the cumulative distribution on nodes laid through every component,
followed by Newton steps that stay within the node interval. The mean is exact, the mode is found
on the same nodes and refined. Runs in float64 on one thread at well over 100,000 objects/s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveyproc.schemas import pdf_levels

Float32 = NDArray[np.float32]

QUANTILES = pdf_levels()
"""Probabilities of the stored quantiles, as schemas/photoz.toml declares them."""

SIGMA_LOW, SIGMA_HIGH = 0.16, 0.84

CHUNK = 4096
"""Objects worked on at once: bounds memory to some tens of MB."""

# Node offsets of each component in units of its sigma. Wider spacing in the tails; beyond 4 sigma
# lie 3e-5 of the mass, below the smallest stored probability.
_NODES = (-4.0, -2.8, -2.1, -1.6, -1.2, -0.8, -0.4, 0.0, 0.4, 0.8, 1.2, 1.6, 2.1, 2.8, 4.0)
_NEWTON_STEPS = 2
_MODE_STEPS = 6


@dataclass(frozen=True)
class PdfSummary:
    """Summaries of n PDFs, float32 arrays of shape (n,) unless said otherwise.

    Attributes
    ----------
    median, mean, mode : ndarray
        Of the PDF in z.
    low, high : ndarray
        Its 16 % and 84 % quantiles.
    quantiles : ndarray, shape (n, 21)
        Its quantiles at 0.025, 0.05, 0.10, ..., 0.95, 0.975.
    """

    median: Float32
    mean: Float32
    mode: Float32
    low: Float32
    high: Float32
    quantiles: Float32

    @classmethod
    def unknown(cls, n: int) -> PdfSummary:
        """Of n objects without a PDF: NaN."""
        nothing = np.full(n, np.nan, np.float32)
        many = np.full((n, len(QUANTILES)), np.nan, np.float32)
        return cls(nothing, nothing, nothing, nothing, nothing, many)


class PdfOutput(Protocol):
    """What every redshift network returns for n objects."""

    def redshift(self) -> Tensor:
        """Point estimate, shape (n,)."""

    def summarise(self) -> PdfSummary:
        """Summaries of the PDFs; NaN where the network has none."""


class MixtureOutput(NamedTuple):
    """Redshift PDFs of n objects as truncated Gaussian mixtures, beside a point estimate.

    Attributes
    ----------
    point : Tensor, shape (n,)
        Point estimate of the redshift.
    log_weights : Tensor, shape (n, k)
        Natural logarithms of the mixture's weights; their exponentials sum to one.
    means, sigmas : Tensor, shape (n, k)
        Gaussian components in x = ln(1 + z); means >= 0, sigmas > 0. The PDF is the mixture
        truncated at z = 0 and normalised again. With k = 0 there is none.
    """

    point: Tensor
    log_weights: Tensor
    means: Tensor
    sigmas: Tensor

    def redshift(self) -> Tensor:
        """The point estimate, shape (n,)."""
        return self.point

    def summarise(self) -> PdfSummary:
        """Median, mean, mode and quantiles; NaN without a mixture."""
        if not self.means.shape[1]:
            return PdfSummary.unknown(len(self.means))
        return summarise(self.log_weights.cpu(), self.means.cpu(), self.sigmas.cpu())

    @staticmethod
    def average(outputs: Sequence[MixtureOutput]) -> MixtureOutput:
        """The mean of several networks' PDFs and of their point estimates."""
        equal = outputs[0].point.new_zeros(len(outputs[0].point), len(outputs))
        mean = torch.stack([output.point for output in outputs]).mean(dim=0)
        return weighted(outputs, equal)._replace(point=mean)


def weighted(outputs: Sequence[MixtureOutput], log_weights: Tensor) -> MixtureOutput:
    """The sum of several PDFs of the same objects, each times a weight, and of their points.

    Components are put side by side. Each PDF is normalised above z = 0, so its weights are divided
    by its mass there before they are put together.

    Parameters
    ----------
    outputs : sequence of MixtureOutput
        m of them, of n objects.
    log_weights : Tensor, shape (n, m)
        Natural logarithms of the weights; only their ratios count.
    """
    parts = []
    for number, output in enumerate(outputs):
        above = torch.special.log_ndtr(output.means / output.sigmas)
        mass = torch.logsumexp(output.log_weights + above, dim=1, keepdim=True)
        parts.append(output.log_weights - mass + log_weights[:, number : number + 1])
    weights = torch.cat(parts, dim=1)
    points = torch.stack([output.point for output in outputs], dim=1)
    return MixtureOutput(
        (log_weights.softmax(dim=1) * points).sum(dim=1),
        weights - torch.logsumexp(weights, dim=1, keepdim=True),
        torch.cat([output.means for output in outputs], dim=1),
        torch.cat([output.sigmas for output in outputs], dim=1),
    )


def summarise(log_weights: Tensor, means: Tensor, sigmas: Tensor) -> PdfSummary:
    """Median, mean, mode and quantiles of n mixtures.

    Parameters
    ----------
    log_weights, means, sigmas : Tensor, shape (n, k)
        Logarithms of the weights (exponentials sum to one), means >= 0 and standard deviations > 0
        of the Gaussians in x = ln(1 + z). The PDF is zero below z = 0. Rows with NaN give NaN.
    """
    n = len(means)
    probabilities = sorted({*QUANTILES, SIGMA_LOW, SIGMA_HIGH})
    out = {key: np.empty(n, np.float32) for key in ("mean", "mode")}
    values = np.empty((n, len(probabilities)), np.float32)
    for start in range(0, n, CHUNK):
        part = slice(start, start + CHUNK)
        weights = log_weights[part].to(torch.float64).exp()
        mu, sigma = means[part].to(torch.float64), sigmas[part].to(torch.float64)
        nodes = _nodes(mu, sigma)
        values[part] = torch.expm1(_invert(weights, mu, sigma, nodes, probabilities)).numpy()
        out["mean"][part] = _mean(weights, mu, sigma).numpy()
        out["mode"][part] = torch.expm1(_mode(weights, mu, sigma, nodes)).numpy()
    column = {p: k for k, p in enumerate(probabilities)}
    return PdfSummary(
        median=values[:, column[0.5]].copy(),
        low=values[:, column[SIGMA_LOW]].copy(),
        high=values[:, column[SIGMA_HIGH]].copy(),
        quantiles=values[:, [column[p] for p in QUANTILES]].copy(),
        mean=out["mean"],
        mode=out["mode"],
    )


def density(log_weights: Tensor, means: Tensor, sigmas: Tensor, z: Tensor) -> Tensor:
    """The PDFs in z at redshifts `z` of shape (m,); shape (n, m), float64.

    p(z) = p_x(ln(1 + z)) / (1 + z), p_x the truncated mixture.
    """
    weights, mu, sigma = log_weights.double().exp(), means.double(), sigmas.double()
    x = torch.log1p(z.double()).expand(len(mu), -1)
    mass = 1.0 - _cdf(weights, mu, sigma, torch.zeros_like(mu[:, :1]))
    return torch.where(x >= 0, _pdf(weights, mu, sigma, x) / mass * torch.exp(-x), 0.0)


def log_density(output: MixtureOutput, x: Tensor) -> Tensor:
    """Natural logarithm of the truncated mixture's density in x = ln(1 + z), at x, shape (n,).

    The truncation at x = 0 divides by the mixture's mass above 0, sum_k w_k Phi(mu_k / sigma_k).
    """
    scaled = (x[:, None] - output.means) / output.sigmas
    normal = -0.5 * scaled**2 - output.sigmas.log() - 0.5 * math.log(2 * math.pi)
    above = torch.special.log_ndtr(output.means / output.sigmas)
    return torch.logsumexp(output.log_weights + normal, dim=1) - torch.logsumexp(
        output.log_weights + above, dim=1
    )


def _nodes(mu: Tensor, sigma: Tensor) -> Tensor:
    """Sorted x at which the CDF is tabulated, shape (n, 1 + k * nodes), none below 0."""
    offsets = torch.tensor(_NODES, dtype=torch.float64)
    laid = (mu[:, :, None] + sigma[:, :, None] * offsets).flatten(1).clamp_(min=0.0)
    return torch.cat([torch.zeros_like(mu[:, :1]), laid], dim=1).sort(dim=1).values


def _cdf(weights: Tensor, mu: Tensor, sigma: Tensor, x: Tensor) -> Tensor:
    """CDF of the untruncated mixture at x of shape (n, m)."""
    total = torch.zeros_like(x)
    for k in range(mu.shape[1]):
        inverse = 1.0 / (math.sqrt(2.0) * sigma[:, k : k + 1])
        scaled = (x - mu[:, k : k + 1]) * inverse
        total += 0.5 * weights[:, k : k + 1] * (1.0 + scaled.erf_())
    return total


def _pdf(weights: Tensor, mu: Tensor, sigma: Tensor, x: Tensor) -> Tensor:
    """Density of the untruncated mixture at x of shape (n, m)."""
    total = torch.zeros_like(x)
    for k in range(mu.shape[1]):
        scaled = (x - mu[:, k : k + 1]) / sigma[:, k : k + 1]
        height = weights[:, k : k + 1] / (math.sqrt(2 * math.pi) * sigma[:, k : k + 1])
        total += height * scaled.square_().mul_(-0.5).exp_()
    return total


def _invert(
    weights: Tensor, mu: Tensor, sigma: Tensor, nodes: Tensor, probabilities: list[float]
) -> Tensor:
    """x at which the truncated CDF takes `probabilities`; shape (n, probabilities)."""
    cdf = _cdf(weights, mu, sigma, nodes)
    # CDF values at which to stop: below zero lies cdf[:, 0], which the truncation takes away. The
    # first node is always x = 0.
    wanted = torch.tensor(probabilities, dtype=torch.float64)
    target = cdf[:, :1] + wanted * (1.0 - cdf[:, :1])
    right = torch.searchsorted(cdf, target).clamp_(1, nodes.shape[1] - 1)
    x_low, x_high = nodes.gather(1, right - 1), nodes.gather(1, right)
    f_low, f_high = cdf.gather(1, right - 1), cdf.gather(1, right)
    share = (target - f_low) / (f_high - f_low).clamp(min=1e-300)
    x = x_low + share.clamp(0.0, 1.0) * (x_high - x_low)
    for _ in range(_NEWTON_STEPS):
        slope = _pdf(weights, mu, sigma, x).clamp_(min=1e-12)
        step = (target - _cdf(weights, mu, sigma, x)) / slope
        x = torch.minimum(torch.maximum(x + step, x_low), x_high)
    # NaN rows pass through searchsorted as if ordered; say NaN instead.
    found: Tensor = torch.where(mu.isnan().any(dim=1, keepdim=True), torch.nan, x)
    return found


def _mean(weights: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Mean of z = e^x - 1: E[e^x; x > 0] of N(mu, s) is e^(mu + s^2/2) Phi((mu + s^2) / s)."""
    mass = (weights * torch.special.ndtr(mu / sigma)).sum(dim=1)
    growth = torch.exp(mu + 0.5 * sigma**2) * torch.special.ndtr(mu / sigma + sigma)
    mean: Tensor = (weights * growth).sum(dim=1) / mass - 1.0
    return mean


def _mode(weights: Tensor, mu: Tensor, sigma: Tensor, nodes: Tensor) -> Tensor:
    """x at which the density in z, p_x(x) e^-x, is highest.

    From the best node, fixed-point steps on its stationarity condition:
    x = (sum_k r_k mu_k / s_k^2 - 1) / sum_k r_k / s_k^2, with r_k the component's share of p_x.
    """
    best = (_pdf(weights, mu, sigma, nodes) * torch.exp(-nodes)).argmax(dim=1, keepdim=True)
    x = nodes.gather(1, best)
    precision = 1.0 / sigma.square()
    log_height = weights.log() - sigma.log()
    for _ in range(_MODE_STEPS):
        share = torch.softmax(log_height - 0.5 * (x - mu).square() * precision, dim=1)
        curvature = (share * precision).sum(dim=1, keepdim=True)
        x = ((share * precision * mu).sum(dim=1, keepdim=True) - 1.0) / curvature
        x = x.clamp(min=0.0)
    return x[:, 0]
