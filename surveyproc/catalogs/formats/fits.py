"""FITS binary and ASCII tables, by ranges of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
import pyarrow as pa

from surveyproc.catalogs.formats.base import (
    STREAM_ERRORS,
    LocalCopy,
    TableReader,
    arrow_scalar,
    damaged,
    field,
    from_numpy,
)
from surveyproc.errors import InputError


class FitsReader(TableReader):
    """The first table extension of a FITS file.

    Nulls are TNULL values of integer columns, NaN in float columns, and nothing else. A compressed
    or remote file is first copied, decompressed, to the temporary folder: cfitsio would hold all
    of it in memory.

    Raises
    ------
    InputError
        If the file is truncated, or holds no table.
    """

    kind = "fits"

    def __init__(self, url: str) -> None:
        self.url = url
        self._local = LocalCopy(url)
        try:
            self._hdu = self._first_table()
            self._check_complete()
            self._rows = int(self._hdu.get_nrows())
            self._blanks: dict[str, float] = {}
            self.schema = self._schema()
        except (*STREAM_ERRORS, ValueError) as error:
            raise damaged(url, error) from error

    def _first_table(self) -> Any:
        self._fits = fitsio.FITS(self._local.path, "r", vstorage="object")
        for hdu in self._fits:
            if hdu.get_exttype() in ("BINARY_TBL", "ASCII_TBL"):
                return hdu
        raise InputError(
            f"{self.url}: holds no table extension; it is truncated, or holds only images: "
            "check the path in survey.toml"
        )

    def _check_complete(self) -> None:
        # cfitsio opens a truncated table without a word and fails, or not, at the first read.
        header = self._hdu.read_header()
        self._header = {record["name"]: record["value"] for record in header.records()}
        rows, width = int(self._header["NAXIS2"]), int(self._header["NAXIS1"])
        end = self._hdu.get_offsets()["data_start"] + rows * width + int(self._header["PCOUNT"])
        size = Path(self._local.path).stat().st_size
        if size < end:
            raise damaged(self.url, f"{size} bytes where the header promises {end} ({rows} rows)")

    def _schema(self) -> pa.Schema:
        # Scaling changes the type of a column, so a row says more than the header does.
        if self._rows:
            dtype = self._hdu[0:1].dtype
        else:
            dtype = self._hdu.get_rec_dtype(vstorage="object")[0]
        fields = []
        for number, name in enumerate(self._hdu.get_colnames(), start=1):
            base, shape = dtype[name].base, dtype[name].shape
            try:
                scalar = self._variable(number) if base.hasobject else arrow_scalar(base)
            except TypeError as error:
                raise InputError(
                    f"{self.url}: column {name!r} is {base}, which cannot be stored; remove it"
                ) from error
            count = math.prod(shape)
            fields.append(
                field(
                    name,
                    pa.list_(scalar, count) if shape and count > 1 else scalar,
                    unit=self._header.get(f"TUNIT{number}"),
                    ucd=self._header.get(f"TUCD{number}"),
                    description=self._header.get(f"TCOMM{number}"),
                )
            )
            blank = self._header.get(f"TNULL{number}")
            if blank is not None and base.kind in "iuf":
                scale = self._header.get(f"TSCAL{number}", 1)
                self._blanks[name] = blank * scale + self._header.get(f"TZERO{number}", 0)
        return pa.schema(fields)

    def _variable(self, number: int) -> pa.DataType:
        """Arrow type of a variable-length column, from the letter after P or Q in its TFORM."""
        form = str(self._header[f"TFORM{number}"]).upper()
        letter = form.lstrip("0123456789")[1:2]
        kinds = {
            "L": pa.bool_(),
            "B": pa.uint8(),
            "I": pa.int16(),
            "J": pa.int32(),
            "K": pa.int64(),
            "E": pa.float32(),
            "D": pa.float64(),
        }
        if letter == "A":
            return pa.string()
        if letter not in kinds:
            raise TypeError(form)
        return pa.list_(kinds[letter])

    def _read(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if not columns:
            return
        wanted = pa.schema([self.schema.field(name) for name in columns])
        whole = columns == self.names
        for start in range(0, self._rows, rows):
            stop = min(start + rows, self._rows)
            try:
                table = self._hdu[start:stop] if whole else self._hdu[columns][start:stop]
            except (*STREAM_ERRORS, ValueError) as error:
                raise damaged(self.url, error) from error
            arrays = [
                from_numpy(table[name], self._mask(name, table[name]), wanted.field(name).type)
                for name in columns
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=wanted)

    def _mask(self, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        return values == self._blanks[name] if name in self._blanks else None

    def close(self) -> None:
        """Close the file and remove the decompressed copy."""
        self._fits.close()
        self._local.close()
