"""VOTable: TABLEDATA in blocks of rows; BINARY and BINARY2 whole."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.parsers import expat

import numpy as np
import pyarrow as pa
from astropy.io import votable

from surveyproc.catalogs.formats.base import (
    STREAM_ERRORS,
    FileReader,
    damaged,
    field,
    from_numpy,
    open_stream,
)
from surveyproc.catalogs.formats.choice import TableInFile, choose, own_names
from surveyproc.catalogs.formats.skeleton import Skeleton
from surveyproc.errors import InputError

CHUNK_BYTES = 1 << 20
ROW_LIMIT = 64 << 20
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


class VOTableReader(FileReader):
    """One table of a VOTable.

    TABLEDATA is streamed: the document's header, a block of rows and the closing tags make a small
    document that astropy parses. BINARY and BINARY2 are one base64 stream, which astropy can only
    decode whole: such a table is held in memory.

    Parameters
    ----------
    url : str
        Path or URL.
    table : str or int, optional
        Name, ID or number (from 0) of the table.
    columns : sequence of str
        Without `table`, or if it names several: what the table must have.

    Raises
    ------
    InputError
        If the document is truncated, is not XML, is a service's error, or has a column that cannot
        be stored; or it is not clear which table is meant.
    """

    kind = "votable"

    def __init__(
        self, url: str, table: str | int | None = None, columns: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.url = url
        try:
            with open_stream(url) as stream:
                document = Skeleton(stream, url)
        except (*STREAM_ERRORS, expat.ExpatError) as error:
            raise damaged(url, error) from error
        self._heed(document.status)
        # Tables without columns hold parameters only.
        listed = [
            TableInFile(i, tuple(filter(None, (one.name, one.identifier))), tuple(one.columns))
            for i, one in enumerate(document.parts)
            if one.columns
        ]
        if not listed:
            raise InputError(f"{url}: holds no table; is it a VOTable?")
        self._number = choose(url, listed, table, columns).index
        self._part = document.parts[self._number]
        if self._part.serialization in ("FITS", "PARQUET"):
            raise InputError(
                f"{url}: its data are {self._part.serialization}; give that file as "
                "catalog.source instead"
            )
        self._header = _NROWS.sub(rb"\1", document.header(self._part))
        # The closing tags of an empty table: enough for astropy to read the FIELDs.
        self._fields = list(self._parse(b"", complete=False).fields)
        given = own_names([entry.name or entry.ID for entry in self._fields])
        self.repeated = given.repeated
        self.warn(*given.warnings)
        self.schema = pa.schema(
            [
                self._field(name, entry)
                for name, entry in zip(given.names, self._fields, strict=True)
            ]
        )

    def _heed(self, status: Mapping[str, str]) -> None:
        """What the service that answered with this document says of its answer (DALI 1.1)."""
        if "ERROR" in status:
            said = " ".join(status["ERROR"].split())[:500] or "it does not say why"
            raise InputError(f"{self.url}: is a service's error and no catalog: {said}")
        if "OVERFLOW" in status:
            self.warn(
                "is a part of what was asked for: the service cut its answer at its "
                "limit of rows (QUERY_STATUS = OVERFLOW); ask for more rows (MAXREC), or in parts"
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
                        document, number = io.BytesIO(stream.read()), self._number
                else:
                    document, number = io.BytesIO(self._header + rows + self._part.footer), 0
                return votable.parse_single_table(document, verify="ignore", table_number=number)
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
        if not self._part.serialization or not self._part.closing:
            return
        if self._part.serialization != "TABLEDATA":
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
        closing = self._part.closing
        with open_stream(self.url) as stream:
            stream.seek(self._part.start)
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
                if not ends and len(pending) > ROW_LIMIT:
                    raise damaged(self.url, f"a row of more than {ROW_LIMIT >> 20} MiB")
