"""The `type_redshift` product: classes and redshifts of a catalog from one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from surveyproc.config.sections import ModelSection, ProductSection
from surveyproc.errors import ConfigError
from surveyproc.products.network import NetworkProduct


class TypeRedshiftSection(ModelSection):
    """A product of types and redshifts."""

    architecture: str | None = Field(
        "otelo", description="The registered network to train; its tasks are classes and redshifts."
    )


class TypeRedshiftProduct(NetworkProduct):
    """A network of classes and redshifts; parameters are those of `NetworkProduct`.

    Raises
    ------
    ConfigError
        Also if the network lacks one of the two.
    """

    kind: ClassVar[str] = "type_redshift"
    Section: ClassVar[type[ProductSection]] = TypeRedshiftSection
    writes = "probabilities of classes, redshifts and their PDFs, also those given the class"

    def _check(self, tasks: Sequence[str]) -> None:
        for kind, what in (("classes", "class"), ("redshift", "redshift")):
            if kind not in tasks:
                raise ConfigError(
                    f"products.{self.name}: model {self.package.name!r} gives no {what}, only "
                    + (", ".join(tasks) or "nothing")
                )
