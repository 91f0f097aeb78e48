"""Masks as a task: for every pixel of a cutout the probability that it belongs to something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import InputError
from surveyproc.models.tasks.base import Float, Labels, Target, Task


class MaskTask(Task):
    """k masks, from logits of shape (n, k, y, x). Their values are pixels, not columns.

    Parameters
    ----------
    names : sequence of str
        Of the k masks.
    shape : tuple of int
        (y, x) pixels.
    name : str
        Name of the task, its target, and its array of pixels.
    weight : float
        Of the loss.
    """

    kind: ClassVar[str] = "masks"

    def __init__(
        self,
        names: Sequence[str],
        shape: tuple[int, int],
        *,
        name: str = "masks",
        weight: float = 1.0,
    ) -> None:
        self.names, self.shape, self.name, self.weight = tuple(names), shape, name, weight
        self.targets = (Target(name, len(self.names)),)

    def describe(self) -> dict[str, Any]:
        """With `names` and `shape`."""
        names, shape = list(self.names), list(self.shape)
        return {"name": self.name, "kind": self.kind, "names": names, "shape": shape}

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Binary cross entropy, the mean over the pixels whose membership (0 to 1) is known.

        The target has the shape of the output, (n, k, y, x).
        """
        truth = targets[self.name]
        known = truth.isfinite()
        losses = functional.binary_cross_entropy_with_logits(
            output, truth.where(known, 0.0), reduction="none"
        )
        counts = known.flatten(1).sum(dim=1).clamp(min=1)
        return losses.where(known, 0.0).flatten(1).sum(dim=1) / counts

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """Logits of the mean probabilities."""
        whole = torch.stack([output.float() for output in outputs])
        return torch.logsumexp(functional.logsigmoid(whole), dim=0) - torch.logsumexp(
            functional.logsigmoid(-whole), dim=0
        )

    def values(self, output: Tensor) -> dict[str, NDArray[Any]]:
        """Probabilities, float32 (n, k, y, x)."""
        return {self.name: output.float().sigmoid().cpu().numpy()}

    def encode(self, labels: Labels, settings: TrainingSection) -> dict[str, Float]:
        """Refused: a label table holds no images, and augmentation would have to move both alike.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(
            f"task {self.name!r} learns from images of masks, which training does not read: train "
            "the network by a loop of its own and save it with models.package.save_package"
        )
