"""The verbs as functions: configuration in, a machine-readable result out. Nothing is printed.

Ray and torch are imported by the verbs that compute, so that the others answer at once.
"""

from __future__ import annotations

import time
from typing import Any

from surveyproc import release
from surveyproc.catalogs import hats
from surveyproc.catalogs.labels import match_catalog, read_labels
from surveyproc.config import ProductSection, SurveyConfig
from surveyproc.errors import ConfigError, InputError
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.run import commit
from surveyproc.run.plan import make_plan
from surveyproc.storage import Store


def ingest(config: SurveyConfig) -> dict[str, Any]:
    """Tiles to cubes and the source catalog to HATS; what is there already is left alone."""
    from surveyproc import cluster
    from surveyproc.catalogs.ingest import ingest_catalog
    from surveyproc.images.ingest import ingest_tiles

    store = Store(config.root)
    store.clear_staging()
    with cluster.session(config.run.address, config.run.workers) as workers:
        tiles = ingest_tiles(config, store, workers=workers)
        catalog = ingest_catalog(config, store, workers=workers)
    return {"tiles": tiles, "catalog": catalog}


def train(config: SurveyConfig, name: str | None = None) -> dict[str, Any]:
    """Train the network of product `name`, or of every product with a training section.

    Raises
    ------
    ConfigError
        If no such product is configured, or it has no training section.
    """
    from surveyproc import cluster

    sections = [config.product(name)] if name else [p for p in config.products if p.training]
    if not sections:
        raise ConfigError("products: none has a [products.training] section; add one to train")
    with cluster.session(config.run.address, config.run.workers) as workers:
        return {section.name: _train_one(config, section, workers) for section in sections}


def _train_one(config: SurveyConfig, section: ProductSection, workers: int) -> dict[str, Any]:
    from surveyproc.run.labels import measured_training_set
    from surveyproc.train.data import from_labels
    from surveyproc.train.loop import train as train_network

    store = Store(config.root)
    if section.training is None or section.model is None:
        raise ConfigError(
            f"products.{section.name}: training needs `model` and a [products.training] section"
        )
    if section.training.magnitudes:
        training_set = from_labels(section.training, config.resolve(section.training.source))
    else:
        training_set = measured_training_set(config, store, section, workers=workers)
    package = train_network(
        training_set,
        architecture=section.model,
        settings=section.training,
        store=store,
        name=section.model,
    )
    return {"model": section.model, "version": package.version, "metrics": package.metrics}


def plan(config: SurveyConfig) -> dict[str, Any]:
    """What `run` would do: units in all and units still to compute. Reads no data."""
    store = Store(config.root)
    planned = make_plan(config, store)
    stale = commit.pending(store, planned)
    return {
        "run": planned.run,
        "rows": planned.rows,
        "rejected": planned.catalog.rejected,
        "units": len(planned.units),
        "pending_units": len(stale),
        "pending_rows": sum(unit.rows for unit in stale),
        "published": release.is_published(store, planned),
    }


def run(config: SurveyConfig) -> dict[str, Any]:
    """Plan, infer, check and publish; resume what was interrupted; do nothing if all is done."""
    started = time.monotonic()
    store = Store(config.root)
    store.clear_staging()
    planned = make_plan(config, store)
    if release.is_published(store, planned):
        current = release.current_release(store, planned.survey)
        return {**current, "did": "nothing", "seconds": time.monotonic() - started}
    from surveyproc.run.pipeline import compute_pending

    computed = compute_pending(config, store, planned)
    commits = list(commit.read_all(store, planned))
    current = release.publish(store, planned, commits, config.gates)
    return {
        **current,
        "did": "published",
        "units": len(planned.units),
        "units_resumed": computed.resumed,
        "rows_computed": computed.rows,
        "seconds_computing": computed.seconds,
        "seconds": time.monotonic() - started,
    }


def evaluate(config: SurveyConfig) -> dict[str, Any]:
    """Redshift metrics of the published release against the table of the [truth] section."""
    if config.truth is None:
        raise ConfigError("evaluate needs a [truth] section: source, redshift, ra, dec")
    store = Store(config.root)
    current = release.current_release(store, config.survey.name)
    labels = read_labels(config.truth, config)
    leaf = hats.leaf_keys(store, current["path"])[0]
    columns = hats.leaf_schema(store, f"{current['path']}/{leaf}").names
    name = next((column for column in columns if column.endswith("_z_median")), None)
    if name is None:
        raise ConfigError("evaluate: the published release has no redshifts (no *_z_median column)")
    values, redshift = match_catalog(store, current["path"], labels, [name, "photoz_flag"])
    if not len(redshift):
        raise InputError(
            f"no object of the release lies within {labels.radius} arcsec of a row of "
            f"{config.truth.source}: check truth.ra, truth.dec and truth.radius"
        )
    good = values["photoz_flag"] == 0
    return {
        "release": current["release"],
        "rows": current["rows"],
        "rejected": current["rejected"],
        "column": name,
        "labels": len(labels.ra),
        "matched": len(redshift),
        "all": redshift_metrics(values[name], redshift),
        "unflagged": redshift_metrics(values[name][good], redshift[good]),
    }


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
