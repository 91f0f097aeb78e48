"""Two published releases of the same survey, value by value.

    python benchmarks/compare_leaves.py FIRST/store/releases/NAME SECOND/store/releases/NAME

Each folder holds a `current.json`; the leaves of the release that it names are compared column by
column, rows in order of object_id: the same values, bit for bit, and the same nulls. Exits with 1
if anything differs, or if one of them lacks a column.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def rows_of(folder: Path) -> pa.Table:
    """All rows of the published release, in order of object_id."""
    release = json.loads((folder / "current.json").read_text())["release"]
    leaves = sorted((folder / release / "dataset").rglob("Npix=*.parquet"))
    table = pa.concat_tables(
        [pq.read_table(leaf, partitioning=None).replace_schema_metadata() for leaf in leaves]
    )
    return table.sort_by("object_id").combine_chunks()


def raw(column: pa.ChunkedArray) -> list[str | None]:
    """A column's values as text that tells all bits apart, None for nulls."""
    return [None if value is None else repr(value) for value in column.to_pylist()]


def main() -> None:
    first, second = (rows_of(Path(folder)) for folder in sys.argv[1:3])
    lacking = sorted(set(first.column_names) ^ set(second.column_names))
    differing = {}
    for name in first.column_names:
        if name not in lacking:
            pairs = zip(raw(first[name]), raw(second[name]), strict=True)
            differing[name] = sum(one != other for one, other in pairs)
    columns = {name: count for name, count in differing.items() if count}
    print(
        f"{first.num_rows} and {second.num_rows} rows, {len(differing)} columns in both; "
        f"in one alone: {', '.join(lacking) or 'none'}; "
        f"columns with other values: {columns or 'none'}"
    )
    sys.exit(bool(lacking or columns or first.num_rows != second.num_rows))


if __name__ == "__main__":
    main()
