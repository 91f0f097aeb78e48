"""Open a table in this process, and tell what format it has.

The modules of the formats are imported by those that need them: another process starts sooner.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Sequence
from typing import Any

import fsspec
import pyarrow as pa

from surveyproc.catalogs.formats.base import (
    STREAM_ERRORS,
    FileReader,
    TableReader,
    damaged,
    open_stream,
)
from surveyproc.errors import InputError
from surveyproc.store.urls import is_web, public_url

MOST_COLUMNS = 10_000
"""Of a table; FITS allows 999. Each costs metadata in every file that is made of it."""
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
_KNOWN = "FITS, VOTable, Parquet (a file or a folder), CSV, ECSV or a HATS catalog"


def read_for_others(
    url: str, table: str | int | None, columns: Sequence[str]
) -> Generator[Any, Any, None]:
    """The table for a process that asks for its batches; see `readers.open_table`."""
    with open_here(url, table, columns) as reader:
        request = yield reader.url, reader.kind, reader.schema, reader.warnings, reader.repeated
        while True:
            known = len(reader.warnings)
            request = (yield from _batches(reader, *request)) or (yield reader.warnings[known:])


def _batches(
    reader: TableReader, rows: int, columns: Sequence[str] | None
) -> Generator[pa.Buffer, Any, Any]:
    """Batches as bytes, until others are asked for; what is asked for then."""
    for batch in reader.batches(rows, columns):
        try:
            batch.validate(full=True)  # Arrow believes files unless it is asked not to
        except pa.ArrowInvalid as error:
            raise damaged(reader.url, error) from error
        if request := (yield batch.serialize()):
            return request
    return None


def open_here(url: str, table: str | int | None = None, columns: Sequence[str] = ()) -> FileReader:
    """As `readers.open_table`, read by this process, which its file may end."""
    reader = _reader(url, table, columns)
    if len(reader.names) > MOST_COLUMNS:
        reader.close()
        raise InputError(
            f"{url}: has {len(reader.names)} columns, and {MOST_COLUMNS} are the most that are "
            "read; write a table with those that are needed"
        )
    return reader


def _reader(url: str, table: str | int | None, columns: Sequence[str]) -> FileReader:
    url, kind = table_kind(url)
    if kind == "fits":
        from surveyproc.catalogs.formats.fits import FitsReader

        return FitsReader(url, table, columns)
    if kind == "votable":
        from surveyproc.catalogs.formats.votable import VOTableReader

        return VOTableReader(url, table, columns)
    if table is not None:
        raise InputError(f"{url}: is one table ({kind}); take out the key `table` ({table!r})")
    if kind in ("csv", "ecsv"):
        from surveyproc.catalogs.formats.text import CsvReader, EcsvReader

        return CsvReader(url) if kind == "csv" else EcsvReader(url)
    from surveyproc.catalogs.formats.parquet import ParquetReader

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
