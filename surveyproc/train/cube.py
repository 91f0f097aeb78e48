"""Training cubes: cutouts of labelled objects in a sharded Zarr array, their columns in Parquet.

    training/<product>/<version>/
        images/          Zarr v3, (object, band, y, x) float32, nanojansky; absent without cutouts
        <target>/        Zarr v3, (object, plane, y, x) uint8: a target that is images, like masks
        index.parquet    one row an object, in the array's order
        cube.json        the commit record, written last

A shard is one file, read whole: a loader that shuffles within a few shards never needs a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.buffer.cpu import Buffer
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from surveyproc.errors import InputError, StoreError
from surveyproc.store.storage import Store, digest, parse_table

# Raised whenever the same inputs would give other bytes than before.
FORMAT = 3
RECORD, INDEX = "cube.json", "index.parquet"
# Objects a shard (nine bands of 80 x 80 pixels: 59 MB), and objects that one checksum covers.
SHARD, CHUNK = 256, 16


@dataclass(frozen=True)
class TrainingCube:
    """A finished training cube; `open` finds one.

    Attributes
    ----------
    store : Store
        The survey's root.
    key : str
        Folder of the cube.
    n : int
        Objects.
    bands : tuple of str
        Bands of the cutouts, under the survey's names; empty if there are no cutouts.
    cutout : int
        Side of the cutouts in pixels, the object's pixel at index cutout // 2; 0 if there are none.
    pixel_scale : float
        Median over the objects, arcsec; NaN if there are no cutouts.
    record : mapping
        The commit record: also the label source, counts, and what the cube was made from.
    """

    store: Store
    key: str
    n: int
    bands: tuple[str, ...]
    cutout: int
    pixel_scale: float
    record: Mapping[str, Any]

    @classmethod
    def open(cls, store: Store, key: str) -> TrainingCube:
        """The cube in the folder `key`.

        Raises
        ------
        InputError
            If there is none, or it was not finished.
        """
        record = store.read_json(f"{key}/{RECORD}")
        if record is None or not store.exists(f"{key}/{INDEX}"):
            raise InputError(
                f"{store.url_of(key)} is no training cube, or not a whole one: train again, which "
                "builds it"
            )
        scale = record["pixel_scale"]
        return cls(
            store,
            key,
            n=record["n"],
            bands=tuple(record["bands"]),
            cutout=record["cutout"],
            pixel_scale=np.nan if scale is None else scale,
            record=record,
        )

    @cached_property
    def index(self) -> pa.Table:
        """One row an object, in the array's order.

        object_id, ra, dec (degrees), target_<name> of what the label tells, ebv (mag), flux_<band>
        and flux_err_<band> (nJy, NaN where unknown); with cutouts also flags, pixel_scale (arcsec)
        and no_image.

        Raises
        ------
        StoreError
            If it is not what was written.
        """
        data = self.store.read(f"{self.key}/{INDEX}")
        if digest(data) != self.record["index_sha256"]:
            raise self._damaged(INDEX, "its checksum differs from the one in cube.json")
        return parse_table(pa.BufferReader(data))

    @property
    def pixel_targets(self) -> Mapping[str, int]:
        """Targets that are images of the cutouts' size, and how many planes each has."""
        return dict(self.record.get("pixel_targets", {}))

    @property
    def planes(self) -> int:
        """Planes of an object that `read` gives."""
        return len(self.bands) + sum(self.pixel_targets.values())

    @property
    def shards(self) -> int:
        """How many shards there are; all but the last hold `SHARD` objects."""
        return -(-self.n // SHARD)

    def read(self, shard: int) -> NDArray[np.float32]:
        """Cutouts of the objects shard * SHARD and following, and their targets that are images.

        Returns
        -------
        float32 ndarray, shape (rows, plane, y, x)
            The bands, nanojansky, NaN where there is no pixel; then the planes of `pixel_targets`.
            In one array, so that whatever turns the images turns their targets alike.

        Raises
        ------
        StoreError
            If the shard is missing or damaged; the message names it.
        """
        parts = {"images": len(self.bands), **self.pixel_targets}
        read = [self._part(name, shard, planes) for name, planes in parts.items()]
        return read[0] if len(read) == 1 else np.concatenate(read, axis=1, dtype=np.float32)

    def _part(self, array: str, shard: int, planes: int) -> NDArray[Any]:
        rows = min(SHARD, self.n - shard * SHARD)
        name = shard_name(shard, array)
        data = self.store.read(f"{self.key}/{name}")
        held: dict[str, Any] = {"c/0/0/0/0": Buffer.from_bytes(data)}
        shape = (rows, planes, self.cutout, self.cutout)
        try:
            pixels: NDArray[Any] = _array(MemoryStore(held), shape, array)[:]
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, str(error)) from error
        return pixels

    def _damaged(self, name: str, reason: str) -> StoreError:
        return StoreError(
            f"{self.store.url_of(f'{self.key}/{name}')} is damaged ({reason}): remove the folder "
            f"{self.store.url_of(self.key)} and train again, which builds it anew"
        )


def shard_name(shard: int, array: str = "images") -> str:
    """Where a shard of an array lies in its cube.

    Examples
    --------
    >>> shard_name(3)
    'images/c/3/0/0/0'
    """
    return f"{array}/c/{shard}/0/0/0"


def write_header(
    store: Store, key: str, n: int, planes: int, cutout: int, array: str = "images"
) -> None:
    """Write the metadata of an array of `n` objects; the shards follow in any order."""
    held: dict[str, Any] = {}
    _array(MemoryStore(held), (n, planes, cutout, cutout), array)
    store.put(f"{key}/{array}/zarr.json", held["zarr.json"].to_bytes())


def write_shard(
    store: Store, key: str, shard: int, pixels: NDArray[Any], array: str = "images"
) -> int:
    """Write one shard in one step; the number of its bytes.

    Parameters
    ----------
    pixels : ndarray, shape (rows, plane, y, x)
        `SHARD` objects, fewer in the last shard only: images as float32, nanojansky, other arrays
        as uint8.
    array : str
        `images`, or a target that is an image.

    Raises
    ------
    StoreError
        If the store cannot take it.
    """
    held: dict[str, Any] = {}
    _array(MemoryStore(held), pixels.shape, array)[:] = pixels
    data = held["c/0/0/0/0"].to_bytes()
    store.put(f"{key}/{shard_name(shard, array)}", data)
    return len(data)


def finish(store: Store, key: str, index: pa.Table, record: Mapping[str, Any]) -> TrainingCube:
    """Write the index and, last, the commit record, which makes the cube a whole one.

    Parameters
    ----------
    index : pyarrow.Table
        One row an object, in the array's order.
    record : mapping
        `bands`, `cutout`, `pixel_scale`, `pixel_targets` if there are any, and whatever is worth
        keeping.
    """
    sink = BytesIO()
    pq.write_table(index, sink, compression="zstd", compression_level=1)
    data = sink.getvalue()
    store.put(f"{key}/{INDEX}", data)
    own = {"n": index.num_rows, "shard": SHARD, "format": FORMAT, "index_sha256": digest(data)}
    store.put_json(f"{key}/{RECORD}", {**record, **own})
    return TrainingCube.open(store, key)


def _array(target: MemoryStore, shape: tuple[int, ...], array: str) -> Any:
    """An array's layout, over memory: Zarr packs and unpacks shards, `Store` reads and writes."""
    images = array == "images"
    return zarr.create_array(
        target,
        shape=shape,
        dtype="float32" if images else "uint8",
        chunks=(CHUNK, *shape[1:]),
        shards=(SHARD, *shape[1:]),
        # Sky noise hardly compresses, masks do; the checksum is what finds a damaged chunk.
        compressors=[Crc32cCodec()] if images else [ZstdCodec(level=1), Crc32cCodec()],
        fill_value=np.nan if images else 0,
        dimension_names=("object", "band" if images else "plane", "y", "x"),
        attributes={"unit": "nJy"} if images else {},
        # A chunk without any pixel is written too, so that a missing one is known to be lost.
        config={"write_empty_chunks": True},
    )
