"""The `type_redshift` product: classes and redshifts of a catalog from one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from surveyproc.config.sections import ModelSection, ProductSection
from surveyproc.errors import ConfigError
from surveyproc.models.package import Package
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

    Section: ClassVar[type[ProductSection]] = TypeRedshiftSection
    writes = "probabilities of classes, redshifts and their PDFs, also those given the class"

    def __init__(
        self,
        package: Package,
        bands: Mapping[str, str] | None = None,
        *,
        name: str = "type_redshift",
        reddening: str | None = None,
        survey_bands: Sequence[str] | None = None,
    ) -> None:
        kinds = [str(task["kind"]) for task in package.tasks]
        for kind, what in (("classes", "class"), ("redshift", "redshift")):
            if kind not in kinds:
                raise ConfigError(
                    f"products.{name}: model {package.name!r} gives no {what}, only "
                    + (", ".join(kinds) or "nothing")
                )
        super().__init__(package, bands, name=name, reddening=reddening, survey_bands=survey_bands)
