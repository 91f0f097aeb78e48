"""The `morphology` product: what galaxies look like, from their cutouts with a packaged network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surveyproc.errors import ConfigError
from surveyproc.models.package import Package
from surveyproc.products.network import NetworkProduct


class MorphologyProduct(NetworkProduct):
    """A network of cutouts with classes or votes; parameters are those of `NetworkProduct`.

    Raises
    ------
    ConfigError
        Also if the network reads no cutouts, or has neither classes nor votes.
    """

    writes = "probabilities of classes or shares of votes; its other tasks' columns"

    def __init__(
        self,
        package: Package,
        bands: Mapping[str, str] | None = None,
        *,
        name: str = "morphology",
        reddening: str | None = None,
        survey_bands: Sequence[str] | None = None,
    ) -> None:
        kinds = {str(task["kind"]) for task in package.tasks}
        if not package.reads["cutout"] or not kinds & {"classes", "votes"}:
            raise ConfigError(
                f"products.{name}: model {package.name!r} tells no morphology: that takes cutouts "
                f"(it reads {package.reads['cutout']} pixels) and classes or votes (it gives "
                f"{', '.join(sorted(kinds))})"
            )
        super().__init__(package, bands, name=name, reddening=reddening, survey_bands=survey_bands)
