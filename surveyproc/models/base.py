"""The registry of architectures and what a redshift network must offer.

An architecture is a function `(name, bands, settings) -> RedshiftNetwork` registered under a name
that may hold wildcards. Third parties register theirs through the entry-point group
`surveyproc.models`: the entry's name is the pattern, its object the function.
"""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from surveyproc.errors import ConfigError

ENTRY_POINTS = "surveyproc.models"
OWN_MODULES = (
    "surveyproc.models.families.gaznet",
    "surveyproc.models.families.gaznet_images",
    "surveyproc.models.families.multimodal",
    "surveyproc.models.families.inception",
    "surveyproc.models.families.tabm",
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
    """

    features: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    cutout: int = 0
    reddening: bool = False
    errors: bool = False

    @property
    def bands(self) -> tuple[str, ...]:
        """All bands, those of the catalog first."""
        return tuple(dict.fromkeys((*self.features, *self.images)))


class RedshiftNetwork(nn.Module, ABC):
    """Base of networks from photometry or cutouts to a redshift and its PDF.

    Attributes
    ----------
    reads : Reads
        What `forward` is given: the keywords `features`, `images`, `reddening`, those of the three
        that the network reads, each with the objects as first axis.
    redshifts : tuple of float
        Lowest and highest redshift that it can be trained with.
    has_pdf : bool
        Whether it gives a PDF beside the point estimate.
    fit_options : mapping
        Fields of `train.fit.FitSettings` that suit the architecture; the survey's settings beat
        them.
    """

    reads: Reads
    fit_options: ClassVar[Mapping[str, Any]] = {}
    redshifts: tuple[float, float] = (0.0, 20.0)
    has_pdf: bool = True

    @abstractmethod
    def loss(self, output: Any, redshift: Tensor) -> Tensor:
        """Loss of each object, shape (n,), of `forward`'s output against true redshifts, (n,)."""

    def outside(self, images: Tensor) -> Tensor:
        """Objects whose cutouts, shape (n, bands, y, x), tell that the network has seen no such.

        Bool, shape (n,). A network that reads fluxes too leaves it to their range.
        """
        return torch.zeros(len(images), dtype=torch.bool)

    @torch.no_grad()
    def set_targets(self, redshift: Tensor) -> None:
        """Scale the outputs to the redshifts of the training set, shape (n,), before training."""

    def begin_step(self, generator: torch.Generator) -> None:
        """Draw what is random in one step of training, the same for all workers."""


Builder = Callable[[str, Sequence[str], Mapping[str, Any]], RedshiftNetwork]
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
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def architectures() -> list[str]:
    """Sorted patterns of all architectures, ours and those of installed packages."""
    for module in OWN_MODULES:
        import_module(module)
    return sorted({*_registry, *_third_parties()})


def is_registered(name: str) -> bool:
    """Whether `name` matches a registered architecture."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in architectures())


def build(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> RedshiftNetwork:
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
        If no architecture matches, or the architecture refuses bands or settings.
    """
    matches = [pattern for pattern in architectures() if fnmatch.fnmatchcase(name, pattern)]
    if not matches:
        raise ConfigError(
            f"no architecture is called {name!r}; known are: {', '.join(architectures())}"
        )
    pattern = max(matches, key=len)
    if pattern not in _registry:
        _registry[pattern] = _third_parties()[pattern].load()
    return _registry[pattern](name, tuple(bands), settings)


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
