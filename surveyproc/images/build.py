"""One tile's cube from the planes of its files: calibrated, on one grid, strip by strip."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from surveyproc.errors import InputError, store_error
from surveyproc.images.coverage import gaps, zeros_are_gaps
from surveyproc.images.cube import chunk_grid
from surveyproc.images.fits import ALL_BITS, Plane, PlaneReader
from surveyproc.images.grid import (
    Grid,
    noise_weight,
    regrid_flux,
    regrid_mask,
    regrid_weight,
    same_grid,
)
from surveyproc.images.hdus import local_copy
from surveyproc.images.shards import pack_shard
from surveyproc.images.unpack import Unpacker
from surveyproc.schemas import AB_ZEROPOINT_NJY
from surveyproc.store import layout
from surveyproc.store.storage import STAGING, Store
from surveyproc.store.urls import file_name

RECORD = "tile.json"
FILL: dict[str, Any] = {"image": np.nan, "weight": 0.0, "mask": False}
"""What the arrays hold where there is nothing; chunks of nothing else take no bytes."""
# Rows of an image that are looked at to learn whether its zeros are measurements.
SAMPLE_ROWS = 128

T = TypeVar("T")


class BandError(Exception):
    """A band of a tile cannot be used; the tile is built without it."""

    def __init__(self, band: str, message: str) -> None:
        super().__init__(message)
        self.band = band


@dataclass
class _Band:
    """One band of a tile while its cube is written."""

    name: str
    image: PlaneReader
    weight: PlaneReader | None
    mask: PlaneReader | None
    factor: float
    """Nanojansky of one count."""
    grid: Grid
    mask_bits: int | None
    zeros_are_gaps: bool
    # Set once if the band lies on another grid than the tile; else rows are read as needed.
    moved: tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None] | None = None
    finite: bool = False

    def _own_rows(
        self, y0: int, y1: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.bool_] | None]:
        image = self.image.rows(y0, y1)
        if self.zeros_are_gaps:
            image[gaps(image)] = np.nan
        image *= np.float32(self.factor)
        weight = bad = None
        if self.weight is not None:
            weight = inverse_variance(self.weight.rows(y0, y1), self.weight.plane.kind)
            weight *= np.float32(1.0 / self.factor**2)
        if self.mask is not None:
            bits = self.mask_bits if self.mask_bits is not None else self.mask.plane.mask_bits
            bad = (self.mask.bits(y0, y1) & (ALL_BITS if bits is None else np.uint64(bits))) != 0
            if weight is not None:
                bad |= weight <= 0
        return image, weight, bad

    def move(self, grid: Grid) -> None:
        """Move the whole band to `grid`."""
        image, weight, bad = self._own_rows(0, self.grid.shape[0])
        if weight is None:
            weight = noise_weight(image, bad)
        self.moved = (
            regrid_flux(image, self.grid, grid),
            regrid_weight(weight, self.grid, grid),
            None if bad is None else regrid_mask(bad, self.grid, grid),
        )

    def rows(
        self, y0: int, y1: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.bool_] | None]:
        """Image, weight and mask on the tile's grid, rows y0 to y1."""
        if self.moved is None:
            image, weight, bad = self._own_rows(y0, y1)
        else:
            image, weight, bad = (None if a is None else a[y0:y1] for a in self.moved)  # type: ignore[assignment]
        self.finite = self.finite or bool(np.isfinite(image).any())
        return image, weight, bad


def inverse_variance(noise: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """Inverse variance from a plane of weight, variance or rms, in place; 0 where it is unknown.

    A variance or rms that is not positive and finite is unknown, as is such a weight.
    """
    good = np.isfinite(noise) & (noise > 0)
    noise[~good] = 0
    if kind != "weight":
        np.divide(1, noise, out=noise, where=good)
    if kind == "rms":
        with np.errstate(over="ignore"):
            np.square(noise, out=noise)
    noise[np.isinf(noise)] = 0
    return noise


def nanojansky_of_count(zeropoint: float) -> float:
    """Nanojansky of one count whose AB magnitude is `zeropoint` (0 mag is 3631 Jy: 31.4)."""
    return float(10.0 ** ((AB_ZEROPOINT_NJY - zeropoint) / 2.5))


def build_cube(
    store: Store,
    key: str,
    planes: dict[str, dict[str, Plane]],
    mask_bits: int | None,
    record: Callable[[Grid, list[str], dict[str, bool]], dict[str, Any]],
) -> dict[str, Any]:
    """Write the cube `key` and, last of all, its commit record `tile.json`, which lists the rest.

    On a local disk the folder appears whole, by one rename. In an object store the record is what
    makes the objects before it a cube.

    Parameters
    ----------
    planes : dict
        Band to use (image, weight, mask) to plane, bands in the order of the cube.
    mask_bits : int or None
        Bits of masks that make a pixel bad; if None, those that the masks say, or all.
    record : callable
        Makes the commit record from the tile's grid (that of the band with the finest pixels, the
        first of them on a tie), the bands, and `has_weight` and `has_mask`. Called when all pixels
        are written; may raise.

    Returns
    -------
    dict
        The record.

    Raises
    ------
    BandError
        If a band turns out to be unusable while it is read; nothing is left behind then.
    StoreError
        If an input cannot be read now, or the store cannot take the cube.
    """
    try:
        with ExitStack() as stack:
            unpacker = stack.enter_context(closing(Unpacker()))
            bands = [
                _open(stack, unpacker, name, kinds, mask_bits) for name, kinds in planes.items()
            ]
            return _build(store, key, bands, record)
    except OSError as error:
        raise store_error(error, store.url_of(key)) from error


def _build(store: Store, key: str, bands: list[_Band], record: Any) -> dict[str, Any]:
    grid = min((band.grid for band in bands), key=_rounded_scale)
    for band in bands:
        if not same_grid(band.grid, grid):
            _guard(band.name, partial(band.move, grid))
    has = {
        "has_weight": any(band.weight is not None or band.moved is not None for band in bands),
        "has_mask": any(band.mask is not None for band in bands),
    }
    names = [band.name for band in bands]
    attributes: dict[str, Any] = {
        "bands": names,
        "wcs": grid.wcs,
        "pixel_scale_arcsec": grid.pixel_scale,
        "unit": "nJy",
        "weight_unit": "nJy-2",
        "zeropoints": {band.name: band.image.plane.zeropoint for band in bands},
        "reprojected": [band.name for band in bands if band.moved is not None],
        "noise": {band.name: band.weight.plane.kind for band in bands if band.weight},
        "source": {band.name: file_name(band.image.plane.path) for band in bands},
        **has,
    }

    def write(folder: str) -> dict[str, Any]:
        _write(store, folder, bands, grid, attributes)
        made: dict[str, Any] = {**record(grid, names, has), "sizes": store.sizes(folder)}
        store.put_json(f"{folder}/{RECORD}", made)
        return made

    if not store.is_local:
        # What is there lacks a part; until it is whole again it has no record.
        store.remove(f"{key}/{RECORD}")
        made = write(key)
        store.remove(layout.void(key))
        return made
    # The process is in the name so that the next ingest can tell what a killed one left behind.
    staged = f"{STAGING}/cube-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
    try:
        made = write(staged)
        target = Path(store.path(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(store.path(staged), target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Either another ingest of the same bytes was first, and its cube equals ours, or what
            # is there lacks a part.
            if read_record(store, key) is None:
                shutil.rmtree(target)
                os.rename(store.path(staged), target)
        store.remove(layout.void(key))
    finally:
        shutil.rmtree(store.path(staged), ignore_errors=True)
    return made


def _rounded_scale(grid: Grid) -> float:
    # Co-registered bands differ in the last digits of their WCS; that decides nothing.
    return round(grid.pixel_scale, 6)


def _guard(band: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except InputError as error:
        raise BandError(band, str(error)) from error


def _open(
    stack: ExitStack,
    unpacker: Unpacker,
    name: str,
    kinds: dict[str, Plane],
    mask_bits: int | None,
) -> _Band:
    image = kinds["image"]
    try:
        readers = {
            kind: PlaneReader(plane, stack.enter_context(local_copy(plane.path)), unpacker)
            for kind, plane in kinds.items()
        }
        for reader in readers.values():
            reader.verify()
        for plane in kinds.values():
            other = Grid(plane.wcs or image.wcs, plane.shape)
            if not same_grid(other, Grid(image.wcs, image.shape)):
                raise InputError(
                    f"{plane.where}: the {plane.kind}'s WCS or size {plane.shape} differs from "
                    f"its image {image.where} {image.shape}"
                )
    except InputError as error:
        raise BandError(name, str(error)) from error
    return _Band(
        name,
        readers["image"],
        readers.get("weight"),
        readers.get("mask"),
        nanojansky_of_count(image.zeropoint),
        Grid(image.wcs, image.shape),
        mask_bits,
        # Weights say themselves where nothing was observed.
        "weight" not in kinds and _guard(name, lambda: zeros_are_gaps(_sample(readers["image"]))),
    )


def _sample(image: PlaneReader) -> NDArray[np.float32]:
    """Some rows of an image, evenly spread; asked for at once, since one compressed tile may hold
    them all.
    """
    height = image.plane.shape[0]
    return image.rows(0, height, -(-height // SAMPLE_ROWS))


def read_record(store: Store, key: str) -> dict[str, Any] | None:
    """The commit record of the cube `key`; None if there is none, or the cube is not whole."""
    record: dict[str, Any] | None = store.read_json(f"{key}/{RECORD}")
    if record is None or not record.get("sizes", {}).items() <= store.sizes(key).items():
        return None
    return None if store.exists(layout.void(key)) else record


def clear_debris(store: Store) -> None:
    """Remove staged cubes of processes of this machine that no longer live."""
    if not store.is_local:
        return
    host = f"cube-{socket.gethostname()}-"
    for name in store.names(STAGING):
        if name.startswith(host):
            try:
                os.kill(int(name.removeprefix(host).split("-")[0]), 0)
            except ProcessLookupError:
                shutil.rmtree(store.path(f"{STAGING}/{name}"), ignore_errors=True)
            except (ValueError, PermissionError):
                continue


def _write(
    store: Store, key: str, bands: list[_Band], grid: Grid, attributes: dict[str, Any]
) -> None:
    height, width = grid.shape
    arrays = create_cube(store, key, (len(bands), height, width), attributes)
    strip = chunk_grid(grid.shape)[1][0]
    for y0 in range(0, height, strip):
        y1 = min(y0 + strip, height)
        shape = (len(bands), y1 - y0, width)
        image = np.empty(shape, np.float32)
        # A band without weights among others with weights: its errors are unknown, not infinite.
        weight = np.full(shape, np.nan, np.float32) if "weight" in arrays else None
        mask = np.zeros(shape, np.bool_) if "mask" in arrays else None
        for slot, band in enumerate(bands):
            rows = _guard(band.name, partial(band.rows, y0, y1))
            image[slot] = rows[0]
            if weight is not None and rows[1] is not None:
                weight[slot] = rows[1]
            if mask is not None and rows[2] is not None:
                mask[slot] = rows[2]
        for name, pixels in (("image", image), ("weight", weight), ("mask", mask)):
            if pixels is not None:
                write_rows(store, key, name, y0, pixels, grid.shape)
    for band in bands:
        if not band.finite:
            plane = band.image.plane
            raise BandError(band.name, f"{plane.where}: no pixel of the image is finite")


def create_cube(
    store: Store, key: str, shape: tuple[int, int, int], attributes: dict[str, Any]
) -> dict[str, np.dtype[Any]]:
    """Metadata of a cube: arrays `image`, and `weight` and `mask` if the attributes say so.

    `write_rows` fills it; every shard is written, if only as an index of empty chunks, so that a
    missing one is known to be lost.

    Parameters
    ----------
    shape : (int, int, int)
        (band, y, x).
    attributes : dict
        Written as the group's attributes; `has_weight` and `has_mask` choose the arrays.
    """
    held: dict[str, Any] = {}
    group = zarr.open_group(MemoryStore(held), mode="w", zarr_format=3)
    group.attrs.put(attributes)
    chunk, shard = chunk_grid((shape[1], shape[2]))
    arrays = {"image": ("float32", "nJy")}
    if attributes["has_weight"]:
        arrays["weight"] = ("float32", "nJy-2")
    if attributes["has_mask"]:
        arrays["mask"] = ("bool", "")
    for name, (dtype, unit) in arrays.items():
        group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(shape[0], *chunk),
            shards=(shape[0], *shard),
            # Sky noise hardly compresses; the checksum (16 GB/s) is what finds a damaged chunk.
            compressors=[Crc32cCodec()],
            fill_value=FILL[name],
            dimension_names=("band", "y", "x"),
            attributes={"unit": unit},
        )
    for name, content in held.items():
        _write_object(store, f"{key}/{name}", content.to_bytes())
    return {name: np.dtype(dtype) for name, (dtype, _) in arrays.items()}


def _write_object(store: Store, key: str, data: Any) -> None:
    """Write an object of a cube, which is staged as a whole where that is needed."""
    if not store.is_local:
        store.put(key, bytes(data))
        return
    path = Path(store.path(key))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb", buffering=0) as stream:
        left = memoryview(data)
        while left:
            left = left[stream.write(left) :]


def write_rows(
    store: Store, key: str, name: str, y0: int, pixels: NDArray[Any], shape: tuple[int, int]
) -> None:
    """Write one row of shards of an array, from its first row of pixels `y0` on.

    Parameters
    ----------
    pixels : ndarray, shape (band, rows, x)
        As many rows as a shard has, or as the tile has left.
    shape : (int, int)
        (y, x) of the whole tile.

    Raises
    ------
    OSError, StoreError
        If the store cannot take it.
    """
    chunk, shard = chunk_grid(shape)
    buffer = None
    for column in range(-(-shape[1] // shard[1])):
        part = pixels[:, :, column * shard[1] : (column + 1) * shard[1]]
        lacking = shard[0] - part.shape[1], shard[1] - part.shape[2]
        if any(lacking):
            beyond = ((0, 0), (0, lacking[0]), (0, lacking[1]))
            part = np.pad(part, beyond, constant_values=FILL[name])
        buffer = pack_shard(part, chunk, FILL[name], buffer)
        _write_object(store, f"{key}/{name}/c/0/{y0 // shard[0]}/{column}", buffer)
