"""Many small networks at once: hundreds of trainings whose steps are one step each.

A network of some ten thousand weights leaves a processor idle between its layers. Cross-validation
that leaves one object out, and bootstraps, train hundreds of one architecture; here their weights
are stacked and `torch.func.vmap` takes a step of all. What each of them ends with depends on none
of the others: its order of rows is drawn from its own seed (dropout from that of all).

RMSprop with the constants of Keras; early stop and plateau as de Diego et al. 2021, section 2.2.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from surveyproc.errors import InputError
from surveyproc.models.base import Network
from surveyproc.train.examples import generator
from surveyproc.train.fit import EPSILON, RHO
from surveyproc.train.schedules import plateau_factor

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class ManySettings:
    """How to train many networks of features.

    Attributes
    ----------
    epochs : int
        The most, where training may stop.
    seed : int
        Of dropout; network k draws its order of rows from (seed, k, epoch).
    batch_size : int
        Objects a step; the last one of an epoch takes what is left.
    rates : tuple of float
        Rate of each epoch, or one for all, which then falls where the loss of `slow_by` stands
        still.
    weight_decay : float
        Decoupled weight decay of matrices; the paper has none.
    stop_by, slow_by : str
        Tasks whose losses on the validation rows stop the training and lower the rate.
    patience : int
        Epochs without a lower loss of `stop_by` after which a network stops.
    """

    epochs: int
    seed: int = 0
    batch_size: int = 64
    rates: tuple[float, ...] = (1e-3,)
    weight_decay: float = 0.0
    stop_by: str = "class"
    slow_by: str = "redshift"
    patience: int = 10


@dataclass(frozen=True)
class Record:
    """What happened to m networks.

    Attributes
    ----------
    epochs : int64 ndarray, shape (m,)
        Epochs that each was trained.
    rates : float64 ndarray, shape (m, epochs)
        Rate of every epoch; NaN after the last of a network.
    losses : dict of float64 ndarray, shape (m, epochs)
        Validation loss of each task by epoch, if there are such rows.
    """

    epochs: Int
    rates: Float
    losses: dict[str, Float]


def fit_many(
    networks: Sequence[Network],
    features: Tensor,
    targets: Mapping[str, Tensor],
    training: Tensor,
    validation: Tensor | None = None,
    *,
    settings: ManySettings,
) -> Record:
    """Train networks of one architecture side by side, in place; they end in evaluation mode.

    With validation rows each stops by itself, as it would alone, and keeps its last weights, as
    Keras does; without, all epochs are done.

    Parameters
    ----------
    networks : sequence of Network
        m networks that read features alone, with fresh weights and their targets set.
    features : float32 Tensor, shape (n, inputs) or (m, n, inputs)
        Of the same objects for all, or scaled for each network by its own training rows.
    targets : mapping of str to float32 Tensor, shape (n,) or (n, k)
        NaN = missing.
    training, validation : int64 Tensor, shape (m, rows)
        Rows of each network; a bootstrap repeats some.
    settings : ManySettings
        How.

    Raises
    ------
    InputError
        If the shapes do not fit, or a loss is not finite.
    """
    m, epochs = len(networks), settings.epochs
    for name, rows in (("training", training), ("validation", validation)):
        if rows is not None and (rows.ndim != 2 or len(rows) != m or not rows.shape[1]):
            raise InputError(f"{m} networks: {name} rows have shape {tuple(rows.shape)}")
    if len(settings.rates) not in (1, epochs):
        raise InputError(f"{epochs} epochs have {len(settings.rates)} rates: one, or one each")
    shared = features.ndim == 2
    losses = _Losses(deepcopy(networks[0]))
    state, buffers = stack_module_state([_Losses(one) for one in networks])
    weights = {name: tensor.detach() for name, tensor in state.items()}
    squares = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}

    def one(w: Any, b: Any, x: Tensor, known: Any) -> Tensor:
        total: Tensor = functional_call(losses, (w, b), (x, known))[0]
        return total

    def each(w: Any, b: Any, x: Tensor, known: Any) -> Any:
        return functional_call(losses, (w, b), (x, known))[1]

    step = vmap(grad(one), randomness="different")
    look = vmap(each)

    def chosen(rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        read = features[rows] if shared else features[torch.arange(m)[:, None], rows]
        return read, {name: values[rows] for name, values in targets.items()}

    running = torch.ones(m, dtype=torch.bool)
    rates = np.full((m, epochs), np.nan)
    history: dict[str, list[Float]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for epoch in range(epochs):
            now = _rates(settings, epoch, history.get(settings.slow_by, []), m)
            rates[:, epoch] = np.where(running.numpy(), now, np.nan)
            rate = torch.from_numpy(np.nan_to_num(rates[:, epoch])).float()
            order = _order(settings.seed, epoch, training.shape)
            shuffled = training.gather(1, order)
            losses.train()
            for rows in torch.split(shuffled, settings.batch_size, dim=1):
                gradients = step(weights, buffers, *chosen(rows))
                _rmsprop(weights, squares, gradients, rate, settings.weight_decay)
            if validation is None:
                continue
            losses.eval()
            with torch.no_grad():
                found = look(weights, buffers, *chosen(validation))
            for name, values in found.items():
                history.setdefault(name, []).append(values.double().numpy())
            running &= torch.from_numpy(_improving(history[settings.stop_by], settings.patience))
            if not running.any():
                break
    for number, network in enumerate(networks):
        own = {
            name.removeprefix("network."): tensor[number].clone()
            for name, tensor in (weights | buffers).items()
        }
        if not all(tensor.isfinite().all() for tensor in own.values()):
            raise InputError(f"network {number} diverged: its weights are not finite")
        network.load_state_dict(own)
        network.eval()
    stacked = {name: np.stack(values, axis=1) for name, values in history.items()}
    return Record(np.isfinite(rates).sum(axis=1), rates, stacked)


class _Losses(nn.Module):
    """A network's mean loss, and that of each of its tasks, as one module that vmap can call."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = self.network(features=features)
        each = {
            task.name: task.loss(outputs[task.name], targets).mean()
            for task in self.network.tasks
            if task.targets
        }
        return self.network.loss(outputs, targets).mean(), each


def _rates(settings: ManySettings, epoch: int, losses: Sequence[Float], m: int) -> Float:
    """Rate of the next epoch of every network, shape (m,)."""
    if len(settings.rates) > 1:
        return np.full(m, settings.rates[epoch])
    if not losses:
        return np.full(m, settings.rates[0])
    factors = [plateau_factor(own) for own in np.stack(losses, axis=1).tolist()]
    return settings.rates[0] * np.array(factors)


def _improving(losses: Sequence[Float], patience: int) -> NDArray[np.bool_]:
    """Networks whose lowest loss is less than `patience` epochs old, shape (m,)."""
    best = np.argmin(np.stack(losses), axis=0)
    return np.asarray(len(losses) - 1 - best < patience)


def _order(seed: int, epoch: int, shape: torch.Size) -> Tensor:
    """A random order of its rows for each network, shape (m, rows)."""
    draws = [
        torch.randperm(shape[1], generator=generator(seed, number, epoch))
        for number in range(shape[0])
    ]
    return torch.stack(draws)


def _rmsprop(
    weights: dict[str, Tensor],
    squares: dict[str, Tensor],
    gradients: Mapping[str, Tensor],
    rate: Tensor,
    decay: float,
) -> None:
    """One step of all networks, in place; none of those whose rate is 0."""
    for name, weight in weights.items():
        gradient, square = gradients[name], squares[name]
        square.mul_(RHO).addcmul_(gradient, gradient, value=1 - RHO)
        own = rate.view(-1, *[1] * (weight.ndim - 1))
        if decay and weight.ndim > 2:
            weight.mul_(1 - own * decay)
        weight.sub_(own * gradient / (square.sqrt() + EPSILON))
