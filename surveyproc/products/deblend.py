"""The `deblend` product: fluxes of galaxies whose light is mixed, from a network of blends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surveyproc import schemas
from surveyproc.config.kinds import kind_of
from surveyproc.config.sections import BlendModelSection, ProductSection
from surveyproc.errors import ConfigError
from surveyproc.evaluate.blends import flux_names, galaxy_names
from surveyproc.images.cube import finest_tile
from surveyproc.measure.peaks import other_peak
from surveyproc.models.tasks.columns import column_name
from surveyproc.products.base import Batch, Inputs, PixelArray, RowTable
from surveyproc.products.network import NetworkProduct
from surveyproc.schemas import Column
from surveyproc.store.storage import fingerprint
from surveyproc.survey import Survey

NEIGHBOUR, PEAKS, PROBABLE = 1, 2, 4
"""Bits of `<product>_signs`."""
LEAST_APART = 1.0
"""Pixels below which two objects of the catalog are in one place."""
# Raise it when the same cutouts give other numbers.
FORMAT = 2


class DeblendSection(BlendModelSection):
    """Fluxes of blended objects."""

    radius: float = Field(
        2.0,
        gt=0,
        le=60,
        description="Another object of the catalog, or another peak, within so many arcsec makes "
        "an object a blended one.",
    )
    peaks: bool = Field(
        True, description="Whether peaks are looked for, in the model's first band."
    )
    probability: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Objects above this probability of an earlier product of kind "
        "blend_probability are blended too.",
    )
    masks: bool = Field(False, description="Whether the model's masks are kept, as pixels.")


class DeblendProduct(NetworkProduct):
    """A network of blends, run on every object that looks blended, centred on it.

    An object is blended if the catalog has another one within the radius, if there is more than one
    peak within it, or if its blend probability is above a threshold: bits 1, 2 and 4 of
    `<product>_signs`. A network that is told of neighbours is told of the peak where the catalog
    has none. Others have null fluxes, blendedness 0, and the flags of their cutouts alone.

    Blendedness is 1 - f / F, of the fluxes of the object and of all galaxies of the blend (after
    Bosch et al. 2018, PASJ 70, S5, section 4.9.11), summed over the bands, negative ones as 0.

    Flag bits it sets, beside those of `NetworkProduct`: `bad_pixels` where the cutout has pixels
    without a value in a band that is there (a saturated neighbour is masked); `same_place` where
    another object lies within a pixel; `crowded` where there are more neighbours than the model
    has companions. Fluxes are null with `same_place`, and with `missing_band` if the model does not
    do without bands.

    Every galaxy of a blend is a row of the table `<product>_galaxies`. For a network that is told
    of neighbours the companion number k is the k-th nearest of them. One that is not, and has one
    companion, means the only neighbour; which of several it means, or who its several companions
    are, which come brightest first, nothing says: they have no neighbour's id.

    Parameters
    ----------
    package, bands, name, reddening, survey_bands, fluxes :
        As of `NetworkProduct`.
    radius : float
        Arcsec.
    peaks : bool
        Whether peaks are looked for.
    probability : tuple of str and float, optional
        A column of blend probabilities, and the least one that makes an object a blended one.
    masks : bool
        Whether the model's masks are written, as pixels.

    Raises
    ------
    ConfigError
        Also if the model gives no fluxes of the galaxies of a blend, or is to give masks and has
        none.
    """

    kind: ClassVar[str] = "deblend"
    Section: ClassVar[type[ProductSection]] = DeblendSection
    reads = "cutouts; neighbours in the catalog; blend probabilities"
    writes = "fluxes of blended objects, and a table of all their galaxies; masks"
    tells_neighbours: ClassVar[bool] = True

    @classmethod
    def _more(cls, section: DeblendSection, survey: Survey) -> dict[str, Any]:
        probability = None
        if section.probability is not None:
            before = survey.config.products[: survey.config.products.index(section)]
            named = [
                one.name for one in before if kind_of(one.name, one.kind) == "blend_probability"
            ]
            if not named:
                raise ConfigError(
                    f"products.{section.name}.probability: no product of kind blend_probability is "
                    "listed before this one"
                )
            probability = named[-1], section.probability
        finest = finest_tile(survey.store, survey.name) if survey.config.images.tiles else None
        return {
            "radius": section.radius,
            "peaks": section.peaks,
            "probability": probability,
            "masks": section.masks,
            "pixel_scale": None if finest is None else finest[0],
        }

    def __init__(
        self,
        *given: Any,
        radius: float = 2.0,
        peaks: bool = True,
        probability: tuple[str, float] | None = None,
        masks: bool = False,
        pixel_scale: float | None = None,
        **named: Any,
    ) -> None:
        self._radius, self._peaks, self._probability = radius, peaks, probability
        self._keep_masks = masks
        super().__init__(*given, **named)
        half = self.package.reads["cutout"] / 2
        if pixel_scale is not None and radius / pixel_scale > half:
            raise ConfigError(
                f"products.{self.name}.radius: {radius:g} arcsec are {radius / pixel_scale:.0f} "
                f"pixels, and the stamps of model {self.package.name!r} reach {half:.0f} pixels "
                f"from their centre: at most {half * pixel_scale:.3g}"
            )

    def _check(self, tasks: Sequence[str]) -> None:
        images = self.package.reads["images"]
        fluxes: list[str] = next(
            (task["names"] for task in self.package.tasks if task["kind"] == "fluxes"), []
        )
        self._galaxies = len(fluxes) // max(1, len(images))
        if not fluxes or tuple(fluxes) != flux_names(self._galaxies, images):
            raise ConfigError(
                f"products.{self.name}: model {self.package.name!r} gives no fluxes of the "
                "galaxies of a blend, as forced_blend2flux, blend2flux and blend2mask2flux do: "
                f"it gives {', '.join(tasks) or 'nothing'}"
            )
        if self._keep_masks and "masks" not in tasks:
            raise ConfigError(
                f"products.{self.name}.masks: model {self.package.name!r} gives none; "
                "blend2mask2flux does"
            )

    @property
    def inputs(self) -> Inputs:
        """Cutouts, blend probabilities, and one neighbour more than the model has companions."""
        own = super().inputs
        more = (self._probability[0],) if self._probability else ()
        return replace(
            own, columns=(*own.columns, *more), neighbours=self._galaxies, radius=self._radius
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of schemas/deblend.toml."""
        return schemas.load("deblend", product=self.name, bands=self._bands)

    @property
    def tables(self) -> tuple[RowTable, ...]:
        """Columns of schemas/deblend_galaxies.toml, a row a galaxy."""
        return (RowTable(self._table, schemas.load("deblend_galaxies", bands=self._bands)),)

    @property
    def pixels(self) -> tuple[PixelArray, ...]:
        """Masks of the galaxies, the object itself first, if they are asked for."""
        if not self._keep_masks:
            return ()
        side = int(self.package.reads["cutout"])
        text = f"Pixels of {', '.join(galaxy_names(self._galaxies))}: 1 inside."
        shape = (self._galaxies, side, side)
        return (PixelArray(self._masks, shape, "uint8", description=text),)

    @property
    def version(self) -> str:
        """That of a network's product, and a hash of the settings."""
        settings = [FORMAT, self._radius, self._peaks, self._probability, self._keep_masks]
        return f"{super().version}-{fingerprint(settings)[:8]}"

    @property
    def _bands(self) -> tuple[str, ...]:
        return self._here(self._images)

    @property
    def _table(self) -> str:
        return f"{column_name(self.name)}_galaxies"

    @property
    def _masks(self) -> str:
        return f"{column_name(self.name)}_masks"

    def compute(self, batch: Batch) -> Mapping[str, Any]:
        """Columns, the table's rows and masks of `batch`; see the class."""
        n = len(batch.flags)
        images = self._planes(batch)
        known: Any = np.isfinite(images)
        seen = known.any(axis=(2, 3))
        empty = ~seen.any(axis=1)
        flags = np.asarray(batch.flags, np.int32).copy()
        flags[empty] |= schemas.flag("no_image")
        flags[~seen.all(axis=1)] |= schemas.flag("missing_band")
        signs, peaks = self._signs(batch, images)
        rows = np.flatnonzero((signs > 0) & ~empty)
        flux = np.full((n, self._galaxies, len(self._bands)), np.nan, np.float32)
        error = flux.copy()
        masks = None
        if self._keep_masks:
            masks = np.zeros((n, *self.pixels[0].shape), np.uint8)
        if len(rows):
            found = super().compute(_taken(_told_of(batch, peaks), rows))
            flags[rows] |= found[f"{self.name}_flag"]
            useless = self._useless(batch, flags)[rows]
            flux[rows], error[rows] = (
                np.where(useless[:, None, None], np.nan, self._fluxes_of(found, kind))
                for kind in ("flux", "flux_err")
            )
            if masks is not None:
                maps = found[f"{self._prefix}_masks"][:, -self._galaxies :]
                masks[rows] = (maps >= 0.5) & ~useless[:, None, None, None]
            holed = (~known & seen[:, :, None, None]).any(axis=(1, 2, 3))[rows]
            flags[rows[holed]] |= schemas.flag("bad_pixels")
            self._flag_neighbours(batch, flags, rows)
        ids = _first(batch.neighbour_ids, n)
        out: dict[str, Any] = {}
        for number, band in enumerate(self._bands):
            out[f"{self.name}_flux_{band}"] = flux[:, 0, number]
            out[f"{self.name}_flux_err_{band}"] = error[:, 0, number]
        out[f"{self.name}_blendedness"] = _blendedness(flux, (signs == 0) & ~empty)
        out[f"{self.name}_neighbour_id"] = ids
        out[f"{self.name}_signs"] = signs
        out[f"{self.name}_flag"] = flags
        out[self._table] = self._rows(batch, flux, error)
        if masks is not None:
            out[self._masks] = masks
        return out

    def _places(self, batch: Batch) -> NDArray[np.float64] | None:
        assert batch.neighbour_pixels is not None
        return batch.neighbour_pixels[:, : self._galaxies - 1]

    def _signs(
        self, batch: Batch, images: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Why objects are taken for blended, as bits, and (x, y) of the peaks beside them."""
        peaks = np.full((len(batch.flags), 2), np.nan)
        signs = np.zeros(len(batch.flags), np.int32)
        signs[_distances(batch)[:, 0] <= self._radius] |= NEIGHBOUR
        if self._peaks and batch.pixel_scale is not None:
            for row, scale in enumerate(batch.pixel_scale):
                if not np.isfinite(scale):
                    continue
                if place := other_peak(images[row, 0], self._radius / scale):
                    signs[row] |= PEAKS
                    peaks[row] = place
        if self._probability is not None:
            column, threshold = self._probability
            signs[np.asarray(batch.columns[column]) > threshold] |= PROBABLE
        return signs, peaks

    def _useless(self, batch: Batch, flags: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Where no flux can be believed."""
        lacking = np.zeros(len(flags), bool)
        if self.package.absent_bands != "mask":
            lacking = (flags & schemas.flag("missing_band")) > 0
        return lacking | self._same_place(batch)

    def _same_place(self, batch: Batch) -> NDArray[np.bool_]:
        if batch.pixel_scale is None:
            return np.zeros(len(batch.flags), bool)
        with np.errstate(invalid="ignore"):
            return np.asarray(_distances(batch)[:, 0] < LEAST_APART * batch.pixel_scale)

    def _flag_neighbours(
        self, batch: Batch, flags: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> None:
        crowded = np.isfinite(_distances(batch)).sum(axis=1) >= self._galaxies
        for name, where in (("same_place", self._same_place(batch)), ("crowded", crowded)):
            flags[rows[where[rows]]] |= schemas.flag(name)

    def _fluxes_of(self, found: Mapping[str, Any], kind: str) -> NDArray[np.float32]:
        """Fluxes or errors of all galaxies, shape (n, galaxy, band)."""
        here = [band for band in self._images if band not in self.absent]
        return np.stack(
            [
                np.stack([found[f"{self._prefix}_{kind}_{one}_{band}"] for band in here], axis=1)
                for one in galaxy_names(self._galaxies)
            ],
            axis=1,
        )

    def _rows(
        self, batch: Batch, flux: NDArray[np.float32], error: NDArray[np.float32]
    ) -> dict[str, NDArray[Any]]:
        """The table: every galaxy of a blend whose fluxes are known."""
        ids = np.zeros((len(flux), self._galaxies), np.int64)
        told = self.package.reads.get("neighbours")
        if batch.neighbour_ids is not None and (told or self._galaxies == 2):
            ids[:, 1:] = batch.neighbour_ids[:, : self._galaxies - 1]
        if not told:
            ids[np.isfinite(_distances(batch)).sum(axis=1) > 1] = 0
        row, galaxy = np.nonzero(np.isfinite(flux).any(axis=2))
        columns: dict[str, NDArray[Any]] = {
            "row": row,
            "galaxy": galaxy.astype(np.int32),
            "neighbour_id": ids[row, galaxy],
        }
        for number, band in enumerate(self._bands):
            columns[f"flux_{band}"] = flux[row, galaxy, number]
            columns[f"flux_err_{band}"] = error[row, galaxy, number]
        return columns


def _taken(batch: Batch, rows: NDArray[np.int64]) -> Batch:
    """Some objects of a batch."""
    arrays = {
        one.name: getattr(batch, one.name)[rows]
        for one in fields(batch)
        if one.name != "columns" and getattr(batch, one.name) is not None
    }
    columns = {name: values[rows] for name, values in batch.columns.items()}
    return replace(batch, columns=columns, **arrays)


def _told_of(batch: Batch, peaks: NDArray[np.float64]) -> Batch:
    """The batch with a peak for a neighbour where the catalog has none."""
    n, most = len(peaks), 1
    if batch.neighbour_offsets is not None:
        most = batch.neighbour_offsets.shape[1]
    places = np.full((n, most, 2), np.nan)
    if batch.neighbour_pixels is not None:
        places = batch.neighbour_pixels.copy()
    alone = np.isnan(places[:, 0]).any(axis=1)
    places[alone, 0] = peaks[alone]
    return replace(batch, neighbour_pixels=places)


def _distances(batch: Batch) -> NDArray[np.float64]:
    """Arcsec to the neighbours, nearest first, shape (n, m), m > 0; NaN where there is none."""
    if batch.neighbour_offsets is None:
        return np.full((len(batch.flags), 1), np.nan)
    return np.asarray(np.linalg.norm(batch.neighbour_offsets, axis=2))


def _first(ids: NDArray[np.int64] | None, n: int) -> NDArray[np.int64]:
    return np.zeros(n, np.int64) if ids is None else np.ascontiguousarray(ids[:, 0])


def _blendedness(flux: NDArray[np.float32], alone: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Share of the others of fluxes of shape (n, galaxy, band); 0 where an object is alone."""
    light = np.clip(flux, 0.0, None).sum(axis=2)
    total = light.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(total > 0, 1 - light[:, 0] / total, np.nan)
    return np.where(alone, 0.0, np.clip(share, 0.0, 1.0)).astype(np.float32)
