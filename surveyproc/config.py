"""survey.toml as typed, validated models. Every error names the file and the key.

Precedence: `--set section.key=value`, then the file, then `SURVEYPROC_SECTION_KEY` variables, then
defaults.
"""

from __future__ import annotations

import copy
import difflib
import glob
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from surveyproc.errors import ConfigError, StoreError
from surveyproc.expressions import keywords
from surveyproc.urls import is_web, public_url

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Band = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]{0,31}$")]

Table = Annotated[str | int, Field(union_mode="left_to_right")]
TABLE = (
    "Which table of a FITS file or VOTable that holds several: name of the HDU or its index (the "
    "primary one is 0), name, ID or number (from 0) of the VOTable's table. By default the one "
    "that has the columns."
)

TOLERANCE = 1e-6
"""Relative change below which two floats of two releases count as equal: ten float32 steps."""


def _without_login(url: str) -> str:
    if public_url(url) != url:
        raise ValueError(
            "this URL holds a user name, password or signature, which would end up in records: "
            "take it out; credentials come from the environment, a profile or the machine"
        )
    return url


def _writable(url: str) -> str:
    if is_web(url):
        raise ValueError("a web server cannot be written to: name a folder or an object store")
    return url


# What a model is called: `name`, `name@version`, or the path or URL of a package's folder.
ModelReference = Annotated[
    str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,1024}$"), AfterValidator(_without_login)
]


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


def _increasing(limits: list[float]) -> list[float]:
    if not limits[0] < limits[1]:
        raise ValueError(f"the lower one comes first, not {limits}")
    return limits


def _as_floats(value: Any) -> Any:
    return [value] if isinstance(value, int | float) else value


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SurveySection(Section):
    """Who we are and where everything written lies."""

    name: Name = Field(description="Name of the survey; also the name of its release.")
    root: Annotated[str, AfterValidator(_without_login), AfterValidator(_writable)] = Field(
        description="Path or URL under which everything is written."
    )


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
    zeropoint_range: Annotated[list[float], AfterValidator(_increasing)] = Field(
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


class LabelsSection(Section):
    """A table of known redshifts, matched to the catalog on the sky."""

    source: str = Field(description="Any catalog format; relative path or URL.")
    table: Table | None = Field(None, description=TABLE)
    redshift: str = Field(description="Column with the redshift.")
    ra: str = Field("ra", description="Column with the right ascension; degrees, or its own unit.")
    dec: str = Field("dec", description="Column with the declination; degrees, or its own unit.")
    select: str | None = Field(None, description="Boolean column: only rows where it is true.")
    radius: float = Field(1.0, gt=0, le=3600, description="Largest distance of a match, arcsec.")


class TrainingSection(LabelsSection):
    """Labels of a product's network, with its own photometry or with the survey's."""

    magnitudes: dict[str, str] = Field(
        default_factory=dict,
        description="Model band to AB magnitude column of the label table. If given, the network "
        "learns from these; else from the survey's photometry of the matched objects.",
    )
    magnitude_errors: dict[str, str] = Field(
        default_factory=dict, description="Model band to column with the magnitude's error."
    )
    bands: list[str] = Field(
        default_factory=list,
        description="Bands of the survey that the network gets; all if empty.",
    )
    redshifts: list[float] = Field(
        [0.0, 20.0],
        min_length=2,
        max_length=2,
        description="Labels between these two are trained with; others are left out.",
    )
    held_out_share: float = Field(
        0.15,
        ge=0,
        lt=0.9,
        description="Share of the labels, by whole sky pixels, whose loss chooses the best epoch; "
        "with 0 all are trained with and the last weights count. With folds each of them is "
        "held out by its own networks instead.",
    )
    test_share: float = Field(
        0.0,
        ge=0,
        lt=0.9,
        description="Share of the labels, by whole sky pixels, that neither weights nor the choice "
        "of the best epoch depend on; the finished model is measured on them.",
    )
    dropped_rows: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the objects that lose bands at random in an epoch, which teaches the "
        "network to do without; 0 makes a model that refuses a survey without one of its bands. By "
        "default what suits the network.",
    )
    dropped_bands: float | None = Field(
        None, gt=0, lt=1, description="Share of the bands that such an object loses."
    )
    epochs: int = Field(30, ge=1, description="Epochs of each learning-rate stage.")
    batch_size: int = Field(64, ge=1, description="Objects a step, over all workers.")
    workers: int = Field(
        1,
        ge=1,
        description="Processes that share the gradients of a single network; more than one need "
        "Ray. Of several networks each has one process.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of weights, split and shuffling.")
    learning_rates: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=list,
        description="One for each stage; by default those that suit the network.",
    )
    folds: int = Field(
        1,
        ge=1,
        description="Parts of the sky, each held out by other networks: k-fold cross-validation.",
    )
    members: int = Field(
        1,
        ge=1,
        description="Networks of each fold, which differ by their seed. All networks are trained "
        "in parallel; the PDF is their mean.",
    )
    patience: int | None = Field(
        None, ge=1, description="End a stage after so many epochs without a lower validation loss."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the networks' layers in training."
    )
    accumulate: int = Field(1, ge=1, description="Parts in which a step's gradients are computed.")
    shift: int = Field(2, ge=0, description="Largest shift of a cutout in training, pixels.")


class ProductSection(Section):
    """One product of the run."""

    name: Name = Field(description="photometry, photoz, or photoz_<something> for another model.")
    model: ModelReference | None = Field(
        None,
        description="A package under <root>/models (name or name@version), the path or URL of a "
        "package's folder (anything with a slash), or a registered network to train.",
    )
    bands: dict[str, str] = Field(
        default_factory=dict,
        description='Model band to survey band where the names differ, or to "" for none.',
    )
    aperture: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]],
        BeforeValidator(_as_floats, json_schema_input_type=float | list[float]),
    ] = Field(
        [1.0],
        min_length=1,
        description="Photometry: aperture radius, arcsec, or a list of them: the first is that of "
        "flux_<band>, the others have columns like flux_<band>_2p0.",
    )
    architecture: str | None = Field(
        None, description="The registered network to train, if `model` is another name for it."
    )
    network: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the registered network to train."
    )
    training: TrainingSection | None = Field(None, description="How to train the model.")


class GatesSection(Section):
    """What a release must satisfy to be published."""

    max_null_share: float = Field(
        0.5, ge=0, le=1, description="Largest share of nulls in any product column."
    )
    max_out_of_range_share: float = Field(
        0.0, ge=0, le=1, description="Largest share of values outside a column's declared range."
    )
    max_quarantined_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Largest share of objects in quarantined units: those that failed every "
        "attempt, whose products are null.",
    )


class NightlySection(Section):
    """What a night's release must satisfy beside the last one, and how many are kept."""

    max_rows_lost: float = Field(
        0.01, ge=0, le=1, description="Largest share of the last release's rows that may be gone."
    )
    max_share_growth: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Most that the share of a column's nulls, or of a product's flag, may grow.",
    )
    max_drift: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest Kolmogorov-Smirnov distance between a product column's values and "
        "those of the last release.",
    )
    max_flux_shift: float = Field(
        0.03,
        ge=0,
        description="Largest shift of the fluxes of one tile in one column: by how much the median "
        "ratio to the last release, of at least 14 bright objects (20 sigma), may differ from 1.",
    )
    max_metric_growth: float = Field(
        0.1,
        ge=0,
        description="Most that NMAD and outlier fraction on the [truth] table may grow, as a share "
        "of the last release's value; two of its standard errors are always allowed.",
    )
    keep_releases: int = Field(
        3, ge=2, description="Published releases to keep; readers may still be using older ones."
    )


class RunSection(Section):
    """How the work is spread."""

    place: Literal["auto", "here", "ray"] = Field(
        "auto",
        description="Where work runs: in the command's own process, on Ray, or by its size.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Worker processes, as many as CPUs if absent; in one process, at most four "
        "threads.",
    )
    niceness: int = Field(
        0, ge=0, le=19, description="Of the worker processes of a Ray that the command starts."
    )
    attempts: int = Field(3, ge=1, description="Failed attempts after which a unit is quarantined.")
    address: str = Field("local", description='Ray address; "local" starts and stops its own.')


class SurveyConfig(Section):
    """The whole of survey.toml."""

    survey: SurveySection
    images: ImagesSection = Field(
        default_factory=ImagesSection,  # type: ignore[arg-type]
        description="Absent if the catalog brings the photometry.",
    )
    catalog: CatalogSection
    products: list[ProductSection] = Field(default_factory=list)
    truth: LabelsSection | None = Field(None, description="Known redshifts for `evaluate`.")
    gates: GatesSection = Field(default_factory=GatesSection)  # type: ignore[arg-type]
    nightly: NightlySection = Field(default_factory=NightlySection)  # type: ignore[arg-type]
    run: RunSection = Field(default_factory=RunSection)  # type: ignore[arg-type]
    base: str = Field(".", exclude=True, description="Folder of survey.toml; set by the loader.")

    @model_validator(mode="after")
    def _bands_and_products(self) -> SurveyConfig:
        if len(set(self.images.bands)) != len(self.images.bands):
            raise ValueError("images.bands: a band is named twice")
        if not self.bands or (self.images.tiles and not self.images.bands):
            raise ValueError(
                "key 'images.bands' is missing: name the survey's bands, or the catalog's columns "
                "of each in [catalog.magnitudes] or [catalog.fluxes]"
            )
        if twice := sorted(set(self.catalog.magnitudes) & set(self.catalog.fluxes)):
            raise ValueError(f"catalog.fluxes: band {twice[0]!r} is in catalog.magnitudes too")
        names = [product.name for product in self.products]
        if len(set(names)) != len(names):
            raise ValueError("products: two products share a name")
        for product in self.products:
            for band in product.bands.values():
                if band and band not in self.bands:
                    raise ValueError(
                        f"products.{product.name}.bands: {band!r} is not in images.bands "
                        f"({', '.join(self.bands)})"
                    )
            if len(set(product.aperture)) != len(product.aperture):
                raise ValueError(f"products.{product.name}.aperture: a radius is named twice")
            limits = product.training.redshifts if product.training else [0.0, 1.0]
            if not limits[0] < limits[1]:
                raise ValueError(
                    f"products.{product.name}.training.redshifts: the lowest comes first, not "
                    f"{limits}"
                )
        models = [product.model for product in self.products if product.model]
        for model in models:
            if models.count(model) > 1:
                raise ValueError(
                    f"products: two of them have the model {model!r}, so their columns would have "
                    "the same names; give one network another name with `architecture`"
                )
        return self

    @property
    def bands(self) -> tuple[str, ...]:
        """The survey's bands: those of its images, then those of the catalog's own photometry."""
        own = (*self.catalog.magnitudes, *self.catalog.fluxes)
        return tuple(dict.fromkeys((*self.images.bands, *own)))

    @property
    def root(self) -> str:
        """The root as an absolute path or a URL."""
        return self.resolve(self.survey.root)

    def resolve(self, path: str) -> str:
        """A path of survey.toml, relative to the file's folder, as an absolute path or URL."""
        return path if "://" in path else str((Path(self.base) / path).absolute())

    def tile_files(self) -> list[str]:
        """The tile files, globs expanded, sorted, each once.

        Raises
        ------
        ConfigError
            If a pattern matches nothing.
        """
        found: set[str] = set()
        for pattern in self.images.tiles:
            # The folder of survey.toml is no pattern, whatever characters its name has.
            anchored = str(Path(glob.escape(str(Path(self.base).absolute()))) / pattern)
            remote = "://" in pattern
            matches = _url_glob(pattern) if remote else glob.glob(anchored, recursive=True)
            if not matches:
                where = "" if remote else f" in {self.base}"
                raise ConfigError(f"images.tiles: {public_url(pattern)!r} matches no file{where}")
            found.update(matches)
        return sorted(found)

    def product(self, name: str) -> ProductSection:
        """The product section called `name`.

        Raises
        ------
        ConfigError
            If there is none.
        """
        for product in self.products:
            if product.name == name:
                return product
        known = ", ".join(product.name for product in self.products) or "none"
        raise ConfigError(f"products: no product is called {name!r} (there are: {known})")


def _url_glob(pattern: str) -> list[str]:
    """URLs that match; a web address is taken as it is, since its query begins with `?`."""
    if is_web(pattern) or not re.search(r"[*?[]", pattern):
        return [pattern]
    fs, path = fsspec.core.url_to_fs(pattern)
    try:
        return [str(fs.unstrip_protocol(found)) for found in fs.glob(path)]
    except OSError as error:
        raise StoreError(f"images.tiles: cannot list {public_url(pattern)}: {error}") from error


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> SurveyConfig:
    """Read and validate survey.toml.

    Parameters
    ----------
    path : path
        The file.
    overrides : iterable of str
        `section.key=value` items, as given to `--set`.
    environment : mapping, optional
        Where `SURVEYPROC_*` variables are looked up; the process's environment by default.

    Raises
    ------
    ConfigError
        If the file is missing, is not TOML, or a key is unknown or has a wrong value.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    env = os.environ if environment is None else environment
    merged = _from_environment(env)
    _merge(merged, document)
    for item in overrides:
        _override(merged, item)
    merged["base"] = str(path.parent.absolute())
    try:
        return SurveyConfig.model_validate(merged)
    except ValidationError as error:
        lines = [f"{path}: {_explain(dict(problem), merged)}" for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, field in SurveyConfig.model_fields.items():
        prefix = f"SURVEYPROC_{section}_".upper()
        given = sorted(variable for variable in environment if variable.startswith(prefix))
        model = _section_of(field.annotation)
        if model is None:
            if given:
                raise ConfigError(f"{given[0]}: {section} cannot be set by a variable; use --set")
            continue
        known = {f"{prefix}{key.upper()}": key for key in model.model_fields}
        for variable in given:
            if variable not in known:
                close = difflib.get_close_matches(variable, known, n=1, cutoff=0.0)
                raise ConfigError(f"{variable}: unknown; the nearest known variable is {close[0]}")
            found.setdefault(section, {})[known[variable]] = _value(environment[variable])
    return found


def _section_of(annotation: Any) -> type[Section] | None:
    """The section model in `Section` or `Section | None`; None for anything else."""
    options = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _override(document: dict[str, Any], item: str) -> None:
    dotted, equals, text = item.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys) or len(keys) < 2:
        raise ConfigError(f"--set {item!r}: write section.key=value, for example run.workers=2")
    place: Any = document
    for key in keys[:-1]:
        if isinstance(place, list):
            tables = [entry for entry in place if isinstance(entry, dict)]
            named = [entry for entry in tables if entry.get("name") == key]
            if not named:
                raise ConfigError(f"--set {item!r}: no {keys[0]} entry is called {key!r}")
            place = named[0]
        else:
            place = place.setdefault(key, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"--set {item!r}: {key!r} is a value, not a section")
    if isinstance(place, list):
        raise ConfigError(
            f"--set {item!r}: name the entry too, for example products.photoz.model=x"
        )
    place[keys[-1]] = _value(text.strip())


def _explain(problem: dict[str, Any], document: Mapping[str, Any]) -> str:
    location = [part for part in problem["loc"] if not isinstance(part, int)]
    indexes = [part for part in problem["loc"] if isinstance(part, int)]
    if location[:1] == ["products"] and indexes:
        entry = document["products"][indexes[0]]
        name = entry.get("name") if isinstance(entry, dict) else None
        location.insert(1, name or str(indexes[0]))
    dotted = ".".join(str(part) for part in location) or "survey.toml"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        return f"unknown key {dotted!r}; the nearest known key is {close[0]!r}"
    if problem["type"] == "missing":
        return f"key {dotted!r} is missing"
    if problem["type"] == "model_type":
        return f"key {dotted!r}: must be a section (a table), not {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message if dotted == "survey.toml" else f"key {dotted!r}: {message}"
    return f"key {dotted!r}: {message}, not {problem['input']!r}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: type[Section] = SurveyConfig
    for part in location:
        if isinstance(part, int):
            continue
        if part not in model.model_fields:
            continue  # the key of a table whose keys are free
        annotation = model.model_fields[part].annotation
        inner = typing.get_args(annotation)
        inside = (_section_of((typing.get_args(one) or (one,))[0]) for one in inner)
        found = _section_of(annotation) or next(filter(None, inside), None)
        model = found or model
    return [key for key in model.model_fields if key != "base"]
