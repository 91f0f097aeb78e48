"""Shares of votes as a task: many answers for one object, none of which excludes another."""

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
from surveyproc.evaluate.votes import vote_metrics
from surveyproc.models.tasks.base import Float, Labels, Target, Task, Values, finite


class VoteTask(Task):
    """Shares of the votes for k answers, from logits of shape (n, k).

    The optional target `<name>_counts` holds the number of votes, one column for each answer.

    Parameters
    ----------
    names : sequence of str
        The k answers, and their columns.
    name : str
        Name of the task and its target.
    weight : float
        Of the loss.
    """

    kind: ClassVar[str] = "votes"

    def __init__(self, names: Sequence[str], *, name: str = "votes", weight: float = 1.0) -> None:
        self.names, self.name, self.weight = tuple(names), name, weight
        self.counts = f"{name}_counts"
        k = len(self.names)
        self.targets = (Target(name, k), Target(self.counts, k, optional=True))

    def describe(self) -> dict[str, Any]:
        """With `names`."""
        return {"name": self.name, "kind": self.kind, "names": list(self.names)}

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Binary cross entropy summed over the answers whose share is known.

        With numbers of votes N it is the negative log likelihood of N Bernoulli trials, up to a
        constant: -N (f ln p + (1 - f) ln(1 - p)) of shares f. Without them N = 1.
        """
        share = targets[self.name]
        known = share.isfinite()
        losses = functional.binary_cross_entropy_with_logits(
            output, share.where(known, 0.0), reduction="none"
        )
        if self.counts in targets:
            losses = losses * targets[self.counts].nan_to_num(0.0)
        return losses.where(known, 0.0).sum(dim=1)

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """Logits of the mean shares."""
        whole = torch.stack([output.float() for output in outputs])
        return torch.logsumexp(functional.logsigmoid(whole), dim=0) - torch.logsumexp(
            functional.logsigmoid(-whole), dim=0
        )

    def values(self, output: Tensor) -> dict[str, NDArray[Any]]:
        """Share of each answer."""
        share = output.float().sigmoid().cpu().numpy()
        return {name: share[:, number].copy() for number, name in enumerate(self.names)}

    def encode(self, labels: Labels, settings: TrainingSection) -> dict[str, Float]:
        """Shares and, if they are named, numbers of votes, each (n, k).

        Raises
        ------
        InputError
            Also if a share is not within 0 and 1, or a number of votes is negative.
        """
        encoded = super().encode(labels, settings)
        for target, most in ((self.targets[0], 1.0), (self.targets[1], np.inf)):
            values = encoded.get(target.name, np.empty(0))
            wrong = np.isfinite(values) & ((values < 0) | (values > most))
            if wrong.any():
                raise InputError(
                    f"task {self.name!r}: {target.key} holds {values[wrong][0]:g}; "
                    + ("shares of votes lie within 0 and 1" if most == 1 else "counts are >= 0")
                )
        return encoded

    def metrics(self, values: Values, targets: Mapping[str, Float]) -> dict[str, Any]:
        """Those of `evaluate.votes.vote_metrics`."""
        share = np.stack([values[name] for name in self.names], axis=1)
        return finite(vote_metrics(share, targets[self.name], self.names))
