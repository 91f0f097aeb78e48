"""FITS binary and ASCII tables, by ranges of rows.

Headers are astropy's; the rows are decoded here (`cells`), a block at a time. CFITSIO takes names
of files for expressions and those of columns without regard to case, and knows one table at a time
by its own rules; astropy maps files into memory, where a disk that fails kills the process.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray

from surveyproc.catalogs.formats import cells
from surveyproc.catalogs.formats.base import (
    STREAM_ERRORS,
    FileReader,
    LocalCopy,
    arrow_scalar,
    damaged,
    field,
    from_numpy,
)
from surveyproc.catalogs.formats.choice import TableInFile, choose, own_names
from surveyproc.errors import InputError
from surveyproc.store.urls import opened_here

BLOCK_BYTES = 32 << 20
_BINARY = re.compile(r"\s*(\d*)([LXBIJKAEDCMPQ])(.*)", re.IGNORECASE)
_ASCII = re.compile(r"\s*([AIFED])(\d+)(?:\.(\d+))?", re.IGNORECASE)


@dataclass(frozen=True)
class _Column:
    """Where the cells of a column lie in a row, and what they are.

    `letter` is that of TFORM, `inner` that of the values of a variable-length array; `shape` are
    the values of a cell, `size` its bytes.
    """

    name: str
    number: int
    letter: str
    start: int
    size: int
    shape: tuple[int, ...] = ()
    inner: str = ""
    scale: float = 1
    zero: float = 0
    blank: Any = None
    decimals: int = 0


class FitsReader(FileReader):
    """One table of a FITS file.

    Nulls are TNULL values of numbers, NaN, blank fields of ASCII tables, logicals that are neither
    T nor F, and nothing else. A compressed or remote file is first copied, decompressed, to the
    temporary folder.

    Parameters
    ----------
    url : str
        Path or URL.
    table : str or int, optional
        EXTNAME or index of the HDU (the primary one is 0).
    columns : sequence of str
        Without `table`, or if it names several: what the table must have.

    Raises
    ------
    InputError
        If the file is truncated, holds no table, or it is not clear which.
    """

    kind = "fits"

    def __init__(
        self, url: str, table: str | int | None = None, columns: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.url = url
        self._local = LocalCopy(url)
        self._stream = opened_here(self._local.path)
        try:
            found = self._tables()
            listed = [_in_file(index, header) for index, (header, _) in found.items()]
            if not listed:
                raise InputError(
                    f"{url}: holds no table extension; it is truncated, or holds only images: "
                    "check the path in survey.toml"
                )
            self._header, self._start = found[choose(url, listed, table, columns).index]
            self._width, self._rows = self._integer("NAXIS1"), self._integer("NAXIS2")
            self._check_complete()
            self._ascii = self._header["XTENSION"] == "TABLE"
            self._columns = self._described()
            self.schema = pa.schema([self._field(column) for column in self._columns])
        except (*STREAM_ERRORS, ValueError, fits.VerifyError) as error:
            self.close()
            raise damaged(url, error) from error
        except InputError:
            self.close()
            raise

    def _tables(self) -> dict[int, tuple[fits.Header, int]]:
        """Headers of the tables, and where their rows begin, by the index of the HDU."""
        found = {}
        with warnings.catch_warnings():
            # What is wrong with cards is said where they matter.
            warnings.simplefilter("ignore")
            hdus = fits.open(self._stream, memmap=False, disable_image_compression=True)
            for index, hdu in enumerate(hdus):
                is_table = isinstance(hdu, fits.BinTableHDU | fits.TableHDU)
                if is_table and not hdu.header.get("ZIMAGE", False):
                    found[index] = (hdu.header, int(hdu.fileinfo()["datLoc"]))
        return found

    def _check_complete(self) -> None:
        if self._header.get("ZTABLE", False):
            raise InputError(f"{self.url}: is a compressed table (ZTABLE): unpack it with funpack")
        end = self._start + self._rows * self._width + self._integer("PCOUNT", 0)
        size = os.fstat(self._stream.fileno()).st_size
        if size < end:
            raise damaged(
                self.url, f"{size} bytes where the header promises {end} ({self._rows} rows)"
            )

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._header.get(key, default)
        if not isinstance(value, int) or value < 0:
            raise InputError(f"{self.url}: keyword {key} is {value!r}, not a whole number")
        return value

    def _described(self) -> list[_Column]:
        given = own_names(_column_names(self._header))
        self.repeated = given.repeated
        self.warn(*given.warnings)
        columns = []
        place = 0
        for number, name in enumerate(given.names, start=1):
            form = str(self._header.get(f"TFORM{number}", ""))
            match = (_ASCII if self._ascii else _BINARY).match(form)
            if match is None:
                raise InputError(
                    f"{self.url}: column {name!r}: TFORM{number} is {form!r}, which is no format"
                )
            column = self._ascii_column if self._ascii else self._binary_column
            one = column(name, number, match, place)
            place = one.start + one.size
            if place > self._width:
                raise InputError(
                    f"{self.url}: column {name!r} ends at byte {place} of rows of {self._width} "
                    f"(TFORM{number} = {form!r}); write the file again"
                )
            if 0 in one.shape:
                self.warn(
                    f"column {name!r} has no width (TFORM{number} = {form!r}) and is left out"
                )
            else:
                columns.append(one)
        return columns

    def _ascii_column(self, name: str, number: int, match: re.Match[str], place: int) -> _Column:
        blank = self._header.get(f"TNULL{number}")
        return _Column(
            name,
            number,
            match[1].upper(),
            self._integer(f"TBCOL{number}") - 1,
            int(match[2]),
            blank=None if blank is None else str(blank),
            decimals=int(match[3] or 0),
            **self._scaling(number, name),
        )

    def _binary_column(self, name: str, number: int, match: re.Match[str], place: int) -> _Column:
        count = int(match[1]) if match[1] else 1
        letter, inner = match[2].upper(), ""
        sizes = {"L": 1, "A": 1, "C": 8, "M": 16, "P": 8, "Q": 16}
        if letter == "X":
            size = -(-count // 8)
        else:
            size = count * (sizes.get(letter) or np.dtype(cells.STORED[letter]).itemsize)
        shape: tuple[int, ...] = (count,) if count != 1 else ()
        axes = self._axes(number, count)
        if letter == "A":
            # The first axis is the length of a text, the others count texts.
            shape = tuple(reversed(axes[1:]))
        elif letter in "PQ":
            shape, inner = (0,) if count == 0 else (), match[3][:1].upper()
        elif math.prod(axes) == count:
            shape = tuple(reversed(axes))
        blank = self._header.get(f"TNULL{number}")
        if isinstance(blank, str):
            try:
                blank = float(blank)
            except ValueError:
                blank = None  # No number can be it.
        scaled = self._scaling(number, name) if (inner or letter) in cells.STORED else {}
        return _Column(name, number, letter, place, size, shape, inner=inner, blank=blank, **scaled)

    def _axes(self, number: int, count: int) -> tuple[int, ...]:
        """TDIM, if it fits."""
        text = str(self._header.get(f"TDIM{number}", ""))
        axes = tuple(int(part) for part in re.findall(r"\d+", text))
        return axes if axes and 0 < math.prod(axes) <= count else ()

    def _scaling(self, number: int, name: str) -> dict[str, Any]:
        found = {}
        for key, role, default in (("TSCAL", "scale", 1), ("TZERO", "zero", 0)):
            value = self._header.get(f"{key}{number}", default)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(
                    f"{self.url}: column {name!r}: {key}{number} is {value!r}, not a number"
                )
            found[role] = value
        return found

    def _type(self, column: _Column) -> pa.DataType:
        letter = column.inner or column.letter
        if letter == "A":
            return pa.string()
        if letter in "LX" and not (column.inner and letter == "X"):
            return pa.bool_()
        if self._ascii:
            scaled = (column.scale, column.zero) != (1, 0)
            return pa.int64() if letter == "I" and not scaled else pa.float64()
        if letter not in cells.STORED:
            names = {"C": "complex64", "M": "complex128"}
            raise InputError(
                f"{self.url}: column {column.name!r} is "
                f"{names.get(letter, self._header[f'TFORM{column.number}'])}, which cannot be "
                "stored; remove it"
            )
        return arrow_scalar(cells.number_type(letter, column.scale, column.zero))

    def _field(self, column: _Column) -> pa.Field:
        dtype, number = self._type(column), column.number
        count = math.prod(column.shape)
        if column.inner and column.inner != "A":
            dtype = pa.list_(dtype)
        elif count > 1:
            dtype = pa.list_(dtype, count)
        return field(
            column.name,
            dtype,
            unit=self._header.get(f"TUNIT{number}"),
            ucd=self._header.get(f"TUCD{number}"),
            description=self._header.get(f"TCOMM{number}"),
        )

    def _read(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if not columns:
            return
        known = {column.name: column for column in self._columns}
        wanted = [known[name] for name in columns]
        schema = pa.schema([self.schema.field(name) for name in columns])
        step = min(rows, max(1, BLOCK_BYTES // max(1, self._width)))
        for start in range(0, self._rows, step):
            count = min(step, self._rows - start)
            block = self._bytes(self._start + start * self._width, count * self._width)
            for part in self._parts(block.reshape(count, self._width), wanted):
                arrays = [self._values(part, column) for column in wanted]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _bytes(self, place: int, count: int) -> cells.Bytes:
        out = np.empty(count, np.uint8)
        try:
            self._stream.seek(place)
            if self._stream.readinto(out.data) < count:  # type: ignore[attr-defined]
                raise damaged(self.url, "it ends before its table does")
        except OSError as error:
            raise damaged(self.url, error) from error
        return out

    def _parts(self, block: cells.Bytes, wanted: Sequence[_Column]) -> Iterator[cells.Bytes]:
        """Rows of a block in parts whose variable-length arrays do not fill the memory."""
        total = np.zeros(len(block), np.int64)
        for column in wanted:
            if column.inner:
                counts, _ = self._descriptors(block, column)
                total += counts * self._inner_size(column)
        if total.sum() > self._integer("PCOUNT", 0) + BLOCK_BYTES:
            raise damaged(self.url, "its variable-length arrays hold more than the heap does")
        group = np.cumsum(total) // BLOCK_BYTES
        edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(block)]
        for start, stop in pairwise(edges):
            yield block[start:stop]

    def _values(self, block: cells.Bytes, column: _Column) -> pa.Array:
        raw = block[:, column.start : column.start + column.size]
        dtype = self.schema.field(column.name).type
        if self._ascii:
            return self._ascii_values(raw, column, dtype)
        if column.inner:
            return self._arrays(block, column, dtype)
        if column.letter == "A":
            count = math.prod(column.shape)
            width = column.size // count
            each = raw[:, : count * width].reshape(len(block) * count, width)
            found = cells.texts(each)
            return pa.FixedSizeListArray.from_arrays(found, count) if count > 1 else found
        if column.letter == "X":
            return from_numpy(_shaped(cells.bits(raw, math.prod(column.shape)), dtype), None, dtype)
        values, mask = self._cells(np.ascontiguousarray(raw), column.letter, column)
        return from_numpy(_shaped(values, dtype), _shaped(mask, dtype), dtype)

    def _cells(
        self, raw: cells.Bytes, letter: str, column: _Column
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values of contiguous bytes, and where there are none."""
        if letter == "L":
            return cells.logicals(raw)
        stored = raw.view(cells.STORED[letter])
        dtype = cells.number_type(letter, column.scale, column.zero)
        mask = np.zeros(stored.shape, bool) if column.blank is None else stored == column.blank
        return cells.numbers(stored, column.scale, column.zero, dtype), mask

    def _ascii_values(self, raw: cells.Bytes, column: _Column, dtype: pa.DataType) -> pa.Array:
        if column.letter == "A":
            return cells.texts(raw)
        try:
            values, empty = cells.ascii_numbers(
                raw, column.blank, whole=column.letter == "I", decimals=column.decimals
            )
        except ValueError as error:
            raise InputError(
                f"{self.url}: column {column.name!r} "
                f"({self._header[f'TFORM{column.number}']}): {error}"
            ) from error
        if dtype == pa.float64():
            values = values * column.scale + column.zero
        return from_numpy(values, empty, dtype)

    def _descriptors(
        self, block: cells.Bytes, column: _Column
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lengths of the arrays of each row, and where they begin in the heap; shape (n,) each.

        Raises
        ------
        InputError
            If one lies outside the heap.
        """
        raw = np.ascontiguousarray(block[:, column.start : column.start + column.size])
        pairs = raw.view(">i4" if column.letter == "P" else ">i8").astype(np.int64)
        counts, places = pairs[:, 0], pairs[:, 1]
        gap = self._header.get("THEAP", self._rows * self._width) - self._rows * self._width
        room = self._integer("PCOUNT", 0) - gap
        outside = (counts < 0) | (places < 0) | (places > room)
        outside |= counts > (room - places) // self._inner_size(column)
        if (outside & (counts != 0)).any():
            raise damaged(self.url, f"column {column.name!r} points outside the heap")
        return counts, places

    @staticmethod
    def _inner_size(column: _Column) -> int:
        return 1 if column.inner in "AL" else np.dtype(cells.STORED[column.inner]).itemsize

    def _arrays(self, block: cells.Bytes, column: _Column, dtype: pa.DataType) -> pa.Array:
        counts, places = self._descriptors(block, column)
        size = self._inner_size(column)
        heap = self._start + self._header.get("THEAP", self._rows * self._width)
        parts = [
            self._bytes(heap + place, count * size)
            for place, count in zip(places.tolist(), counts.tolist(), strict=True)
            if count
        ]
        raw = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        if column.inner == "A":
            stops = np.cumsum(counts).tolist()
            each = (raw[stop - count : stop] for stop, count in zip(stops, counts, strict=True))
            return pa.array([cells.texts(one[None])[0].as_py() for one in each], pa.string())
        values, mask = self._cells(raw, column.inner, column)
        inner = from_numpy(values, mask, dtype.value_type)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, inner)

    def close(self) -> None:
        """Close the file and remove the decompressed copy."""
        self._stream.close()
        self._local.close()


def _shaped(values: NDArray[Any], dtype: pa.DataType) -> NDArray[Any]:
    return values if isinstance(dtype, pa.FixedSizeListType) else values.reshape(len(values))


def _column_names(header: fits.Header) -> list[str]:
    count = header.get("TFIELDS", 0)
    # The standard's most; of those that it only claims to have the first one is named.
    count = min(count, 999) if isinstance(count, int) else 0
    return [str(header.get(f"TTYPE{number}", "")).strip() for number in range(1, count + 1)]


def _in_file(index: int, header: fits.Header) -> TableInFile:
    name = str(header.get("EXTNAME", "")).strip()
    return TableInFile(index, (name,) if name else (), tuple(_column_names(header)))
