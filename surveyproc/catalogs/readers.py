"""Open a table of any format that surveys come in."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveyproc.catalogs import ids
from surveyproc.catalogs.formats.base import STREAM_ERRORS, TableReader, damaged, open_stream
from surveyproc.catalogs.formats.fits import FitsReader
from surveyproc.catalogs.formats.parquet import ParquetReader, parquet_files
from surveyproc.catalogs.formats.text import CsvReader, EcsvReader
from surveyproc.catalogs.formats.votable import VOTableReader
from surveyproc.catalogs.units import degrees_per
from surveyproc.errors import InputError
from surveyproc.store.urls import is_web, opened, public_url

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
MOST_COLUMNS = 10_000
"""Of a table; FITS allows 999. Each costs metadata in every file that is made of it."""
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
_KNOWN = "FITS, VOTable, Parquet (a file or a folder), CSV, ECSV or a HATS catalog"


def open_table(
    url: str, table: str | int | None = None, columns: Sequence[str] = ()
) -> TableReader:
    """A reader of the table at `url`, whose format is told from its content.

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
        columns, or it is not clear which table is meant.
    """
    reader = _reader(url, table, columns)
    if len(reader.names) > MOST_COLUMNS:
        reader.close()
        raise InputError(
            f"{url}: has {len(reader.names)} columns, and {MOST_COLUMNS} are the most that are "
            "read; write a table with those that are needed"
        )
    return reader


def _reader(url: str, table: str | int | None, columns: Sequence[str]) -> TableReader:
    url, kind = table_kind(url)
    if kind == "fits":
        return FitsReader(url, table, columns)
    if kind == "votable":
        return VOTableReader(url, table, columns)
    if table is not None:
        raise InputError(f"{url}: is one table ({kind}); take out the key `table` ({table!r})")
    if kind == "ecsv":
        return EcsvReader(url)
    if kind == "csv":
        return CsvReader(url)
    return ParquetReader(url, kind)


def table_kind(url: str) -> tuple[str, str]:
    """The URL of the table itself and its kind: fits, votable, parquet, hats, csv or ecsv.

    Raises
    ------
    InputError
        If there is nothing, or nothing known.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
        if not fs.exists(path):
            raise InputError(f"{url}: does not exist; check the path in survey.toml")
        is_folder = not is_web(url) and bool(fs.isdir(path))
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{url}: cannot be reached: {error}") from error
    if is_folder:
        return _folder_kind(url)
    try:
        with open_stream(url) as stream:
            head = stream.read(2048)
    except (*STREAM_ERRORS, zlib.error) as error:
        raise damaged(url, error) from error
    if not head:
        raise InputError(f"{url}: is empty; fetch or write the file again")
    return url, _file_kind(url, head)


def _file_kind(url: str, head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{url}: is UTF-16 text; write it as UTF-8")
    if head.startswith(b"SIMPLE  ="):
        return "fits"
    if head.startswith(b"PAR1"):
        return "parquet"
    if text.startswith(b"# %ECSV"):
        return "ecsv"
    if text.startswith(b"<") and (b"VOTABLE" in head or text.startswith(b"<?xml")):
        return "votable"
    if public_url(url).lower().endswith(_TEXT_SUFFIXES) and b"\0" not in head:
        return "csv"
    raise InputError(f"{url}: is not a table that can be read; give {_KNOWN}")


def _folder_kind(url: str) -> tuple[str, str]:
    fs, path = fsspec.core.url_to_fs(url)
    root = path.rstrip("/")
    if fs.exists(f"{root}/collection.properties"):
        text = fs.cat_file(f"{root}/collection.properties").decode("utf-8", "replace")
        pairs = (line.partition("=") for line in text.splitlines())
        values = {key.strip(): value.strip() for key, _, value in pairs}
        main = values.get("hats_primary_table_url", "")
        if not main or "://" in main or ".." in main.split("/"):
            raise InputError(f"{url}: name the main catalog of the collection as catalog.source")
        return f"{url.rstrip('/')}/{main}", "hats"
    marks = ("hats.properties", "properties", "dataset/_metadata", "dataset/_common_metadata")
    if any(fs.exists(f"{root}/{mark}") for mark in marks) or fs.isdir(f"{root}/dataset"):
        return url, "hats"
    return url, "parquet"


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
