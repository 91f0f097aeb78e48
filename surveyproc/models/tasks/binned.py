"""Redshifts as classes: bins, losses, and point estimates of a binned PDF.

After Ait Ouahmed et al. 2023, section 3.3, equation 1 and appendix A. Every loss has one value an
object, shape (n,), whose mean over a batch is what the paper minimises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import FiniteFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from surveyproc.errors import ConfigError, InputError
from surveyproc.models.base import checked
from surveyproc.models.tasks.pdf import QUANTILES, SIGMA_HIGH, SIGMA_LOW, PdfSummary


class BinnedOutput(NamedTuple):
    """Redshift PDFs of n objects over bins, beside a point estimate; None = no such head.

    Attributes
    ----------
    logits : Tensor, shape (n, bins), or None
        Their softmax is the probability of each bin.
    point : Tensor, shape (n, 1), or None
        Redshift of the regression head.
    edges : float64 Tensor, shape (bins + 1,)
        Edges of the bins.
    """

    logits: Tensor | None
    point: Tensor | None
    edges: Tensor

    def redshift(self) -> Tensor:
        """The regression's redshift, or else the median of the PDF, shape (n,)."""
        if self.point is not None:
            return self.point[:, 0]
        return median(self._pdf(), self.edges)

    def summarise(self) -> PdfSummary:
        """Median, mean, mode and quantiles; NaN without a classification head."""
        if self.logits is None:
            return PdfSummary.unknown(len(self.redshift()))
        pdf, edges = self._pdf(), self.edges
        low, high = quantiles(pdf, edges, (SIGMA_LOW, SIGMA_HIGH)).cpu().numpy().T
        return PdfSummary(
            median=median(pdf, edges).cpu().numpy(),
            mean=mean(pdf, edges).cpu().numpy(),
            mode=mode(pdf, edges).cpu().numpy(),
            low=low.copy(),
            high=high.copy(),
            quantiles=quantiles(pdf, edges, QUANTILES).cpu().numpy(),
        )

    def _pdf(self) -> Tensor:
        if self.logits is None:
            raise ValueError("a network without classes has no PDF")
        return self.logits.float().softmax(dim=1)

    @staticmethod
    def average(outputs: Sequence[BinnedOutput]) -> BinnedOutput:
        """The mean of several networks' PDFs and of their point estimates."""
        logits = [output.logits for output in outputs if output.logits is not None]
        points = [output.point for output in outputs if output.point is not None]
        mean_log = [one.float().log_softmax(dim=1) for one in logits]
        return BinnedOutput(
            torch.logsumexp(torch.stack(mean_log), dim=0) if logits else None,
            torch.stack(points).mean(dim=0) if points else None,
            outputs[0].edges,
        )


def uniform_edges(bins: int = 800, low: float = 0.0, high: float = 4.0) -> tuple[float, ...]:
    """Edges of equal bins in redshift, bins + 1 of them.

    800 bins on 0 to 4 by default: the number that fits the paper's parameter counts, on a range
    that it does not state (ours).
    """
    return tuple(low + (high - low) * k / bins for k in range(bins + 1))


def bin_index(redshift: Tensor, edges: Tensor) -> Tensor:
    """Bin of each redshift: edges[i] <= z < edges[i + 1]; the last bin holds its upper edge too.

    Parameters
    ----------
    redshift : Tensor, shape (n,)
        Labels.
    edges : Tensor, shape (bins + 1,)
        Ascending.

    Returns
    -------
    int64 Tensor, shape (n,)

    Raises
    ------
    InputError
        If a redshift lies outside the bins or is NaN: the caller decides what becomes of it.
    """
    # In the labels' own precision: a label that is an edge must stay one when both are rounded.
    z, edges = redshift.contiguous(), edges.to(redshift.dtype)
    inside = (z >= edges[0]) & (z <= edges[-1])
    if not inside.all():
        wrong = z[~inside]
        raise InputError(
            f"{len(wrong)} of {len(z)} redshifts lie outside the bins, which cover "
            f"{float(edges[0]):g} to {float(edges[-1]):g}; the first is {float(wrong[0]):g}"
        )
    return torch.searchsorted(edges, z, right=True).sub(1).clamp(max=len(edges) - 2)


def cross_entropy(logits: Tensor, index: Tensor) -> Tensor:
    """-log p of the true bin (first term of equation 1), shape (n,).

    Parameters
    ----------
    logits : Tensor, shape (n, bins)
        Of the classification head.
    index : int64 Tensor, shape (n,)
        From `bin_index`.
    """
    return functional.cross_entropy(logits, index, reduction="none")


def absolute_error(point: Tensor, redshift: Tensor) -> Tensor:
    """|z_pred - z_spec|, shape (n,); the mean is appendix A's MAE. `point`: (n,) or (n, 1)."""
    return _residual(point, redshift).abs()


def normalised_absolute_error(point: Tensor, redshift: Tensor) -> Tensor:
    """|z_pred - z_spec| / (1 + z_spec), shape (n,); the mean is appendix A's NMAE."""
    return absolute_error(point, redshift) / (1.0 + redshift)


def root_mean_square_error(point: Tensor, redshift: Tensor) -> Tensor:
    """sqrt(mean((z_pred - z_spec)^2)) of appendix A: one value, repeated, shape (n,)."""
    # A norm, unlike a square root, has a finite gradient where all residuals vanish.
    norm: Tensor = torch.linalg.vector_norm(_residual(point, redshift))
    return (norm / math.sqrt(len(redshift))).expand(len(redshift))


def joint_loss(logits: Tensor, point: Tensor, redshift: Tensor, index: Tensor) -> Tensor:
    """Cross entropy plus absolute error with equal weights (equation 1), shape (n,)."""
    return cross_entropy(logits, index) + absolute_error(point, redshift)


def quantiles(pdf: Tensor, edges: Tensor, probabilities: Sequence[float]) -> Tensor:
    """Redshifts at which the cumulative PDF takes `probabilities`, shape (n, probabilities).

    The density is constant within a bin. Rows with NaN give NaN, here and in the functions below.

    Parameters
    ----------
    pdf : Tensor, shape (n, bins)
        Probability of each bin; rows sum to one.
    edges : Tensor, shape (bins + 1,)
        Ascending.
    probabilities : sequence of float
        Within 0 and 1.
    """
    cdf = pdf.double().cumsum(dim=1)
    # Sums end a rounding error off one; they are what must be split.
    wanted = torch.tensor(probabilities, dtype=torch.float64, device=pdf.device) * cdf[:, -1:]
    index = torch.searchsorted(cdf, wanted).clamp_(max=pdf.shape[1] - 1)
    mass = pdf.double().gather(1, index).clamp(min=1e-300)
    share = 1.0 - (cdf.gather(1, index) - wanted) / mass
    low, width = edges.double()[index], edges.double().diff()[index]
    return (low + width * share.clamp(0.0, 1.0)).to(pdf.dtype)


def median(pdf: Tensor, edges: Tensor) -> Tensor:
    """Median redshift, shape (n,): the paper's point estimate (section 5.1)."""
    return quantiles(pdf, edges, [0.5])[:, 0]


def mean(pdf: Tensor, edges: Tensor) -> Tensor:
    """Mean redshift, shape (n,), of PDFs of shape (n, bins)."""
    return pdf @ _centres(edges).to(pdf.dtype)


def mode(pdf: Tensor, edges: Tensor) -> Tensor:
    """Centre of the bin of highest density, shape (n,), of PDFs of shape (n, bins)."""
    found = _centres(edges).to(pdf.dtype)[(pdf / edges.diff()).argmax(dim=1)]
    return found.where(~pdf.isnan().any(dim=1), torch.nan)


def _centres(edges: Tensor) -> Tensor:
    return 0.5 * (edges[1:] + edges[:-1])


def _residual(point: Tensor, redshift: Tensor) -> Tensor:
    # (n, 1) minus (n,) would broadcast to (n, n).
    return point.reshape_as(redshift) - redshift


def check_edges(settings: Any) -> tuple[float, ...]:
    """Edges from a setting `[bins, low, high]`: equal bins in redshift.

    Raises
    ------
    ConfigError
        If it is anything else.
    """
    bins, low, high = checked(
        tuple[PositiveInt, FiniteFloat, FiniteFloat],
        settings,
        "bins, which are [number, lowest redshift, highest]",
    )
    if not low < high:
        raise ConfigError(f"bins: the lowest redshift comes first, not {settings!r}")
    return uniform_edges(bins, low, high)
