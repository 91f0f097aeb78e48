"""Tables and configurations that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import where
from astropy.table import MaskedColumn, Table

from surveyproc.catalogs import hats
from surveyproc.catalogs.ingest import SPILL_BYTES, CatalogSummary, ingest_catalog
from surveyproc.config import SurveyConfig
from surveyproc.places import Places
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

KEY = "catalogs/test"


def survey(root: Path, source: Path | str, **catalog: object) -> SurveyConfig:
    return SurveyConfig.model_validate(
        {
            "survey": {"name": "test", "root": str(root)},
            "images": {"tiles": ["none"], "bands": ["r"]},
            "catalog": {"source": str(source), **catalog},
        }
    )


def sky_table(rows: int, seed: int = 0) -> Table:
    """Objects around RA 0, with text, nulls, NaN, a vector column and units."""
    rng = np.random.default_rng(seed)
    table = Table(
        {
            "object_id": rng.permutation(rows) + 2**40,
            "ra": rng.uniform(-2, 2, rows) % 360,
            "dec": rng.uniform(-1, 1, rows),
            "mag": rng.normal(22, 1, rows).astype("f4"),
            "kind": [("star", "galaxy")[i % 2] for i in range(rows)],
            "good": rng.random(rows) > 0.5,
            "count": rng.integers(0, 99, rows).astype("i2"),
        }
    )
    table["count"] = MaskedColumn(table["count"], mask=np.arange(rows) % 5 == 1)
    table["mag"][::7] = np.nan
    table["ra"].unit = table["dec"].unit = "deg"
    table["mag"].unit = "mag"
    table["mag"].description = "A magnitude & more"
    table["mag"].meta["ucd"] = "phot.mag;em.opt.R"
    return table


def run(
    root: Path,
    source: Path | str,
    *,
    places: Places = where.HERE,
    batch: int | None = None,
    spill_bytes: int = SPILL_BYTES,
    **catalog: object,
) -> tuple[Store, CatalogSummary]:
    config = survey(root, source, **catalog)
    store = Store(config.root)
    summary = ingest_catalog(Survey(config), places, rows_per_batch=batch, spill_bytes=spill_bytes)
    return store, summary


def all_rows(store: Store) -> pa.Table:
    return pa.concat_tables(
        hats.read_leaf(store, f"{KEY}/{key}") for key in hats.leaf_keys(store, KEY)
    )


def rejected(store: Store) -> list[dict]:
    path = Path(store.path(f"{KEY}/rejected.parquet"))
    return pq.read_table(path).to_pylist() if path.exists() else []
