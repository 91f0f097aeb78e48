"""The image planes of FITS files: which tile, band and kind each is, and its pixels on demand."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fitsio
import numpy as np
from astropy.io.fits import Header
from fitsio.hdu import ImageHDU
from numpy.typing import NDArray

from surveyproc.config import ImagesSection
from surveyproc.errors import InputError, StoreError
from surveyproc.images.cube import TILES_KEY
from surveyproc.images.grid import wcs_text
from surveyproc.images.hdus import (
    BITPIX,
    MAX_NAXIS,
    Hdu,
    big_endian,
    integer,
    keyword,
    reading,
    scan,
    unreadable,
)
from surveyproc.urls import file_name, plainly_named, public_url

SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}\Z")
KINDS = {
    "weight": {"WEIGHT", "WHT", "WT", "IVAR", "INVVAR", "WGT"},
    "mask": {"MASK", "DQ", "FLAGS", "DQM"},
}
KIND_LETTERS = {"i": "image", "w": "weight", "d": "mask", "m": "mask"}
# A tile-compressed plane that claims to unpack to more than this many times its file is refused
# before anything of that size is allocated; gzip of constant data reaches about 1,000.
MAX_RATIO = 4000
POSITIVE = range(1, sys.maxsize)
TABLE_NAME = TILES_KEY.rsplit("/", 1)[-1]
# CFITSIO says in a number whether it is the disk that failed (could not open, could not read).
CFITSIO_IO = re.compile(r"FITSIO status = (104|108)\b")


@dataclass(frozen=True)
class Plane:
    """One 2-D image, weight or mask plane of one file; its pixels are read later.

    Attributes
    ----------
    path : str
        The file.
    hdu : int
        Zero-based HDU.
    tile, band, kind : str
        Where it belongs; kind is image, weight or mask.
    shape : (int, int)
        (y, x) pixels.
    wcs : str
        WCS header cards separated by newlines; empty for a weight or mask without its own.
    zeropoint : float
        AB magnitude of one count; NaN for weights and masks.
    offset : int
        Byte where the data begin in the uncompressed file.
    bitpix, bscale, bzero, blank
        How stored values become numbers; `blank` is None if the header names no blank value.
    compressed : bool
        Whether the plane is tile compressed (.fz).
    """

    path: str
    hdu: int
    tile: str
    band: str
    kind: str
    shape: tuple[int, int]
    wcs: str
    zeropoint: float
    offset: int
    bitpix: int
    bscale: float
    bzero: float
    blank: int | None
    compressed: bool

    @property
    def where(self) -> str:
        """File and HDU, for messages."""
        return f"{public_url(self.path)}[{self.hdu}]"


@dataclass(frozen=True)
class Problem:
    """Something wrong with one plane; tile and band are empty where they could not be told.

    `unread` is the path of a file that could not be read now, which says nothing about its
    content: a tile it belongs to has to wait.
    """

    tile: str
    band: str
    message: str
    unread: str = ""


def planes_of(path: str, images: ImagesSection) -> tuple[list[Plane], list[Problem]]:
    """The planes of one file, and what is wrong with those that cannot be used.

    Reads headers only. Never raises for a bad file: the problem names file and key.
    """
    place = _from_name(path, images)[:2]
    planes: list[Plane] = []
    problems: list[Problem] = []
    hdus: list[Hdu] = []
    try:
        for hdu in scan(path):
            hdus.append(hdu)  # one by one: those before a broken one are good
    except InputError as error:
        problems.append(Problem(*place, str(error)))
    except StoreError as error:
        return [], [Problem(*place, str(error), unread=path)]
    last_image = ("", "")
    for hdu in hdus:
        naming = _Naming(path, hdu, hdus[0].header, images)
        try:
            if not _is_image(hdu, naming.where):
                continue
            tile, band, kind = naming.identify(last_image)
            if kind == "image":
                last_image = (tile, band)
            planes.append(_plane(path, hdu, hdus[0].header, images, (tile, band, kind)))
        except InputError as error:
            problems.append(Problem(naming.tile, naming.band, hdu.fault or str(error)))
    if not planes and not problems:
        problems.append(Problem(*place, f"{public_url(path)}: holds no image"))
    return planes, problems


def _is_image(hdu: Hdu, where: str) -> bool:
    if keyword(hdu.header, "ZIMAGE", where):
        return True
    kind = str(keyword(hdu.header, "XTENSION", where) or "IMAGE").strip()
    if hdu.fault and kind != "IMAGE":
        raise InputError(hdu.fault)
    return kind == "IMAGE" and (bool(hdu.fault) or bool(hdu.header["NAXIS"]))


def _stem(path: str) -> str:
    name = file_name(path)
    while True:
        base, dot, suffix = name.rpartition(".")
        if not dot or suffix.lower() not in {"fits", "fit", "fts", "fz", "gz", "bz2"}:
            return name
        name = base


def _from_name(path: str, images: ImagesSection) -> tuple[str, str, str]:
    """Tile, band and kind as far as `images.file_pattern` finds them in the file name."""
    if images.file_pattern is None:
        return "", "", ""
    try:
        match = re.search(images.file_pattern, file_name(path))
    except re.error as error:
        raise InputError(f"images.file_pattern: {error}") from error
    groups = match.groupdict() if match else {}
    return groups.get("tile") or "", groups.get("band") or "", groups.get("kind") or ""


class _Naming:
    """Finds tile, band and kind of one HDU; remembers them for the message if one is bad."""

    def __init__(self, path: str, hdu: Hdu, primary: Header, images: ImagesSection) -> None:
        self.path, self.hdu, self.images = path, hdu, images
        self.where = f"{public_url(path)}[{hdu.index}]"
        # What a broken HDU does not say itself must not be blamed on what the file begins with.
        self.headers = (hdu.header,) if hdu.fault else (hdu.header, primary)
        self.tile, self.band, self.kind = _from_name(path, images)
        self.words: set[str] = set()

    def identify(self, last_image: tuple[str, str]) -> tuple[str, str, str]:
        self.words = set(re.split(r"[^A-Za-z0-9]+", self._text(self.hdu.header, "EXTNAME")))
        tile, band, kind = self.tile, self.band, self._kind(self.kind)
        inherited = last_image if kind != "image" else ("", "")
        self.tile = self._tile(tile, inherited[0])
        self.band = self._band(band, inherited[1])
        return self.tile, self.band, kind

    def _text(self, header: Header, key: str) -> str:
        value = keyword(header, key, self.where)
        return "" if value is None else str(value).strip()

    def _own_or_primary(self, key: str) -> str:
        return next(filter(None, (self._text(header, key) for header in self.headers)), "")

    def _kind(self, named: str) -> str:
        if not named:
            upper = {word.upper() for word in self.words}
            return next((kind for kind, words in KINDS.items() if upper & words), "image")
        for kind, words in KINDS.items():
            if named.upper() in words:
                return kind
        if named[0].lower() not in KIND_LETTERS:
            raise InputError(
                f"{public_url(self.path)}: images.file_pattern: kind {named!r} is not image, "
                "weight or mask"
            )
        return KIND_LETTERS[named[0].lower()]

    def _tile(self, named: str, inherited: str) -> str:
        key = self.images.tile_keyword
        found = named or self._text(self.hdu.header, key) or inherited
        source = "images.file_pattern: tile" if named else f"keyword {key}: tile"
        found = found or self._own_or_primary(key)
        if not found and not self.hdu.fault:
            found, source = _stem(self.path), "file name: tile"
        remedy = "set images.tile_keyword or a group 'tile' in images.file_pattern"
        if not SAFE_NAME.match(found):
            raise InputError(
                f"{self.where}: {source} id {found!r} may hold only letters, digits, '_', '.' and "
                f"'-', and may not begin with '.'; {remedy}"
            )
        if found.lower() == TABLE_NAME:
            raise InputError(
                f"{self.where}: {source} id {found!r} is the name of the table of tiles; {remedy}"
            )
        return found

    def _band(self, named: str, inherited: str) -> str:
        key, bands = self.images.band_keyword, self.images.bands
        own = self._text(self.hdu.header, key)
        found = named or own or inherited or self._own_or_primary(key)
        if not found:
            by_name = [band for band in bands if band in self.words]
            if by_name:
                return by_name[0]
            raise InputError(
                f"{self.where}: keyword {key} (the band) is missing; set "
                "images.band_keyword, or a group 'band' in images.file_pattern"
            )
        for candidate in (found, found.split()[0]):
            if candidate in bands:
                return candidate
        close = difflib.get_close_matches(found, bands, n=1, cutoff=0.0)[0]
        source = "images.file_pattern" if named else f"keyword {key}"
        raise InputError(
            f"{self.where}: {source}: band {found!r} is not in images.bands "
            f"({', '.join(bands)}); the nearest is {close!r}"
        )


def _plane(
    path: str, hdu: Hdu, primary: Header, images: ImagesSection, names: tuple[str, str, str]
) -> Plane:
    tile, band, kind = names
    header, where = hdu.header, f"{public_url(path)}[{hdu.index}]"
    if hdu.fault:
        raise InputError(hdu.fault)
    compressed = bool(keyword(header, "ZIMAGE", where))
    prefix = "Z" if compressed else ""
    axes = integer(header, f"{prefix}NAXIS", where, range(MAX_NAXIS + 1))
    sizes = [integer(header, f"{prefix}NAXIS{axis + 1}", where) for axis in range(axes)]
    if axes != 2 or min(sizes) < 1:
        raise InputError(
            f"{where}: {prefix}NAXIS: a two-dimensional image is expected, not {sizes}"
        )
    if not hdu.complete:
        raise InputError(
            f"{where}: truncated: the header claims {sizes[0]} x {sizes[1]} pixels "
            f"({hdu.nbytes} bytes), the file ends before them"
        )
    bitpix = integer(header, f"{prefix}BITPIX", where, BITPIX)
    if compressed:
        _check_compressed(header, sizes, bitpix, hdu, where)
    blank = keyword(header, "ZBLANK", where) if compressed else None
    if blank is None:
        blank = keyword(header, "BLANK", where)
    return Plane(
        path=path,
        hdu=hdu.index,
        tile=tile,
        band=band,
        kind=kind,
        shape=(sizes[1], sizes[0]),
        wcs=wcs_text(header, primary, (sizes[1], sizes[0]), where, required=kind == "image"),
        zeropoint=_zeropoint(header, primary, images, band, where) if kind == "image" else math.nan,
        offset=hdu.offset,
        bitpix=bitpix,
        bscale=_number(header, "BSCALE", where, 1.0),
        bzero=_number(header, "BZERO", where, 0.0),
        blank=int(blank) if isinstance(blank, int) and bitpix > 0 else None,
        compressed=compressed,
    )


def _check_compressed(header: Header, sizes: list[int], bitpix: int, hdu: Hdu, where: str) -> None:
    pieces = [
        integer(header, f"ZTILE{axis + 1}", where, POSITIVE, default=size if axis == 0 else 1)
        for axis, size in enumerate(sizes)
    ]
    tiles = math.prod(-(-size // piece) for size, piece in zip(sizes, pieces, strict=True))
    most = max(math.prod(sizes), math.prod(pieces))
    claimed = most * abs(bitpix) // 8
    rows = integer(header, "NAXIS2", where)
    if tiles != rows or claimed > MAX_RATIO * max(1, hdu.nbytes):
        raise InputError(
            f"{where}: ZNAXIS: claims {sizes[0]} x {sizes[1]} pixels, which {hdu.nbytes} bytes "
            f"in {rows} compressed tiles cannot hold"
        )


def _number(header: Header, key: str, where: str, default: float) -> float:
    value = keyword(header, key, where)
    if value is None:
        return default
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: keyword {key} is {value!r}, not a number")
    return float(value)


def _zeropoint(
    header: Header, primary: Header, images: ImagesSection, band: str, where: str
) -> float:
    if band in images.zeropoints:
        return images.zeropoints[band]
    key = images.zeropoint_keyword
    value = keyword(header, key, where)
    if value is None:
        value = keyword(primary, key, where)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        state = "is missing" if value is None else f"is {value!r}, not a number"
        raise InputError(
            f"{where}: keyword {key} (AB magnitude of one count) {state}; set "
            f"images.zeropoint_keyword, or images.zeropoints = {{ {band} = ... }}"
        )
    return number


class PlaneReader:
    """Pixels of one plane, row range by row range.

    Parameters
    ----------
    plane : Plane
        The plane.
    path : str
        The uncompressed file on the local disk (see `hdus.local_copy`).
    """

    def __init__(self, plane: Plane, path: str) -> None:
        self.plane, self.path = plane, path
        self._unpacking = self._compressed() if plane.compressed else None

    def _compressed(self) -> Any:
        with reading(self.plane.path), plainly_named(self.path) as name, self._cfitsio():
            hdu = fitsio.FITS(name)[self.plane.hdu]
            # CFITSIO reads headers in its own way, and decides alone how much it unpacks.
            if not isinstance(hdu, ImageHDU) or tuple(hdu.get_dims()) != self.plane.shape:
                raise ValueError(f"CFITSIO finds no image of {self.plane.shape} pixels here")
            return hdu

    @contextmanager
    def _cfitsio(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if CFITSIO_IO.match(str(error)):
                raise unreadable(self.plane.path, error) from error
            raise InputError(f"{self.plane.where}: damaged compressed data: {error}") from error

    def _stored(self, y0: int, y1: int) -> NDArray[Any]:
        if self._unpacking is not None:
            with self._cfitsio():
                rows: NDArray[Any] = self._unpacking[y0:y1, :]
            return rows
        plane = self.plane
        out = np.empty((y1 - y0, plane.shape[1]), big_endian(plane.bitpix))
        # Read, not mapped: a disk that fails under a mapping kills the process.
        with reading(plane.where), open(self.path, "rb") as stream:
            stream.seek(plane.offset + y0 * out.strides[0])
            if stream.readinto(out.data) < out.nbytes:
                raise InputError(f"{plane.where}: truncated: the file ends before row {y1}")
        return out

    def rows(self, y0: int, y1: int) -> NDArray[np.float32]:
        """Rows y0 to y1 (excluded) as float32, shape (y1 - y0, nx), in counts; blanks are NaN.

        Raises
        ------
        InputError
            If compressed data are damaged, or the file ends too soon.
        StoreError
            If the file cannot be read now.
        """
        plane, stored = self.plane, self._stored(y0, y1)
        out: NDArray[np.float32] = stored.astype(np.float32)
        blank = plane.blank
        if plane.compressed:
            # CFITSIO has applied BSCALE and BZERO already.
            blank = None if blank is None else round(blank * plane.bscale + plane.bzero)
        elif (plane.bscale, plane.bzero) != (1.0, 0.0):
            out = (stored * plane.bscale + plane.bzero).astype(np.float32)
        if blank is not None:
            out[stored == blank] = np.nan
        return out

    def bits(self, y0: int, y1: int) -> NDArray[np.int64]:
        """Rows y0 to y1 of a mask as integers; a value that is not finite becomes -1 (all bits)."""
        plane, stored = self.plane, self._stored(y0, y1)
        if plane.bitpix < 0:
            return np.where(np.isfinite(stored), stored, -1).astype(np.int64)
        whole = stored.astype(np.int64)
        if not plane.compressed and (plane.bscale, plane.bzero) != (1.0, 0.0):
            whole = (whole * plane.bscale + plane.bzero).astype(np.int64)
        return whole
