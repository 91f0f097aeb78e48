"""Whether two views are of one object: a task that needs no labels and writes no columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from surveyproc.models.tasks.base import Task


class LikenessTask(Task):
    """Unit vectors of two views of each object, shape (n, 2, length), which should be alike.

    Parameters
    ----------
    temperature : float
        Similarities are divided by it.
    name : str
        Name of the task.
    """

    kind: ClassVar[str] = "likeness"
    unlabelled = True

    def __init__(self, temperature: float, *, name: str = "likeness") -> None:
        self.temperature, self.name = temperature, name

    def describe(self) -> dict[str, Any]:
        """With an empty list of columns."""
        return {"name": self.name, "kind": self.kind, "columns": []}

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """That of the first network: each has axes of its own."""
        return outputs[0]

    def values(self, output: Tensor) -> dict[str, NDArray[Any]]:
        """Nothing."""
        return {}

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """NT-Xent (Chen et al. 2020, eq. 1), the mean of both views, shape (n,)."""
        return nt_xent(output[:, 0], output[:, 1], self.temperature)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Surprise at an object's other view among all others of the batch (Chen et al. 2020, eq. 1).

    Parameters
    ----------
    first, second : float Tensor, shape (n, length)
        Unit vectors.
    temperature : float
        Similarities are divided by it.

    Returns
    -------
    float Tensor, shape (n,)
        Mean of the two directions; log(2 n - 1) for vectors that are all the same.
    """
    n = len(first)
    views = torch.cat([first, second])
    logits = views @ views.T / temperature
    itself = torch.eye(2 * n, dtype=torch.bool, device=views.device)
    other = torch.arange(2 * n, device=views.device).roll(n)
    each = functional.cross_entropy(logits.masked_fill(itself, -torch.inf), other, reduction="none")
    return each.reshape(2, n).mean(dim=0)
