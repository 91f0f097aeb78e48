"""Pixels of the objects of a partition, as sharded Zarr arrays.

    <release>/pixels/<array>/                          a Zarr group
    <release>/pixels/<array>/Norder=<k>-Npix=<n>/      Zarr v3, (object, ...), rows as in the leaf

A shard is one file of `SHARD` objects; a chunk, which has a checksum, holds `CHUNK`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.products.base import PixelArray
from surveyproc.store.storage import Store, digest

FOLDER = "pixels"
SHARD, CHUNK = 1024, 64


@dataclass(frozen=True)
class File:
    """A file of a release.

    Attributes
    ----------
    key : str
        What follows the key of the release: `/dataset/...`, or `-<table>/dataset/...` beside it.
    nbytes : int
        Of the file.
    sha256 : str
        Of its bytes.
    """

    key: str
    nbytes: int
    sha256: str


def folder_of(array: str, order: int, pixel: int) -> str:
    """Where the array of a partition lies in the release.

    Examples
    --------
    >>> folder_of("mask", 3, 17)
    'pixels/mask/Norder=3-Npix=17'
    """
    return f"{FOLDER}/{array}/Norder={order}-Npix={pixel}"


def write(
    store: Store, release: str, folder: str, array: PixelArray, values: NDArray[Any]
) -> list[File]:
    """Write the pixels of a partition; its metadata, which make it an array, come last.

    Equal values give equal bytes.

    Parameters
    ----------
    release, folder : str
        Key of the release, and the array's within it.
    values : ndarray, shape (n, *array.shape)
        At least one object.
    """
    files = []
    for key, data in _encoded(array, values):
        store.put(f"{release}/{folder}/{key}", data)
        files.append(File(f"/{folder}/{key}", len(data), digest(data)))
    return files


def write_group(store: Store, release: str, arrays: Iterable[str]) -> None:
    """Make groups of the folders of all partitions' arrays."""
    import zarr
    from zarr.storage import MemoryStore

    held: dict[str, Any] = {}
    zarr.create_group(MemoryStore(held))
    for name in arrays:
        store.put(f"{release}/{FOLDER}/{name}/zarr.json", held["zarr.json"].to_bytes())


def _encoded(array: PixelArray, values: NDArray[Any]) -> Iterator[tuple[str, bytes]]:
    from zarr.storage import MemoryStore

    held: dict[str, Any] = {}
    zeros = "/0" * len(array.shape)
    for start in range(0, len(values), SHARD):
        part = values[start : start + SHARD]
        packed: dict[str, Any] = {}
        _create(MemoryStore(packed), array, len(part))[:] = part
        yield f"c/{start // SHARD}{zeros}", packed[f"c/0{zeros}"].to_bytes()
    _create(MemoryStore(held), array, len(values))
    yield "zarr.json", held["zarr.json"].to_bytes()


def _create(target: Any, array: PixelArray, rows: int) -> Any:
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    dtype = np.dtype(array.dtype)
    axes = ("band", "y", "x")[3 - len(array.shape) :]
    return zarr.create_array(
        target,
        shape=(rows, *array.shape),
        dtype=dtype.name,
        chunks=(CHUNK, *array.shape),
        shards=(SHARD, *array.shape),
        # Masks and models compress; noise would not, and is not written here.
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=np.nan if dtype.kind == "f" else 0,
        dimension_names=("object", *axes),
        attributes={"unit": array.unit, "description": array.description},
        config={"write_empty_chunks": True},
    )
