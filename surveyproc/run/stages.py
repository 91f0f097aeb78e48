"""The work on a unit in three stages: read, compute, write."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from surveyproc import schemas
from surveyproc.catalogs import hats, neighbours
from surveyproc.catalogs.around import Around, Surroundings
from surveyproc.errors import StoreError
from surveyproc.images.cutouts import CutoutReader
from surveyproc.products.base import Product, device
from surveyproc.run import carry, commit, stacks, unit
from surveyproc.run.carry import Carried, Donor
from surveyproc.run.nearby import neighbour_needs
from surveyproc.run.plan import Plan, Unit, table_columns
from surveyproc.run.stacks import File
from surveyproc.run.unit import Computation, Output, Read
from surveyproc.store import layout
from surveyproc.store.storage import Store, digest, parse_table


@dataclass
class Held:
    """What was read of a unit beside its batches.

    Attributes
    ----------
    table : pyarrow.Table
        Its rows of the source.
    carried : Carried
        Values of products that need not be computed.
    """

    table: pa.Table
    carried: Carried

    def stale(self, plan: Plan) -> tuple[Product, ...]:
        """The products that must be computed, in order."""
        return tuple(one for one in plan.products if one.name not in self.carried.runs)


class Reading:
    """Reads units: rows of the source, values of other releases, cutouts.

    Parameters
    ----------
    store : Store
        The survey's root.
    plan : Plan
        The run.
    bands : sequence of str
        The survey's bands with images, in its order.
    """

    def __init__(self, store: Store, plan: Plan, bands: Sequence[str]) -> None:
        self.store, self.plan, self.bands = store, plan, bands
        self._readers: dict[tuple[str, ...], CutoutReader] = {}
        self._surroundings: dict[tuple[float, int], Surroundings] = {}
        inputs = {name for product in plan.products for name in product.inputs.columns}
        own = [column.name for column in plan.catalog.columns]
        objects = {column.name for column in schemas.load("object")}
        self._wanted = [name for name in own if name in objects | inputs | plan.carried.keys()]

    def __call__(self, planned: Unit, donors: Sequence[Donor]) -> Iterator[Held | Read]:
        """Everything that computing a unit needs: what is held of it, then batch by batch."""
        plan = self.plan
        key = hats.leaf_key(planned.order, planned.pixel)
        table = self._source(f"{plan.catalog.key}/{key}", planned.source_sha256)
        held = Held(table, carry.read(self.store, plan, donors, table.num_rows))
        yield held
        if products := held.stale(plan):
            bands, size = unit.image_needs(products, self.bands)
            reader = self._reader(tuple(bands)) if size else None
            yield from unit.batches(table, products, reader, self._around(table, products))

    def _around(self, table: pa.Table, products: Sequence[Product]) -> Around | None:
        needs = neighbour_needs(products)
        if not needs[1]:
            return None
        if needs not in self._surroundings:
            self._surroundings[needs] = Surroundings(self.store, self.plan.catalog, *needs)
        return self._surroundings[needs].of(table)

    def _reader(self, bands: tuple[str, ...]) -> CutoutReader:
        if bands not in self._readers:
            tiles = list(self.plan.tiles)
            self._readers[bands] = CutoutReader(self.store, tiles, list(bands))
        return self._readers[bands]

    def _source(self, key: str, sha256: str) -> pa.Table:
        """Rows of a source leaf, if it is still the one that was planned with."""
        data = self.store.read_if_there(key)
        if data is None or digest(data) != sha256:
            # The next ingest would find what it compares unchanged.
            self.store.put_json(layout.void_catalog(self.plan.survey), {"leaf": key})
            raise StoreError(
                f"{self.store.url_of(key)} is not the leaf that was ingested: if an ingest is "
                "under way, repeat the command after it; else `surveyproc ingest` makes it anew"
            )
        return parse_table(pa.BufferReader(data), self._wanted).select(self._wanted)


def computation(plan: Plan, held: Held) -> Computation:
    """The computation of the products that must be, to which the unit's batches are added."""
    columns = {one.name: one for product in plan.products for one in product.columns}
    known = {
        name: carry.as_numpy(values, columns[name]) for name, values in held.carried.columns.items()
    }
    return Computation(held.table, held.stale(plan), known)


def write(
    store: Store,
    plan: Plan,
    planned: Unit,
    held: Held,
    output: Output,
    *,
    seconds: float,
    quarantine: str = "",
) -> commit.Commit:
    """Pixels, tables, indexes and the leaf, and the commit record after them.

    Parameters
    ----------
    seconds : float
        What reading and computing took; writing is added.
    quarantine : str
        Why nothing could be computed, if that is so.
    """
    started = time.monotonic()
    key = hats.leaf_key(planned.order, planned.pixel)
    carried = held.carried
    names = {name: column.name for name, column in plan.carried.items()}
    source = held.table.rename_columns([names.get(name, name) for name in held.table.column_names])
    for name, values in carried.columns.items():
        source = source.append_column(name, values)
    result = unit.to_table(source, output.columns, plan.leaf_columns)
    pixels = carry.copy_pixels(store, plan.release_key, carried)
    for name, array in plan.pixels.items():
        if name in output.pixels:
            folder = stacks.folder_of(name, planned.order, planned.pixel)
            pixels[name] = stacks.write(store, plan.release_key, folder, array, output.pixels[name])
    tables = {}
    for name, table in plan.tables.items():
        columns = table_columns(table)
        if name in output.tables:
            given = dict(output.tables[name])
            placed = held.table.take(pa.array(given.pop("row")))
            rows = unit.to_table(placed, given, columns)
        elif name in carried.tables:
            rows = carried.tables[name]
        else:
            continue
        if rows.num_rows:
            place = layout.table(plan.release_key, name)
            tables[name] = hats.write_leaf(store, f"{place}/{key}", rows, columns)
    indexes = []
    for column, product in plan.searched.items():
        data = neighbours.encode(result, column, product.version)
        place = neighbours.index_key(column.name, planned.order, planned.pixel)
        store.put(f"{plan.release_key}/{place}", data)
        indexes.append(File(f"/{place}", len(data), digest(data)))
    leaf = hats.write_leaf(store, f"{plan.release_key}/{key}", result, plan.leaf_columns)
    record = commit.Commit(
        unit=planned.name,
        leaf=leaf,
        stats=commit.column_stats(result, plan.columns),
        flags=commit.flag_counts(result, plan.products),
        seconds=seconds + time.monotonic() - started,
        provenance=plan.provenance,
        quarantined=quarantine,
        band_flags=commit.band_flag_counts(result, plan.products),
        products={} if quarantine else planned.products,
        carried=carried.runs,
        tables=tables,
        pixels=pixels,
        device=device(),
        indexes=indexes,
    )
    commit.write(store, plan.run_key, record)
    return record
