"""The source catalog's own magnitudes and fluxes as photometry: a product that reads columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.config.inputs import CatalogSection, FluxColumn, MagnitudeColumn
from surveyproc.errors import ConfigError, near_or_all
from surveyproc.measure.magnitudes import (
    fluxes_of_fluxes,
    fluxes_of_magnitudes,
    nanojansky,
    without_codes,
)
from surveyproc.products.base import Batch, Inputs
from surveyproc.schemas import Column, flag, load
from surveyproc.store.storage import fingerprint

# Raise it when the same columns give other numbers.
FORMAT = 1


class CatalogPhotometry:
    """The product `catalog_photometry`: flux and error in nJy in every band of the catalog.

    Flag bits it sets: `missing_band` where a band has no value (null, a code for missing, no
    possible magnitude); `non_finite_input` as well where a flux is infinite; `no_image` where no
    band has a value.

    Parameters
    ----------
    section : CatalogSection
        Its `magnitudes`, `fluxes` and `missing` are read.
    columns : sequence of Column
        Those of the catalog.

    Raises
    ------
    ConfigError
        If the catalog lacks a column, one holds no numbers, or a flux has no usable unit.
    """

    name = "catalog_photometry"

    def __init__(self, section: CatalogSection, columns: Sequence[Column]) -> None:
        self.missing = tuple(section.missing)
        self.bands: dict[str, MagnitudeColumn | FluxColumn] = {
            **section.magnitudes,
            **section.fluxes,
        }
        known = {column.name: column for column in columns}
        for key, bands in (("magnitudes", section.magnitudes), ("fluxes", section.fluxes)):
            for band, one in bands.items():
                for name in filter(None, (one.column, one.error)):
                    check_number(f"catalog.{key}.{band}", name, known)
        self.units = {band: _unit(band, one, known) for band, one in section.fluxes.items()}

    @property
    def inputs(self) -> Inputs:
        """The columns that [catalog.magnitudes] and [catalog.fluxes] name; no images."""
        names = (name for one in self.bands.values() for name in (one.column, one.error) if name)
        return Inputs(columns=tuple(dict.fromkeys(names)))

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of schemas/catalog_photometry.toml; of errors where the source has some."""
        unknown = {f"flux_err_{band}" for band, one in self.bands.items() if not one.error}
        every = load("catalog_photometry", bands=self.bands)
        return tuple(column for column in every if column.name not in unknown)

    @property
    def version(self) -> str:
        """Hash of the settings and of this code's FORMAT."""
        bands = [[band, one.model_dump()] for band, one in self.bands.items()]
        return fingerprint([FORMAT, bands, self.units, self.missing])

    def prepare(self) -> None:
        """Nothing to load."""

    def compute(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """Fluxes and errors of a batch; NaN where missing. See the class for flags."""
        flux: dict[str, NDArray[Any]] = {}
        error: dict[str, NDArray[Any]] = {}
        for band, one in self.bands.items():
            values = without_codes(batch.columns[one.column], self.missing)
            unsure = without_codes(batch.columns[one.error], self.missing) if one.error else None
            if isinstance(one, MagnitudeColumn):
                found = fluxes_of_magnitudes(
                    values, unsure, ab_offset=one.ab_offset, softening=one.softening
                )
            else:
                found = fluxes_of_fluxes(values, unsure, self.units[band])
            with np.errstate(over="ignore"):
                flux[f"flux_{band}"], error[f"flux_err_{band}"] = (
                    values.astype(np.float32) for values in found
                )
        every = np.stack(list(flux.values()))
        present, infinite = np.isfinite(every), np.isinf(every).any(axis=0)
        flags = np.asarray(batch.flags, np.int32).copy()
        flags[~present.all(axis=0)] |= flag("missing_band")
        flags[infinite] |= flag("non_finite_input")
        flags[~present.any(axis=0)] |= flag("no_image")
        columns = {**flux, **error}
        for values in columns.values():
            values[np.isinf(values)] = np.nan
        return {**columns, "catalog_photometry_flag": flags}


def check_number(key: str, name: str, known: Mapping[str, Column]) -> None:
    """Refuse a name that is no column of one number a row.

    Raises
    ------
    ConfigError
        Naming the key and the column, and the nearest one that there is.
    """
    if name not in known:
        raise ConfigError(f"{key}: the catalog has no column {name!r}" + near_or_all(name, known))
    column = known[name]
    if column.length or not column.dtype.startswith(("int", "uint", "float")):
        what = f"lists of {column.dtype}" if column.length else column.dtype
        raise ConfigError(f"{key}: column {name!r} holds {what}, not one number an object")


def _unit(band: str, one: FluxColumn, known: Mapping[str, Column]) -> float:
    unit = one.unit or known[one.column].unit
    if not unit:
        raise ConfigError(
            f"catalog.fluxes.{band}: column {one.column!r} says no unit; say it: "
            f'{{ column = "{one.column}", unit = "nJy" }} (or uJy, nanomaggy, ...)'
        )
    try:
        return nanojansky(unit)
    except ConfigError as error:
        raise ConfigError(f"catalog.fluxes.{band}: {error}") from error
