"""The registry of architectures and what a redshift network must offer.

An architecture is a function `(bands, settings) -> RedshiftNetwork` registered under a name that
may hold wildcards. Third parties register theirs through the entry-point group
`surveyproc.models`: the entry's name is the pattern, its object the function.
"""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from torch import Tensor, nn

from surveyproc.errors import ConfigError

ENTRY_POINTS = "surveyproc.models"
OWN_MODULES = ("surveyproc.models.gaznet",)


class RedshiftOutput(NamedTuple):
    """What a redshift network returns for n objects.

    Attributes
    ----------
    point : Tensor, shape (n,)
        Point estimate of the redshift.
    log_weights : Tensor, shape (n, k)
        Natural logarithms of the mixture's weights; their exponentials sum to one.
    means, sigmas : Tensor, shape (n, k)
        Gaussian components in x = ln(1 + z); means >= 0, sigmas > 0. The PDF is the mixture
        truncated at z = 0 and normalised again.
    """

    point: Tensor
    log_weights: Tensor
    means: Tensor
    sigmas: Tensor


class RedshiftNetwork(nn.Module, ABC):
    """Base of networks from standardised catalog features to a redshift and its PDF.

    Attributes
    ----------
    bands : tuple of str
        Bands of the inputs, in order.
    inputs : int
        Length of one input row; see `surveyproc.models.features`.
    declared_name : str
        The only name under which it may be built, where the name holds the number of bands; empty
        if any name will do.
    """

    declared_name: str = ""

    bands: tuple[str, ...]
    inputs: int

    @abstractmethod
    def forward(self, features: Tensor) -> RedshiftOutput:
        """Point estimate and mixture of `features`, float32, shape (n, inputs)."""

    @abstractmethod
    def loss(self, output: RedshiftOutput, redshift: Tensor) -> Tensor:
        """Loss of each object, shape (n,), against true redshifts of shape (n,)."""


Builder = Callable[[Sequence[str], Mapping[str, Any]], RedshiftNetwork]
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
        Bands of the inputs.
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
    network = _registry[pattern](tuple(bands), settings)
    if network.declared_name and network.declared_name != name:
        raise ConfigError(
            f"architecture {name!r} does not fit {len(bands)} bands ({', '.join(bands)}): "
            f"that network is {network.declared_name!r}"
        )
    return network


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
