"""The verbs as functions: configuration in, a machine-readable result out. Nothing is printed.

What takes long to import is imported by the verbs that need it, so that the others answer at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.catalogs import hats
from surveyproc.catalogs.labels import match_catalog, read_labels
from surveyproc.config import SurveyConfig
from surveyproc.config.sections import TOLERANCE, ProductSection
from surveyproc.errors import ConfigError, InputError, StoreError, UnreachableError
from surveyproc.evaluate.redshift import OUTLIER_THRESHOLD
from surveyproc.places import Places, opened, under_way
from surveyproc.releases import release
from surveyproc.releases.diff import diff as compare_releases
from surveyproc.run import commit
from surveyproc.run.adopt import adoptable
from surveyproc.run.plan import Plan
from surveyproc.store.storage import Store
from surveyproc.verbs import checks


def ingest(config: SurveyConfig) -> dict[str, Any]:
    """Tiles to cubes and the source catalog to HATS; what is there already is left alone.

    Raises
    ------
    InputError
        If the catalog cannot be used, or no tile at all.
    StoreError
        If a file could not be read now, or the store could not take a cube. In both cases, unless
        nobody answers, all else is done first: the other tiles, and the catalog.
    """
    from surveyproc.catalogs.ingest import ingest_catalog
    from surveyproc.images.ingest import ingest_tiles

    store = Store(config.root)
    checks.before_ingest(config, store)
    store.clear_staging()
    with under_way(store, "ingest"), opened(config.run) as places:
        tiles = failure = None
        try:
            tiles = ingest_tiles(config, store, places)
        except UnreachableError:
            raise
        except (InputError, StoreError) as error:
            failure = error
        catalog = ingest_catalog(config, store, places)
    if failure is not None:
        raise failure
    return {"tiles": tiles, "catalog": catalog, "places": places.told()}


def train(config: SurveyConfig, name: str | None = None) -> dict[str, Any]:
    """Train the network of product `name`, or of every product with a training section.

    Raises
    ------
    ConfigError
        If no such product is configured, or it has no training section, or a network refuses its
        bands or settings.
    """
    sections = [config.product(name)] if name else [p for p in config.products if p.training]
    if not sections:
        raise ConfigError("products: none has a [products.training] section; add one to train")
    store = Store(config.root)
    checks.before_training(config, store, sections)
    with under_way(store, "train"), opened(config.run) as places:
        return {section.name: _train_one(config, section, places) for section in sections}


def _train_one(config: SurveyConfig, section: ProductSection, places: Places) -> dict[str, Any]:
    from surveyproc.train.data import from_labels
    from surveyproc.train.labels import measured_training_set
    from surveyproc.train.loop import train as train_network

    store = Store(config.root)
    assert section.training is not None
    assert section.model is not None
    if section.training.magnitudes:
        training_set = from_labels(section.training, config.resolve(section.training.source))
    else:
        training_set = measured_training_set(config, store, section, places)
    package = train_network(
        training_set,
        architecture=section.architecture or section.model,
        network=section.network,
        settings=section.training,
        store=store,
        name=section.model,
        survey=config.survey.name,
        places=places,
    )
    return {
        "model": section.model,
        "version": package.version,
        "metrics": package.metrics,
        "places": places.told(),
    }


def plan(config: SurveyConfig) -> dict[str, Any]:
    """What `run` would do: units in all, to copy from other releases, to compute. Reads no data."""
    store = Store(config.root)
    planned = checks.planned(config, store)
    copied = adoptable(store, planned)
    stale = [unit for unit in commit.pending(store, planned) if unit.name not in copied]
    return {
        "run": planned.run,
        "rows": planned.rows,
        "rejected": planned.catalog.rejected,
        "units": len(planned.units),
        "adoptable_units": len(copied),
        "pending_units": len(stale),
        "pending_rows": sum(unit.rows for unit in stale),
        "published": release.is_published(store, planned),
    }


MoreGates = Callable[[Plan, list[commit.Commit]], Sequence[release.Reason]]


def run(config: SurveyConfig, more_gates: MoreGates | None = None) -> dict[str, Any]:
    """Plan, infer, check and publish; resume what was interrupted; do nothing if all is done.

    Parameters
    ----------
    config : SurveyConfig
        The survey.
    more_gates : callable, optional
        Reasons not to publish beside those of the [gates] section.
    """
    started = time.monotonic()
    store = Store(config.root)
    planned = checks.planned(config, store)
    if release.is_published(store, planned):
        current = release.current_release(store, planned.survey)
        return {**current, "did": "nothing", "seconds": time.monotonic() - started}
    release.refuse_withdrawn(store, planned)
    checks.writable(store)
    store.clear_staging()
    from surveyproc.run.pipeline import compute_pending

    with opened(config.run) as places:
        computed = compute_pending(config, store, planned, places)
    commits = list(commit.read_all(store, planned))
    gaps = sorted(record.unit for record in commits if record.quarantined)
    if gaps and gaps == release.published_gaps(store, planned):
        # What was quarantined failed again: there is nothing that the published release lacks.
        release.remove_release(store, planned.survey, planned.run)
        current = release.current_release(store, planned.survey)
        seconds = time.monotonic() - started
        return {**current, "did": "nothing", "places": places.told(), "seconds": seconds}
    more = more_gates(planned, commits) if more_gates is not None else ()
    current = release.publish(store, planned, commits, config.gates, more)
    return {
        **current,
        "did": "published",
        "units": len(planned.units),
        "units_resumed": computed.resumed,
        "units_adopted": computed.adopted,
        "units_computed": computed.units,
        "rows_computed": computed.rows,
        "seconds_computing": computed.seconds,
        "places": places.told(),
        "seconds": time.monotonic() - started,
    }


def evaluate(
    config: SurveyConfig,
    catalog: str | None = None,
    outlier: float = OUTLIER_THRESHOLD,
    column: str | None = None,
    baseline: str | None = None,
    magnitude: str | None = None,
) -> dict[str, Any]:
    """Redshift metrics of a published catalog against the table of the [truth] section.

    Point estimates are by default the medians of the first PDFs, `*_z_median`. Metrics are binned
    in true and in predicted redshift, and in AB magnitude.

    Parameters
    ----------
    config : SurveyConfig
        Names the table, and the bands in order of wavelength.
    catalog : str, optional
        Path or URL of any HATS catalog, or of a collection, whose main catalog counts; the
        survey's published release by default.
    outlier : float
        |dz| above which an object is an outlier; reported beside 0.15 and 0.05.
    column : str, optional
        Redshift column of any name; of ours, `<model>_z_<estimate>`, the PDFs are judged too if
        their quantiles are those of schemas/photoz.toml.
    baseline : str, optional
        Another redshift column: is the first one better, and could chance have made it so?
    magnitude : str, optional
        Column to bin in: AB magnitudes, or `flux_<band>` in nJy; by default the flux of the
        reddest band that has one.

    Returns
    -------
    dict
        What `surveyproc.evaluate.summary.summarise` gives, and where it comes from; with a
        baseline, `against`: its `column`, and the `gains` over it.

    Raises
    ------
    ConfigError
        If there is no [truth] section, or the catalog lacks a column, or holds no redshifts of
        ours and no column is named.
    InputError
        If there is no such catalog, or it holds no object of the table.
    """
    from surveyproc.evaluate.compare import gains
    from surveyproc.evaluate.summary import summarise

    if config.truth is None:
        raise ConfigError("evaluate needs a [truth] section: source, redshift, ra, dec")
    store, key, facts = _published(config, catalog)
    labels = read_labels(config.truth, config)
    files = hats.file_keys(store, key)
    if not files:
        raise InputError(f"{facts['catalog']} is no HATS catalog: there are no leaves under it")
    names = hats.leaf_schema(store, f"{key}/{files[0]}").names
    redshifts = schemas.redshift_columns(names)
    point = column or next(iter(redshifts), None)
    if point is None:
        raise ConfigError(
            f"evaluate: {facts['catalog']} has no redshifts of ours (no *_z_median or *_z_point "
            "column): name the column"
        )
    for name in filter(None, (point, baseline, magnitude)):
        if name not in names:
            others = names if name == magnitude else redshifts or names
            raise ConfigError(
                f"evaluate: {facts['catalog']} has no column {name!r}; try {', '.join(others)}"
            )
    pdfs, flag = _beside(point, names)
    reddest = (f"flux_{band}" for band in reversed(config.bands))
    brightness = magnitude or next((name for name in reddest if name in names), "")
    candidates = dict.fromkeys((point, baseline, pdfs, flag, brightness))
    # Our own leaves are known; of others, the properties say where the positions are.
    position = hats.position_columns(store, key) if catalog else ("ra", "dec")
    values, targets = match_catalog(
        store, key, labels, [name for name in candidates if name], position
    )
    redshift = targets["redshift"]
    if not len(redshift):
        raise InputError(
            f"no object of {facts['catalog']} lies within {labels.radius} arcsec of a row of "
            f"{config.truth.source}: check truth.ra, truth.dec and truth.radius"
        )
    for name in filter(None, (point, baseline, brightness)):
        if values[name].ndim != 1:
            raise ConfigError(f"evaluate: column {name!r} holds lists, not one number an object")
    binned = {"true_redshift": redshift, "predicted_redshift": values[point]}
    if brightness:
        binned |= _magnitudes(brightness, values[brightness])
    levels = schemas.pdf_levels()
    known = bool(pdfs) and values[pdfs].shape[1:] == (len(levels),)
    against: dict[str, Any] = {}
    if baseline:
        found = gains(values[baseline], values[point], redshift, outlier)
        against = {"against": {"column": baseline, "gains": found}}
    return {
        **facts,
        **against,
        "column": point,
        "labels": len(labels),
        "labels_dropped": labels.dropped,
        "matched": len(redshift),
        **summarise(
            values[point],
            redshift,
            good=values[flag] == 0 if flag else None,
            binned=binned,
            quantiles=values[pdfs] if known else None,
            levels=levels,
            threshold=outlier,
        ),
    }


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


def _magnitudes(column: str, values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """AB magnitudes under the name of the quantity; a column of fluxes is converted."""
    from surveyproc.models.features import magnitude_from_flux

    if column.startswith("flux_"):
        return {f"magnitude_{column.removeprefix('flux_')}": magnitude_from_flux(values)}
    return {column: values}


def _published(config: SurveyConfig, catalog: str | None) -> tuple[Store, str, dict[str, Any]]:
    """Store and key of the catalog to evaluate, and what is known of it."""
    if catalog is None:
        store = Store(config.root)
        current = release.current_release(store, config.survey.name)
        facts = {name: current[name] for name in ("release", "rows", "rejected")}
        return store, current["path"], {"catalog": current["url"], **facts}
    url = catalog.rstrip("/") if "://" in catalog else str(Path(catalog).absolute())
    store, key = _located(url)
    main = hats.main_table(store, key)
    if "://" in main or main.startswith("/"):
        store, key = _located(main)
    elif main:
        key = f"{key}/{main.strip('/')}"
    return store, key, {"catalog": url}


def _located(url: str) -> tuple[Store, str]:
    root, _, key = url.rstrip("/").rpartition("/")
    return Store(root or "/"), key


def validate(config: SurveyConfig) -> dict[str, Any]:
    """Problems of the published release; none if it is what was committed."""
    store = Store(config.root)
    current = release.current_release(store, config.survey.name)
    return {**current, "problems": release.validate(store, current)}


def releases(config: SurveyConfig) -> dict[str, Any]:
    """Every release and the published one."""
    store = Store(config.root)
    return {
        "current": release.current_release(store, config.survey.name),
        "releases": release.list_releases(store, config.survey.name),
    }


def clean(config: SurveyConfig, *, dry_run: bool = False) -> dict[str, Any]:
    """Remove cubes that nothing refers to, of all surveys under the root: `releases.clean`.

    Returns
    -------
    dict
        `removed` (folder to bytes), `bytes` of them all, `left` (what was left alone, and why).
    """
    from surveyproc.releases.clean import clean as remove_unwanted

    done = remove_unwanted(Store(config.root), dry_run=dry_run)
    return {"removed": done.removed, "bytes": done.nbytes, "left": done.left, "dry_run": dry_run}


def diff(
    config: SurveyConfig, first: str, second: str, tolerance: float | None = None
) -> dict[str, Any]:
    """Rows added, removed and changed between two releases; see `surveyproc.releases.diff.diff`."""
    least = TOLERANCE if tolerance is None else tolerance
    return compare_releases(Store(config.root), config.survey.name, first, second, least)


def rollback(config: SurveyConfig, to: str) -> dict[str, Any]:
    """Send readers to an earlier release; see `surveyproc.releases.release.rollback`."""
    return release.rollback(Store(config.root), config.survey.name, to)
