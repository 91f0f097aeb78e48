"""The epochs of a training, on one process or as one of several that share their gradients.

A training is a function of data, settings, seed and number of workers: shuffling and band dropout
are drawn anew from (seed, epoch, rank), so that an epoch can be repeated from the state before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from surveyproc.errors import SurveyError
from surveyproc.models.base import RedshiftNetwork

TENSORS, STATE = "state.safetensors", "state.json"


@dataclass(frozen=True)
class FitSettings:
    """How to train.

    Attributes
    ----------
    epochs : int
        Of each stage.
    batch_size : int
        Objects a step, over all workers.
    seed : int
        Of weights, shuffling and band dropout.
    rates : tuple of float
        Learning rate of each stage (Li et al. 2022, section 3.1: 1e-3, then 1e-4).
    dropped_rows, dropped_bands : float
        Share of the rows that lose bands at random in an epoch, and of the bands that such a row
        loses: teaches the network to do without (ours; the paper's objects have every band).
    weight_decay : float
        Decoupled weight decay (ours); 0 is the paper's plain Adam.
    """

    epochs: int
    batch_size: int
    seed: int
    rates: tuple[float, ...] = (1e-3, 1e-4)
    dropped_rows: float = 0.2
    dropped_bands: float = 0.25
    weight_decay: float = 0.0

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return self.epochs * len(self.rates)


@dataclass
class FitState:
    """All that a training needs to go on after `epoch` epochs.

    Attributes
    ----------
    epoch : int
        Finished epochs over all stages.
    weights, best : dict of str to Tensor
        Current weights, and the ones with the lowest validation loss so far.
    optimiser : dict of str to Tensor
        Adam's moments, `<parameter>.<moment>`.
    best_loss : float
        Validation loss of `best`; `best_epoch` is its epoch, counted from 1.
    history : list of dict
        `epoch`, `rate`, `loss`, `validation_loss` of each epoch.
    """

    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write `state.safetensors` and `state.json`."""
        groups = {"weights": self.weights, "best": self.best, "optimiser": self.optimiser}
        tensors = {
            f"{group}/{key}": tensor.detach().contiguous()
            for group, members in groups.items()
            for key, tensor in members.items()
        }
        safetensors.torch.save_file(tensors, str(folder / TENSORS))
        record = asdict(
            FitState({}, {}, {}, self.epoch, self.best_loss, self.best_epoch, self.history)
        )
        (folder / STATE).write_text(json.dumps(record))

    @classmethod
    def load(cls, folder: Path) -> FitState:
        """Read what `save` wrote."""
        record = json.loads((folder / STATE).read_text())
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimiser": {}}
        for name, tensor in safetensors.torch.load_file(str(folder / TENSORS)).items():
            group, _, key = name.partition("/")
            groups[group][key] = tensor
        return cls(**(record | groups))


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}


def _generator(*numbers: int) -> torch.Generator:
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator


def drop_bands(features: Tensor, n_bands: int, rows: float, bands: float, seed: Any) -> Tensor:
    """Inputs with random bands made missing, as `features.network_inputs` writes a missing band.

    Parameters
    ----------
    features : Tensor, shape (n, 3 n_bands - 1)
        Magnitudes, colours, masks.
    rows, bands : float
        Share of rows that lose bands, and of the bands that they lose. No row loses all it has.
    seed : torch.Generator
        Source of the draws.
    """
    n = len(features)
    lost = torch.rand(n, n_bands, generator=seed) < bands
    lost &= torch.rand(n, 1, generator=seed) < rows
    kept = (features[:, 2 * n_bands - 1 :] > 0) & ~lost
    lost &= kept.any(dim=1, keepdim=True)
    keep = ~lost
    mask = torch.cat([keep, keep[:, :-1] & keep[:, 1:], keep], dim=1)
    return features * mask


def fit(
    network: RedshiftNetwork,
    inputs: Tensor,
    redshift: Tensor,
    held_out: Tensor,
    settings: FitSettings,
    state: FitState | None = None,
    *,
    rank: int = 0,
    world: int = 1,
) -> Iterator[FitState]:
    """Train, yielding the state after each epoch; the last one's `best` are the weights to keep.

    Each stage starts from the best weights so far (ours: the paper reloads "the" stage-1 model)
    with a fresh optimiser. "Best" is the lowest mean loss over the held-out rows.

    Parameters
    ----------
    network : RedshiftNetwork
        Trained in place; with several workers each must start from the same weights.
    inputs : Tensor, shape (n, network.inputs)
        Features of all rows.
    redshift : Tensor, shape (n,)
        True redshifts.
    held_out : bool Tensor, shape (n,)
        Rows used for validation only.
    settings : FitSettings
        How.
    state : FitState, optional
        Where to go on; from the start by default.
    rank, world : int
        This worker and the number of workers; more than one needs an initialised process group.

    Raises
    ------
    SurveyError
        If the loss is not finite any more.
    """
    train_inputs, train_redshift = inputs[~held_out], redshift[~held_out]
    held_inputs = inputs[held_out][rank::world]
    held_redshift = redshift[held_out][rank::world]
    n_held = int(held_out.sum())
    share = max(1, settings.batch_size // world)
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(network) if world > 1 else network
    names = [name for name, _ in network.named_parameters()]
    if state is None:
        state = FitState(weights=_copy(network), best=_copy(network))
    network.load_state_dict(state.weights)
    optimiser: torch.optim.Optimizer | None = None
    for epoch in range(state.epoch, settings.total_epochs):
        rate = settings.rates[epoch // settings.epochs]
        if epoch % settings.epochs == 0:
            network.load_state_dict(state.best)
            optimiser = _adam(network, rate, settings.weight_decay)
        elif optimiser is None:
            optimiser = _adam(network, rate, settings.weight_decay)
            _load_moments(optimiser, names, state.optimiser)
        network.train()
        # Every worker draws the same order and takes its part; the last step wraps around.
        order = torch.randperm(len(train_inputs), generator=_generator(settings.seed, epoch))
        steps = math.ceil(len(order) / (share * world))
        order = order.repeat(math.ceil(steps * share * world / len(order)))
        dropout = _generator(settings.seed, epoch, rank)
        total = torch.zeros(())
        for step in range(steps):
            first = (step * world + rank) * share
            rows = order[first : first + share]
            batch = drop_bands(
                train_inputs[rows],
                len(network.bands),
                settings.dropped_rows,
                settings.dropped_bands,
                dropout,
            )
            loss = network.loss(wrapped(batch), train_redshift[rows]).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.detach()
        network.eval()
        with torch.no_grad():
            held = network.loss(network(held_inputs), held_redshift).double().sum()
        sums = torch.stack([total.double() / (steps * world), held / max(n_held, 1)])
        if world > 1:
            dist.all_reduce(sums)
        loss_value, validation = (float(value) for value in sums)
        if not math.isfinite(loss_value + validation):
            raise SurveyError(f"training diverged in epoch {epoch + 1}: the loss is not finite")
        improved = validation < state.best_loss
        entry = {"rate": rate, "loss": loss_value, "validation_loss": validation}
        state = FitState(
            weights=_copy(network),
            best=_copy(network) if improved else state.best,
            optimiser=_moments(optimiser, names),
            epoch=epoch + 1,
            best_loss=validation if improved else state.best_loss,
            best_epoch=epoch + 1 if improved else state.best_epoch,
            history=[*state.history, {"epoch": epoch + 1, **entry}],
        )
        yield state


def _adam(network: nn.Module, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=weight_decay)


def _moments(optimiser: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    return {
        f"{names[index]}.{key}": value.detach().clone()
        for index, values in optimiser.state_dict()["state"].items()
        for key, value in values.items()
    }


def _load_moments(
    optimiser: torch.optim.Optimizer, names: list[str], moments: dict[str, Tensor]
) -> None:
    document = optimiser.state_dict()
    document["state"] = {
        index: {
            key.rpartition(".")[2]: tensor.clone()
            for key, tensor in moments.items()
            if key.rpartition(".")[0] == name
        }
        for index, name in enumerate(names)
    }
    optimiser.load_state_dict(document)
