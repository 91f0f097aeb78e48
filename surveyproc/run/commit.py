"""Commit records: written after a unit's leaf, compared with the plan before anything is read."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.catalogs import hats
from surveyproc.catalogs.hats import Leaf
from surveyproc.errors import StoreError, UnreachableError
from surveyproc.evaluate.histogram import histogram, pack
from surveyproc.products.base import Product
from surveyproc.run.plan import Plan, Unit
from surveyproc.run.stacks import File
from surveyproc.schemas import Column
from surveyproc.store import layout
from surveyproc.store.storage import Store, digest

READERS = 16


@dataclass(frozen=True)
class ColumnStats:
    """What a gate needs to know of one column of one leaf.

    Attributes
    ----------
    nulls, out_of_range : int
        Values that are null, and those outside the declared range.
    minimum, maximum : float or None
        Extremes of a column of numbers; None for lists and text, or if all is null.
    histogram : str
        Values of a column of numbers, or in its lists, as `surveyproc.evaluate.histogram.pack`
        writes them; empty for text and embeddings.
    """

    nulls: int
    out_of_range: int
    minimum: float | None
    maximum: float | None
    histogram: str = ""


@dataclass(frozen=True)
class Commit:
    """Proof that a unit's leaf is complete.

    Attributes
    ----------
    unit : str
        The unit's name, which holds the hash of its inputs.
    leaf : Leaf
        Rows, bytes, SHA-256 and Parquet footer of the leaf.
    stats : dict
        Column name to its statistics.
    flags : dict
        Product name to {flag name: objects}, with the key `any` for all flagged objects.
    band_flags : dict
        The same for the flag columns of single bands, by the column's name.
    products : dict
        Product name to the hash of what its values depend on, see `plan.Unit`.
    carried : dict
        Products whose values were taken from the leaf of another run, and which.
    tables : dict
        Table to its leaf, where the partition has rows of it.
    pixels : dict
        Array of pixels to its files.
    indexes : list of File
        Indexes of columns that have one.
    seconds : float
        Time the unit took.
    provenance : dict
        Code, configuration, model and input versions.
    adopted : str
        The run that computed the leaf, if it is a copy; empty if it was computed here.
    quarantined : str
        Why nothing could be computed for the rows, which then hold nulls; empty if it could.
    device : str
        `cuda` if products that want a GPU had one; their values then differ from those of a CPU
        in the last digits.
    """

    unit: str
    leaf: Leaf
    stats: dict[str, ColumnStats]
    flags: dict[str, dict[str, int]]
    seconds: float
    provenance: dict[str, str]
    adopted: str = ""
    quarantined: str = ""
    band_flags: dict[str, dict[str, int]] = field(default_factory=dict)
    products: dict[str, str] = field(default_factory=dict)
    carried: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Leaf] = field(default_factory=dict)
    pixels: dict[str, list[File]] = field(default_factory=dict)
    device: str = "cpu"
    indexes: list[File] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether pixels could not be read: once their cube is whole again, the leaf is another."""
        flags = (*self.flags.values(), *self.band_flags.values())
        return any("corrupt_data" in counts for counts in flags)

    @property
    def final(self) -> bool:
        """Whether its leaf is what its inputs give, to be adopted and carried over."""
        return not (self.quarantined or self.damaged)

    @property
    def files(self) -> list[File]:
        """Every file of the unit in its release, that which makes others readable after them."""
        leaves = [(f"/{hats.leaf_key(self.leaf.order, self.leaf.pixel)}", self.leaf)]
        leaves += [
            (layout.table("", name) + f"/{hats.leaf_key(one.order, one.pixel)}", one)
            for name, one in self.tables.items()
        ]
        own = [File(key, leaf.nbytes, leaf.sha256) for key, leaf in leaves]
        return [*own, *(file for files in self.pixels.values() for file in files), *self.indexes]


def column_stats(table: pa.Table, columns: Sequence[Column]) -> dict[str, ColumnStats]:
    """Null counts, values outside the declared range, extremes and histogram of each column."""
    stats = {}
    for column in columns:
        values = table[column.name]
        low = high = None
        outside = 0
        if pa.types.is_list(values.type):
            # The numbers of an embedding mean nothing one by one, nor across versions of a model.
            known = "" if column.searched else _histogram(pc.list_flatten(values))
            stats[column.name] = ColumnStats(values.null_count, 0, None, None, known)
            continue
        if not _is_number(values.type):
            stats[column.name] = ColumnStats(values.null_count, 0, None, None)
            continue
        if len(values) > values.null_count:
            extremes = pc.min_max(values).as_py()
            low, high = float(extremes["min"]), float(extremes["max"])
        if column.range is not None:
            # Infinities are outside every range.
            inside = pc.and_(
                pc.greater_equal(values, column.range[0]), pc.less_equal(values, column.range[1])
            )
            outside = pc.sum(pc.invert(inside)).as_py() or 0
        stats[column.name] = ColumnStats(values.null_count, outside, low, high, _histogram(values))
    return stats


def flag_counts(table: pa.Table, products: Sequence[Product]) -> dict[str, dict[str, int]]:
    """For every product, how many objects carry each flag, and how many carry any."""
    return {one.name: _counts(table[f"{one.name}_flag"].to_numpy()) for one in products}


def band_flag_counts(table: pa.Table, products: Sequence[Product]) -> dict[str, dict[str, int]]:
    """The same for every flag column of a single band."""
    return {
        name: _counts(table[name].to_numpy())
        for one in products
        for name in schemas.flag_columns(one.name, one.columns)
        if name != f"{one.name}_flag"
    }


def _counts(values: NDArray[np.int32]) -> dict[str, int]:
    named = {name: int((values & bit != 0).sum()) for name, bit in schemas.flags().items()}
    counts = {name: count for name, count in named.items() if count}
    return {"any": int((values != 0).sum()), **counts}


def record_key(run_key: str, unit: str) -> str:
    """Where the record of the unit of that name lies."""
    return f"{run_key}/commits/{unit}.json"


def write(store: Store, run_key: str, commit: Commit) -> None:
    """Put the record where the next run looks for it."""
    document = asdict(commit)
    for leaf in (document["leaf"], *document["tables"].values()):
        leaf["footer"] = base64.b64encode(leaf["footer"]).decode()
    store.put_record(record_key(run_key, commit.unit), document)


def read(store: Store, run_key: str, unit: str) -> Commit:
    """The record of the finished unit of that name.

    Raises
    ------
    StoreError
        If there is none, or it is damaged.
    """
    key = record_key(run_key, unit)
    document = store.read_json(key, "`surveyproc run` computes the unit anew")
    if document is None:
        raise StoreError(f"{store.url_of(key)} is missing: `surveyproc run` computes the unit anew")
    try:
        parts = {
            "leaf": _leaf(document["leaf"]),
            "stats": {name: ColumnStats(**value) for name, value in document["stats"].items()},
            "tables": {name: _leaf(one) for name, one in document.get("tables", {}).items()},
            "pixels": {
                name: [File(**one) for one in files]
                for name, files in document.get("pixels", {}).items()
            },
            "indexes": [File(**one) for one in document.get("indexes", [])],
        }
        return Commit(**{**document, **parts})
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{store.url_of(key)} is damaged ({error}); `surveyproc run` computes the unit anew"
        ) from error


def _leaf(document: dict[str, Any]) -> Leaf:
    return Leaf(**{**document, "footer": base64.b64decode(document["footer"])})


def read_all(store: Store, plan: Plan) -> Iterator[Commit]:
    """The records of all units, in plan order, a few read at a time."""
    yield from read_units(store, plan.run_key, [unit.name for unit in plan.units])


def read_units(store: Store, run_key: str, units: Iterable[str]) -> Iterator[Commit]:
    """The records of the units of those names, in their order."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(lambda unit: read(store, run_key, unit), units)


def recorded(store: Store, run_key: str) -> list[str]:
    """Names of the units of a run that have a record. One listing."""
    return [name.removesuffix(".json") for name in store.names(f"{run_key}/commits")]


def intact(store: Store, release: str, record: Commit, closely: bool = False) -> bool:
    """Whether every file of a unit is there in its full length; `release` is the folder.

    With `closely`, whether its bytes are those that were written: then all are read.
    """
    if closely:
        found = (store.read_if_there(release + file.key) for file in record.files)
        expected = [file.sha256 for file in record.files]
        return [data and digest(data) for data in found] == expected
    return all(store.size(release + file.key) == file.nbytes for file in record.files)


def forget_damaged(store: Store, plan: Plan, *, pixels: bool = False) -> int:
    """Remove the records of leaves that are gone or cut short, and damaged records; how many.

    Leaves are read only if `validate` found the release damaged. With `pixels` also the records of
    those go that lack pixels of a damaged cube.
    """
    closely = store.exists(layout.damage(plan.run))

    def is_damaged(unit: Unit) -> bool:
        try:
            record = read(store, plan.run_key, unit.name)
        except UnreachableError:
            raise
        except StoreError:
            return True
        return (pixels and record.damaged) or not intact(store, plan.release_key, record, closely)

    known = set(recorded(store, plan.run_key))
    done = [unit for unit in plan.units if unit.name in known]
    with ThreadPoolExecutor(READERS) as pool:
        damaged = [unit for unit, bad in zip(done, pool.map(is_damaged, done), strict=True) if bad]
    for unit in damaged:
        store.remove(record_key(plan.run_key, unit.name))
    return len(damaged)


def pending(store: Store, plan: Plan) -> list[Unit]:
    """Units without a commit record. One listing; no record and no data is read."""
    done = set(recorded(store, plan.run_key))
    return [unit for unit in plan.units if unit.name not in done]


def by_product(records: Iterable[Commit], worked_on: Collection[str]) -> dict[str, dict[str, int]]:
    """For every product the units whose values were `computed`, `carried` over, or `kept`.

    Parameters
    ----------
    records : iterable of Commit
        Of all units of a run.
    worked_on : collection of str
        Units that were not found finished, nor copied whole.
    """
    found: dict[str, dict[str, int]] = {}
    for record in records:
        for product in record.flags:
            counts = found.setdefault(product, {"computed": 0, "carried": 0, "kept": 0})
            if record.unit not in worked_on:
                counts["kept"] += 1
            else:
                counts["carried" if product in record.carried else "computed"] += 1
    return found


def total_flags(flags: Iterable[Mapping[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Flag counts of all units together."""
    total: dict[str, dict[str, int]] = {}
    for one in flags:
        for product, counts in one.items():
            into = total.setdefault(product, {})
            for name, count in counts.items():
                into[name] = into.get(name, 0) + count
    return total


def _histogram(values: pa.ChunkedArray | pa.Array) -> str:
    numbers = values.drop_null().to_numpy()
    # A list may hold NaN beside numbers.
    return pack(histogram(numbers[~np.isnan(numbers)]))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
