"""Leaves of HATS catalogs that others wrote, read by a process that may die of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from surveyproc.catalogs.formats.base import damaged
from surveyproc.catalogs.formats.parquet import BATCH_BYTES, ROW_BYTES, row_bytes, too_wide
from surveyproc.child import Talk
from surveyproc.errors import InputError
from surveyproc.store.storage import Store

BATCH_ROWS = 131_072


def leaf_names(store: Store, key: str) -> list[str]:
    """Names of the columns of the leaf `key` (full key).

    Raises
    ------
    InputError
        If it is damaged, or its process dies (DiedError).
    StoreError
        If it cannot be read.
    """
    with closing(Talk(_names, store, key)) as talk:
        names: list[str] = talk.hear(store.url_of(key))
        return names


def leaf_tables(store: Store, key: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of numbers, or lists of them, of the leaf `key` (full key), some rows at a time.

    The next rows are read while the last ones are used.

    Raises
    ------
    InputError
        If the leaf is damaged, a column is absent or not numeric, its rows are longer than
        `ROW_BYTES` on average, or its process dies (DiedError).
    StoreError
        If it cannot be read.
    """
    with closing(Talk(_tables, store, key, list(columns))) as talk:
        while (table := talk.hear(store.url_of(key))) is not None:
            talk.say(None)
            yield table


def is_numeric(dtype: pa.DataType) -> bool:
    """Whether a column holds numbers, truths or nothing, one an object or lists of them."""
    lists = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
    inner = dtype.value_type if isinstance(dtype, lists) else dtype
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(is_kind(inner) for is_kind in kinds)


def _names(store: Store, key: str) -> Generator[Any, Any, None]:
    """The other side of `leaf_names`."""
    try:
        with store.reading(key) as stream:
            names = pq.read_schema(stream).names
    except pa.ArrowException as error:
        raise damaged(store.url_of(key), error) from error
    yield names


def _tables(store: Store, key: str, columns: list[str]) -> Generator[Any, Any, None]:
    """The other side of `leaf_tables`; None at the end."""
    url = store.url_of(key)
    try:
        with store.reading(key) as stream:
            file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
            _check(file.schema_arrow, columns, url)
            if (width := row_bytes(file, columns)) > ROW_BYTES:
                raise too_wide(url, width)
            most = max(1, min(BATCH_ROWS, int(BATCH_BYTES / width)))
            for batch in file.iter_batches(most, columns=columns, use_threads=False):
                batch.validate(full=True)  # Arrow believes files unless it is asked not to
                yield pa.Table.from_batches([batch]).select(columns)
    except pa.ArrowException as error:
        raise damaged(url, error) from error
    yield None


def _check(schema: pa.Schema, columns: list[str], url: str) -> None:
    if lacking := set(columns) - set(schema.names):
        raise InputError(f"{url} has no column {', '.join(sorted(lacking))}")
    for name in columns:
        dtype = schema.field(name).type
        if not is_numeric(dtype):
            raise InputError(f"{url}: column {name!r} is not numeric ({dtype})")
