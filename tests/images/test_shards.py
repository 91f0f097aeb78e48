"""Shards: what is packed is read, by us and by Zarr; empty is not lost, and takes no bytes."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc.images.build import FILL, create_cube, write_rows
from surveyproc.images.cube import chunk_grid
from surveyproc.images.shards import CRC_BYTES, ShardedArray
from surveyproc.store.storage import Store

SHAPE = (2, 500, 1100)  # chunks of 250 x 220 pixels, two rows of five
HAS = {"has_weight": True, "has_mask": True}
CHUNK, SHARD = chunk_grid(SHAPE[1:])
CELLS = [(y, x) for y in range(0, SHAPE[1], CHUNK[0]) for x in range(0, SHAPE[2], CHUNK[1])]


def written(folder: str, name: str, filled: list[bool]) -> tuple[Path, np.ndarray]:
    """An array of a cube whose chunks are empty but for one pixel of those that are `filled`."""
    dtype = {"image": "float32", "weight": "float32", "mask": "bool"}[name]
    pixels = np.full(SHAPE, FILL[name], dtype)
    for (y, x), one in zip(CELLS, filled, strict=True):
        if one:
            pixels[1, y + 100, x + 7] = True if name == "mask" else 3.5
    store = Store(folder)
    create_cube(store, "cube", SHAPE, HAS)
    for y in range(0, SHAPE[1], SHARD[0]):
        write_rows(store, "cube", name, y, pixels[:, y : y + SHARD[0]], SHAPE[1:])
    return Path(folder, "cube", name), pixels


def read(array: Path, bands: list[int]) -> tuple[np.ndarray, list]:
    opened = ShardedArray.open(array)
    out = np.empty((len(bands), *SHAPE[1:]), opened.dtype)
    damaged: list = []
    box = (0, SHAPE[1], 0, SHAPE[2])
    opened.read(box, bands, out, lambda where, why: damaged.append((where, why)))
    return out, damaged


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(FILL)),
    filled=st.lists(st.booleans(), min_size=len(CELLS), max_size=len(CELLS)),
    bands=st.sampled_from([[0, 1], [1, 0], [1]]),
)
def test_empty_chunks_take_no_bytes_and_are_read_by_all(name, filled, bands):
    with TemporaryDirectory() as folder:
        array, pixels = written(folder, name, filled)
        out, damaged = read(array, bands)
        assert damaged == []
        np.testing.assert_array_equal(out, pixels[bands])
        np.testing.assert_array_equal(zarr.open_array(array, mode="r")[:], pixels)
        chunk = pixels[:, : CHUNK[0], : CHUNK[1]].nbytes + CRC_BYTES
        sizes = [path.stat().st_size for path in sorted((array / "c").rglob("*")) if path.is_file()]
        indexes = len(CELLS) * 16 + len(sizes) * CRC_BYTES
        assert sum(sizes) == sum(filled) * chunk + indexes


@pytest.mark.parametrize("harm", ["gone", "emptied", "cut", "flipped"])
def test_an_empty_shard_that_is_lost_is_not_taken_for_empty_sky(tmp_path, harm):
    array, _ = written(str(tmp_path), "image", [False] * len(CELLS))
    shard = array / "c/0/0/0"
    data = shard.read_bytes()
    if harm == "gone":
        shard.unlink()
    else:
        flipped = bytes([data[0] ^ 1]) + data[1:]
        shard.write_bytes({"emptied": b"", "cut": data[:-8], "flipped": flipped}[harm])
    _, damaged = read(array, [0, 1])
    assert damaged
