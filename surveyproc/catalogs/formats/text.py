"""CSV and its kin, and ECSV, through Arrow's streaming CSV parser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv as pcsv

from surveyproc.catalogs.formats.base import (
    STREAM_ERRORS,
    FileReader,
    arrow_scalar,
    damaged,
    field,
    open_stream,
    plain,
)
from surveyproc.catalogs.formats.choice import own_names
from surveyproc.catalogs.formats.lines import HEAD_BYTES, Lines, text_head
from surveyproc.errors import InputError

# Types are inferred from the first block, so it is large. It does not depend on the batch size.
BLOCK_BYTES = 4 << 20
# Beside those that Arrow knows (empty, NaN, NULL, N/A, ...): of databases' dumps, and astropy's.
_NULLS = [*pcsv.ConvertOptions().null_values, "\\N", "--"]


class CsvReader(FileReader):
    """Values separated by commas, tabs, semicolons, bars or blanks, below a line of names.

    Types come from the first 4 MiB. Lines that begin with # are comments before the names, and
    after them where the first column holds no text.

    Raises
    ------
    InputError
        If the file is empty, has no line of names, a row has too few fields, or a later value does
        not fit the type of its column.
    """

    kind = "csv"

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        try:
            with open_stream(url) as stream:
                head = text_head(stream, url)
        except STREAM_ERRORS as error:
            raise damaged(url, error) from error
        self._delimiter, self._offset, self._comments = head.delimiter, head.start, True
        given = own_names(head.names)
        self._columns, self.repeated = list(given.names), given.repeated
        self.warn(*given.warnings)
        self._types: dict[str, pa.DataType] = {}
        if self._empty():
            found = [(name, pa.float64()) for name in self._columns]
        else:
            with self._open() as reader:
                # A column that is empty in the first block has no type there; most turn out
                # numeric.
                self._types = {
                    entry.name: pa.float64()
                    for entry in reader.schema
                    if pa.types.is_null(entry.type)
                }
                found = [(entry.name, plain(entry.type)) for entry in reader.schema]
            self._comments = not pa.types.is_string(found[0][1])
        self.schema = pa.schema([field(name, dtype) for name, dtype in found])

    def _body(self) -> IO[bytes]:
        stream = open_stream(self.url)
        stream.seek(self._offset)
        blanks = self._delimiter == " " and self.kind == "csv"
        if self._comments or blanks:
            return cast(IO[bytes], Lines(stream, comments=self._comments, blanks=blanks))
        return stream

    def _empty(self) -> bool:
        """Whether there is no row; a stream that breaks is left for the parser to find."""
        with self._body() as stream, suppress(*STREAM_ERRORS):
            while data := stream.read(1 << 16):
                if data.strip():
                    return False
            return True
        return False

    def _open(self) -> AbstractContextManager[Any]:
        return self._started(pcsv.ConvertOptions(column_types=self._types, null_values=_NULLS))

    @contextmanager
    def _started(self, convert: pcsv.ConvertOptions) -> Iterator[Any]:
        options = (
            pcsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False, column_names=self._columns),
            pcsv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            convert,
        )
        with ExitStack() as stack:
            try:
                # Arrow leaves open what it is given.
                stream = stack.enter_context(self._body())
                reader = stack.enter_context(pcsv.open_csv(pa.PythonFile(stream, "r"), *options))
            except pa.ArrowInvalid as error:
                raise self._explain(error) from error
            except STREAM_ERRORS as error:
                raise damaged(self.url, error) from error
            yield reader

    def _read(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if self._empty():
            return
        with self._open() as reader:
            while True:
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
                except pa.ArrowInvalid as error:
                    raise self._explain(error) from error
                except STREAM_ERRORS as error:
                    raise damaged(self.url, error) from error
                yield batch

    def _explain(self, error: Exception) -> InputError:
        text = str(error)
        where = re.search(r"In CSV column #(\d+): (.*)", text, re.DOTALL)
        if where is None or not hasattr(self, "schema"):
            return damaged(self.url, text)
        entry = self.schema.field(int(where[1]))
        return InputError(
            f"{self.url}: column {entry.name!r} begins as {entry.type} and later does not fit "
            f"({where[2].strip()}); write it with one type throughout"
        )


class EcsvReader(CsvReader):
    """Enhanced CSV: the YAML header gives types, units, descriptions and UCDs (`meta: {ucd: ...}`).

    The body is CSV, so Arrow parses it with the header's types; no mixin columns (sky coordinates,
    times) are put together again, their parts are plain columns here. Missing is an empty field,
    as the format says, or the word null, as the Gaia archive writes.

    Raises
    ------
    InputError
        If the header is not valid, or a row does not fit it.
    """

    kind = "ecsv"

    def __init__(self, url: str) -> None:
        from astropy.table.meta import get_header_from_yaml

        FileReader.__init__(self)
        self.url, self._comments = url, False
        comments, self._columns, self._offset = self._header()
        try:
            header = get_header_from_yaml(comments)
            entries = [{**entry, "datatype": entry["datatype"]} for entry in header["datatype"]]
            declared = [str(entry["name"]) for entry in entries]
        except Exception as error:  # astropy's YAML loader raises what it likes
            raise InputError(f"{url}: its ECSV header is not valid: {error}") from error
        self._delimiter = str(header.get("delimiter", " "))
        self._columns = self._split(self._columns[0])
        if declared != self._columns:
            raise InputError(f"{url}: the column line does not equal the names in the ECSV header")
        given = own_names(declared)
        self._columns, self.repeated = list(given.names), given.repeated
        self.warn(*given.warnings)
        entries = [{**e, "name": name} for e, name in zip(entries, given.names, strict=True)]
        self._json: dict[str, pa.DataType] = {}
        self.schema = pa.schema([self._field(entry) for entry in entries])

    def _header(self) -> tuple[list[str], list[str], int]:
        """Comment lines without `# `, the line of names, and where the body begins (bytes)."""
        comments: list[str] = []
        offset = 0
        try:
            with open_stream(self.url) as stream:
                while (raw := stream.readline(HEAD_BYTES)) and offset < HEAD_BYTES:
                    offset += len(raw)
                    line = raw.decode("utf-8").rstrip("\r\n")
                    if not line.startswith("#"):
                        return comments, [line], offset
                    comments.append(line[2:])
        except (*STREAM_ERRORS, UnicodeDecodeError) as error:
            raise damaged(self.url, error) from error
        raise damaged(self.url, f"no line of column names in its first {offset} bytes")

    def _split(self, line: str) -> list[str]:
        import csv

        return next(csv.reader([line], delimiter=self._delimiter))

    def _field(self, entry: dict[str, Any]) -> pa.Field:
        import numpy as np

        name, declared = str(entry["name"]), str(entry["datatype"])
        subtype = str(entry.get("subtype") or "")
        shape = re.fullmatch(r"(\w+)\[([\w, ]+)\]", subtype)
        try:
            if shape:
                scalar = arrow_scalar(np.dtype("U" if shape[1] == "string" else shape[1]))
                lengths = [part.strip() for part in shape[2].split(",")]
                fixed = all(part.isdigit() for part in lengths)
                count = int(np.prod([int(part) for part in lengths])) if fixed else -1
                dtype = pa.list_(scalar, count)
                self._json[name] = dtype
            elif declared == "string":
                dtype = pa.string()
            else:
                dtype = arrow_scalar(np.dtype(declared))
        except TypeError as error:
            raise InputError(
                f"{self.url}: column {name!r} is {declared} {subtype}, which cannot be stored"
            ) from error
        meta = entry.get("meta") or {}
        return field(
            name,
            dtype,
            unit=entry.get("unit"),
            ucd=meta.get("ucd") if isinstance(meta, dict) else None,
            description=entry.get("description"),
        )

    def _open(self) -> AbstractContextManager[Any]:
        types = {entry.name: entry.type for entry in self.schema if entry.name not in self._json}
        types |= {name: pa.string() for name in self._json}
        return self._started(
            pcsv.ConvertOptions(
                column_types=types, null_values=["", "null"], strings_can_be_null=True
            )
        )

    def _read(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in super()._read(rows, columns):
            for name, dtype in self._json.items():
                position = batch.schema.get_field_index(name)
                batch = batch.set_column(
                    position, name, self._vectors(name, batch.column(position), dtype)
                )
            yield batch

    def _vectors(self, name: str, texts: pa.Array, dtype: pa.DataType) -> pa.Array:
        def flat(value: Any) -> list[Any]:
            if isinstance(value, list):
                return [inner for item in value for inner in flat(item)]
            return [value]

        try:
            values = [
                None if text is None else flat(json.loads(text)) for text in texts.to_pylist()
            ]
            return pa.array(values, dtype)
        except (ValueError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"{self.url}: column {name!r} holds no valid array: {error}"
            ) from error
