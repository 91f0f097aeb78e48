"""Rows of the source that no catalog can hold, kept beside it with the reason."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from surveyproc.catalogs.rows import REASONS
from surveyproc.store.storage import Store

ROW_GROUP_ROWS = 65_536


class RejectedRows:
    """Writes rejected rows, in source order, to a Parquet file that is made with the first of them.

    The file holds all source columns, `reason` (string) and `source_row` (int64, from 0); an
    underscore is added to either name if the source has it. Its bytes do not depend on how the
    source was cut into batches.

    Attributes
    ----------
    rows : int
        Rows written so far.
    """

    def __init__(self, store: Store, key: str, source: pa.Schema) -> None:
        self._store, self._key = store, key
        extra = [("reason", pa.string()), ("source_row", pa.int64())]
        for name, dtype in extra:
            while source.get_field_index(name) >= 0:
                name += "_"
            source = source.append(pa.field(name, dtype))
        self._schema = source
        self._pending = source.empty_table()
        self._open = ExitStack()
        self._writer: Any = None
        self.rows = 0

    def __enter__(self) -> RejectedRows:
        return self

    def add(
        self, batch: pa.RecordBatch, code: NDArray[np.int8], source_row: NDArray[np.int64]
    ) -> None:
        """Take the rows of `batch` whose code is not 0."""
        chosen = np.flatnonzero(code)
        if not len(chosen):
            return
        rows = batch.take(pa.array(chosen))
        reasons = pa.array([REASONS[number] for number in code[chosen]])
        arrays = [*rows.columns, reasons, pa.array(source_row[chosen])]
        more = pa.Table.from_arrays(arrays, schema=self._schema)
        self._pending = pa.concat_tables([self._pending, more])
        self.rows += len(chosen)
        while self._pending.num_rows >= ROW_GROUP_ROWS:
            self._write(self._pending.slice(0, ROW_GROUP_ROWS))
            self._pending = self._pending.slice(ROW_GROUP_ROWS)

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            stream = self._open.enter_context(self._store.writing(self._key, in_place=True))
            self._writer = self._open.enter_context(
                pq.ParquetWriter(stream, self._schema, compression="zstd")
            )
        self._writer.write_table(table.combine_chunks(), row_group_size=ROW_GROUP_ROWS)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._pending.num_rows:
            self._write(self._pending)
        self._open.__exit__(kind, error, trace)
