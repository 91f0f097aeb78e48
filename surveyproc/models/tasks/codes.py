"""Vectors of a network as whole numbers, at most 64 bytes of them, whose distances are theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from surveyproc.catalogs.neighbours import LONGEST


def code_length(length: int) -> int:
    """Numbers of the codes of vectors of `length` numbers: the next power of two, 64 at most.

    Examples
    --------
    >>> code_length(4), code_length(33), code_length(1280)
    (4, 64, 64)
    """
    return min(LONGEST, 1 << (length - 1).bit_length())


def code_type(length: int) -> np.dtype[np.signedinteger[Any]]:
    """That of the numbers of a code: two bytes each where all of them fit into `LONGEST` bytes.

    Examples
    --------
    >>> code_type(32), code_type(33)
    (dtype('int16'), dtype('int8'))
    """
    return np.dtype(np.int16 if 2 * code_length(length) <= LONGEST else np.int8)


def missing(dtype: np.dtype[Any]) -> int:
    """All numbers of a code for a vector that is not finite; no other code holds it."""
    return int(np.iinfo(dtype).min)


class Codes(nn.Module):
    """Turns vectors into codes, once it was fitted to those of a training set.

    The axes of the largest variance are kept (principal components) and turned by a Hadamard
    matrix: then all numbers of a code have the same variance, so that one step serves all of them
    and distances of codes, times the step, are distances of vectors. Without the turn the first
    components would need a step at which the later ones are lost.

    Parameters
    ----------
    length : int
        Of the vectors.

    Attributes
    ----------
    dtype : dtype
        Of the codes: `code_type`.
    """

    mean: Tensor
    axes: Tensor
    step: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        size, self.dtype = code_length(length), code_type(length)
        self.largest = int(np.iinfo(self.dtype).max)
        self.register_buffer("mean", torch.zeros(length))
        # Until it is fitted: the first numbers themselves.
        self.register_buffer("axes", torch.eye(size, length))
        self.register_buffer("step", torch.ones(()))

    def forward(self, vectors: Tensor) -> Tensor:
        """Codes, of `dtype`, shape (n, code_length), of vectors, shape (n, length)."""
        vectors = vectors.float()
        turned = (vectors - self.mean) @ self.axes.T / self.step
        whole = turned.nan_to_num().round().clamp(-self.largest, self.largest)
        codes = whole.to(getattr(torch, self.dtype.name))
        known = vectors.isfinite().all(dim=1, keepdim=True)
        return codes.where(known, torch.tensor(missing(self.dtype), dtype=codes.dtype))

    def fit(self, vectors: NDArray[np.float32]) -> None:
        """Choose axes and step by vectors of the training set, shape (n, length).

        The step is the one with the smallest mean squared error of these, that of values beyond
        the largest code included.
        """
        # Networks that are only applied need not import it.
        from scipy.linalg import hadamard

        known = vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64)
        size = len(self.axes)
        mean = known.mean(axis=0)
        # Ascending; the columns are the axes.
        found = np.linalg.eigh((known - mean).T @ (known - mean)).eigenvectors
        kept = found[:, ::-1][:, :size].T
        axes = hadamard(size)[:, : len(kept)] @ kept / np.sqrt(size)
        turned = (known - mean) @ axes.T
        reaches = np.quantile(np.abs(turned), (0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999, 1.0))
        steps = [reach / self.largest for reach in reaches if reach > 0] or [1.0]
        errors = [_error(turned, step, self.largest) for step in steps]
        self.mean.copy_(torch.from_numpy(mean))
        self.axes.copy_(torch.from_numpy(axes))
        self.step.fill_(steps[int(np.argmin(errors))])


def _error(values: NDArray[np.float64], step: float, largest: int) -> float:
    rounded = np.clip(np.rint(values / step), -largest, largest) * step
    return float(np.mean((values - rounded) ** 2))
