"""What two releases say differently, row by row, and by how much the fluxes of each tile differ.

Only leaves that differ are read. What is held in memory grows with the tiles of their objects, ten
kilobytes a tile of ten flux columns, not with the objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc.catalogs import hats
from surveyproc.catalogs.hats import Leaf
from surveyproc.errors import InputError
from surveyproc.releases.flux_ratios import TileRatio, TileRatios, flux_columns
from surveyproc.releases.record import finished
from surveyproc.run import commit
from surveyproc.store import layout
from surveyproc.store.storage import Store

Int = NDArray[np.int64]


@dataclass(frozen=True)
class ColumnChange:
    """What changed in a column of rows that both sides have.

    Attributes
    ----------
    changed, lost, gained : int
        Rows with another value; of them those whose value became null, or was null.
    largest : float or None
        Largest absolute difference of numbers; None of others.
    """

    changed: int
    lost: int
    gained: int
    largest: float | None

    def __add__(self, other: ColumnChange) -> ColumnChange:
        largest = [one for one in (self.largest, other.largest) if one is not None]
        return ColumnChange(
            self.changed + other.changed,
            self.lost + other.lost,
            self.gained + other.gained,
            max(largest, default=None),
        )


@dataclass(frozen=True)
class RowChanges:
    """Rows that differ.

    Attributes
    ----------
    added, removed, changed : int
        Rows of the second side alone, of the first alone, and with a change in any column.
    columns : dict of str to ColumnChange
        What changed in every column that both sides have, and that changed.
    """

    added: int = 0
    removed: int = 0
    changed: int = 0
    columns: dict[str, ColumnChange] = field(default_factory=dict)

    def __add__(self, other: RowChanges) -> RowChanges:
        columns = dict(self.columns)
        for name, change in other.columns.items():
            columns[name] = columns[name] + change if name in columns else change
        return RowChanges(
            self.added + other.added,
            self.removed + other.removed,
            self.changed + other.changed,
            columns,
        )


@dataclass(frozen=True)
class TableChange:
    """How a table beside a release differs.

    Attributes
    ----------
    rows : (int, int)
        Of both.
    changed : int
        Partitions that are not the same.
    """

    rows: tuple[int, int]
    changed: int


@dataclass(frozen=True)
class PixelChange:
    """How an array of pixels beside a release differs: partitions that are not the same."""

    changed: int


@dataclass(frozen=True, kw_only=True)
class Difference(RowChanges):
    """What two releases say differently.

    Attributes
    ----------
    first, second : str
        The releases.
    tolerance : float
        Largest relative difference of two floats that counts as none.
    rows : (int, int)
        Of both.
    columns_added, columns_removed : list of str
        Columns of one of them alone.
    leaves_read : int
        Leaves that were read to know it.
    flux_ratios : dict of str to dict of str to TileRatio
        Column of fluxes to tile to how they differ there.
    tables : dict of str to TableChange
        Tables beside the releases.
    pixels : dict of str to PixelChange
        Arrays of pixels beside them.
    """

    first: str
    second: str
    tolerance: float
    rows: tuple[int, int]
    columns_added: list[str]
    columns_removed: list[str]
    leaves_read: int
    flux_ratios: dict[str, dict[str, TileRatio]]
    tables: dict[str, TableChange]
    pixels: dict[str, PixelChange]


def diff(store: Store, survey: str, first: str, second: str, tolerance: float) -> Difference:
    """Rows added, removed and changed from release `first` to release `second`.

    A row is the object of that id (the n-th with it, in the order of the leaf, where ids repeat)
    in the same part of the sky; one that moved to another partition is removed and added.

    Parameters
    ----------
    tolerance : float
        Largest relative difference of two floats that counts as none. Integers and text must be
        equal.

    Raises
    ------
    InputError
        If there is no such release, or its records are gone.
    StoreError
        If a leaf or a record is damaged.
    """
    for release in (first, second):
        if finished(store, release) is None:
            raise InputError(
                f"no finished release of {survey} is called {release!r}: `surveyproc releases` "
                "lists them"
            )
    one, other = (records_of(store, release) for release in (first, second))
    return difference(store, survey, (first, second), one, other, tolerance)


def difference(
    store: Store,
    survey: str,
    releases: tuple[str, str],
    one_records: Sequence[commit.Commit],
    other_records: Sequence[commit.Commit],
    tolerance: float,
) -> Difference:
    """What `diff` says, of two releases whose records are known, published or not."""
    one_leaves = [record.leaf for record in one_records]
    other_leaves = [record.leaf for record in other_records]
    one_key, other_key = (layout.release(survey, release) for release in releases)
    names = _names(store, one_key, one_leaves), _names(store, other_key, other_leaves)
    shared = [name for name in names[0] if name in names[1]]
    ratios = TileRatios(flux_columns(shared))
    total, leaves_read = RowChanges(), 0
    for before, after in differing(one_leaves, other_leaves):
        if not (before and after):
            total += RowChanges(added=_rows(after), removed=_rows(before))
            continue
        one, other = _read(store, one_key, before, shared), _read(store, other_key, after, shared)
        leaves_read += len(before) + len(after)
        both = _both(one, other)
        total += compare(one, other, tolerance, both)
        ratios.add(one.take(both[0]), other.take(both[1]))
    tables, pixels = beside(one_records, other_records)
    return Difference(
        **vars(total),
        first=releases[0],
        second=releases[1],
        tolerance=tolerance,
        rows=(_rows(one_leaves), _rows(other_leaves)),
        columns_added=[name for name in names[1] if name not in names[0]],
        columns_removed=[name for name in names[0] if name not in names[1]],
        leaves_read=leaves_read,
        flux_ratios=ratios.summary(),
        tables=tables,
        pixels=pixels,
    )


def _rows(leaves: Iterable[Leaf]) -> int:
    return sum(leaf.rows for leaf in leaves)


def beside(
    first: Iterable[commit.Commit], second: Iterable[commit.Commit]
) -> tuple[dict[str, TableChange], dict[str, PixelChange]]:
    """What differs in the tables and pixels beside two releases, by checksums."""
    rows: dict[str, list[int]] = {}
    marks: list[dict[tuple[str, str, int, int], Any]] = [{}, {}]
    for side, records in enumerate((first, second)):
        for record in records:
            place = record.leaf.order, record.leaf.pixel
            for name, leaf in record.tables.items():
                rows.setdefault(name, [0, 0])[side] += leaf.rows
                marks[side]["tables", name, *place] = leaf.sha256
            for name, files in record.pixels.items():
                marks[side]["pixels", name, *place] = [file.sha256 for file in files]
    changed = Counter(
        place[:2]
        for place in marks[0].keys() | marks[1].keys()
        if marks[0].get(place) != marks[1].get(place)
    )
    arrays = {name for side in marks for kind, name, *_ in side if kind == "pixels"}
    tables = {
        name: TableChange((one, other), changed["tables", name])
        for name, (one, other) in rows.items()
    }
    return tables, {name: PixelChange(changed["pixels", name]) for name in sorted(arrays)}


def records_of(store: Store, release: str) -> list[commit.Commit]:
    """The commit records of a finished release.

    Raises
    ------
    StoreError
        If a record is damaged.
    """
    return list(
        commit.read_units(store, layout.run(release), commit.recorded(store, layout.run(release)))
    )


def _both(first: pa.Table, second: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Places of the rows that both tables have, in the same order."""
    keys = _keys(first["object_id"].to_numpy(), second["object_id"].to_numpy())
    _, left, right = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    return pa.array(left), pa.array(right)


def compare(
    first: pa.Table,
    second: pa.Table,
    tolerance: float,
    both: tuple[pa.Array, pa.Array] | None = None,
) -> RowChanges:
    """Rows added, removed and changed between two tables with the same columns.

    Parameters
    ----------
    both : (pyarrow.Array, pyarrow.Array), optional
        Places of the rows that both have, if they are known.
    """
    left, right = both or _both(first, second)
    any_change = np.zeros(len(left), bool)
    columns = {}
    for name in first.column_names:
        found, changed = _column(first[name].take(left), second[name].take(right), tolerance)
        any_change |= changed
        if changed.any():
            columns[name] = found
    return RowChanges(
        added=second.num_rows - len(right),
        removed=first.num_rows - len(left),
        changed=int(any_change.sum()),
        columns=columns,
    )


def differing(
    first: Sequence[Leaf], second: Sequence[Leaf]
) -> Iterator[tuple[list[Leaf], list[Leaf]]]:
    """Leaves of both releases that cover the same sky, unless they are the same leaves.

    Partitions of one release never overlap; those of two releases may be split differently.
    """
    group: tuple[list[Leaf], list[Leaf]] = ([], [])
    end = 0
    marked = [(leaf, 0) for leaf in first] + [(leaf, 1) for leaf in second]
    for leaf, side in sorted(
        marked, key=lambda item: hats.nested_start(item[0].order, item[0].pixel)
    ):
        start = hats.nested_start(leaf.order, leaf.pixel)[0]
        if start >= end and any(group):
            if not _same(*group):
                yield group
            group = ([], [])
        group[side].append(leaf)
        end = max(end, hats.nested_start(leaf.order, leaf.pixel + 1)[0])
    if any(group) and not _same(*group):
        yield group


def _same(first: list[Leaf], second: list[Leaf]) -> bool:
    return [leaf.sha256 for leaf in first] == [leaf.sha256 for leaf in second]


def _names(store: Store, key: str, leaves: Sequence[Leaf]) -> list[str]:
    return list(hats.leaf_schema(store, _key(key, leaves[0])).names)


def _read(store: Store, key: str, leaves: Sequence[Leaf], columns: list[str]) -> pa.Table:
    tables = [hats.read_leaf(store, _key(key, leaf), columns) for leaf in leaves]
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])


def _key(release: str, leaf: Leaf) -> str:
    return f"{release}/{hats.leaf_key(leaf.order, leaf.pixel)}"


def _keys(first: Int, second: Int) -> tuple[Int, Int]:
    """One number a row, equal in both for the n-th row of the same id."""
    ids = np.concatenate([first, second])
    rank = np.unique(ids, return_inverse=True)[1].reshape(-1)
    repeat = np.concatenate([_repeats(first), _repeats(second)])
    keys = rank * (repeat.max(initial=0) + 1) + repeat
    return keys[: len(first)], keys[len(first) :]


def _repeats(ids: Int) -> Int:
    """How many rows before each one carry its id."""
    order = np.argsort(ids, kind="stable")
    start = np.flatnonzero(np.diff(ids[order], prepend=ids[order][:1] - 1))
    counts = np.diff(start, append=len(ids))
    repeats = np.empty(len(ids), np.int64)
    repeats[order] = np.arange(len(ids)) - np.repeat(start, counts)
    return repeats


def _column(
    first: pa.ChunkedArray, second: pa.ChunkedArray, tolerance: float
) -> tuple[ColumnChange, NDArray[np.bool_]]:
    """What changed in a column whose rows belong together, and in which rows."""
    null = first.is_null().to_numpy(), second.is_null().to_numpy()
    lost, gained = ~null[0] & null[1], null[0] & ~null[1]
    both = np.flatnonzero(~null[0] & ~null[1])
    changed, largest = _values_differ(
        first.take(pa.array(both)), second.take(pa.array(both)), tolerance
    )
    rows = lost | gained
    rows[both] |= changed
    return ColumnChange(int(rows.sum()), int(lost.sum()), int(gained.sum()), largest), rows


def _values_differ(
    first: pa.ChunkedArray, second: pa.ChunkedArray, tolerance: float
) -> tuple[NDArray[np.bool_], float | None]:
    """Which values differ, and the largest difference of numbers (None for text)."""
    if first.type != second.type:
        return np.ones(len(first), bool), None
    if pa.types.is_list(first.type):
        inner = first.type.value_type
        if pa.types.is_integer(inner) or pa.types.is_floating(inner):
            return _lists_differ(first, second, tolerance)
        # Lists of text and the like, which only the source brings: Arrow compares none.
        pairs = zip(first.to_pylist(), second.to_pylist(), strict=True)
        return np.array([one != other for one, other in pairs], bool), None
    if not pa.types.is_floating(first.type):
        changed = pc.not_equal(first, second).to_numpy()
        if not pa.types.is_integer(first.type):
            return changed, None
        return changed, _largest(first.to_numpy(), second.to_numpy())
    one, other = first.to_numpy().astype(np.float64), second.to_numpy().astype(np.float64)
    return _floats_differ(one, other, tolerance), _largest(one, other)


def _lists_differ(
    first: pa.ChunkedArray, second: pa.ChunkedArray, tolerance: float
) -> tuple[NDArray[np.bool_], float | None]:
    lengths = [pc.list_value_length(side).to_numpy() for side in (first, second)]
    changed = lengths[0] != lengths[1]
    alike = pa.array(np.flatnonzero(~changed))
    values = [pc.list_flatten(side.take(alike)).to_numpy() for side in (first, second)]
    one, other = (side.astype(np.float64) for side in values)
    row = np.repeat(np.flatnonzero(~changed), lengths[0][~changed])
    changed[row[_floats_differ(one, other, tolerance)]] = True
    return changed, _largest(one, other)


def _floats_differ(
    one: NDArray[np.float64], other: NDArray[np.float64], tolerance: float
) -> NDArray[np.bool_]:
    # Equal infinities are equal, and so are two values that are not there.
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(other - one) <= tolerance * np.maximum(np.abs(one), np.abs(other))
    different: NDArray[np.bool_] = ~(same | (near & np.isfinite(one) & np.isfinite(other)))
    return different


def _largest(one: NDArray[Any], other: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(other.astype(np.float64) - one.astype(np.float64))
    return float(np.max(difference, initial=0.0, where=np.isfinite(difference)))
