"""Several networks as one: the mean of their PDFs.

Ait Ouahmed et al. 2023, section 5.1, average the PDFs of three or five networks that differ by
their random start. Ours differ by the rows that were held out of their training as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surveyproc.models.base import RedshiftNetwork


class Ensemble(RedshiftNetwork):
    """Networks of one architecture whose outputs are averaged.

    Parameters
    ----------
    members : sequence of RedshiftNetwork
        At least one.
    """

    def __init__(self, members: Sequence[RedshiftNetwork]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        first = members[0]
        self.reads, self.redshifts, self.has_pdf = first.reads, first.redshifts, first.has_pdf

    def forward(self, **inputs: Tensor) -> Any:
        """The mean of the members' PDFs and point estimates."""
        outputs = [member(**inputs) for member in self.members]
        return type(outputs[0]).average(outputs)

    def outside(self, images: Tensor) -> Tensor:
        """What all members have seen no such objects of."""
        members: Any = self.members
        return torch.stack([member.outside(images) for member in members]).all(dim=0)

    def loss(self, output: Any, redshift: Tensor) -> Tensor:
        """The members' loss of the averaged output, shape (n,)."""
        first: Any = self.members[0]
        found: Tensor = first.loss(output, redshift)
        return found
