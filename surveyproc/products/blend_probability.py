"""The `blend_probability` product: is what the catalog takes for one object several galaxies?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surveyproc import schemas
from surveyproc.config.sections import BlendModelSection, ProductSection
from surveyproc.errors import ConfigError
from surveyproc.evaluate.blends import KINDS
from surveyproc.products.base import Batch, Inputs, PixelArray
from surveyproc.products.network import NetworkProduct
from surveyproc.schemas import Column
from surveyproc.store.storage import fingerprint
from surveyproc.survey import Survey


class BlendProbabilitySection(BlendModelSection):
    """Probabilities that objects are blends."""

    architecture: str | None = Field(
        "morphology", description="The registered network to train; its classes are of blends."
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="Probability above which an object is an unrecognised blend."
    )
    radius: float = Field(
        2.0,
        gt=0,
        le=60,
        description="If the catalog has another object within so many arcsec, the blend was "
        "recognised.",
    )


class BlendProbabilityProduct(NetworkProduct):
    """A network of cutouts with the classes `blend` and `single`.

    Its column has the name of the product. The flag `unrecognised_blend` is set where the
    probability is above a threshold, and the catalog has no other object within the radius;
    `bad_pixels` where the cutout has pixels without a value in a band that is there (a saturated
    neighbour is masked).

    Parameters
    ----------
    threshold, radius : float
        See `BlendProbabilitySection`; the others are those of `NetworkProduct`.

    Raises
    ------
    ConfigError
        Also if the network reads no cutouts, or its classes are others.
    """

    kind: ClassVar[str] = "blend_probability"
    Section: ClassVar[type[ProductSection]] = BlendProbabilitySection
    reads = "cutouts; neighbours in the catalog"
    writes = "the probability that an object is a blend; the flag of those nobody recognised"

    @classmethod
    def _more(cls, section: BlendProbabilitySection, survey: Survey) -> dict[str, Any]:
        return {"threshold": section.threshold, "radius": section.radius}

    def __init__(
        self, *given: Any, threshold: float = 0.5, radius: float = 2.0, **named: Any
    ) -> None:
        self._threshold, self._radius = threshold, radius
        super().__init__(*given, **named)

    def _check(self, tasks: Sequence[str]) -> None:
        classes: list[list[str]] = [
            task["classes"] for task in self.package.tasks if task["kind"] == "classes"
        ]
        if not self.package.reads["cutout"] or [set(one) for one in classes] != [set(KINDS)]:
            raise ConfigError(
                f"products.{self.name}: model {self.package.name!r} does not tell blends: that "
                f"takes cutouts (it reads {self.package.reads['cutout']} pixels) and the classes "
                f"{', '.join(KINDS)} (it gives {classes or ', '.join(tasks) or 'nothing'}): train "
                "it with a cube of `surveyproc blends --isolated`"
            )

    @property
    def inputs(self) -> Inputs:
        """What the network reads, and the nearest neighbour."""
        return replace(super().inputs, neighbours=1, radius=self._radius)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of schemas/blend_probability.toml."""
        return schemas.load("blend_probability", product=self.name)

    @property
    def pixels(self) -> tuple[PixelArray, ...]:
        """None."""
        return ()

    @property
    def version(self) -> str:
        """That of a network's product, and a hash of the settings and of the flags it knows."""
        known = ["unrecognised_blend", "bad_pixels"]
        return f"{super().version}-{fingerprint([self._threshold, self._radius, known])[:8]}"

    def compute(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """The probability and the flags of `batch`."""
        found = super().compute(batch)
        probability = found[f"{self._prefix}_p_blend"]
        flags = found[f"{self.name}_flag"]
        alone = np.ones(len(flags), bool)
        if batch.neighbour_offsets is not None:
            alone = np.isnan(batch.neighbour_offsets[:, 0, 0])
        flags[(probability > self._threshold) & alone] |= schemas.flag("unrecognised_blend")
        known: Any = np.isfinite(self._planes(batch))
        seen = known.any(axis=(2, 3), keepdims=True)
        flags[(~known & seen).any(axis=(1, 2, 3))] |= schemas.flag("bad_pixels")
        return {self.name: probability, f"{self.name}_flag": flags}
