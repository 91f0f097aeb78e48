"""The bytes of FITS files: headers found without reading data, files brought to the local disk."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import math
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import fsspec
import numpy as np
from astropy.io.fits import Header, VerifyError
from astropy.io.fits.card import Undefined

from surveyproc.errors import InputError, StoreError, SurveyError, store_error
from surveyproc.store.unpacked import write_unpacked
from surveyproc.store.urls import fetched, is_web, opened_here, public_url

BLOCK = 2880
MAX_HEADER_BLOCKS = 4000
MAX_TEXT = 1000  # of one keyword, which CONTINUE may make as long as the header
COPY_BYTES = 1 << 22
# Fetched at once of a file of which only headers are wanted.
HEADER_BYTES = 1 << 16
GZIP, BZIP2, MAGIC_BYTES = b"\x1f\x8b", b"BZh", 5
UNREAD_PACKINGS = {
    b"\x1f\x9d": "compress",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
}
MAX_NAXIS = 999  # FITS standard 4.0, section 4.4.1
BITPIX = (8, 16, 32, 64, -32, -64)
# Headers are printable ASCII. Others write a degree sign into a comment, or zeros for blanks.
PRINTABLE = bytes(c if 32 <= c < 127 else ord("?" if c > 127 else " ") for c in range(256))
# 'CDELT1  =-1E-4' is a comment to the letter of the standard, a value to whoever wrote it. Blanks
# at the end of the card make room for the one that lacks.
UNSPACED = re.compile(rb"(?!COMMENT |HISTORY |CONTINUE)([A-Z0-9_-]+ *=)([^ ].{69}) \Z", re.DOTALL)


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
    fault : str
        What is wrong with the header if it does not tell where the data end; it is the last one
        that can be found then. Empty if nothing is.
    """

    index: int
    header: Header
    offset: int
    nbytes: int
    complete: bool
    fault: str = ""


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


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """All bytes of a file; of a remote one from a copy, so that an attempt can be repeated."""
    if "://" not in path:
        with opened_here(path) as stream:
            yield stream
        return
    with fetched(path) as copy:
        yield copy


@contextmanager
def _headers_opened(path: str) -> Iterator[IO[bytes]]:
    """The same for one who skips most of it: object stores are read in pieces then."""
    if "://" not in path or is_web(path):
        with _opened(path) as stream:
            yield stream
        return
    fs, place = fsspec.core.url_to_fs(path)
    if fs.cat_file(place, start=0, end=MAGIC_BYTES).startswith((GZIP, BZIP2)):
        with _opened(path) as stream:
            yield stream
        return
    with fs.open(place, "rb", block_size=HEADER_BYTES) as stream:
        yield stream


def _unpacked(path: str, stream: IO[bytes]) -> IO[bytes] | None:
    """What a stream at its beginning holds if it is packed as a whole; None if it is not.

    Told by its first bytes: names of files say it often, but not always.

    Raises
    ------
    InputError
        If it is packed in a way that cannot be read.
    """
    magic = stream.read(MAGIC_BYTES)
    stream.seek(0)
    if magic.startswith(GZIP):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if magic.startswith(BZIP2):
        return cast(IO[bytes], bz2.BZ2File(stream))
    for other, name in UNREAD_PACKINGS.items():
        if magic.startswith(other):
            raise InputError(
                f"{public_url(path)}: is packed by {name}: use gzip, bzip2 or fpack instead"
            )
    return None


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Name what goes wrong while `path` is read: its content, or the disk or network under it.

    Raises
    ------
    InputError
        If the content is damaged: another time it will be so too.
    StoreError
        If it cannot be read now, which says nothing about the content.
    """
    try:
        yield
    except SurveyError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile, IsADirectoryError) as error:
        raise InputError(f"{public_url(path)}: truncated or damaged: {error}") from error
    except OSError as error:
        if type(error) is OSError and error.errno is None:  # bz2 complains about content like this
            raise InputError(f"{public_url(path)}: truncated or damaged: {error}") from error
        raise unreadable(path, error) from error
    except Exception as error:
        # Clients of object stores and web servers have families of errors of their own.
        if "://" not in path:
            raise
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> StoreError:
    """The error of a file that cannot be read now, whatever its content."""
    return StoreError(
        f"{public_url(path)}: cannot be read ({error or type(error).__name__}): check that it is "
        "there and that its disk or network works, then ingest again"
    )


def scan(path: str) -> Iterator[Hdu]:
    """All headers of the file, in order, without reading data that can be skipped.

    Data that end too soon are no error here (the HDU says `complete=False`), nor is a header that
    makes no sense (it says so in `fault`); both come last.

    Raises
    ------
    InputError
        If the file is not FITS, or ends within a header; HDUs before that were good.
    StoreError
        If the file cannot be read now.
    """
    with reading(path), _headers_opened(path) as stream:
        if unpacked := _unpacked(path, stream):
            yield from _hdus(_Cursor(unpacked, None), path)
        else:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            yield from _hdus(_Cursor(stream, size), path)


def _hdus(cursor: _Cursor, path: str) -> Iterator[Hdu]:
    index = 0
    while True:
        where = f"{public_url(path)}[{index}]"
        try:
            with reading(where):
                header = _header(cursor, where, first=index == 0)
        except InputError as error:
            if index == 0:
                raise
            raise InputError(f"{error}; what follows HDU {index - 1} is not used") from error
        if header is None:
            return
        offset = cursor.place
        try:
            nbytes = data_bytes(header, where)
        except InputError as error:
            yield Hdu(index, header, offset, 0, complete=False, fault=str(error))
            return
        try:
            with reading(where):
                found = cursor.skip(-(-nbytes // BLOCK) * BLOCK)
        except InputError:
            found = 0
        yield Hdu(index, header, offset, nbytes, found >= nbytes)
        if found < nbytes:
            return
        index += 1


def _header(cursor: _Cursor, where: str, *, first: bool) -> Header | None:
    text = bytearray()
    for _ in range(MAX_HEADER_BLOCKS):
        block = cursor.read(BLOCK).translate(PRINTABLE)
        if not text:
            if first and not block:
                raise InputError(f"{where}: the file is empty; fetch it again")
            if first and not block.startswith(b"SIMPLE  ="):
                raise InputError(f"{where}: is not a FITS file (no SIMPLE keyword at its start)")
            # Whatever follows the last extension (padding, special records) is not ours to judge.
            if not first and not block.startswith(b"XTENSION"):
                return None
        if len(block) < BLOCK:
            raise InputError(f"{where}: truncated within a header")
        for start in range(0, BLOCK, 80):
            card = block[start : start + 80]
            if card.rstrip() == b"END":
                return Header.fromstring(text.decode("ascii"))
            text += UNSPACED.sub(rb"\1 \2", card) if card[8:9] == b"=" else card
    raise InputError(f"{where}: a header without END")


def data_bytes(header: Header, where: str) -> int:
    """Bytes of an HDU's data without padding (FITS standard 4.0, equations 1 and 2).

    Raises
    ------
    InputError
        If a keyword that this takes is missing or makes no sense; the message names it.
    """
    axes = integer(header, "NAXIS", where, range(MAX_NAXIS + 1))
    sizes = [integer(header, f"NAXIS{axis + 1}", where) for axis in range(axes)]
    if not sizes:
        return 0
    bitpix = integer(header, "BITPIX", where, BITPIX)
    groups = integer(header, "GCOUNT", where, default=1)
    extra = integer(header, "PCOUNT", where, default=0)
    return abs(bitpix) // 8 * groups * (extra + math.prod(sizes))


def keyword(header: Header, key: str, where: str) -> Any:
    """The value of a keyword; None if it is absent or has none.

    Raises
    ------
    InputError
        If its card cannot be parsed, there are several with different values, or it is a text
        without end, which messages would repeat.
    """
    try:
        value = header.get(key)
        times = header.count(key) if key in header else 0
        # fpack leaves an EXTNAME of its own beside the image's.
        for number in range(1, times if key != "EXTNAME" else 0):
            if header[key, number] != value:
                raise InputError(
                    f"{where}: keyword {key} is given {times} times, as {value!r} and "
                    f"{header[key, number]!r}: delete the wrong one"
                )
    except (VerifyError, ValueError) as error:
        raise InputError(f"{where}: keyword {key}: its card is not valid FITS") from error
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise InputError(
            f"{where}: keyword {key} is a text of {len(value)} characters, and {MAX_TEXT} are the "
            "most that are read; shorten it"
        )
    return None if isinstance(value, Undefined) else value


def integer(
    header: Header,
    key: str,
    where: str,
    allowed: Sequence[int] = range(sys.maxsize),
    *,
    default: int | None = None,
) -> int:
    """The value of a keyword that is one of the `allowed` integers, by default not negative.

    Raises
    ------
    InputError
        If it is not, or is missing and there is no default; the message names it.
    """
    value = keyword(header, key, where)
    if value is None:
        if default is None:
            raise InputError(f"{where}: keyword {key} is missing")
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{where}: keyword {key} is {value!r}, not an integer")
    if value not in allowed:
        raise InputError(f"{where}: keyword {key} = {value} is not possible")
    return value


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A path of the uncompressed file on the local disk, valid within the block.

    A plain local file is used where it lies; packed and remote ones go to a temporary file, so
    that memory stays flat whatever their size.

    Raises
    ------
    InputError
        If the file is truncated or damaged.
    StoreError
        If it cannot be read now, or the temporary file cannot be written.
    """
    with ExitStack() as stack:
        with reading(path):
            opened = stack.enter_context(_opened(path))
            unpacked = _unpacked(path, opened)
        if unpacked is None:
            yield opened.name
            return
        try:
            copy = stack.enter_context(
                tempfile.NamedTemporaryFile(prefix="surveyproc-", suffix=".fits")
            )
            write_unpacked(_pieces(path, unpacked), copy, public_url(path))
            copy.flush()
        except OSError as error:
            raise store_error(error, f"an unpacked copy of {public_url(path)}") from error
        yield copy.name


def _pieces(path: str, stream: IO[bytes]) -> Iterator[bytes]:
    with reading(path):
        while data := stream.read(COPY_BYTES):
            yield data


def checksum(path: str) -> tuple[str, int]:
    """SHA-256 of the file's bytes as they lie (still packed), and how many there are.

    Raises
    ------
    StoreError
        If the file cannot be read now.
    """
    with reading(path), _opened(path) as stream:
        found = hashlib.file_digest(cast(Any, stream), "sha256")
        return found.hexdigest(), stream.tell()


def datasum(stream: IO[bytes], nbytes: int) -> int:
    """Sum of the 32-bit words of `nbytes` of a stream, carries added back: what DATASUM states.

    Fewer bytes count as if zeros followed (FITS standard 4.0, section 4.4.2.7 and appendix J).
    """
    total, left = 0, nbytes
    while left and (data := stream.read(min(left, COPY_BYTES))):
        left -= len(data)
        data += bytes(-len(data) % 4)
        total += int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def big_endian(bitpix: int) -> np.dtype[Any]:
    """The numpy type of FITS pixels with this BITPIX."""
    names = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
    return np.dtype(names[bitpix])
