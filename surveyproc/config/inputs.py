"""The sections of survey.toml about what comes in: images and the source catalog."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from surveyproc.config.expressions import keywords
from surveyproc.config.sections import TABLE, Band, Section, Table, increasing


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


def _arithmetic(value: float | str) -> float | str:
    if isinstance(value, str):
        keywords(value)
    elif not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


# A number, or arithmetic over header keywords such as `MAGZERO1 + 2.5*log10(EXPTIME)`.
Expression = Annotated[float | str, AfterValidator(_arithmetic)]
PlaneKind = Literal["image", "weight", "variance", "rms", "mask", "exposure", "context"]


class ImagesSection(Section):
    """The calibrated image tiles."""

    tiles: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        default_factory=list,
        description="Paths, globs or URLs of FITS files, relative to survey.toml.",
    )
    bands: list[Band] = Field(
        default_factory=list, description="Band names, in order of wavelength."
    )
    band_keyword: str = Field("FILTER", description="Header keyword that names the band.")
    tile_keyword: str = Field("OBJECT", description="Header keyword that names the tile.")
    zeropoint_keyword: str = Field(
        "MAGZERO", description="Header keyword: AB magnitude of 1 count."
    )
    zeropoints: dict[str, Expression] = Field(
        default_factory=dict,
        description="AB magnitude of one count by band, a number or an expression over header "
        "keywords; beats zeropoint_file, zeropoint, and the header.",
    )
    zeropoint_file: str | None = Field(
        None,
        description="Table with the columns file (a name without folders) and zeropoint.",
    )
    zeropoint: Expression | None = Field(
        None,
        description="AB magnitude of one count of every image, a number or an expression over "
        "header keywords: MAGZERO1 + 2.5*log10(EXPTIME).",
    )
    zeropoint_range: Annotated[list[float], AfterValidator(increasing)] = Field(
        [5.0, 45.0],
        min_length=2,
        max_length=2,
        description="Zero points from headers and tables outside of it are errors of their file; "
        "numbers in survey.toml are believed.",
    )
    gain: Expression | dict[str, Expression] | None = Field(
        None,
        description="Electrons of one count, for all bands or by band: a number, a keyword or an "
        "expression. Sources' own photon noise is then added to the errors of photometry; leave it "
        "out where the weights hold it already.",
    )
    planes: dict[PlaneKind, Annotated[list[int | str], BeforeValidator(_as_list)]] = Field(
        default_factory=dict,
        description="Kind of plane to HDU names, indices or patterns such as ERR*; or, where "
        "file_pattern has a group kind, to what it finds. weight is an inverse variance; exposure "
        "and context are left aside. By default the names of HDUs and files tell.",
    )
    file_pattern: str | None = Field(
        None,
        description="Regular expression searched in each file name; its named groups tile, band "
        "and kind (image, weight, variance, rms or mask, i, w, d or m) beat the header.",
    )
    mask_bits: int | None = Field(
        None,
        ge=0,
        lt=2**64,
        description="Bits of mask images that make a pixel bad; if absent, those that HSC, LSST "
        "and the Legacy Survey define so, else all.",
    )


class MagnitudeColumn(Section):
    """A band's magnitudes in the source catalog."""

    column: str = Field(description="Column with the magnitude.")
    error: str | None = Field(None, description="Column with its one-sigma error.")
    ab_offset: float = Field(
        0.0,
        allow_inf_nan=False,
        description="AB magnitude minus the column's: 0 for AB; for Vega magnitudes that of the "
        "band, 0.91 for J, say.",
    )
    softening: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Of asinh magnitudes (luptitudes): b in units of the flux of magnitude 0. SDSS "
        "has 1.4e-10, 0.9e-10, 1.2e-10, 1.8e-10, 7.4e-10 in u, g, r, i, z.",
    )


class FluxColumn(Section):
    """A band's fluxes in the source catalog."""

    column: str = Field(description="Column with the flux density.")
    error: str | None = Field(None, description="Column with its one-sigma error.")
    unit: str | None = Field(
        None,
        description="Any that astropy knows: nJy, uJy, nanomaggy, 10**-12 mgy (counts of AB zero "
        "point 30); that of the column if absent.",
    )


def _as_column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


def _all_none_or_names(value: Any) -> Any:
    named = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if not named and value not in ("all", "none"):
        raise ValueError(f'write "all", "none", or a list of column names, not {value!r}')
    return value


class CatalogSection(Section):
    """The source catalog."""

    source: str = Field(
        description="FITS, VOTable, Parquet, CSV, ECSV or HATS; relative path or URL."
    )
    table: Table | None = Field(None, description=TABLE)
    id: str | None = Field(
        None,
        description="Column with the object id: whole numbers or text; `object_id` if absent. "
        'Without that column, or with "", ids are made from positions.',
    )
    ra: str = Field(
        "ra", description="Column with the right ascension, ICRS; degrees, or its own unit."
    )
    dec: str = Field(
        "dec", description="Column with the declination, ICRS; degrees, or its own unit."
    )
    reddening: str | None = Field(
        None, description="Column with the galactic reddening E(B-V), mag; 0 if absent."
    )
    magnitudes: dict[
        Band,
        Annotated[
            MagnitudeColumn,
            BeforeValidator(_as_column, json_schema_input_type=str | MagnitudeColumn),
        ],
    ] = Field(
        default_factory=dict,
        description="Band to the column with its magnitudes, or to a table of column, error, "
        "ab_offset, softening. Makes flux_<band> without images.",
    )
    fluxes: dict[
        Band,
        Annotated[FluxColumn, BeforeValidator(_as_column, json_schema_input_type=str | FluxColumn)],
    ] = Field(
        default_factory=dict,
        description="The same for fluxes: column, error, unit.",
    )
    missing: list[float] = Field(
        default_factory=list,
        description="Numbers that mean that a magnitude, a flux or an error is missing: -9999, "
        "say. Magnitudes at or below 0 or above 40 are missing in any case.",
    )
    columns: Annotated[str | list[str], BeforeValidator(_all_none_or_names)] = Field(
        "all",
        description='The source\'s columns that a release carries: "all", "none", or their names.',
    )
    partition_rows: int = Field(100_000, ge=1, description="Most rows a partition may hold.")
