"""VOTable: TABLEDATA in blocks of rows; BINARY and BINARY2 whole."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from typing import IO, Any
from xml.parsers import expat

import numpy as np
import pyarrow as pa
from astropy.io import votable

from surveyproc.catalogs.formats.base import (
    STREAM_ERRORS,
    TableReader,
    damaged,
    field,
    from_numpy,
    open_stream,
)
from surveyproc.errors import InputError

CHUNK_BYTES = 1 << 20
HEADER_LIMIT = 16 << 20
_TYPES = {
    "boolean": pa.bool_(),
    "bit": pa.bool_(),
    "unsignedByte": pa.uint8(),
    "short": pa.int16(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
}
_ROW_END = re.compile(rb"</(?:[\w.\-]+:)?TR\s*>")
_NROWS = re.compile(rb"(<(?:[\w.\-]+:)?TABLE\b[^>]*?)\snrows\s*=\s*(?:\"[^\"]*\"|'[^']*')")


class VOTableReader(TableReader):
    """The first table with data of a VOTable.

    TABLEDATA is streamed: the document's header, a block of rows and the closing tags make a small
    document that astropy parses. BINARY and BINARY2 are one base64 stream, which astropy can only
    decode whole: such a table is held in memory.

    Raises
    ------
    InputError
        If the document is truncated, is not XML, or has a column that cannot be stored.
    """

    kind = "votable"

    def __init__(self, url: str) -> None:
        self.url = url
        head = _Head()
        try:
            with open_stream(url) as stream:
                head.feed(stream)
        except (*STREAM_ERRORS, expat.ExpatError) as error:
            raise damaged(url, error) from error
        if head.serialization is None:
            raise InputError(f"{url}: holds no table; is it a VOTable?")
        self._serialization = head.serialization
        self._offset = len(head.text)
        self._header = _NROWS.sub(rb"\1", head.text)
        self._footer = b"".join(f"</{tag}>".encode() for tag in reversed(head.open))
        # The closing tags of an empty table: enough for astropy to read the FIELDs.
        self._fields = list(self._parse(b"", complete=False).fields)
        names = [entry.name or entry.ID for entry in self._fields]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{url}: two columns are called {name!r}; rename one")
        self.schema = pa.schema(
            [self._field(name, entry) for name, entry in zip(names, self._fields, strict=True)]
        )

    def _field(self, name: str, entry: Any) -> pa.Field:
        size = str(entry.arraysize or "1")
        if entry.datatype in ("char", "unicodeChar"):
            dtype = pa.string()
            known = "x" not in size
        else:
            known = entry.datatype in _TYPES
            dtype = _TYPES.get(entry.datatype)
            if known and size != "1":
                parts = size.split("x")
                fixed = all(part.isdigit() for part in parts)
                dtype = pa.list_(dtype, int(np.prod([int(p) for p in parts])) if fixed else -1)
        if not known:
            raise InputError(
                f"{self.url}: column {name!r} is {entry.datatype} [{size}], which cannot be "
                "stored; remove it"
            )
        return field(name, dtype, unit=entry.unit, ucd=entry.ucd, description=entry.description)

    def _parse(self, rows: bytes, *, complete: bool) -> Any:
        """astropy's table of the header and `rows`; of the whole file if `complete`."""
        try:
            with warnings.catch_warnings():
                # Catalogs in use break the standard in many harmless ways.
                warnings.simplefilter("ignore")
                if complete:
                    with open_stream(self.url) as stream:
                        document = io.BytesIO(stream.read())
                else:
                    document = io.BytesIO(self._header + rows + self._footer)
                return votable.parse_single_table(document, verify="ignore")
        except STREAM_ERRORS as error:
            raise damaged(self.url, error) from error
        except Exception as error:  # astropy raises many kinds, most without a common base
            raise InputError(f"{self.url}: not a valid VOTable: {error}") from error

    def _batch(self, table: Any) -> pa.RecordBatch:
        arrays = []
        for entry, wanted in zip(self._fields, self.schema, strict=True):
            column = table.array[entry.ID]
            values: Any = np.ma.getdata(column)
            mask: Any = np.ma.getmaskarray(column)
            if mask.ndim > 1 and values.dtype == object:
                mask = mask.reshape(len(mask), -1).all(axis=1)
            if mask.dtype != bool:
                mask = None
            arrays.append(from_numpy(values, mask, wanted.type))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _read(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if not self._serialization:
            return
        if self._serialization != "TABLEDATA":
            yield self._batch(self._parse(b"", complete=True))
            return
        for block in self._blocks(rows):
            yield self._batch(self._parse(block, complete=False))

    def _blocks(self, rows: int) -> Iterator[bytes]:
        """Bytes of up to `rows` whole rows at a time.

        Raises
        ------
        InputError
            If the file ends before the table does.
        """
        closing = f"</{self._tag()}".encode()
        with open_stream(self.url) as stream:
            stream.read(self._offset)
            pending, ended = b"", False
            while not ended:
                try:
                    chunk = stream.read(CHUNK_BYTES)
                except STREAM_ERRORS as error:
                    raise damaged(self.url, error) from error
                if not chunk:
                    raise damaged(self.url, "it ends before its table does")
                pending += chunk
                stop = pending.find(closing)
                if stop >= 0:
                    pending, ended = pending[:stop], True
                ends = [match.end() for match in _ROW_END.finditer(pending)]
                done = 0
                # Rows wait for a full block, so that blocks do not depend on the chunk size.
                while len(ends) - done >= rows or (ended and done < len(ends)):
                    last = min(done + rows, len(ends))
                    begin = ends[done - 1] if done else 0
                    yield pending[begin : ends[last - 1]]
                    done = last
                pending = pending[ends[done - 1] :] if done else pending

    def _tag(self) -> str:
        match = re.search(r"^</([^>]+)>", self._footer.decode())
        return match[1] if match else "TABLEDATA"


class _Head:
    """Reads a VOTable up to its first table data: the bytes so far and the elements open there."""

    def __init__(self) -> None:
        self.text = b""
        self.open: list[str] = []
        self.serialization: str | None = None
        self._at, self._fields = -1, 0
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if self.serialization is not None:
            return
        self.open.append(tag)
        local = tag.rpartition(":")[2]
        self._fields += local == "FIELD"
        if local in ("TABLEDATA", "BINARY", "BINARY2", "FITS", "PARQUET"):
            self.serialization, self._at = local, self._parser.CurrentByteIndex

    def _end(self, tag: str) -> None:
        if self.serialization is None:
            self.open.pop()

    def feed(self, stream: IO[bytes]) -> None:
        """Read until the data begin.

        Raises
        ------
        InputError
            If the header is longer than 16 MiB, or its data lie in another file.
        """
        read = b""
        while self.serialization is None:
            chunk = stream.read(CHUNK_BYTES // 16)
            if not chunk:
                # A whole document may hold a table without data; a broken one raises here.
                self._parser.Parse(b"", True)
                if self._fields:
                    self.serialization, self.text = "", read
                return
            read += chunk
            self._parser.Parse(chunk, False)
            if len(read) > HEADER_LIMIT:
                raise InputError("its VOTable header is longer than 16 MiB; is it a VOTable?")
        if self.serialization in ("FITS", "PARQUET"):
            raise InputError(
                f"its data are {self.serialization}; give that file as catalog.source instead"
            )
        end = read.find(b">", self._at) + 1
        while end == 0:
            more = stream.read(64)
            if not more:
                self.serialization = None
                return
            read += more
            end = read.find(b">", self._at) + 1
        self.text = read[:end]
        if self.serialization != "TABLEDATA":
            self.open[-1:] = []
            # Without its BINARY element the header still is a table without data.
            start = self._at
            self.text = read[:start]
        elif self.text.endswith(b"/>"):
            self.text = self.text[:-2] + b">"
