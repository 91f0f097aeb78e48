"""Units of work, and which of them are stale: computed from metadata, before any data is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import surveyproc
from surveyproc import schemas, sky
from surveyproc.catalogs.ingest import CatalogInfo, read_catalog
from surveyproc.images.cube import Tile, read_tiles
from surveyproc.products.base import Product
from surveyproc.products.registry import build_products, carried_columns, check_columns
from surveyproc.schemas import Column
from surveyproc.store.storage import Store, fingerprint
from surveyproc.survey import Survey

# Raised whenever the same inputs would give other leaves than before.
OUTPUT_REVISION = 3


@dataclass(frozen=True)
class Unit:
    """One partition of the catalog with everything its leaf depends on.

    Attributes
    ----------
    order, pixel : int
        The HEALPix pixel of the partition.
    rows : int
        Objects in it.
    source_sha256 : str
        Checksum of the partition's leaf in the source catalog.
    fingerprint : str
        Hash of the source leaf, the tiles it touches, the products and the code's revision.
    """

    order: int
    pixel: int
    rows: int
    source_sha256: str
    fingerprint: str

    @property
    def name(self) -> str:
        """Name of the unit's commit record: the partition and what it was made from."""
        return f"Norder={self.order}-Npix={self.pixel}-{self.fingerprint}"


@dataclass(frozen=True)
class Plan:
    """All units of one run, and where the run and its release lie.

    Attributes
    ----------
    run : str
        Identifier of the run and of its release: a hash of all inputs, so that the same inputs
        always mean the same run. A release published with quarantined units stays as it is; the
        run that tries them again has `.1`, `.2`, ... behind the hash.
    units : tuple of Unit
        Sorted by position on the sky.
    columns : tuple of Column
        The leaf's columns that we write: of objects and products.
    carried : dict of str to Column
        Those of the source that follow, by their names in the ingested catalog.
    settings : str
        Hash of the configuration, without the sections that cannot change a leaf.
    """

    survey: str
    run: str
    units: tuple[Unit, ...]
    columns: tuple[Column, ...]
    carried: dict[str, Column]
    settings: str
    catalog: CatalogInfo
    tiles: tuple[Tile, ...]
    products: tuple[Product, ...]

    @property
    def leaf_columns(self) -> tuple[Column, ...]:
        """All columns of the leaf, in order."""
        return (*self.columns, *self.carried.values())

    @property
    def rows(self) -> int:
        """Objects of the whole run."""
        return sum(unit.rows for unit in self.units)

    @property
    def run_key(self) -> str:
        """Folder of the run's plan, commit records, log and report."""
        return run_key(self.run)

    @property
    def release_key(self) -> str:
        """Folder of the release, a HATS catalog."""
        return release_key(self.survey, self.run)

    @property
    def provenance(self) -> dict[str, str]:
        """What the release was made from, for HATS properties and commit records."""
        made_by = {f"surveyproc_{p.name}_version": p.version for p in self.products}
        return {
            "surveyproc_version": surveyproc.__version__,
            "surveyproc_revision": str(OUTPUT_REVISION),
            "surveyproc_run": self.run,
            "surveyproc_configuration": self.settings,
            "surveyproc_catalog": self.catalog.fingerprint,
            "surveyproc_tiles": fingerprint([[tile.id, tile.version] for tile in self.tiles]),
            **made_by,
        }


def run_key(run: str) -> str:
    """Folder of a run's plan, commit records, log and report."""
    return f"runs/{run}"


def release_key(survey: str, run: str) -> str:
    """Folder of the release that a run makes."""
    return f"releases/{survey}/{run}"


def pointer_key(survey: str) -> str:
    """The one object readers follow."""
    return f"releases/{survey}/current.json"


def done_key(run: str) -> str:
    """The record of a run's finished release, as it was published."""
    return f"{run_key(run)}/done.json"


def read_done(store: Store, run: str) -> dict[str, Any] | None:
    """The record of a run's finished release; None if it was not published."""
    done: dict[str, Any] | None = store.read_json(done_key(run))
    return done


def make_plan(survey: Survey) -> Plan:
    """Plan a run over the ingested catalog and tiles with the configured products.

    Raises
    ------
    InputError
        If catalog, tiles or a model are missing.
    ConfigError
        If a product reads columns that nothing provides, or an aperture is too large for the pixels
        of some tile.
    """
    catalog = read_catalog(survey.store, survey.name)
    products = build_products(survey)
    check_columns(products, catalog.columns)
    tiles = (
        tuple(read_tiles(survey.store, survey.name))
        if any(p.inputs.cutout for p in products)
        else ()
    )
    own = catalog.columns[: len(schemas.load("object"))]
    columns = own + tuple(column for product in products for column in product.columns)
    carried = carried_columns(survey.config.catalog, catalog.columns, products)
    made_by = {
        "products": [[product.name, product.version] for product in products],
        "columns": [asdict(column) for column in (*columns, *carried.values())],
        "bands": list(survey.config.bands),
        "revision": OUTPUT_REVISION,
    }
    touched = _tiles_touched(catalog, tiles)
    units = tuple(
        Unit(
            part.order,
            part.pixel,
            part.rows,
            part.sha256,
            fingerprint({**made_by, "leaf": part.sha256, "tiles": versions}),
        )
        for part, versions in zip(catalog.partitions, touched, strict=True)
    )
    inputs = "r" + fingerprint(
        {
            **made_by,
            "survey": survey.name,
            "catalog": catalog.fingerprint,
            "units": [[unit.order, unit.pixel, unit.fingerprint] for unit in units],
        }
    )
    without = {"run", "gates", "nightly", "truth"}
    settings = fingerprint(survey.config.model_dump(mode="json", exclude=without))
    run = _edition(survey.store, survey.name, inputs)
    return Plan(survey.name, run, units, columns, carried, settings, catalog, tiles, products)


def _edition(store: Store, survey: str, inputs: str) -> str:
    """The run of these inputs: the last one there is, or a new one if that has gaps to fill."""
    pattern = re.compile(re.escape(inputs) + r"(?:\.(\d+))?")
    found = (pattern.fullmatch(name) for name in store.names(f"releases/{survey}"))
    last = max((int(match[1] or 0) for match in found if match), default=0)
    run = f"{inputs}.{last}" if last else inputs
    done = read_done(store, run)
    return f"{inputs}.{last + 1}" if done and done.get("quarantined") else run


def _tiles_touched(catalog: CatalogInfo, tiles: Sequence[Tile]) -> list[list[list[str]]]:
    """For every partition, [id, version] of the tiles whose circle meets the circle of its objects.

    Circles, not exact footprints: a tile named needlessly costs a recomputation, one forgotten
    would keep a stale leaf.
    """
    if not tiles:
        return [[] for _ in catalog.partitions]
    order = sorted(range(len(tiles)), key=lambda i: tiles[i].id)
    centres = sky.unit_vectors(
        np.array([tiles[i].ra for i in order]), np.array([tiles[i].dec for i in order])
    )
    radii = np.array([tiles[i].radius for i in order])
    touched = []
    for part in catalog.partitions:
        centre = sky.unit_vectors(np.array([part.ra]), np.array([part.dec]))[0]
        chord = np.linalg.norm(centres - centre, axis=1)
        separation = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
        near = np.flatnonzero(separation <= radii + part.radius + 1e-6)
        touched.append([[tiles[order[i]].id, tiles[order[i]].version] for i in near])
    return touched
