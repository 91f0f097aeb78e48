"""What two releases say differently, row by row. Only leaves that differ are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc.catalogs import hats
from surveyproc.catalogs.hats import Leaf
from surveyproc.errors import InputError
from surveyproc.run import commit
from surveyproc.run.plan import read_done, release_key, run_key
from surveyproc.storage import Store

Int = NDArray[np.int64]


def diff(store: Store, survey: str, first: str, second: str, tolerance: float) -> dict[str, Any]:
    """Rows added, removed and changed from release `first` to release `second`.

    A row is the object of that id (the n-th with it, in the order of the leaf, where ids repeat)
    in the same part of the sky; one that moved to another partition is removed and added.

    Parameters
    ----------
    tolerance : float
        Largest relative difference of two floats that counts as none. Integers and text must be
        equal.

    Returns
    -------
    dict
        `first`, `second`, `tolerance`; `rows` of both, `added`, `removed`, `changed` (rows with a
        change in any column); `columns`: for every column that both have and that changed,
        `changed` rows, of them `lost` (value to null) and `gained` (null to value), and `largest`,
        the largest absolute difference; `columns_added`, `columns_removed`; `leaves_read`.

    Raises
    ------
    InputError
        If there is no such release, or its records are gone.
    StoreError
        If a leaf or a record is damaged.
    """
    leaves = [_leaves(store, survey, release) for release in (first, second)]
    document: dict[str, Any] = {
        "first": first,
        "second": second,
        "tolerance": tolerance,
        "rows": [sum(leaf.rows for leaf in side) for side in leaves],
        **{name: 0 for name in ("added", "removed", "changed", "leaves_read")},
        "columns": {},
    }
    folders = [release_key(survey, release) for release in (first, second)]
    names = [_names(store, key, side) for key, side in zip(folders, leaves, strict=True)]
    document["columns_added"] = [name for name in names[1] if name not in names[0]]
    document["columns_removed"] = [name for name in names[0] if name not in names[1]]
    shared = [name for name in names[0] if name in names[1]]
    for sides in differing(*leaves):
        if not all(sides):
            document["removed"] += sum(leaf.rows for leaf in sides[0])
            document["added"] += sum(leaf.rows for leaf in sides[1])
            continue
        one, other = (
            _read(store, key, side, shared) for key, side in zip(folders, sides, strict=True)
        )
        document["leaves_read"] += sum(map(len, sides))
        _add(document, compare(one, other, tolerance))
    return document


def compare(first: pa.Table, second: pa.Table, tolerance: float) -> dict[str, Any]:
    """Rows added, removed and changed between two tables with the same columns.

    Returns
    -------
    dict
        `added`, `removed`, `changed` and `columns`, as `diff` says.
    """
    keys = _keys(first["object_id"].to_numpy(), second["object_id"].to_numpy())
    _, left, right = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    any_change = np.zeros(len(left), bool)
    columns = {}
    for name in first.column_names:
        found, changed = _column(
            first[name].take(pa.array(left)), second[name].take(pa.array(right)), tolerance
        )
        any_change |= changed
        if changed.any():
            columns[name] = found
    return {
        "added": len(keys[1]) - len(right),
        "removed": len(keys[0]) - len(left),
        "changed": int(any_change.sum()),
        "columns": columns,
    }


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


def _leaves(store: Store, survey: str, release: str) -> list[Leaf]:
    done = read_done(store, release)
    if done is None:
        raise InputError(
            f"no finished release of {survey} is called {release!r}: `surveyproc releases` lists "
            "them"
        )
    records = commit.read_units(store, run_key(release), commit.recorded(store, run_key(release)))
    return [record.leaf for record in records]


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
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """What changed in a column whose rows belong together, and in which rows."""
    null = first.is_null().to_numpy(), second.is_null().to_numpy()
    lost, gained = ~null[0] & null[1], null[0] & ~null[1]
    both = np.flatnonzero(~null[0] & ~null[1])
    changed, largest = _values_differ(
        first.take(pa.array(both)), second.take(pa.array(both)), tolerance
    )
    rows = lost | gained
    rows[both] |= changed
    found = {
        "changed": int(rows.sum()),
        "lost": int(lost.sum()),
        "gained": int(gained.sum()),
        "largest": largest,
    }
    return found, rows


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


def _add(document: dict[str, Any], part: dict[str, Any]) -> None:
    for name in ("added", "removed", "changed"):
        document[name] += part[name]
    for name, found in part["columns"].items():
        into = document["columns"].setdefault(name, {**found, "changed": 0, "lost": 0, "gained": 0})
        for count in ("changed", "lost", "gained"):
            into[count] += found[count]
        if found["largest"] is not None:
            into["largest"] = max(into["largest"] or 0.0, found["largest"])
