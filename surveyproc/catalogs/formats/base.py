"""What every table reader is, and the helpers that they share."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from surveyproc.errors import InputError, StoreError, store_error
from surveyproc.store.unpacked import write_unpacked
from surveyproc.store.urls import file_name, opened

GZIP_MAGIC = b"\x1f\x8b"
# What readers of damaged gzip streams, local files and object stores raise.
STREAM_ERRORS = (OSError, EOFError, zlib.error)


class TableReader(ABC):
    """One table, read in batches.

    Attributes
    ----------
    url : str
        Where it lies.
    kind : str
        fits, votable, parquet, hats, csv or ecsv.
    schema : pyarrow.Schema
        Types as every batch has them; field metadata holds `unit`, `ucd` and `description` where
        the format knows them. Vector columns with a fixed number of values are fixed-size lists.
    warnings : list of str
        What a person should know of the table: it is a part of what was asked for, columns were
        renamed or left out.
    repeated : frozenset of str
        Names that several columns of the file have: only the first is called so here.
    """

    kind = ""
    url: str
    schema: pa.Schema

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.repeated: frozenset[str] = frozenset()

    def warn(self, *texts: str) -> None:
        """Take what a person should know into `warnings`, after the file's name."""
        self.warnings += [f"{file_name(self.url)}: {text}" for text in texts]

    @property
    def names(self) -> list[str]:
        """Column names in file order."""
        return list(self.schema.names)

    @abstractmethod
    def batches(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The table in file order, in record batches of at most `rows` rows, in bounded memory.

        Parameters
        ----------
        rows : int
            Most rows a batch may hold.
        columns : sequence of str, optional
            Only these columns, in this order; formats that can do so read nothing else.

        Raises
        ------
        InputError
            If the file turns out to be truncated, a column's type drifts, or one of `columns` has
            a name that several have.
        """

    def close(self) -> None:  # noqa: B027 (most readers hold nothing open)
        """Let go of open files and temporary copies."""

    def __enter__(self) -> TableReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class FileReader(TableReader):
    """A table that this process reads itself."""

    def batches(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """As `TableReader.batches`."""
        if rows < 1:
            raise ValueError("rows must be at least 1")
        schema = self.schema
        if columns is not None:
            if doubtful := sorted(self.repeated & set(columns)):
                raise InputError(
                    f"{self.url}: several columns are called {doubtful[0]!r}; rename all but the "
                    "one that is meant"
                )
            schema = pa.schema([self.schema.field(name) for name in columns])
        for batch in self._read(rows, list(schema.names)):
            for start in range(0, batch.num_rows, rows):
                yield conform(batch.slice(start, rows), schema, self.url)

    @abstractmethod
    def _read(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Batches that hold at least `columns`."""


def field(
    name: str, dtype: pa.DataType, *, unit: Any = "", ucd: Any = "", description: Any = ""
) -> pa.Field:
    """An Arrow field whose metadata holds what is known of `unit`, `ucd` and `description`."""
    known = {
        key.encode(): str(value).strip().encode()
        for key, value in (("unit", unit), ("ucd", ucd), ("description", description))
        if value is not None and str(value).strip()
    }
    return pa.field(name, dtype, metadata=known or None)


def plain(dtype: pa.DataType) -> pa.DataType:
    """The type under which a column is carried: no dictionaries, views, halves or times.

    Times and dates become ISO 8601 text (UTC where a zone is known), durations become seconds:
    VOTable, and so VOParquet, has no types for them.
    """
    if pa.types.is_dictionary(dtype):
        return plain(dtype.value_type)
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return pa.string()
    if pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype):
        return pa.binary()
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(plain(dtype.value_type), dtype.list_size)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return pa.list_(plain(dtype.value_type))
    if pa.types.is_float16(dtype):
        return pa.float32()
    if pa.types.is_decimal(dtype):
        return pa.float64()
    if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype) or pa.types.is_time(dtype):
        return pa.string()
    if pa.types.is_duration(dtype):
        return pa.float64()
    if pa.types.is_null(dtype):
        return pa.float64()
    return dtype


def conform(batch: pa.RecordBatch, schema: pa.Schema, url: str) -> pa.RecordBatch:
    """`batch` with exactly the columns and types of `schema`.

    Raises
    ------
    InputError
        If a column is absent, or its values do not fit the type without loss.
    """
    arrays = []
    for wanted in schema:
        position = batch.schema.get_field_index(wanted.name)
        if position < 0:
            raise InputError(f"{url}: column {wanted.name!r} is absent from a part of the table")
        array = batch.column(position)
        if array.type != wanted.type:
            try:
                array = pc.cast(_timeless(array), wanted.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise drift(url, wanted.name, wanted.type, array.type) from error
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _timeless(array: pa.Array) -> pa.Array:
    """Times as ISO 8601 text and durations as seconds; anything else as it is."""
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp(array.type.unit))
        return pc.strftime(array, format="%Y-%m-%dT%H:%M:%S")
    if pa.types.is_duration(array.type):
        ticks = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[array.type.unit]
        return pc.multiply(array.cast(pa.int64()).cast(pa.float64(), safe=False), ticks)
    return array


def drift(url: str, column: str, expected: Any, found: Any) -> InputError:
    """The error for a column that changes its type from one part of a table to another."""
    return InputError(
        f"{url}: column {column!r} begins as {expected} and later is {found}; "
        "write it with one type throughout"
    )


def from_numpy(values: np.ndarray[Any, Any], mask: Any, dtype: pa.DataType) -> pa.Array:
    """A numpy column (any byte order, 1-D, n-D or of objects) as an Arrow array of type `dtype`.

    Parameters
    ----------
    values : ndarray, shape (n, ...)
        Values; further axes are flattened into a list a row.
    mask : bool ndarray of the same shape, shape (n,), or None
        True where there is no value. NaN counts as no value too: FITS and VOTable say so.
    """
    if values.dtype == object:
        return _from_objects(values, mask, dtype)
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind in "SU" and not pa.types.is_fixed_size_list(dtype):
        return _from_objects(values.astype(object), mask, dtype)
    blank = np.zeros(values.shape, bool) if mask is None else np.broadcast_to(mask, values.shape)
    if values.dtype.kind == "f":
        blank = blank | np.isnan(values)
    if pa.types.is_fixed_size_list(dtype):
        flat = values.reshape(-1)
        if values.dtype.kind in "SU":
            inner = _from_objects(flat.astype(object), None, dtype.value_type)
        else:
            inner = pa.array(flat, dtype.value_type, mask=blank.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(inner, dtype.list_size)
    return pa.array(np.ascontiguousarray(values), dtype, mask=blank if blank.any() else None)


def _from_objects(values: np.ndarray[Any, Any], mask: Any, dtype: pa.DataType) -> pa.Array:
    hidden = np.zeros(len(values), bool) if mask is None else np.asarray(mask, bool)
    items: list[Any] = []
    hidden_rows: Any = hidden.reshape(len(values), -1).all(axis=1).tolist() if len(values) else []
    for value, masked in zip(values, hidden_rows, strict=True):
        if masked or value is None or value is np.ma.masked:
            items.append(None)
        elif isinstance(value, bytes):
            items.append(value.decode("utf-8", "replace").rstrip("\0 "))
        elif isinstance(value, str):
            items.append(value.rstrip("\0 "))
        elif isinstance(value, np.ndarray):
            items.append(np.ma.MaskedArray(value).ravel().tolist())
        else:
            items.append(value)
    return pa.array(items, dtype)


def arrow_scalar(dtype: np.dtype[Any]) -> pa.DataType:
    """The Arrow type of one value of a numpy type; None-like objects are not scalars.

    Raises
    ------
    TypeError
        If Arrow has no such type (complex numbers).
    """
    if dtype.kind in "SU":
        return pa.string()
    try:
        return plain(pa.from_numpy_dtype(dtype.newbyteorder("=")))
    except pa.ArrowNotImplementedError as error:
        raise TypeError(f"{dtype} has no Arrow type") from error


class _Unpacked(gzip.GzipFile):
    """A gzip stream that closes the file under it, which `GzipFile` leaves open."""

    def __init__(self, packed: IO[bytes]) -> None:
        super().__init__(fileobj=packed)
        self._packed = packed

    def close(self) -> None:
        """Close both."""
        super().close()
        self._packed.close()


def open_stream(url: str) -> IO[bytes]:
    """A binary stream over `url`, decompressed if it is gzip.

    Raises
    ------
    InputError
        If it does not exist or cannot be opened.
    """
    try:
        stream: Any = opened(*fsspec.core.url_to_fs(url))
        head = stream.read(2)
        stream.seek(0)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{url}: cannot be opened: {error}; check the path in survey.toml"
        ) from error
    unpacked: Any = _Unpacked(stream) if head == GZIP_MAGIC else stream
    return cast(IO[bytes], unpacked)


def damaged(url: str, error: object) -> InputError:
    """The error for a file that ends early or is broken inside."""
    return InputError(f"{url}: truncated or damaged ({error}); fetch or write the file again")


class LocalCopy:
    """A local, uncompressed file with the content of `url`: itself, or a copy until `close`.

    Raises
    ------
    InputError
        If it cannot be read to its end.
    StoreError
        If the temporary folder has no room for it.
    """

    def __init__(self, url: str) -> None:
        self._copy: str | None = None
        opened: Any = open_stream(url)
        with opened as stream:
            if "://" not in url and not isinstance(opened, gzip.GzipFile):
                self.path = url
                return
            try:
                copy = tempfile.NamedTemporaryFile(prefix="surveyproc-", delete=False)  # noqa: SIM115
            except OSError as error:
                raise store_error(error, f"an unpacked copy of {url}") from error
            with copy:
                self._copy = self.path = copy.name
                try:
                    write_unpacked(iter(lambda: stream.read(1 << 20), b""), copy, url)
                except StoreError:
                    self.close()
                    raise
                except STREAM_ERRORS as error:
                    self.close()
                    raise damaged(url, error) from error

    def close(self) -> None:
        """Remove the copy, if one was made."""
        if self._copy is not None:
            Path(self._copy).unlink(missing_ok=True)
            self._copy = None

    def __del__(self) -> None:
        self.close()
