"""The image planes of FITS files: what their headers say, and their pixels on demand."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from astropy.io.fits import Header
from numpy.typing import NDArray

from surveyproc.config.inputs import ImagesSection
from surveyproc.errors import InputError, StoreError
from surveyproc.images.calibration import Calibration, softening
from surveyproc.images.grid import Grid
from surveyproc.images.hdus import (
    BITPIX,
    BLOCK,
    MAX_NAXIS,
    Hdu,
    big_endian,
    datasum,
    integer,
    keyword,
    reading,
    scan,
    unreadable,
)
from surveyproc.images.planes import ASIDE, NOISE, Naming, Role, names_of, settle
from surveyproc.images.unpack import Unpacker
from surveyproc.images.wcs import image_axes, wcs_text
from surveyproc.store.urls import public_url

# A tile-compressed plane that claims to unpack to more than this many times its file is refused
# before anything of that size is allocated; gzip of constant data reaches about 1,000.
MAX_RATIO = 4000
POSITIVE = range(1, sys.maxsize)
TABLE = Role("", "", "part", aside="a table")
# Asinh pixels are in units of a magnitude: 2.5 log10(e).
POGSON = 2.5 / math.log(10)
ALL_BITS = np.uint64(2**64 - 1)
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
        Where it belongs; kind is image, weight (inverse variance), variance, rms or mask; a mask
        of all bands has the band EVERY_BAND.
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
    gain : float
        Electrons of one count; NaN if nobody says.
    softening : (float, float) or None
        BOFFSET and BSOFTEN of asinh pixels.
    mask_bits : int or None
        Bits of a mask that are known to make a pixel bad; None if all may.
    nbytes : int
        Length of the data in the uncompressed file, with their padding.
    datasum : int or None
        What the header says that the data sum to.
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
    gain: float = math.nan
    softening: tuple[float, float] | None = None
    mask_bits: int | None = None
    nbytes: int = 0
    datasum: int | None = None

    @property
    def use(self) -> str:
        """What it is for: image, weight (of whatever kind of noise) or mask."""
        return "weight" if self.kind in NOISE else self.kind

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


@dataclass(frozen=True)
class Aside:
    """An HDU that nothing needs: what it is called, why, and file and HDU."""

    name: str
    why: str
    where: str


def planes_of(
    path: str,
    images: ImagesSection,
    zeropoints: Mapping[str, float] = MappingProxyType({}),
    aside: list[Aside] | None = None,
) -> tuple[list[Plane], list[Problem]]:
    """The planes of one file, and what is wrong with those that cannot be used.

    Reads headers only. Never raises for a bad file: the problem names file and key.

    Parameters
    ----------
    zeropoints : mapping
        File name to AB magnitude of one count (see `Calibration.files`).
    aside : list, optional
        HDUs that nothing needs are appended to it.
    """
    names = names_of(path, images)
    place, calibration = (names.tile, names.band), Calibration(images, zeropoints)
    problems: list[Problem] = []
    hdus: list[Hdu] = []
    try:
        for hdu in scan(path):
            hdus.append(hdu)  # one by one: those before a broken one are good
    except InputError as error:
        problems.append(Problem(*place, str(error)))
    except StoreError as error:
        return [], [Problem(*place, str(error), unread=path)]
    found: list[tuple[Naming, Role]] = []
    last_image = ("", "")
    for hdu in hdus:
        naming = Naming(path, hdu, hdus[0].header, images, names)
        try:
            if _is_empty(hdu):
                continue
            role = naming.identify(last_image) if _is_image(hdu, naming.where) else TABLE
        except InputError as error:
            problems.append(Problem(naming.tile, naming.band, hdu.fault or str(error)))
            continue
        found.append((naming, role))
        if role.kind in ("", "image") and not role.aside:
            last_image = (role.tile, role.band)
    planes: list[Plane] = []
    left: list[Aside] = []
    for naming, role in settle(found):
        if role.aside:
            left.append(Aside(naming.label, role.aside, naming.where))
            continue
        try:
            planes.append(_plane(naming, hdus[0].header, calibration, role))
        except InputError as error:
            problems.append(Problem(role.tile, role.band, naming.hdu.fault or str(error)))
    if not planes and not problems and names.layout_kind not in ASIDE:
        why = "".join(f"; {one.where} is {one.why}" for one in left)
        problems.append(Problem(*place, f"{public_url(path)}: holds no image{why}"))
    if aside is not None:
        aside += left
    return planes, problems


def _is_empty(hdu: Hdu) -> bool:
    return not hdu.fault and hdu.header["NAXIS"] == 0


def _is_image(hdu: Hdu, where: str) -> bool:
    if keyword(hdu.header, "ZIMAGE", where):
        return True
    kind = str(keyword(hdu.header, "XTENSION", where) or "IMAGE").strip()
    if hdu.fault and kind != "IMAGE":
        raise InputError(hdu.fault)
    return kind == "IMAGE"


def _plane(naming: Naming, primary: Header, calibration: Calibration, role: Role) -> Plane:
    path, hdu, where = naming.path, naming.hdu, naming.where
    header, is_image = hdu.header, role.kind == "image"
    if hdu.fault:
        raise InputError(hdu.fault)
    compressed = bool(keyword(header, "ZIMAGE", where))
    prefix = "Z" if compressed else ""
    axes = integer(header, f"{prefix}NAXIS", where, range(MAX_NAXIS + 1))
    sizes = [integer(header, f"{prefix}NAXIS{axis + 1}", where) for axis in range(axes)]
    plane_axes = image_axes(sizes)
    if plane_axes is None:
        raise InputError(
            f"{where}: {prefix}NAXIS: a two-dimensional image is expected, not {sizes}"
        )
    shape = sizes[plane_axes[1]], sizes[plane_axes[0]]
    if not hdu.complete:
        raise InputError(
            f"{where}: truncated: the header claims {shape[1]} x {shape[0]} pixels "
            f"({hdu.nbytes} bytes), the file ends before them"
        )
    bitpix = integer(header, f"{prefix}BITPIX", where, BITPIX)
    if compressed:
        _check_compressed(header, sizes, bitpix, hdu, where)
    wcs = wcs_text(header, primary, plane_axes, shape, where, required=is_image)
    zeropoint = gain = math.nan
    if is_image:
        zeropoint = calibration.zeropoint(header, primary, Grid(wcs, shape), path, role.band, where)
        gain = calibration.gain(header, primary, role.band, where)
    return Plane(
        path=path,
        hdu=hdu.index,
        tile=role.tile,
        band=role.band,
        kind=role.kind,
        shape=shape,
        wcs=wcs,
        zeropoint=zeropoint,
        offset=hdu.offset,
        bitpix=bitpix,
        bscale=_number(header, "BSCALE", where, 1.0),
        bzero=_number(header, "BZERO", where, 0.0),
        blank=_blank(header, where, compressed, bitpix),
        compressed=compressed,
        gain=gain,
        softening=None if role.kind == "mask" else softening(header, where),
        mask_bits=naming.mask_bits(role.band) if role.kind == "mask" else None,
        nbytes=-(-hdu.nbytes // BLOCK) * BLOCK,
        datasum=_datasum(header, where),
    )


def _datasum(header: Header, where: str) -> int | None:
    """The value of DATASUM, a number in quotes; None if there is none, or it is blank."""
    text = str(keyword(header, "DATASUM", where) or "").strip()
    return int(text) if text.isdecimal() else None


def _blank(header: Header, where: str, compressed: bool, bitpix: int) -> int | None:
    """The stored number of pixels without a value, however it is spelled: -32768.0, '-32768'."""
    key = "BLANK"
    if compressed and keyword(header, "ZBLANK", where) is not None:
        key = "ZBLANK"
    value = keyword(header, key, where)
    if value is None or bitpix < 0:  # floating point has NaN
        return None
    try:
        number = float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: keyword {key} is {value!r}, not an integer") from error
    return value if isinstance(value, int) else int(number)


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
            f"{where}: ZNAXIS: claims {' x '.join(map(str, sizes))} pixels, which {hdu.nbytes} "
            f"bytes in {rows} compressed tiles cannot hold"
        )


def _number(header: Header, key: str, where: str, default: float) -> float:
    value = keyword(header, key, where)
    if value is None:
        return default
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: keyword {key} is {value!r}, not a number")
    return float(value)


class PlaneReader:
    """Pixels of one plane, row range by row range.

    Parameters
    ----------
    plane : Plane
        The plane.
    path : str
        The uncompressed file on the local disk (see `hdus.local_copy`).
    unpacker : Unpacker, optional
        Who unpacks compressed planes; one of its own unless given.
    """

    def __init__(self, plane: Plane, path: str, unpacker: Unpacker | None = None) -> None:
        self.plane, self.path = plane, path
        self._unpacker = unpacker or Unpacker()
        if plane.compressed:
            self._rows_of = self._axes_of_compressed()

    def _axes_of_compressed(self) -> tuple[int, int]:
        """How many axes there are, and which of them is y, in numpy's order."""
        plane = self.plane
        with self._cfitsio():
            # CFITSIO reads headers in its own way, and decides alone how much it unpacks.
            sizes = self._unpacker.sizes(self.path, plane.hdu, plane.where)
            axes = image_axes(sizes)
            if axes is None or (sizes[axes[1]], sizes[axes[0]]) != plane.shape:
                raise ValueError(f"CFITSIO finds no image of {plane.shape} pixels here")
            return len(sizes), len(sizes) - 1 - axes[1]

    @contextmanager
    def _cfitsio(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if CFITSIO_IO.match(str(error)) or getattr(error, "errno", None):
                raise unreadable(self.plane.path, error) from error
            raise InputError(f"{self.plane.where}: damaged compressed data: {error}") from error

    def verify(self) -> None:
        """Hold the plane's bytes against the sum that its header states, if it states one.

        Raises
        ------
        InputError
            If they differ.
        StoreError
            If the file cannot be read now.
        """
        plane = self.plane
        if plane.datasum is None:
            return
        with reading(plane.where), open(self.path, "rb") as stream:
            stream.seek(plane.offset)
            found = datasum(stream, plane.nbytes)
        if found != plane.datasum:
            raise InputError(
                f"{plane.where}: its bytes sum to {found}, keyword DATASUM = {plane.datasum}: "
                "damaged, or changed by a program that left the keyword as it was; fetch the file "
                "again, or take DATASUM and CHECKSUM out"
            )

    def _stored(self, y0: int, y1: int, step: int = 1) -> NDArray[Any]:
        plane = self.plane
        if plane.compressed:
            dimensions, y = self._rows_of
            window = [slice(None)] * dimensions
            window[y] = slice(y0, y1, step)
            with self._cfitsio():
                rows: NDArray[Any] = self._unpacker.pixels(
                    self.path, plane.hdu, tuple(window), plane.where
                )
            return rows.reshape(-1, plane.shape[1])
        wanted = range(y0, y1, step)
        out = np.empty((len(wanted), plane.shape[1]), big_endian(plane.bitpix))
        # Read, not mapped: a disk that fails under a mapping kills the process.
        with reading(plane.where), open(self.path, "rb") as stream:
            for y, part in zip(wanted, [out] if step == 1 else out, strict=False):
                stream.seek(plane.offset + y * out.strides[0])
                if stream.readinto(part.data) < part.nbytes:
                    raise InputError(f"{plane.where}: truncated: the file ends before row {y1}")
        return out

    def rows(self, y0: int, y1: int, step: int = 1) -> NDArray[np.float32]:
        """Rows y0 to y1 (excluded) as float32, shape (y1 - y0, nx), in counts; blanks are NaN.

        Only every `step`-th of them, if that is given.

        Raises
        ------
        InputError
            If compressed data are damaged, or the file ends too soon.
        StoreError
            If the file cannot be read now.
        """
        plane, stored = self.plane, self._stored(y0, y1, step)
        out: NDArray[np.float32] = stored.astype(np.float32)
        if not plane.compressed and (plane.bscale, plane.bzero) != (1.0, 0.0):
            out = (stored * plane.bscale + plane.bzero).astype(np.float32)
        if plane.softening is not None:
            offset, soft = plane.softening
            with np.errstate(over="ignore"):
                unpacked = np.sinh(out.astype(np.float64) / POGSON) * (2 * soft) + offset
            out = unpacked.astype(np.float32)
        if plane.blank is not None:
            out[self._is_blank(stored)] = np.nan
        return out

    def _is_blank(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        plane = self.plane
        if not plane.compressed:
            return np.asarray(stored == plane.blank)
        # CFITSIO has applied BSCALE and BZERO already, in floating point.
        blank = (plane.blank or 0) * plane.bscale + plane.bzero
        return np.asarray(np.abs(stored - blank) < abs(plane.bscale) / 2)

    def bits(self, y0: int, y1: int) -> NDArray[np.uint64]:
        """Rows y0 to y1 of a mask, all bits kept; a pixel without a value has all bits set.

        Negative numbers are taken as two's complement.
        """
        plane, stored = self.plane, self._stored(y0, y1)
        if stored.dtype.kind == "f":
            return _whole_bits(stored * 1.0 if plane.compressed else _scaled(stored, plane))
        whole = stored.astype(np.uint64 if stored.dtype.kind == "u" else np.int64).view(np.uint64)
        if not plane.compressed and (plane.bscale, plane.bzero) != (1.0, 0.0):
            if plane.bscale == 1.0 and plane.bzero.is_integer():
                # How FITS stores unsigned integers; modulo 2^64 this is exact.
                whole = whole + np.uint64(int(plane.bzero) % 2**64)
            else:
                whole = _whole_bits(_scaled(stored, plane))
        if plane.blank is not None:
            whole[self._is_blank(stored)] = ALL_BITS
        return whole


def _scaled(stored: NDArray[Any], plane: Plane) -> NDArray[np.float64]:
    return np.asarray(stored * plane.bscale + plane.bzero, np.float64)


def _whole_bits(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Floats as bits; what is no number, or beyond 64 bits, has all bits set."""
    known = np.isfinite(values) & (np.abs(values) < 2.0**63)
    bits = np.where(known, values, 0).astype(np.int64).view(np.uint64)
    bits[~known] = ALL_BITS
    return np.asarray(bits)
