"""Several networks as one: the mean of what they say, task by task.

Ait Ouahmed et al. 2023, section 5.1, average the PDFs of three or five networks that differ by
their random start. Ours differ by the rows that were held out of their training as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surveyproc.models.base import Network


class Ensemble(Network):
    """Networks of one architecture whose outputs are averaged, as their tasks do it.

    Parameters
    ----------
    members : sequence of Network
        At least one.
    """

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.reads, self.tasks = members[0].reads, members[0].tasks

    def forward(self, *args: Any, **inputs: Any) -> Mapping[str, Any]:
        """The average of the members' outputs."""
        outputs = [member(*args, **inputs) for member in self.members]
        return {
            task.name: task.average([output[task.name] for output in outputs])
            for task in self.tasks
        }

    def outside(self, images: Tensor) -> Tensor:
        """What all members have seen no such objects of."""
        members: Any = self.members
        return torch.stack([member.outside(images) for member in members]).all(dim=0)

    def loss(self, outputs: Mapping[str, Any], targets: Mapping[str, Tensor]) -> Tensor:
        """The members' loss of the averaged outputs, shape (n,)."""
        first: Any = self.members[0]
        found: Tensor = first.loss(outputs, targets)
        return found
