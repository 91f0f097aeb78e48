"""The steps of `verbs.evaluate`: which catalog, which of its columns, whose values, what of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.catalogs import hats
from surveyproc.catalogs.foreign import leaf_names
from surveyproc.catalogs.labels import Labels, match_catalog
from surveyproc.errors import ConfigError, InputError
from surveyproc.evaluate.compare import Gain, gains
from surveyproc.evaluate.summary import SampleMetrics, sample_metrics
from surveyproc.releases import release
from surveyproc.releases.record import Release
from surveyproc.store.storage import Store
from surveyproc.store.urls import public_url
from surveyproc.survey import Survey

Values = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Against:
    """Another column on the same objects.

    Attributes
    ----------
    column : str
        Its name.
    gains : dict of str to Gain
        Metric to what is gained over the other column.
    """

    column: str
    gains: dict[str, Gain]


@dataclass(frozen=True, kw_only=True)
class Evaluation(SampleMetrics):
    """What a column of redshifts of a catalog is worth.

    Attributes
    ----------
    catalog : str
        Path or URL.
    column : str
        The redshifts.
    labels, matched : int
        Known redshifts, and those of objects of the catalog.
    labels_dropped : dict of str to int
        Why rows of the table of known redshifts were left out, and how many.
    release : str, optional
        The release, if it is the survey's published one.
    rows, rejected : int, optional
        Of that release.
    against : Against, optional
        The comparison with another column, if one was named.
    """

    catalog: str
    column: str
    labels: int
    matched: int
    labels_dropped: dict[str, int]
    release: str | None = None
    rows: int | None = None
    rejected: int | None = None
    against: Against | None = None


@dataclass(frozen=True)
class Catalog:
    """The catalog to evaluate.

    Attributes
    ----------
    store, key : Store, str
        Where it lies.
    url : str
        Path or URL, as the result and messages call it.
    release : Release, optional
        The survey's published release, if it is that.
    """

    store: Store
    key: str
    url: str
    release: Release | None = None


@dataclass(frozen=True)
class Columns:
    """Names of the columns that an evaluation reads; "" for what there is not.

    Attributes
    ----------
    point : str
        The redshifts to judge.
    baseline : str
        Those to compare them with.
    pdfs, flag : str
        Quantiles and flag that belong to `point`.
    brightness : str
        What to bin in: AB magnitudes, or `flux_<band>` in nJy.
    blends : str
        Flag of a product of kind blend_probability.
    """

    point: str
    baseline: str
    pdfs: str
    flag: str
    brightness: str
    blends: str = ""

    @property
    def numbers(self) -> list[str]:
        """Those that must hold one number an object."""
        return [name for name in (self.point, self.baseline, self.brightness) if name]

    @property
    def all(self) -> list[str]:
        """All that there are, each once."""
        named = (self.point, self.baseline, self.pdfs, self.flag, self.brightness, self.blends)
        return [name for name in dict.fromkeys(named) if name]


def find_catalog(survey: Survey, catalog: str | None) -> Catalog:
    """The HATS catalog at a path or URL, or in the collection there; by default the release.

    Raises
    ------
    InputError
        If none is named and nothing is published, or a collection's main catalog lies elsewhere:
        on another host, or on this disk though the collection does not.
    """
    if catalog is None:
        current = release.current_release(survey.store, survey.name)
        return Catalog(survey.store, current.path, current.url, current)
    url = catalog.rstrip("/") if "://" in catalog else str(Path(catalog).absolute())
    store, key = _located(url)
    main = hats.main_table(store, key)
    if "://" in main or main.startswith("/"):
        if _host(main) != _host(url):
            raise InputError(
                f"{public_url(url)}: the collection sends to {public_url(main)}, which is not "
                "followed there: name that catalog itself if it is the one"
            )
        store, key = _located(main)
    elif main:
        key = f"{key}/{main.strip('/')}"
    return Catalog(store, key, url)


def _host(url: str) -> str:
    """Scheme and host, or bucket, of a URL; empty of a path."""
    scheme, separator, rest = url.removeprefix("file://").partition("://")
    return f"{scheme}://{rest.partition('/')[0]}".lower() if separator else ""


def _located(url: str) -> tuple[Store, str]:
    root, _, key = url.rstrip("/").rpartition("/")
    return Store(root or "/"), key


def column_names(catalog: Catalog) -> list[str]:
    """Names of the columns of a catalog; InputError if it has no leaves."""
    files = hats.file_keys(catalog.store, catalog.key)
    if not files:
        raise InputError(f"{catalog.url} is no HATS catalog: there are no leaves under it")
    key = f"{catalog.key}/{files[0]}"
    if catalog.release is None:
        return leaf_names(catalog.store, key)
    names: list[str] = hats.leaf_schema(catalog.store, key).names
    return names


def choose_columns(
    names: Sequence[str],
    where: str,
    bands: Sequence[str],
    point: str | None,
    baseline: str | None,
    magnitude: str | None,
) -> Columns:
    """Of the columns `names` of the catalog `where` those to read; see `verbs.evaluate`.

    Raises
    ------
    ConfigError
        If a named column is not there, or there are no redshifts of ours and none is named.
    """
    redshifts = schemas.redshift_columns(names)
    point = point or next(iter(redshifts), None)
    if point is None:
        raise ConfigError(
            f"evaluate: {where} has no redshifts of ours (no *_z_median or *_z_point "
            "column): name the column"
        )
    for name in filter(None, (point, baseline, magnitude)):
        if name not in names:
            others = names if name == magnitude else redshifts or names
            raise ConfigError(f"evaluate: {where} has no column {name!r}; try {', '.join(others)}")
    pdfs, flag = _beside(point, names)
    reddest = (f"flux_{band}" for band in reversed(bands))
    brightness = magnitude or next((name for name in reddest if name in names), "")
    return Columns(point, baseline or "", pdfs, flag, brightness, _blend_flag(names))


def _blend_flag(names: Sequence[str]) -> str:
    """The flag of the last product that tells unrecognised blends; "" without one."""
    found = [one for one in names if re.fullmatch(r"blend_probability(_.*)?_flag", one)]
    return found[-1] if found else ""


def _beside(point: str, names: Sequence[str]) -> tuple[str, str]:
    """The PDF and the flag that belong to `point`; "" for what is not there or not ours."""
    estimates = [one.name for one in schemas.load("photoz") if one.name.startswith("_z_")]
    models = (point.removesuffix(name) for name in estimates if point.endswith(name))
    model = next(models, "")
    if not model:
        return "", ""
    pdfs = f"{model}_z_quantiles"
    # A product's flag follows its other columns; any other may be of somebody else's.
    own = f"{model}_"
    after = next((name for name in names[names.index(point) :] if not name.startswith(own)), "")
    is_flag = after.startswith("photoz_") and after.endswith("_flag")
    return pdfs if pdfs in names else "", after if is_flag else ""


def matched(
    catalog: Catalog, labels: Labels, columns: Columns, source: str
) -> tuple[Values, NDArray[np.float64]]:
    """The columns of the objects with a label, and their known redshifts, shape (n,).

    Raises
    ------
    InputError
        If there is no such object, or a column is not numeric; `source` names the label table.
    ConfigError
        If a column that must hold numbers holds lists.
    """
    # Our own leaves are known; of others, the properties say where the positions are.
    foreign = None if catalog.release else hats.position_columns(catalog.store, catalog.key)
    values, targets = match_catalog(catalog.store, catalog.key, labels, columns.all, foreign)
    redshift = targets["redshift"]
    if not len(redshift):
        raise InputError(
            f"no object of {catalog.url} lies within {labels.radius} arcsec of a row of "
            f"{source}: check truth.ra, truth.dec and truth.radius"
        )
    for name in columns.numbers:
        if values[name].ndim != 1:
            raise ConfigError(f"evaluate: column {name!r} holds lists, not one number an object")
    return values, redshift


def gains_over_baseline(
    columns: Columns, values: Values, redshift: NDArray[np.float64], outlier: float
) -> Against | None:
    """The gains over the baseline, if there is one."""
    if not columns.baseline:
        return None
    found = gains(values[columns.baseline], values[columns.point], redshift, outlier)
    return Against(columns.baseline, found)


def metrics(
    columns: Columns, values: Values, redshift: NDArray[np.float64], outlier: float
) -> SampleMetrics:
    """Metrics of the matched objects.

    PDFs are judged if their quantiles are those of schemas/photoz.toml.
    """
    point = values[columns.point]
    binned = {"true_redshift": redshift, "predicted_redshift": point}
    if columns.brightness:
        binned |= _magnitudes(columns.brightness, values[columns.brightness])
    levels = schemas.pdf_levels()
    known = bool(columns.pdfs) and values[columns.pdfs].shape[1:] == (len(levels),)
    return sample_metrics(
        point,
        redshift,
        good=values[columns.flag] == 0 if columns.flag else None,
        recognised=_recognised(values[columns.blends]) if columns.blends else None,
        binned=binned,
        quantiles=values[columns.pdfs] if known else None,
        levels=levels,
        threshold=outlier,
    )


def _recognised(flags: NDArray[Any]) -> NDArray[np.bool_]:
    """Objects that are no unrecognised blends; also those that nobody could judge."""
    bit = schemas.flag("unrecognised_blend")
    return np.asarray((np.nan_to_num(flags).astype(np.int64) & bit) == 0)


def _magnitudes(column: str, values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """AB magnitudes under the name of the quantity; a column of fluxes is converted."""
    from surveyproc.models.features import magnitude_from_flux

    if column.startswith("flux_"):
        return {f"magnitude_{column.removeprefix('flux_')}": magnitude_from_flux(values)}
    return {column: values}
