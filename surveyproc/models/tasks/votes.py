"""Shares of votes as a task: many answers for one object, each for itself or one a question.

With questions a network says how sure it is: it gives concentrations of a Dirichlet distribution of
the shares of each question's answers, and the loss is the probability of the numbers of votes
(Walmsley et al. 2022, MNRAS 509, 3966, section 4.1, as Zoobot has it). Few votes then teach little,
and a question that nobody was asked teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.evaluate.votes import vote_metrics
from surveyproc.models.tasks.base import Float, Labels, Target, Task, Values, finite

CONCENTRATIONS = 100.0
"""Concentrations are 1 + 100 sigmoid(output): from 1 to 101, as in Zoobot."""


class VoteTask(Task):
    """Shares of the votes for k answers, from outputs of shape (n, k).

    The target `<name>_counts` holds the number of votes cast, one column for each answer: of all
    answers to its question. It is optional without questions. A row whose counts are all 0 has no
    votes, and nothing is learned from it.

    Parameters
    ----------
    names : sequence of str
        The k answers, and their columns.
    questions : mapping of str to sequence of str, optional
        Question to its answers. Outputs are then concentrations, see `CONCENTRATIONS`, and the
        loss is Dirichlet-multinomial; without, outputs are logits of each answer for itself.
    thresholds : mapping of str to float, optional
        Share above which an object has the feature, kept in the package's description.
    name : str
        Name of the task and its target.
    weight : float
        Of the loss.

    Raises
    ------
    ConfigError
        If an answer is not among those of exactly one question, or a threshold is of no answer.
    """

    kind: ClassVar[str] = "votes"

    def __init__(
        self,
        names: Sequence[str],
        *,
        questions: Mapping[str, Sequence[str]] | None = None,
        thresholds: Mapping[str, float] | None = None,
        name: str = "votes",
        weight: float = 1.0,
    ) -> None:
        self.names, self.name, self.weight = tuple(names), name, weight
        self.thresholds = dict(thresholds or {})
        self.counts = f"{name}_counts"
        k = len(self.names)
        self.targets = (Target(name, k), Target(self.counts, k, optional=not questions))
        asked = [answer for answers in (questions or {}).values() for answer in answers]
        if questions and sorted(asked) != sorted(self.names):
            odd = sorted(
                one for one in {*asked, *names} if asked.count(one) != 1 or one not in names
            )
            raise ConfigError(
                f"task {name!r}: answer {odd[0]!r} must be one of the {k} answers and belong to "
                "one question"
            )
        if stray := sorted(set(self.thresholds) - set(self.names)):
            raise ConfigError(f"task {name!r}: thresholds: {stray[0]!r} is no answer")
        self.groups = [
            [self.names.index(answer) for answer in answers]
            for answers in (questions or {}).values()
        ]

    def describe(self) -> dict[str, Any]:
        """With `names`, and `thresholds` if there are some."""
        told = {"thresholds": self.thresholds} if self.thresholds else {}
        return {"name": self.name, "kind": self.kind, "names": list(self.names), **told}

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Negative log likelihood of the votes, as the questions say.

        With questions that of `dirichlet_multinomial`, summed over them. Without, binary cross
        entropy summed over the answers whose share is known: with numbers of votes N the negative
        log likelihood of N Bernoulli trials, up to a constant, -N (f ln p + (1 - f) ln(1 - p)) of
        shares f; N = 1 without.
        """
        share = targets[self.name]
        known = share.isfinite()
        if self.groups:
            votes = (share * targets[self.counts]).nan_to_num(0.0)
            concentrations = concentrations_of(output)
            each = [dirichlet_multinomial(votes[:, g], concentrations[:, g]) for g in self.groups]
            return -torch.stack(each).sum(dim=0)
        losses = functional.binary_cross_entropy_with_logits(
            output, share.where(known, 0.0), reduction="none"
        )
        if self.counts in targets:
            losses = losses * targets[self.counts].nan_to_num(0.0)
        return losses.where(known, 0.0).sum(dim=1)

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """Outputs of the mean shares; with questions those of the mean concentrations."""
        whole = torch.stack([output.float() for output in outputs])
        if self.groups:
            return torch.logit(whole.sigmoid().mean(dim=0), eps=1e-7)
        return torch.logsumexp(functional.logsigmoid(whole), dim=0) - torch.logsumexp(
            functional.logsigmoid(-whole), dim=0
        )

    def values(self, output: Tensor) -> dict[str, NDArray[Any]]:
        """Share of each answer: with questions the mean of its Dirichlet distribution."""
        shares = output.float().sigmoid()
        if self.groups:
            concentrations = concentrations_of(output)
            for g in self.groups:
                whole = concentrations[:, g]
                shares[:, g] = whole / whole.sum(dim=1, keepdim=True)
        share = shares.cpu().numpy()
        return {name: share[:, number].copy() for number, name in enumerate(self.names)}

    def encode(self, labels: Labels, settings: TrainingSection) -> dict[str, Float]:
        """Shares and, if they are named, numbers of votes, each (n, k).

        Where there was no vote a share is NaN: its number is 0, or, of answers of which a voter
        must give one (there are questions), all shares of the row are 0.

        Raises
        ------
        InputError
            Also if a share is not within 0 and 1, all shares of all rows are 0, or a number of
            votes is negative.
        """
        encoded = {name: one.copy() for name, one in super().encode(labels, settings).items()}
        for target, most in ((self.targets[0], 1.0), (self.targets[1], np.inf)):
            values = encoded.get(target.name, np.empty(0))
            wrong = np.isfinite(values) & ((values < 0) | (values > most))
            if wrong.any():
                raise InputError(
                    f"task {self.name!r}: {target.key} holds {values[wrong][0]:g}; "
                    + ("shares of votes lie within 0 and 1" if most == 1 else "counts are >= 0")
                )
        share = encoded[self.name]
        nothing = (np.nan_to_num(share) == 0).all(axis=1)
        if nothing.all() and np.isfinite(share).any():
            raise InputError(f"task {self.name!r}: all shares in {self.targets[0].key} are 0")
        if self.groups:
            share[nothing] = np.nan
        if self.counts in encoded:
            share[~(encoded[self.counts] > 0)] = np.nan
        return encoded

    def metrics(self, values: Values, targets: Mapping[str, Float]) -> dict[str, Any]:
        """Those of `evaluate.votes.vote_metrics`."""
        share = np.stack([values[name] for name in self.names], axis=1)
        return finite(vote_metrics(share, targets[self.name], self.names, self.thresholds))


def concentrations_of(output: Tensor) -> Tensor:
    """Concentrations, 1 to 101, of outputs of any shape."""
    return 1.0 + CONCENTRATIONS * output.float().sigmoid()


def dirichlet_multinomial(votes: Tensor, concentrations: Tensor) -> Tensor:
    """Log probability of votes for the answers to one question; 0 where there are none.

    ln n! + ln G(A) - ln G(n + A) + sum over answers of (ln G(k + a) - ln G(a) - ln k!), with n the
    sum of the votes k and A that of the concentrations a (Walmsley et al. 2022, eq. 1).

    Parameters
    ----------
    votes : float32 Tensor, shape (n, answers)
        Not necessarily whole: fractions may have been weighted.
    concentrations : float32 Tensor, shape (n, answers)
        Above 0.

    Returns
    -------
    float32 Tensor, shape (n,)
    """
    n, total = votes.sum(dim=1), concentrations.sum(dim=1)
    each = (votes + concentrations).lgamma() - concentrations.lgamma() - (votes + 1).lgamma()
    return (n + 1).lgamma() + total.lgamma() - (n + total).lgamma() + each.sum(dim=1)
