"""The bytes of FITS files: headers found without reading data, files brought to the local disk."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import fsspec
import numpy as np
from astropy.io.fits import Header

from surveyproc.errors import InputError
from surveyproc.storage import store_error

BLOCK = 2880
MAX_HEADER_BLOCKS = 4000
COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class Hdu:
    """One header-data unit.

    Attributes
    ----------
    index : int
        Zero-based place in the file.
    header : Header
        Its own header, nothing inherited.
    offset, nbytes : int
        Where its data begin, and their length without padding, in the uncompressed file.
    complete : bool
        Whether the file holds all of them.
    """

    index: int
    header: Header
    offset: int
    nbytes: int
    complete: bool


class _Cursor:
    """A stream read forwards only, so that gzip and bzip2 files are decompressed once."""

    def __init__(self, stream: IO[bytes], size: int | None) -> None:
        self.stream, self.size, self.place = stream, size, 0

    def read(self, count: int) -> bytes:
        data = self.stream.read(count)
        self.place += len(data)
        return data

    def skip(self, count: int) -> int:
        """Move on by at most `count` bytes; say how many there were."""
        if self.size is not None:
            step = max(0, min(count, self.size - self.place))
            self.place += step
            self.stream.seek(self.place)
            return step
        left = count
        while left and (data := self.stream.read(min(left, COPY_BYTES))):
            left -= len(data)
        self.place += count - left
        return count - left


def is_packed(path: str) -> bool:
    """Whether the file as a whole is compressed (.gz, .bz2); .fz is not."""
    return path.endswith((".gz", ".bz2"))


def _open(path: str) -> IO[bytes]:
    return cast(IO[bytes], fsspec.open(path, "rb").open() if "://" in path else open(path, "rb"))


def _unpacked(path: str, stream: IO[bytes]) -> IO[bytes]:
    if path.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if path.endswith(".bz2"):
        return cast(IO[bytes], bz2.BZ2File(stream))
    return stream


def scan(path: str) -> list[Hdu]:
    """All headers of the file, in order, without reading data that can be skipped.

    Raises
    ------
    InputError
        If the file cannot be opened, is not FITS, or ends within a header. Data that end too soon
        are no error here: the HDU says `complete=False`.
    """
    try:
        with _open(path) as stream:
            if is_packed(path):
                return list(_hdus(_Cursor(_unpacked(path, stream), None), path))
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            return list(_hdus(_Cursor(stream, size), path))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _hdus(cursor: _Cursor, path: str) -> Iterator[Hdu]:
    index = 0
    while True:
        try:
            header = _header(cursor, path, first=index == 0)
        except (EOFError, zlib.error, OSError) as error:
            if index == 0:
                raise
            # A packed file that breaks off after some whole HDUs: those were good.
            raise InputError(f"{path}: truncated after HDU {index - 1}: {error}") from error
        if header is None:
            return
        nbytes = data_bytes(header)
        offset = cursor.place
        try:
            found = cursor.skip(-(-nbytes // BLOCK) * BLOCK)
        except (EOFError, zlib.error, OSError):
            found = 0
        yield Hdu(index, header, offset, nbytes, found >= nbytes)
        if found < nbytes:
            return
        index += 1


def _header(cursor: _Cursor, path: str, *, first: bool) -> Header | None:
    text = b""
    for _ in range(MAX_HEADER_BLOCKS):
        block = cursor.read(BLOCK)
        if not text:
            if first and not block.startswith(b"SIMPLE  ="):
                raise InputError(f"{path}: is not a FITS file (no SIMPLE keyword at its start)")
            # Whatever follows the last extension (padding, special records) is not ours to judge.
            if not first and not block.startswith(b"XTENSION"):
                return None
        if len(block) < BLOCK:
            raise InputError(f"{path}: truncated within a header")
        for start in range(0, BLOCK, 80):
            if block[start : start + 80].rstrip() == b"END":
                cards = text + block[:start]
                return Header.fromstring(cards.decode("ascii", "replace"))
        text += block
    raise InputError(f"{path}: a header without END")


def data_bytes(header: Header) -> int:
    """Bytes of an HDU's data without padding (FITS standard 4.0, equations 1 and 2)."""
    sizes = [max(0, int(header.get(f"NAXIS{i + 1}", 0))) for i in range(int(header["NAXIS"]))]
    if not sizes:
        return 0
    count = 1
    for size in sizes:
        count *= size
    groups, extra = int(header.get("GCOUNT", 1)), int(header.get("PCOUNT", 0))
    return abs(int(header["BITPIX"])) // 8 * groups * (extra + count)


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A path of the uncompressed file on the local disk, valid within the block.

    A plain local file is used where it lies; packed and remote ones go to a temporary file, so
    that memory stays flat whatever their size.

    Raises
    ------
    InputError
        If the file is truncated or cannot be read.
    StoreError
        If the temporary file cannot be written.
    """
    if "://" not in path and not is_packed(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="surveyproc-", suffix=".fits") as copy:
        try:
            for data in _pieces(path):
                copy.write(data)
            copy.flush()
        except OSError as error:
            raise store_error(error, f"an unpacked copy of {path} in {copy.name}") from error
        yield copy.name


def _pieces(path: str) -> Iterator[bytes]:
    try:
        with _open(path) as raw, _unpacked(path, raw) as stream:
            while data := stream.read(COPY_BYTES):
                yield data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: truncated or damaged: {error}") from error


def checksum(path: str) -> tuple[str, int]:
    """SHA-256 of the file's bytes as they lie (still packed), and how many there are.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    try:
        with _open(path) as stream:
            if "://" not in path:
                found = hashlib.file_digest(cast(Any, stream), "sha256")
                return found.hexdigest(), stream.tell()
            total, found = 0, hashlib.sha256()
            while data := stream.read(COPY_BYTES):
                found.update(data)
                total += len(data)
            return found.hexdigest(), total
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def big_endian(bitpix: int) -> np.dtype[Any]:
    """The numpy type of FITS pixels with this BITPIX."""
    names = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
    return np.dtype(names[bitpix])
