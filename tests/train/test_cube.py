"""Training cubes on disk: what is written is read, by Zarr too, and damage is named."""

import json

import numpy as np
import pyarrow as pa
import pytest
import zarr

from surveyproc.errors import InputError, StoreError
from surveyproc.images.cube import zarr_store
from surveyproc.store.storage import Store
from surveyproc.train import cube
from surveyproc.train.cube import SHARD, TrainingCube

KEY = "training/photoz/abc"


def write(folder, n, bands=2, cutout=3):
    """A cube whose pixels tell their object; every 16 objects that follow 32 have no pixel."""
    store = Store(str(folder))
    images = np.arange(n * bands * cutout**2, dtype=np.float32).reshape(n, bands, cutout, cutout)
    images[32:48] = np.nan
    cube.write_header(store, KEY, n, bands, cutout)
    for number in reversed(range(-(-n // SHARD))):
        part = images[number * SHARD : (number + 1) * SHARD]
        cube.write_shard(store, KEY, number, part)
    index = pa.table({"object_id": np.arange(n)})
    names = [f"b{k}" for k in range(bands)]
    record = {"bands": names, "cutout": cutout, "pixel_scale": 0.2}
    return cube.finish(store, KEY, index, record), images


@pytest.mark.parametrize("n", [5, SHARD, SHARD + 1, 2 * SHARD + 40])
def test_what_is_written_is_read(tmp_path, n):
    made, images = write(tmp_path, n)
    again = TrainingCube.open(made.store, KEY)
    assert again == made
    assert again.index["object_id"].to_pylist() == list(range(n))
    assert again.shards == -(-n // SHARD)
    read = np.concatenate([again.read(number) for number in range(again.shards)])
    np.testing.assert_array_equal(read, images)
    array = zarr.open_array(zarr_store(made.store, f"{KEY}/images"), mode="r")
    np.testing.assert_array_equal(array[:], images)
    assert (array.shards[0], array.chunks[0]) == (SHARD, cube.CHUNK)


def test_equal_cubes_are_equal_bytes(tmp_path):
    stores = [write(tmp_path / name, 300)[0].store for name in "ab"]
    files = [{name: store.read(f"{KEY}/{name}") for name in store.sizes(KEY)} for store in stores]
    assert len(files[0]) == 5
    assert files[0] == files[1]


def test_an_absent_or_unfinished_cube_is_named(tmp_path):
    made, _ = write(tmp_path, 5)
    with pytest.raises(InputError, match="no training cube"):
        TrainingCube.open(made.store, "training/photoz/def")
    made.store.remove(f"{KEY}/index.parquet")
    with pytest.raises(InputError, match="abc is no training cube"):
        TrainingCube.open(made.store, KEY)


def test_a_damaged_index_is_named(tmp_path):
    made, _ = write(tmp_path, 5)
    path = tmp_path / KEY / "index.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"index\.parquet is damaged .* train again"):
        TrainingCube.open(made.store, KEY).index  # noqa: B018


@pytest.mark.parametrize("place", [0, 700, 2000, -300, -3])
def test_a_damaged_chunk_is_named(tmp_path, place):
    made, _ = write(tmp_path, 300)
    path = tmp_path / KEY / "images/c/1/0/0/0"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    made.read(0)
    with pytest.raises(StoreError, match=r"images/c/1/0/0/0 is damaged .* train again"):
        made.read(1)


@pytest.mark.parametrize("length", [0, 1, 100, 3000, -1, -400])
def test_a_shard_cut_short_is_named(tmp_path, length):
    made, _ = write(tmp_path, 300)
    path = tmp_path / KEY / "images/c/1/0/0/0"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoreError, match=r"images/c/1/0/0/0 is damaged"):
        made.read(1)


def test_a_lost_shard_is_named(tmp_path):
    made, _ = write(tmp_path, 300)
    (tmp_path / KEY / "images/c/1/0/0/0").unlink()
    with pytest.raises(StoreError, match="images/c/1/0/0/0"):
        made.read(1)


def test_the_record_says_what_there_is(tmp_path):
    made, _ = write(tmp_path, 300)
    record = json.loads((tmp_path / KEY / "cube.json").read_text())
    assert record == made.record
    assert (record["n"], record["shard"], record["format"]) == (300, SHARD, cube.FORMAT)
