"""The `photoz` product: redshifts of a catalog with a packaged network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from surveyproc.errors import ConfigError
from surveyproc.products.network import NetworkProduct


class PhotozProduct(NetworkProduct):
    """A network that has redshifts among its tasks; parameters are those of `NetworkProduct`.

    Raises
    ------
    ConfigError
        Also if the network gives no redshift.
    """

    kind: ClassVar[str] = "photoz"
    writes = "redshifts, quantiles of their PDFs where the model has some; its other tasks' columns"

    def _check(self, tasks: Sequence[str]) -> None:
        if "redshift" not in tasks:
            raise ConfigError(
                f"products.{self.name}: model {self.package.name!r} gives no redshift, only "
                + (", ".join(tasks) or "nothing")
            )
