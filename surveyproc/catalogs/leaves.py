"""From spilled rows to leaves: one partition at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from surveyproc import schemas, sky
from surveyproc.catalogs import hats, ids
from surveyproc.catalogs.hats import Leaf, Partition
from surveyproc.catalogs.spill import Int, bucket, collisions, read_group, repeated
from surveyproc.errors import InputError
from surveyproc.places import Item, Places, Stage
from surveyproc.schemas import Column
from surveyproc.store.storage import Store

# Far more than rounding: an object on the rim of its circle must never fall outside.
CAP_MARGIN_DEG = 2e-6
# Rows that one core sorts and writes in a second, roughly (benchmarks/inference.py: a whole ingest
# by two threads, 558,000).
ROWS_PER_S = 250_000.0


@dataclass(frozen=True)
class Folders:
    """Keys of the catalog and of this ingest's temporary folders."""

    catalog: str
    rows: str
    ids: str
    repeated: str


@dataclass(frozen=True)
class Written:
    """A leaf, its row in `partitions.parquet`, and how many of its rows share an id."""

    leaf: Leaf
    partition: Partition
    duplicates: int


def spill_schema(columns: Sequence[Column]) -> pa.Schema:
    """Stored columns but `catalog_flag`, then the row's number in the source.

    No source column can be called like that last one: names hold no null character.
    """
    kept = schemas.arrow_schema(column for column in columns if column.name != "catalog_flag")
    return kept.append(pa.field("\0source_row", pa.int64()))


def id_schema(origin: str) -> pa.Schema:
    """Spilled ids; with what tells collisions, where ids are hashes."""
    names = ("id", "check") if origin == ids.TEXT else ("id",)
    return pa.schema([(name, pa.int64()) for name in names])


def find_repeated(
    store: Store, folders: Folders, spilled: dict[int, Int], origin: str, places: Places
) -> list[int]:
    """Write the ids that occur more than once, by bucket; return the buckets that have any.

    Raises
    ------
    InputError
        If two texts were given one id.
    """
    items = [
        Item(str(number), {"bucket": number, "places": where.tobytes()}, _seconds(where))
        for number, where in spilled.items()
    ]
    stage = Stage("id buckets", _IdCounter, (store, folders, id_schema(origin)))
    found = []
    for result in places.stream(items, stage):
        if result["collisions"]:
            raise InputError(
                f"catalog.id: two different texts give the same object_id {result['collisions'][0]}"
                "; name another column of ids"
            )
        found += [int(result["bucket"])] if result["repeated"] else []
    return sorted(found)


def _seconds(spilled: Int) -> float:
    """Seconds of one core for rows that were spilled to these places."""
    return float(spilled[:, 2].sum()) / ROWS_PER_S


def write_all(
    store: Store,
    folders: Folders,
    chosen: Sequence[tuple[int, int, int]],
    spilled: dict[int, Int],
    columns: Sequence[Column],
    repeats: tuple[int, list[int]],
    origin: str,
    places: Places,
) -> Iterator[Written]:
    """Write every partition's leaf; results in nested order.

    Parameters
    ----------
    chosen : sequence of (order, pixel, rows)
        Partitions by number.
    spilled : dict
        Where the rows of each partition lie.
    repeats : (bits, buckets)
        Hash bits of ids, and the buckets with repeated ids.
    origin : str
        Where ids come from; those of places are made here.
    places : Places
        Where the work may run.
    """
    items = [
        Item(
            f"{order}/{pixel}",
            {"number": n, "order": order, "pixel": pixel, "places": spilled[n].tobytes()},
            rows / ROWS_PER_S,
        )
        for n, (order, pixel, rows) in enumerate(chosen)
    ]
    stage = Stage("partitions", _LeafWriter, (store, folders, tuple(columns), repeats, origin))
    # Results are handed on in order, so that what is made of them does not depend on scheduling.
    waiting: dict[int, Written] = {}
    following = 0
    for result in places.stream(items, stage):
        number, duplicates = result.pop("number"), result.pop("duplicates")
        circle = {name: float(result.pop(name)) for name in ("ra", "dec", "radius")}
        leaf = Leaf(**result)
        partition = Partition(leaf.order, leaf.pixel, leaf.rows, leaf.nbytes, leaf.sha256, **circle)
        waiting[int(number)] = Written(leaf, partition, int(duplicates))
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _triples(data: bytes) -> Int:
    return np.frombuffer(data, np.int64).reshape(-1, 3)


class _IdCounter:
    """Finds the ids of one bucket that occur more than once, and those that collide."""

    def __init__(self, store: Store, folders: Folders, schema: pa.Schema) -> None:
        self.store, self.folders, self.schema = store, folders, schema

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        table = read_group(self.store, self.folders.ids, _triples(item["places"]), self.schema)
        columns = [column.to_numpy() for column in table.columns]
        found = repeated(columns[0])
        clash = collisions(*columns).tolist() if len(columns) > 1 else []
        if len(found):
            key = _repeated_key(self.folders, item["bucket"])
            with self.store.writing(key, lasting=False) as stream:
                stream.write(found.astype("<i8").tobytes())
        return {"bucket": int(item["bucket"]), "repeated": len(found), "collisions": clash}


def _repeated_key(folders: Folders, number: int) -> str:
    return f"{folders.repeated}/{number:06d}.ids"


class _LeafWriter:
    """Sorts the rows of a partition, flags repeated ids, writes the leaf."""

    def __init__(
        self,
        store: Store,
        folders: Folders,
        columns: tuple[Column, ...],
        repeats: tuple[int, list[int]],
        origin: str,
    ) -> None:
        self.store, self.folders, self.columns, self.origin = store, folders, columns, origin
        self.bits, self.buckets = repeats
        self.schema = spill_schema(columns)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        table = read_group(self.store, self.folders.rows, _triples(item["places"]), self.schema)
        keys = (table[name].to_numpy() for name in ("\0source_row", "object_id", hats.SPATIAL))
        # The source row decides between rows that are alike, so that batches do not matter.
        table = table.take(pa.array(np.lexsort(tuple(keys))))
        if self.origin == ids.PLACE:
            made = pa.array(ids.of_place(table[hats.SPATIAL].to_numpy()))
            place = table.schema.get_field_index("object_id")
            table = table.set_column(place, "object_id", made)
        repeats = self.is_repeated(table["object_id"].to_numpy())
        flags = np.where(repeats, schemas.flag("duplicate_id"), 0).astype(np.int32)
        table = table.append_column("catalog_flag", pa.array(flags))
        key = f"{self.folders.catalog}/{hats.leaf_key(int(item['order']), int(item['pixel']))}"
        leaf = hats.write_leaf(self.store, key, table, self.columns)
        ra, dec, radius = sky.cap(table["ra"].to_numpy(), table["dec"].to_numpy())
        return {
            "number": int(item["number"]),
            "duplicates": int(repeats.sum()),
            "ra": ra,
            "dec": dec,
            "radius": radius + CAP_MARGIN_DEG,
            **asdict(leaf),
        }

    def is_repeated(self, numbers: Int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether another source row carries each id, shape (n,). Reads one bucket at a time."""
        found = np.zeros(len(numbers), bool)
        if not self.buckets:
            return found
        buckets = bucket(numbers, self.bits)
        for number in np.intersect1d(buckets, self.buckets).tolist():
            mine = np.flatnonzero(buckets == number)
            data = self.store.read(_repeated_key(self.folders, number))
            found[mine] = np.isin(numbers[mine], np.frombuffer(data, "<i8"))
        return found
