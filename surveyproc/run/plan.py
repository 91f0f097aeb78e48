"""Units of work, and which of them are stale: computed from metadata, before any data is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import surveyproc
from surveyproc import schemas, sky
from surveyproc.catalogs import hats
from surveyproc.catalogs.around import near
from surveyproc.catalogs.hats import Partition
from surveyproc.catalogs.ingest import CatalogInfo, read_catalog
from surveyproc.config.kinds import kind_of
from surveyproc.errors import StoreError, UnreachableError
from surveyproc.images.cube import Tile, read_tiles
from surveyproc.products.base import PixelArray, Product, RowTable, pixels_of, tables_of
from surveyproc.products.registry import build_products, carried_columns, check_columns
from surveyproc.schemas import Column
from surveyproc.store import layout
from surveyproc.store.storage import Store, fingerprint
from surveyproc.survey import Survey

POINT_ANEW = (
    "`surveyproc releases --rollback RELEASE` sends readers to a release again (a folder beside it)"
)
# Raised whenever the same inputs would give other leaves than before.
OUTPUT_REVISION = 4


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
        Hash of all that its leaf depends on: the products' own, columns and their descriptions.
    products : dict of str to str
        Product to the hash of all that its values depend on: its version, the source leaf, the
        tiles if it reads cutouts, the leaves around if it reads neighbours, and the same of the
        products whose columns it reads.
    """

    order: int
    pixel: int
    rows: int
    source_sha256: str
    fingerprint: str
    products: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the unit's commit record: the partition and what it was made from."""
        return f"{self.partition}-{self.fingerprint}"

    @property
    def partition(self) -> str:
        """Name of the partition alone."""
        return f"Norder={self.order}-Npix={self.pixel}"


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
    kinds : dict of str to str
        Product to its kind.
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
    kinds: dict[str, str]

    @property
    def leaf_columns(self) -> tuple[Column, ...]:
        """All columns of the leaf, in order."""
        return (*self.columns, *self.carried.values())

    @property
    def tables(self) -> dict[str, RowTable]:
        """The tables beside the catalog, by name."""
        return {table.name: table for product in self.products for table in tables_of(product)}

    @property
    def pixels(self) -> dict[str, PixelArray]:
        """The arrays of pixels beside the catalog, by name."""
        return {array.name: array for product in self.products for array in pixels_of(product)}

    @property
    def searched(self) -> dict[Column, Product]:
        """The columns that have an index beside them, and the products that write them."""
        return {
            column: product
            for product in self.products
            for column in product.columns
            if column.searched
        }

    @property
    def rows(self) -> int:
        """Objects of the whole run."""
        return sum(unit.rows for unit in self.units)

    @property
    def run_key(self) -> str:
        """Folder of the run's plan, commit records, log and report."""
        return layout.run(self.run)

    @property
    def release_key(self) -> str:
        """Folder of the release, a HATS catalog."""
        return layout.release(self.survey, self.run)

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


def table_columns(table: RowTable) -> tuple[Column, ...]:
    """Columns of a table's leaves: those that place an object, then its own."""
    placing = ("object_id", "ra", "dec", hats.SPATIAL)
    return (*(one for one in schemas.load("object") if one.name in placing), *table.columns)


def pointer_document(store: Store, survey: str) -> dict[str, Any]:
    """What the pointer that readers follow says, unchecked; nothing if there is none.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    found: dict[str, Any] = store.read_json(layout.pointer(survey), POINT_ANEW) or {}
    return found


def release_names(store: Store, survey: str) -> list[str]:
    """Names of all releases of a survey, finished or not; the tables beside them are none."""
    found = store.names(layout.releases(survey))
    return [name for name in found if not name.endswith(".json") and "-" not in name]


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
    written = {
        "columns": [asdict(column) for column in (*columns, *carried.values())],
        "tables": [asdict(table) for product in products for table in tables_of(product)],
        "pixels": [asdict(array) for product in products for array in pixels_of(product)],
        "revision": OUTPUT_REVISION,
    }
    units = tuple(
        _unit(part, versions, products, written, catalog)
        for part, versions in zip(catalog.partitions, _tiles_touched(catalog, tiles), strict=True)
    )
    inputs = "r" + fingerprint(
        {
            "products": [[product.name, product.version] for product in products],
            **written,
            "survey": survey.name,
            "catalog": catalog.fingerprint,
            "units": [[unit.order, unit.pixel, unit.fingerprint] for unit in units],
        }
    )
    without = {"run", "gates", "nightly", "truth"}
    settings = fingerprint(survey.config.model_dump(mode="json", exclude=without))
    run = _edition(survey.store, survey.name, inputs)
    kinds = {product.name: "photometry" for product in products}  # the catalog's own
    kinds |= {one.name: kind_of(one.name, one.kind) for one in survey.config.products}
    return Plan(
        survey.name, run, units, columns, carried, settings, catalog, tiles, products, kinds
    )


def _unit(
    part: Partition,
    tiles: list[list[str]],
    products: Sequence[Product],
    written: dict[str, Any],
    catalog: CatalogInfo,
) -> Unit:
    """A partition as a unit: what each product, and the leaf as a whole, depends on there."""
    known: dict[str, str] = {}
    writers: dict[str, str] = {}
    for product in products:
        reads = sorted({writers[name] for name in product.inputs.columns if name in writers})
        known[product.name] = fingerprint(
            {
                "version": product.version,
                "revision": OUTPUT_REVISION,
                "columns": [[one.name, one.dtype, one.length] for one in product.columns],
                "tables": [
                    [table.name, *([one.name, one.dtype, one.length] for one in table.columns)]
                    for table in tables_of(product)
                ],
                "pixels": [[one.name, one.shape, one.dtype] for one in pixels_of(product)],
                "leaf": part.sha256,
                "tiles": tiles if product.inputs.cutout else [],
                "reads": [known[name] for name in reads],
                **_around(part, product, catalog),
            }
        )
        writers |= {column.name: product.name for column in product.columns}
    whole = fingerprint({**written, "leaf": part.sha256, "products": list(known.items())})
    return Unit(part.order, part.pixel, part.rows, part.sha256, whole, known)


def _around(part: Partition, product: Product, catalog: CatalogInfo) -> dict[str, Any]:
    """The leaves that hold neighbours of a partition's objects, if a product reads those."""
    if not product.inputs.neighbours:
        return {}
    return {"around": [one.sha256 for one in near(part, catalog, product.inputs.radius)]}


def _edition(store: Store, survey: str, inputs: str) -> str:
    """The run of these inputs: the last one there is, or a new one if that has gaps to fill.

    The name of one that was removed is not taken again.
    """
    pointer = pointer_document(store, survey)
    pattern = re.compile(re.escape(inputs) + r"(?:\.(\d+))?")

    def numbers(names: Iterable[str]) -> list[int]:
        found = (pattern.fullmatch(name) for name in names)
        return [int(match[1] or 0) for match in found if match]

    removed = numbers(pointer.get("removed", ()))
    there = [one for one in numbers(release_names(store, survey)) if one not in removed]
    number = max(there, default=max(removed, default=-1) + 1)
    run = f"{inputs}.{number}" if number else inputs
    try:
        done = store.read_json(layout.done(run))
    except UnreachableError:
        raise
    except StoreError:
        done = None  # damaged: this run finishes it again
    if done and (done.get("quarantined") or done.get("damaged")):
        number = max([number, *removed]) + 1
    return f"{inputs}.{number}" if number else inputs


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
