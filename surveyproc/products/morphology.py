"""The `morphology` product: what galaxies look like, from their cutouts with a packaged network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from surveyproc.errors import ConfigError
from surveyproc.products.network import NetworkProduct


class MorphologyProduct(NetworkProduct):
    """A network of cutouts with classes or votes; parameters are those of `NetworkProduct`.

    Raises
    ------
    ConfigError
        Also if the network reads no cutouts, or has neither classes nor votes.
    """

    kind: ClassVar[str] = "morphology"
    writes = "probabilities of classes or shares of votes; its other tasks' columns"

    def _check(self, tasks: Sequence[str]) -> None:
        if not self.package.reads["cutout"] or not set(tasks) & {"classes", "votes"}:
            reads = self.package.reads["cutout"]
            raise ConfigError(
                f"products.{self.name}: model {self.package.name!r} tells no morphology: that "
                f"takes cutouts (it reads {reads} pixels) and classes or votes (it gives "
                f"{', '.join(sorted(tasks))})"
            )
