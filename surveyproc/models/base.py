"""The registry of architectures and what a network must offer.

An architecture is a function `(name, bands, settings) -> Network` registered under a name
that may hold wildcards. Third parties register theirs through the entry-point group
`surveyproc.models`: the entry's name is the pattern, its object the function.
"""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from surveyproc.config.kinds import NETWORKS
from surveyproc.errors import ConfigError
from surveyproc.images.augment import Distortion
from surveyproc.models.tasks.base import Task
from surveyproc.models.tasks.columns import task_columns

OWN_MODULES = (
    "surveyproc.models.families.blends",
    "surveyproc.models.families.forced_blends",
    "surveyproc.models.families.gaznet",
    "surveyproc.models.families.gaznet_images",
    "surveyproc.models.families.multimodal",
    "surveyproc.models.families.inception",
    "surveyproc.models.families.otelo",
    "surveyproc.models.families.tabm",
    "surveyproc.models.families.morphology",
    "surveyproc.models.families.contrastive",
)


@dataclass(frozen=True)
class Reads:
    """What a network reads of an object; each name is a keyword of its `forward`.

    Attributes
    ----------
    features : tuple of str
        Bands of the catalog's fluxes; `features` is their row of `models.features`.
    images : tuple of str
        Bands of the cutouts; `images` has shape (n, bands, cutout, cutout).
    cutout : int
        Pixels on a side of the cutouts; 0 without images.
    reddening : bool
        Whether it wants E(B - V), `reddening`.
    errors : bool
        Whether the errors of the fluxes are among the features.
    neighbours : int
        Neighbours whose places it is told, beside cutouts: `places` has shape
        (n, neighbours, cutout, cutout) and is 1 in the pixel of each (`images.places.marked`).
    """

    features: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    cutout: int = 0
    reddening: bool = False
    errors: bool = False
    neighbours: int = 0

    @property
    def bands(self) -> tuple[str, ...]:
        """All bands, those of the catalog first."""
        return tuple(dict.fromkeys((*self.features, *self.images)))


class Network(nn.Module, ABC):
    """Base of networks from photometry or cutouts to whatever their tasks are.

    Attributes
    ----------
    reads : Reads
        What `forward` is given: the keywords `features`, `images`, `reddening`, `places`, those of
        them that the network reads, each with the objects as first axis.
    tasks : tuple of Task
        What it is asked for. Each has a name of its own, and so has each of their targets, unless
        two tasks learn from the same one.
    fit_options : mapping
        Fields of `train.fit.FitSettings` that suit the architecture; the survey's settings beat
        them.
    calibrations : mapping of str to mapping
        Of a trained network, by task: what `Task.fit_calibration` gave.
    """

    reads: Reads
    tasks: tuple[Task, ...]
    fit_options: ClassVar[Mapping[str, Any]] = {}
    calibrations: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    @abstractmethod
    def forward(self, *args: Any, **inputs: Any) -> Mapping[str, Any]:
        """The output of every task, by its name."""

    def loss(self, outputs: Mapping[str, Any], targets: Mapping[str, Tensor]) -> Tensor:
        """Loss of each object, shape (n,): the sum of the tasks' losses, each times its weight.

        Parameters
        ----------
        outputs : mapping
            What `forward` gave.
        targets : mapping of str to float32 Tensor, shape (n,) or (n, k)
            By the name of the target; NaN = missing, which adds nothing.
        """
        parts = [
            task.weight * task.loss(outputs[task.name], targets)
            for task in self.tasks
            if task.targets or task.unlabelled
        ]
        return torch.stack(parts).sum(dim=0)

    def outside(self, images: Tensor) -> Tensor:
        """Objects whose cutouts, shape (n, bands, y, x), tell that the network has seen no such.

        Bool, shape (n,). A network that reads fluxes too leaves it to their range.
        """
        return torch.zeros(len(images), dtype=torch.bool)

    @torch.no_grad()
    def set_targets(self, targets: Mapping[str, Tensor]) -> None:
        """Scale the outputs to the training set's targets, float64, before training.

        By the name of the target, shape (n,) or (n, k), NaN = missing.
        """

    def set_images(self, batches: Iterable[Tensor]) -> None:
        """Scale the inputs to the training set's cutouts, before training.

        Float32 Tensors of shape (n, bands, y, x), nJy a pixel, not finite = missing; they are read
        as they are asked for.
        """

    def suited(self, distortion: Distortion) -> Mapping[str, Any]:
        """Settings that a network should have when it is trained with distorted cutouts."""
        return {}

    def begin_training(self) -> None:
        """Load the weights that training starts from, where those are not the random ones."""

    def begin_step(self, generator: torch.Generator) -> None:
        """Draw what is random in one step of training, the same for all workers."""


Builder = Callable[[str, Sequence[str], Mapping[str, Any]], Network]
_registry: dict[str, Builder] = {}


def register(pattern: str) -> Callable[[Builder], Builder]:
    """Decorator that registers an architecture under a name with wildcards (`gaznet-c*`).

    Raises
    ------
    ConfigError
        If another function already holds the pattern.
    """

    def decorate(builder: Builder) -> Builder:
        if _registry.get(pattern, builder) is not builder:
            raise ConfigError(f"two architectures are registered as {pattern!r}")
        _registry[pattern] = builder
        return builder

    return decorate


@cache
def _third_parties() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=NETWORKS)}


def architectures() -> list[str]:
    """Sorted patterns of all architectures, ours and those of installed packages."""
    for module in OWN_MODULES:
        import_module(module)
    return sorted({*_registry, *_third_parties()})


def is_registered(name: str) -> bool:
    """Whether `name` matches a registered architecture."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in architectures())


def build(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> Network:
    """A network with fresh weights, drawn from torch's global generator.

    Parameters
    ----------
    name : str
        An architecture, for example `gaznet-c9`. The longest matching pattern wins.
    bands : sequence of str
        Bands at hand, in order of wavelength; the network says which of them it reads.
    settings : mapping
        JSON-able settings of the architecture; absent keys take its defaults.

    Raises
    ------
    ConfigError
        If no architecture matches, the architecture refuses bands or settings, or two of its tasks
        or their columns have one name.
    """
    matches = [pattern for pattern in architectures() if fnmatch.fnmatchcase(name, pattern)]
    if not matches:
        raise ConfigError(
            f"no architecture is called {name!r}; known are: {', '.join(architectures())}"
        )
    pattern = max(matches, key=len)
    if pattern not in _registry:
        _registry[pattern] = _third_parties()[pattern].load()
    network = _registry[pattern](name, tuple(bands), settings)
    _check_names([task.name for task in network.tasks], f"{name}: two tasks are called")
    for task in network.tasks:
        if task.fitted is not None:
            network.add_module(f"{task.name}_fitted", task.fitted)
    columns = [one.name for task in network.tasks for one in task_columns(task.describe(), "")]
    _check_names(columns, f"{name}: two outputs would be column")
    return network


def _check_names(names: Sequence[str], what: str) -> None:
    if twice := [one for number, one in enumerate(names) if one in names[:number]]:
        raise ConfigError(f"{what} {twice[0].lstrip('_')!r}")


def checked(kind: Any, value: Any, name: str) -> Any:
    """`value` as a type that pydantic knows; a mapping as a dataclass of that type.

    Raises
    ------
    ConfigError
        If it is not one, or the dataclass has no such field; `name` and the field are named.
    """
    if is_dataclass(kind):
        known = [field.name for field in fields(kind)]
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise ConfigError(
                f"{name}: unknown setting {unknown[0]!r}; known are {', '.join(known)}"
            )
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        raise ConfigError(f"{where}: {first['msg']}, not {first['input']!r}") from error


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
