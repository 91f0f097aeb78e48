"""The `photoz` product: redshifts of a catalog with a packaged network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surveyproc.errors import ConfigError
from surveyproc.models.package import Package
from surveyproc.products.network import NetworkProduct


class PhotozProduct(NetworkProduct):
    """A network that has redshifts among its tasks; parameters are those of `NetworkProduct`.

    Raises
    ------
    ConfigError
        Also if the network gives no redshift.
    """

    writes = "redshifts, quantiles of their PDFs where the model has some; its other tasks' columns"

    def __init__(
        self,
        package: Package,
        bands: Mapping[str, str] | None = None,
        *,
        name: str = "photoz",
        reddening: str | None = None,
        survey_bands: Sequence[str] | None = None,
    ) -> None:
        kinds = [str(task["kind"]) for task in package.tasks]
        if "redshift" not in kinds:
            raise ConfigError(
                f"products.{name}: model {package.name!r} gives no redshift, only "
                + (", ".join(kinds) or "nothing")
            )
        super().__init__(package, bands, name=name, reddening=reddening, survey_bands=survey_bands)
