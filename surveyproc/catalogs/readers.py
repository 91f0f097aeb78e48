"""Open a table of any format that surveys come in."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveyproc.catalogs import ids
from surveyproc.catalogs.formats.base import TableReader
from surveyproc.catalogs.formats.here import read_for_others, table_kind
from surveyproc.catalogs.formats.parquet import parquet_files
from surveyproc.catalogs.units import degrees_per
from surveyproc.child import Talk
from surveyproc.errors import InputError
from surveyproc.store.urls import opened

__all__ = [
    "TableReader",
    "checksum",
    "degrees_of",
    "open_table",
    "read_columns",
    "read_ids",
    "read_numbers",
    "table_kind",
    "truth",
]

HASH_CHUNK = 8 << 20
BATCH_ROWS = 65_536


def open_table(
    url: str, table: str | int | None = None, columns: Sequence[str] = ()
) -> TableReader:
    """A reader of the table at `url`, whose format is told from its content.

    The file is read by another process (`surveyproc.child`).

    Parameters
    ----------
    url : str
        Path or URL of a FITS, VOTable, CSV or ECSV file (also gzipped), a Parquet file or folder,
        or the root of a HATS catalog (or collection: its main catalog).
    table : str or int, optional
        Which of the tables of a FITS file or VOTable: name of the HDU, or its index, 0 being the
        primary one; name, ID or number (from 0) of the VOTable's table.
    columns : sequence of str
        Without `table`: what the table must have if there are several.

    Raises
    ------
    InputError
        If it does not exist, is truncated, is of no known format, has more than `MOST_COLUMNS`
        columns, it is not clear which table is meant, or its process dies (DiedError).
    """
    return _ReaderElsewhere(url, table, columns)


class _ReaderElsewhere(TableReader):
    """A table that another process reads: what its file does to it, it does not do to us.

    The next batch is read while the last one is used.
    """

    def __init__(self, url: str, table: str | int | None, columns: Sequence[str]) -> None:
        super().__init__()
        self._talk = Talk(read_for_others, url, table, columns)
        try:
            self.url, self.kind, self.schema, self.warnings, self.repeated = self._talk.hear(url)
        except BaseException:
            self.close()
            raise

    def batches(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """As `TableReader.batches`."""
        wanted = self.names if columns is None else columns
        schema = pa.schema([self.schema.field(name) for name in wanted])
        while self._talk.owed:  # of batches that nobody wanted to the end
            self._talk.hear(self.url)
        self._talk.say((rows, columns))
        while isinstance(answer := self._talk.hear(self.url), pa.Buffer):
            self._talk.say(None)
            yield pa.ipc.read_record_batch(answer, schema)
        self.warnings += answer

    def close(self) -> None:
        """Close the file."""
        self._talk.close()


def checksum(url: str) -> str:
    """SHA-256 (hex) of a table's bytes; of all Parquet files in order for a folder. Streams.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    url, kind = table_kind(url)
    fs, path = fsspec.core.url_to_fs(url)
    paths = parquet_files(url, kind)[1] if kind in ("parquet", "hats") else [path]
    total = hashlib.sha256()
    for one in paths:
        file = hashlib.sha256()
        try:
            with opened(fs, one) as stream:
                while chunk := stream.read(HASH_CHUNK):
                    file.update(chunk)
        except OSError as error:
            raise InputError(f"{one}: cannot be read: {error}") from error
        if paths == [path]:
            return file.hexdigest()
        # Names count: they fix the order in which the files are read.
        total.update(f"{one[len(path) :]} {file.hexdigest()}\n".encode())
    return total.hexdigest()


def degrees_of(reader: TableReader, ra: str, dec: str) -> tuple[float, float]:
    """Degrees in one unit of two columns of positions; what is converted is told as a warning.

    Raises
    ------
    InputError
        If a unit is not understood, or no angle.
    """
    found = []
    for name in (ra, dec):
        unit = (reader.schema.field(name).metadata or {}).get(b"unit", b"").decode()
        try:
            degrees = degrees_per(unit, hours=name == ra)
        except ValueError as error:
            raise InputError(
                f"{reader.url}: column {name!r} is in {unit!r} ({error}); positions must be in "
                "degrees, or in another unit of angles"
            ) from error
        if degrees != 1:
            reader.warn(f"column {name!r} is in {unit!r} and is converted to degrees")
        found.append(degrees)
    return found[0], found[1]


def read_numbers(
    url: str,
    names: Sequence[str],
    table: str | int | None = None,
    positions: tuple[str, str] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Columns of a table as float64, shape (n,); booleans are 0 and 1, null is NaN.

    Parameters
    ----------
    table : str or int, optional
        Which table of a file of several; see `open_table`.
    positions : tuple of str, optional
        Those of `names` that are right ascension and declination: they come in degrees.

    Raises
    ------
    InputError
        If the table cannot be read, a column is absent, it is not numeric, or a position is in no
        unit of angles.
    """
    return read_columns(url, names, table, positions)


def read_columns(
    url: str,
    names: Sequence[str],
    table: str | int | None = None,
    positions: tuple[str, str] | None = None,
    texts: Collection[str] = (),
) -> dict[str, NDArray[Any]]:
    """As `read_numbers`, but columns among `texts` may hold text, and then are objects, shape (n,).

    Each is a str without spaces at its ends, or None where there is none or nothing is left.
    """
    names = list(dict.fromkeys(names))
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    factors = dict.fromkeys(names, 1.0)
    with open_table(url, table, names) as reader:
        for name in names:
            if name not in reader.names:
                raise InputError(f"{url}: no column {name!r}; there are {', '.join(reader.names)}")
        if positions is not None:
            factors |= dict(zip(positions, degrees_of(reader, *positions), strict=True))
        for batch in reader.batches(BATCH_ROWS, names):
            for name, values in zip(names, batch.columns, strict=True):
                if name in texts and pa.types.is_string(values.type):
                    stripped = [(text and text.strip()) or None for text in values.to_pylist()]
                    parts[name].append(np.array(stripped, object))
                else:
                    parts[name].append(_numbers(values, url, name) * factors[name])
    return {
        name: np.concatenate(part) if part else np.empty(0, np.float64)
        for name, part in parts.items()
    }


def _numbers(values: pa.Array, url: str, name: str) -> NDArray[np.float64]:
    try:
        # Arrow turns booleans into numbers only by way of an integer.
        whole = values.cast("int8") if pa.types.is_boolean(values.type) else values
        numbers: NDArray[np.float64] = whole.cast("float64").to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{url}: column {name!r} is not numeric") from error
    return numbers


def read_ids(
    url: str, name: str, table: str | int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids as `object_id` holds them (`surveyproc.catalogs.ids`), and where there is one, (n,).

    Raises
    ------
    InputError
        If the table cannot be read, the column is absent, or it holds no ids.
    """
    found, known = [np.empty(0, np.int64)], [np.empty(0, bool)]
    with open_table(url, table, [name]) as reader:
        if name not in reader.names:
            raise InputError(f"{url}: no column {name!r}; there are {', '.join(reader.names)}")
        try:
            ids.origin(reader.schema.field(name).type)
        except TypeError as error:
            raise InputError(f"{url}: column {name!r} holds no ids: {error}") from error
        for batch in reader.batches(BATCH_ROWS, [name]):
            (values,) = batch.columns
            if (number := ids.strange(values)) is not None:
                raise InputError(f"{url}: column {name!r} holds {number:g}, which is no id")
            found.append(ids.read(values)[0])
            known.append(~ids.is_absent(values))
    return np.concatenate(found), np.concatenate(known)


def truth(values: NDArray[np.float64], url: str, name: str) -> NDArray[np.bool_]:
    """Where a column of 0 and 1, as `read_numbers` gives it, is 1; null is not.

    Raises
    ------
    InputError
        If it holds another number: a quality code, say, of which nobody said what is good.
    """
    strange = np.isfinite(values) & (values != 0) & (values != 1)
    if strange.any():
        raise InputError(
            f"{url}: column {name!r} selects rows and must be true or false (1 or 0), not "
            f"{values[strange][0]:g}"
        )
    chosen: NDArray[np.bool_] = values == 1
    return chosen
