"""Masks as a task: for every pixel of a cutout the probability that it belongs to something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import InputError
from surveyproc.evaluate.blends import mask_overlaps, overlap_bias, shared_pixels
from surveyproc.models.tasks.base import Float, Labels, Target, Task, Values, finite


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
    overlap : bool
        Whether the first mask is of the pixels that two or more of the others share. It is learned
        from them and has no part in the metrics.
    """

    kind: ClassVar[str] = "masks"
    pixels: ClassVar[bool] = True

    def __init__(
        self,
        names: Sequence[str],
        shape: tuple[int, int],
        *,
        name: str = "masks",
        weight: float = 1.0,
        overlap: bool = False,
    ) -> None:
        self.names, self.shape, self.name, self.weight = tuple(names), shape, name, weight
        self.overlap = overlap
        self.targets = (Target(name, len(self.names) - overlap),)

    def describe(self) -> dict[str, Any]:
        """With `names` and `shape`."""
        names, shape = list(self.names), list(self.shape)
        return {"name": self.name, "kind": self.kind, "names": names, "shape": shape}

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Binary cross entropy, the mean over the pixels whose membership (0 to 1) is known.

        The target has the shape of the output, (n, k, y, x), less the mask of the overlap.
        """
        truth = targets[self.name]
        if self.overlap:
            truth = torch.cat([(truth.sum(dim=1, keepdim=True) > 1).to(truth), truth], dim=1)
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
        """Nothing: masks come with the cutouts, out of the training cube.

        Raises
        ------
        InputError
            If a label table is to hold them.
        """
        if self.name in labels:
            raise InputError(self._lacks(self.targets[0]))
        return {}

    def _lacks(self, target: Target) -> str:
        return (
            f"task {self.name!r} learns from images of masks, which a label table does not hold: "
            "train with a cube that has them, as `surveyproc blends` makes it"
        )

    def compare(self, found: NDArray[Any], true: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What is kept of masks for their metrics, an object a row; the masks are too many.

        Parameters
        ----------
        found, true : ndarray of float, shape (n, k, y, x)
            Probabilities, and the truth, which has no mask of the overlap.
        """
        found = found[:, int(self.overlap) :]
        return {
            f"{self.name}_iou": mask_overlaps(found, true),
            f"{self.name}_shared": np.stack([shared_pixels(found), shared_pixels(true)], axis=1),
        }

    def metrics(self, values: Values, targets: Mapping[str, Float]) -> dict[str, Any]:
        """The mean IoU of each mask and of all, and the bias of the overlap, of `compare`."""
        overlaps, shared = values[f"{self.name}_iou"], values[f"{self.name}_shared"]
        by_name = {
            name: float(np.nanmean(one)) if np.isfinite(one).any() else np.nan
            for name, one in zip(self.names[int(self.overlap) :], overlaps.T, strict=True)
        }
        return finite(
            {
                "n": len(overlaps),
                "iou": float(np.mean(list(by_name.values()))),
                "iou_by_mask": by_name,
                "overlap_bias": overlap_bias(shared[:, 0], shared[:, 1]),
            }
        )
