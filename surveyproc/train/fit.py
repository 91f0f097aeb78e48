"""The epochs of a training, on one process or as one of several that share their gradients.

A training is a function of data, settings, seed and number of workers. It can go on from any state
it yielded, in the middle of an epoch too, and ends like one that was never interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from surveyproc.errors import SurveyError
from surveyproc.images.augment import Distortion
from surveyproc.models.base import Network
from surveyproc.train.examples import Examples, generator
from surveyproc.train.schedules import logistic, plateau_factor

WARM_UP = 0.05
"""Share of the steps in which a cosine's rate rises."""

RHO, EPSILON = 0.9, 1e-7
"""Constants of RMSprop in Keras."""

_GROUPS = ("weights", "best", "optimiser", "average")

VALIDATION_ROWS = 256
"""Held-out objects of one forward pass, at least."""


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
        Decoupled weight decay of matrices (ours); 0 is the paper's plain Adam.
    patience : int or None
        A stage ends after so many epochs without a lower validation loss; None never ends it.
    precision : {'float32', 'bfloat16'}
        Of the networks' layers; weights, losses and optimiser stay float32.
    accumulate : int
        Parts in which a worker computes the gradients of its share of a step, one after another.
    checkpoint_steps : int
        Steps after which a state is yielded within an epoch.
    schedule : {'constant', 'cosine', 'plateau', 'logistic'}
        Rate within a stage: the same; or falling to zero like a cosine after a warm-up of 5 % of
        the steps (Loshchilov & Hutter 2017); or lowered from epoch to epoch where the validation
        loss of `slow_by` stands still, or as `logistic` says: see `train.schedules`.
    optimiser : {'adam', 'rmsprop'}
        AdamW, or RMSprop with the constants of Keras, without decay of weights.
    stop_by, slow_by : str
        Tasks whose validation losses `patience` and a plateau look at; "" is the whole loss.
    logistic : tuple of float
        Highest and lowest rate as shares of the stage's, middle and width in epochs.
    clip_norm : float
        Longest gradient over all weights; 0 leaves them as they are.
    ema : float
        Decay of the running mean of the weights (Polyak & Juditsky 1992), which then is what is
        validated and kept; 0 keeps the weights themselves.
    shift : int
        By how many pixels cutouts are moved in training, at most.
    zoom, dimming, shrinking, turning : float, tuple of float, tuple of float, float
        Of cutouts in training: see `images.augment.Distortion`.
    """

    epochs: int
    batch_size: int
    seed: int
    rates: tuple[float, ...] = (1e-3, 1e-4)
    dropped_rows: float = 0.2
    dropped_bands: float = 0.25
    weight_decay: float = 0.0
    patience: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    checkpoint_steps: int = 500
    schedule: Literal["constant", "cosine", "plateau", "logistic"] = "constant"
    clip_norm: float = 0.0
    ema: float = 0.0
    optimiser: Literal["adam", "rmsprop"] = "adam"
    stop_by: str = ""
    slow_by: str = ""
    logistic: tuple[float, ...] = ()
    shift: int = 2
    zoom: float = 1.0
    dimming: tuple[float, float] = (1.0, 1.0)
    shrinking: tuple[float, float] = (1.0, 1.0)
    turning: float = 0.0

    @property
    def distortion(self) -> Distortion:
        """What is done to cutouts in training."""
        return Distortion(self.zoom, self.dimming, self.shrinking, self.turning)

    def stage(self, epoch: int) -> int | None:
        """Stage of the epoch that follows after `epoch` finished ones; None after the last."""
        return epoch // self.epochs if epoch < self.total_epochs else None

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return self.epochs * len(self.rates)

    @property
    def watched(self) -> tuple[str, ...]:
        """Tasks whose validation losses are kept one by one."""
        return tuple(sorted({self.stop_by, self.slow_by} - {""}))

    def rate(self, epoch: int, history: Sequence[Mapping[str, float]]) -> float:
        """Rate of the epoch that follows after `epoch` finished ones with this history."""
        first = epoch // self.epochs
        if self.schedule == "logistic":
            return self.rates[first] * float(logistic(epoch - first * self.epochs, self.logistic))
        if self.schedule == "plateau":
            # Without validation rows nothing stands still.
            losses = _losses(history, self.slow_by, first * self.epochs)
            return self.rates[first] * plateau_factor(losses)
        return self.rates[first]


@dataclass
class FitState:
    """All that a training needs to go on.

    Attributes
    ----------
    weights, best : dict of str to Tensor
        Current weights, and the ones with the lowest validation loss so far.
    optimiser : dict of str to Tensor
        Moments of the optimiser, `<parameter>.<moment>`.
    average : dict of str to Tensor
        Running mean of the weights, if there is one.
    epoch : int
        Finished epochs over all stages; those that a stage ended without count as finished.
    step, loss_sum : int, float
        Steps of the next epoch that are done already, and the sum of their losses over all workers.
    best_loss : float
        Validation loss of `best`; `best_epoch` is its epoch, counted from 1.
    history : list of dict
        `epoch`, `rate`, `loss` and, with rows held out, `validation_loss` of each epoch, and
        `validation_loss_<task>` of watched tasks.
    """

    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """As one safetensors file, the numbers in its metadata."""
        groups = {name: getattr(self, name) for name in _GROUPS}
        tensors = {
            f"{group}/{key}": tensor.contiguous()
            for group, members in groups.items()
            for key, tensor in members.items()
        }
        numbers = asdict(replace(self, weights={}, best={}, optimiser={}, average={}))
        record = json.dumps(numbers)
        return safetensors.torch.save(tensors, {"state": record})

    @classmethod
    def from_bytes(cls, data: bytes) -> FitState:
        """What `to_bytes` gave."""
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        record = json.loads(header["__metadata__"]["state"])
        groups: dict[str, dict[str, Tensor]] = {name: {} for name in _GROUPS}
        for name, tensor in safetensors.torch.load(data).items():
            group, _, key = name.partition("/")
            groups[group][key] = tensor
        return cls(**(record | groups))


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: t.detach().to("cpu", copy=True) for key, t in network.state_dict().items()}


def fit(
    network: Network,
    examples: Examples,
    settings: FitSettings,
    state: FitState | None = None,
    *,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
) -> Iterator[FitState]:
    """Train, yielding the state after each epoch and every `checkpoint_steps` steps.

    The last state's `best` are the weights to keep. Each stage starts from the best weights so far
    (ours: the paper reloads "the" stage-1 model) with a fresh optimiser. "Best" is the lowest mean
    loss over the held-out rows.

    Parameters
    ----------
    network : Network
        Trained in place; with several workers each must start from the same weights.
    examples : Examples
        Rows to train with and rows held out.
    settings : FitSettings
        How.
    state : FitState, optional
        Where to go on; from the start by default.
    rank, world : int
        This worker and the number of workers; more than one needs an initialised process group.
    device : str
        Torch device of this worker.

    Raises
    ------
    SurveyError
        If the loss is not finite any more.
    """
    network.to(torch.device(device)).to(memory_format=torch.channels_last)
    if state is None:
        state = FitState(weights=_copy(network), best=_copy(network))
    network.load_state_dict(state.weights)
    step_of = _Steps(network, settings, world, device)
    batch = step_of.share * world
    while (stage := settings.stage(state.epoch)) is not None:
        if state.step == 0 and state.epoch == stage * settings.epochs:
            network.load_state_dict(state.best)
            step_of.start(settings.rates[stage], {}, {})
        elif step_of.optimiser is None:
            step_of.start(settings.rates[stage], state.optimiser, state.average)
        step_of.rate = settings.rate(state.epoch, state.history)
        network.train()
        done = (state.epoch - stage * settings.epochs) * examples.steps(batch)
        start = state.loss_sum if rank == 0 else 0.0
        # On the device: a step that hands its loss to the CPU would wait for the device to end it.
        total = torch.tensor(start, dtype=torch.float64, device=device)
        step, steps = state.step, examples.steps(batch)
        for inputs, targets in examples.training(
            state.epoch, step, batch=batch, rank=rank, world=world, device=device
        ):
            network.begin_step(generator(settings.seed, state.epoch, step))
            # Dropout draws from torch's own generator, which others in this process use as well.
            torch.manual_seed(generator(settings.seed, state.epoch, step, rank).initial_seed())
            total += step_of(inputs, targets, done + step, steps)
            step += 1
            if step % settings.checkpoint_steps == 0 and step < steps:
                summed = _over_workers(total, world)
                state = replace(
                    state,
                    weights=_copy(network),
                    optimiser=step_of.moments(),
                    average=step_of.averages(),
                    step=step,
                    loss_sum=float(summed),
                )
                # As one that goes on from this state: other orders of adding round otherwise.
                total = summed if rank == 0 else torch.zeros_like(summed)
                yield state
        weights, kept = _copy(network), step_of.kept()
        network.load_state_dict(kept)
        held = _validate(network, examples, settings.watched, batch, rank, world, device)
        network.load_state_dict(weights)
        sums = _over_workers(torch.stack([total, *held]), world).cpu()
        loss_value = float(sums[0]) / (steps * world)
        validation = float(sums[1] / sums[2].clamp(min=1))
        if not math.isfinite(loss_value + validation):
            raise SurveyError(
                f"training diverged in epoch {state.epoch + 1}: the loss is not finite"
            )
        # With nothing held out the last weights are the ones to keep.
        improved = validation < state.best_loss or not float(sums[2])
        entry = {"epoch": state.epoch + 1, "rate": step_of.rate, "loss": loss_value}
        if float(sums[2]):
            entry["validation_loss"] = validation
            for name, of_task in zip(settings.watched, sums[3:].tolist(), strict=True):
                entry[f"validation_loss_{name}"] = of_task / float(sums[2])
        best_epoch = state.epoch + 1 if improved else state.best_epoch
        stale = state.epoch + 1 - max(best_epoch, stage * settings.epochs)
        if settings.stop_by and float(sums[2]):
            watched = _losses([*state.history, entry], settings.stop_by, stage * settings.epochs)
            stale = len(watched) - 1 - watched.index(min(watched))
        over = settings.patience is not None and stale >= settings.patience
        state = FitState(
            weights=weights,
            best=kept if improved else state.best,
            optimiser=step_of.moments(),
            average=step_of.averages(),
            epoch=(stage + 1) * settings.epochs if over else state.epoch + 1,
            best_loss=validation if improved else state.best_loss,
            best_epoch=best_epoch,
            history=[*state.history, entry],
        )
        yield state


class _Steps:
    """One step of the optimiser after another."""

    def __init__(self, network: Network, settings: FitSettings, world: int, device: str) -> None:
        self.network, self.settings, self.device = network, settings, device
        self.share = max(1, settings.batch_size // world)
        self.world = world
        # Matrices decay, vectors do not.
        named = list(network.named_parameters())
        self.decaying = [pair for pair in named if pair[0].endswith("weight")]
        self.steady = [pair for pair in named if not pair[0].endswith("weight")]
        self.names = [name for name, _ in self.decaying + self.steady]
        self.optimiser: torch.optim.Optimizer | None = None
        self.rate = 0.0
        self.average: dict[str, Tensor] = {}

    def start(self, rate: float, moments: dict[str, Tensor], average: dict[str, Tensor]) -> None:
        """A new optimiser, with the moments and the mean of an earlier one if there are any."""
        self.rate = rate
        plain = self.settings.optimiser == "rmsprop"
        groups = [
            {
                "params": [parameter for _, parameter in self.decaying],
                "weight_decay": 0.0 if plain else self.settings.weight_decay,
            },
            {"params": [parameter for _, parameter in self.steady], "weight_decay": 0.0},
        ]
        if plain:
            self.optimiser = torch.optim.RMSprop(groups, lr=rate, alpha=RHO, eps=EPSILON)
        else:
            self.optimiser = torch.optim.AdamW(groups, lr=rate)
        if moments:
            _load_moments(self.optimiser, self.names, moments)
        if self.settings.ema:
            parameters = dict(self.network.named_parameters())
            self.average = {
                name: average.get(name, parameter).detach().to(self.device, copy=True)
                for name, parameter in parameters.items()
            }

    def averages(self) -> dict[str, Tensor]:
        """The running mean of the weights, on the CPU; {} if there is none."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.average.items()}

    def kept(self) -> dict[str, Tensor]:
        """The weights that count: the running mean, or the weights themselves."""
        return {**_copy(self.network), **self.averages()}

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's state, `<parameter>.<moment>`."""
        assert self.optimiser is not None
        return {
            f"{self.names[index]}.{key}": value.detach().to("cpu", copy=True)
            for index, values in self.optimiser.state_dict()["state"].items()
            for key, value in values.items()
        }

    def _chunks(self, tensors: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
        """The parts in which a step's gradients are accumulated."""
        if not tensors:
            return [{} for _ in range(parts)]
        chunks = [whole.chunk(parts) for whole in tensors.values()]
        return [dict(zip(tensors, part, strict=True)) for part in zip(*chunks, strict=True)]

    def share_gradients(self) -> None:
        """Give each worker the mean gradient.

        As one vector, always laid out the same: `DistributedDataParallel` lays its buckets out
        anew after its first step, and more than two workers then add in another order when they
        go on than when they never stopped.
        """
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        shared = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(shared)
        shared /= self.world
        parts = torch.split(shared, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def __call__(
        self,
        inputs: dict[str, Tensor],
        targets: dict[str, Tensor],
        number: int,
        epoch_steps: int,
    ) -> Tensor:
        """Step `number` of the stage; the mean loss of its objects."""
        assert self.optimiser is not None
        factor = 1.0
        if self.settings.schedule == "cosine":
            share = number / (self.settings.epochs * epoch_steps)
            rising = (share + 1 / (self.settings.epochs * epoch_steps)) / WARM_UP
            factor = min(rising, 0.5 * (1 + math.cos(math.pi * share)))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * factor
        objects = len(next(iter(inputs.values())))
        parts = self._chunks(inputs, self.settings.accumulate)
        kind = torch.device(self.device).type
        half = self.settings.precision == "bfloat16"
        self.optimiser.zero_grad()
        total = torch.zeros((), device=self.device)
        for part, known in zip(parts, self._chunks(targets, len(parts)), strict=True):
            with torch.autocast(kind, torch.bfloat16, enabled=half):
                outputs = self.network(**part)
            loss = self.network.loss(outputs, known).sum() / objects
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.world > 1:
            self.share_gradients()
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        self.optimiser.step()
        if self.average:
            decay = min(self.settings.ema, (1 + number) / (10 + number))
            parameters = dict(self.network.named_parameters())
            # All at once: on a GPU a kernel for each of some hundred tensors is what a step takes.
            with torch.no_grad():
                get_ema_multi_avg_fn(decay)(  # type: ignore[no-untyped-call]
                    list(self.average.values()), [parameters[name] for name in self.average], None
                )
        return total


@torch.no_grad()
def _validate(
    network: Network,
    examples: Examples,
    watched: Sequence[str],
    batch: int,
    rank: int,
    world: int,
    device: str,
) -> list[Tensor]:
    """Sum of this worker's held-out losses, how many there are, and the sums of watched tasks."""
    network.eval()
    tasks = {task.name: task for task in network.tasks}
    each = [torch.zeros((), dtype=torch.float64, device=device) for _ in watched]
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.float64, device=device)
    for inputs, targets in examples.validation(
        batch=max(batch, VALIDATION_ROWS), rank=rank, world=world, device=device
    ):
        outputs = network(**inputs)
        losses = network.loss(outputs, targets)
        total += losses.double().sum()
        count += len(losses)
        for name, own in zip(watched, each, strict=True):
            own += tasks[name].loss(outputs[name], targets).double().sum()
    return [total, count, *each]


def _losses(history: Sequence[Mapping[str, float]], task: str, finished: int) -> list[float]:
    """Validation losses, of one task if it is named, of the epochs after so many."""
    key = f"validation_loss_{task}" if task else "validation_loss"
    return [entry[key] for entry in history if entry["epoch"] > finished and key in entry]


def _over_workers(values: Tensor, world: int) -> Tensor:
    """The sum over all workers."""
    if world > 1:
        # A copy: what is summed in place must not be the sum that goes on.
        values = values.clone()
        dist.all_reduce(values)
    return values


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
