"""Values of products that are not stale, taken from leaves that have them.

A unit that is pending because one product changed need not compute the others: their values in
another release are those that would be computed, if all that they depend on is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc.catalogs import hats
from surveyproc.errors import StoreError, UnreachableError
from surveyproc.products.base import Product, pixels_of, tables_of
from surveyproc.run import commit
from surveyproc.run.adopt import donors
from surveyproc.run.plan import Plan, Unit
from surveyproc.run.stacks import File
from surveyproc.schemas import Column
from surveyproc.store import layout
from surveyproc.store.storage import Store, digest, parse_table


@dataclass(frozen=True)
class Donor:
    """A unit of another run whose leaf has values of products that are wanted.

    Attributes
    ----------
    run, unit : str
        Names of the run and of the unit in it.
    products : tuple of str
        Products whose values are taken.
    """

    run: str
    unit: str
    products: tuple[str, ...]


def find(store: Store, plan: Plan, units: Iterable[Unit]) -> dict[str, tuple[Donor, ...]]:
    """For each of these units the leaves that have values for it, those of the published
    release first.

    Reads the commit records of the same partitions in other runs until nothing is wanted.

    Returns
    -------
    dict of str to tuple of Donor
        By the unit's name; only units for which there is something.
    """
    wanted = {unit.partition: (unit, dict(unit.products)) for unit in units}
    found: dict[str, list[Donor]] = {}
    for run in donors(store, plan):
        open_ = {place for place, (_, products) in wanted.items() if products}
        if not open_:
            break
        names = [
            name
            for name in commit.recorded(store, layout.run(run))
            if name.rpartition("-")[0] in open_
        ]
        with ThreadPoolExecutor(commit.READERS) as pool:
            records = list(pool.map(partial(_record, store, plan, run), names))
        for name, record in zip(names, records, strict=True):
            unit, products = wanted[name.rpartition("-")[0]]
            held = record.products if record is not None else {}
            taken = tuple(one for one, mark in products.items() if held.get(one) == mark)
            if taken:
                found.setdefault(unit.name, []).append(Donor(run, name, taken))
                for one in taken:
                    del products[one]
    return {name: tuple(given) for name, given in found.items()}


def _record(store: Store, plan: Plan, run: str, unit: str) -> commit.Commit | None:
    """A record whose values can be used; None if there is none."""
    try:
        record = commit.read(store, layout.run(run), unit)
    except UnreachableError:
        raise
    except StoreError:
        return None  # damaged, or removed while we looked
    whole = record.final and commit.intact(store, layout.release(plan.survey, run), record)
    return record if whole else None


@dataclass
class Carried:
    """Values of one unit that need not be computed.

    Attributes
    ----------
    runs : dict of str to str
        Product to the run that computed it.
    columns : dict of str to pyarrow.ChunkedArray
        As they are in the other leaf.
    tables : dict of str to pyarrow.Table
        Rows of the products' tables; a table without rows is absent.
    pixels : dict of str to (str, list of File)
        Array to the release's folder and the files there.
    """

    runs: dict[str, str]
    columns: dict[str, pa.ChunkedArray]
    tables: dict[str, pa.Table]
    pixels: dict[str, tuple[str, list[File]]]


def read(store: Store, plan: Plan, given: Iterable[Donor], rows: int) -> Carried:
    """What the donors of a unit of `rows` rows have; a damaged one gives nothing.

    Raises
    ------
    UnreachableError
        If the store does not answer.
    """
    products = {product.name: product for product in plan.products}
    found = Carried({}, {}, {}, {})
    for donor in given:
        try:
            part = _read(store, plan, donor, [products[name] for name in donor.products])
        except UnreachableError:
            raise
        except StoreError:
            continue  # damaged, or removed since the plan was made: then it is computed
        if any(len(column) != rows for column in part.columns.values()):
            continue
        for mine, theirs in zip(vars(found).values(), vars(part).values(), strict=True):
            mine.update(theirs)
    return found


def _read(store: Store, plan: Plan, donor: Donor, products: list[Product]) -> Carried:
    record = commit.read(store, layout.run(donor.run), donor.unit)
    place = layout.release(plan.survey, donor.run)
    names = [column.name for product in products for column in product.columns]
    key = hats.leaf_key(record.leaf.order, record.leaf.pixel)
    leaf = _checked(store, f"{place}/{key}", record.leaf.sha256, names)
    tables = {}
    for product in products:
        for table in tables_of(product):
            if own := record.tables.get(table.name):
                held = f"{layout.table(place, table.name)}/{key}"
                tables[table.name] = _checked(store, held, own.sha256, None)
    return Carried(
        {product.name: record.carried.get(product.name, donor.run) for product in products},
        {name: leaf[name] for name in names},
        tables,
        {
            array.name: (place, record.pixels[array.name])
            for product in products
            for array in pixels_of(product)
        },
    )


def _checked(store: Store, key: str, sha256: str, columns: list[str] | None) -> pa.Table:
    data = store.read(key)
    if digest(data) != sha256:
        raise StoreError(f"{store.url_of(key)} differs from its commit record")
    return parse_table(pa.BufferReader(data), columns)


def as_numpy(values: pa.ChunkedArray, column: Column) -> NDArray[np.generic]:
    """Carried values as `Product.compute` gives them: `missing` for null, lists as (n, length)."""
    if not column.length:
        plain: NDArray[np.generic] = values.to_numpy()
        return plain
    out = np.full((len(values), column.length), column.missing, np.dtype(column.dtype))
    known = values.is_valid().to_numpy()
    out[known] = pc.list_flatten(values.drop_null()).to_numpy().reshape(-1, column.length)
    return out


def copy_pixels(store: Store, release: str, carried: Carried) -> dict[str, list[File]]:
    """Copy the files of arrays that need not be computed into a release; array to its files."""
    for place, files in carried.pixels.values():
        for file in files:
            store.copy(place + file.key, release + file.key)
    return {name: files for name, (_, files) in carried.pixels.items()}
