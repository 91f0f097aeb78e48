import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest_images import WCS_CARDS
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import FsspecStore

from surveyproc.errors import StoreError
from surveyproc.images import shards
from surveyproc.images.build import create_cube, write_rows
from surveyproc.images.cube import Cube, Scratch, Tile, chunk_grid, read_window
from surveyproc.images.cutouts import CutoutReader, cut, split_windows
from surveyproc.images.grid import Grid
from surveyproc.schemas import flag
from surveyproc.sky import wcs_from_header
from surveyproc.store.storage import Store

SHAPE = (700, 900)


def make_tile(
    store: Store, name: str = "t", bands: str = "gr", shift: float = 0.0, weights: bool = False
) -> tuple[Tile, np.ndarray]:
    """A cube with every pixel different, and its row in the table."""
    ny, nx = SHAPE
    cards = {**WCS_CARDS, "CRPIX1": nx / 2, "CRPIX2": ny / 2, "CRVAL1": 10.0 + shift}
    wcs = "\n".join(
        f"{key:8s}= " + (f"'{value}'" if isinstance(value, str) else f"{value:.12E}")
        for key, value in cards.items()
    )
    grid = Grid(wcs, SHAPE)
    data = np.arange(len(bands) * ny * nx, dtype=np.float32).reshape(len(bands), ny, nx) / 7
    ra, dec, radius = grid.circle()
    tile = Tile(
        name, "v1", tuple(bands), wcs, ny, nx, grid.pixel_scale, ra, dec, radius, (), (),
        weights, False, "", (),
    )  # fmt: skip
    attributes = {"has_weight": weights, "has_mask": False}
    arrays = create_cube(store, tile.key, data.shape, attributes)
    store.put_json(f"{tile.key}/tile.json", {})
    step = chunk_grid(SHAPE)[1][0]
    for array in arrays:
        for y in range(0, ny, step):
            rows = data[:, y : y + step]
            write_rows(store, tile.key, array, y, rows if array == "image" else rows + 1, SHAPE)
    return tile, data


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def positions(tile: Tile, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ra, dec = wcs_from_header(tile.wcs).all_pix2world(x, y, 0)
    return np.asarray(ra), np.asarray(dec)


def spread(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.4, SHAPE[1] - 0.6, n), rng.uniform(-0.4, SHAPE[0] - 0.6, n)


def shard_files(store: Store, tile: Tile, name: str = "image") -> list[Path]:
    folder = Path(store.path(f"{tile.key}/{name}/c"))
    return sorted(path for path in folder.rglob("*") if path.is_file())


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-3, 23),
    y=st.floats(-3, 18),
    size=st.integers(1, 12),
    origin=st.tuples(st.integers(-2, 5), st.integers(-2, 5)),
)
def test_cut_puts_the_nearest_pixel_in_the_middle(x, y, size, origin):
    image = np.arange(2 * 16 * 21, dtype=np.float32).reshape(2, 16, 21)
    (got,) = cut(image, np.array([x]), np.array([y]), origin, size)
    column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
    for i in range(size):
        for j in range(size):
            r, c = row - size // 2 + i - origin[0], column - size // 2 + j - origin[1]
            if 0 <= r < 16 and 0 <= c < 21:
                np.testing.assert_array_equal(got[:, i, j], image[:, r, c])
            else:
                assert np.isnan(got[:, i, j]).all()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 200),
    seed=st.integers(0, 9),
    size=st.integers(1, 64),
    pixels=st.integers(1, 400_000),
)
def test_split_windows_holds_every_object_once(n, seed, size, pixels):
    x, y = spread(n, seed)
    plans = split_windows(x, y, SHAPE, size, pixels)
    found = np.concatenate([plan.objects for plan in plans]) if plans else np.zeros(0)
    assert sorted(found.tolist()) == list(range(n))
    for plan in plans:
        y0, y1, x0, x1 = plan.box
        assert 0 <= y0 < y1 <= SHAPE[0]
        assert 0 <= x0 < x1 <= SHAPE[1]
        column, row = np.floor(x[plan.objects] + 0.5), np.floor(y[plan.objects] + 0.5)
        assert (np.maximum(column - size // 2, 0) >= x0).all()
        assert (np.minimum(column - size // 2 + size, SHAPE[1]) <= x1).all()
        assert (np.maximum(row - size // 2, 0) >= y0).all()
        assert (np.minimum(row - size // 2 + size, SHAPE[0]) <= y1).all()
        if (y1 - y0) * (x1 - x0) > pixels:
            assert np.ptp(column) == 0 or np.ptp(row) == 0 or plan.objects.size == 1


def test_window_equals_the_pixels_and_absent_bands_are_nan(store):
    tile, data = make_tile(store, weights=True)
    window = read_window(store, tile, 123, 601, 45, 777, ["r", "z", "g"])
    np.testing.assert_array_equal(window.image[0], data[1, 123:601, 45:777])
    np.testing.assert_array_equal(window.image[2], data[0, 123:601, 45:777])
    assert np.isnan(window.image[1]).all()
    np.testing.assert_allclose(window.variance[2], 1 / (data[0, 123:601, 45:777] + 1), rtol=1e-6)
    with pytest.raises(ValueError, match="within"):
        read_window(store, tile, 0, 10, 0, 901, ["g"])


def test_windows_through_zarr_and_a_url(tmp_path):
    """A store that is no local disk is read by Zarr, with the same result."""
    url = f"memory://{tmp_path.name}"
    store = Store(url)
    tile, data = make_tile(store)
    window = read_window(store, tile, 100, 650, 45, 777, ["r"])
    np.testing.assert_array_equal(window.image[0], data[1, 100:650, 45:777])
    path = next(name for name in store.fs.find(store.path(f"{tile.key}/image/c")))
    content = bytearray(store.fs.cat_file(path))
    content[100] ^= 255
    store.fs.pipe_file(path, bytes(content))
    with pytest.raises(StoreError, match=tile.key):
        read_window(store, tile, 0, 700, 0, 900, ["r"])
    window = Cube(store, tile).read((0, 700, 0, 900), ["r"], tolerant=True)
    assert len(window.damaged) == 1
    assert np.isfinite(window.image[0]).mean() > 0.8
    store.fs.rm_file(path)
    with pytest.raises(StoreError, match="missing"):
        read_window(store, tile, 0, 10, 0, 10, ["r"])


@pytest.mark.parametrize("rows", [7, 64, 5000])
@pytest.mark.parametrize("window_pixels", [40_000, 1 << 25])
def test_batches_hold_every_covered_object_with_its_pixels(store, rows, window_pixels):
    tile, data = make_tile(store)
    other, data2 = make_tile(store, "u", bands="g", shift=0.06)
    x, y = spread(300)
    ra, dec = positions(tile, x, y)
    ra2, dec2 = positions(other, x[:40], y[:40])
    ra, dec = np.concatenate([ra, ra2, [200.0]]), np.concatenate([dec, dec2, [0.0]])
    reader = CutoutReader(store, [other, tile], ["r", "g"], window_pixels)
    batches = list(reader.batches(ra, dec, 16, rows))
    assert [len(b.index) for b in batches[:-1]] == [rows] * (len(batches) - 1)
    index = np.concatenate([b.index for b in batches])
    assert sorted(index.tolist()) == list(range(340))
    padded = {
        name: np.pad(pixels, ((0, 0), (8, 8), (8, 8)), constant_values=np.nan)
        for name, pixels in (("t", data), ("u", data2))
    }
    for b in batches:
        assert b.variance is None
        for i in range(len(b.index)):
            px, py = b.positions[i]
            column, row = int(np.floor(px + 0.5)), int(np.floor(py + 0.5))
            np.testing.assert_allclose(b.offsets[i], [px - column, py - row], atol=1e-6)
            expected = padded[b.tiles[i]][:, row : row + 16, column : column + 16]
            np.testing.assert_array_equal(b.images[i, 1], expected[0])
            if b.tiles[i] == "t":
                np.testing.assert_array_equal(b.images[i, 0], expected[1])
            else:
                assert np.isnan(b.images[i, 0]).all()
            assert bool(b.flags[i] & flag("missing_band")) == (b.tiles[i] == "u")
            assert bool(b.flags[i] & flag("edge")) == bool(np.isnan(expected[0]).any())
    again = list(reader.batches(ra, dec, 16, rows))
    for one, two in zip(batches, again, strict=True):
        np.testing.assert_array_equal(one.index, two.index)
        np.testing.assert_array_equal(one.images, two.images)


def test_offsets_on_the_very_edge(store):
    tile, _ = make_tile(store)
    x, y = np.array([-0.4999, 899.4999]), np.array([-0.4999, 699.4999])
    (batch,) = CutoutReader(store, [tile], ["g"]).batches(*positions(tile, x, y), 8, 10)
    assert (np.abs(batch.offsets) <= 0.5).all()
    assert (batch.flags & flag("edge") > 0).all()


def test_a_corrupt_chunk_costs_only_the_objects_that_touch_it(store):
    tile, _ = make_tile(store, weights=True)
    path = shard_files(store, tile)[0]
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(bytes(content))
    (chunk_y, chunk_x), _ = chunk_grid(SHAPE)
    with pytest.raises(StoreError, match=tile.key):
        read_window(store, tile, 0, 700, 0, 900, ["g"])
    x, y = spread(400)
    reader = CutoutReader(store, [tile], ["g", "r"])
    (batch,) = reader.batches(*positions(tile, x, y), 16, 1000)
    assert len(batch.index) == 400
    column, row = np.floor(x[batch.index] + 0.5), np.floor(y[batch.index] + 0.5)
    touches = (column - 8 < chunk_x) & (row - 8 < chunk_y)
    lost = batch.flags & flag("corrupt_data") != 0
    np.testing.assert_array_equal(lost, touches)
    assert np.isnan(batch.images[lost]).all()
    assert np.isnan(batch.variance[lost]).all()
    inside = ~lost & (batch.flags & flag("edge") == 0)
    assert np.isfinite(batch.images[inside]).all()


@pytest.mark.parametrize("damage", ["shard gone", "short shard", "index", "metadata"])
def test_other_damage_is_flagged_too(store, damage):
    tile, _ = make_tile(store)
    path = shard_files(store, tile)[0]
    if damage == "shard gone":
        path.unlink()
    elif damage == "short shard":
        path.write_bytes(path.read_bytes()[:50])
    elif damage == "index":
        path.write_bytes(path.read_bytes()[:-8] + b"12345678")
    else:
        Path(store.path(f"{tile.key}/image/zarr.json")).write_text("{")
    x, y = spread(20)
    (batch,) = CutoutReader(store, [tile], ["g", "r"]).batches(*positions(tile, x, y), 16, 99)
    assert len(batch.index) == 20
    assert (batch.flags & flag("corrupt_data") > 0).all()
    with pytest.raises(StoreError, match=tile.key):
        read_window(store, tile, 0, 9, 0, 9, ["g"])


def test_a_cube_that_is_gone_is_an_error_not_a_flag(store):
    tile, _ = make_tile(store)
    shutil.rmtree(store.path(tile.key))
    x, y = spread(5)
    with pytest.raises(StoreError, match=f"{tile.key}, is gone"):
        list(CutoutReader(store, [tile], ["g"]).batches(*positions(tile, x, y), 16, 99))


@pytest.mark.parametrize("part", ["metadata", "shard"])
def test_a_disk_that_fails_is_an_error_not_a_flag(store, monkeypatch, part):
    tile, _ = make_tile(store)
    reader = CutoutReader(store, [tile], ["g", "r"])
    where = positions(tile, *spread(20))

    def fails(*arguments, **keywords):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        if part == "metadata":
            patch.setattr(Path, "read_text", fails)
        else:
            patch.setattr(shards, "open", fails, raising=False)
        with pytest.raises(StoreError, match=f"{tile.key}/image.*cannot be read"):
            list(reader.batches(*where, 16, 99))
    (batch,) = reader.batches(*where, 16, 99)
    assert not (batch.flags & flag("corrupt_data")).any()


def test_a_store_that_fails_is_an_error_not_a_flag(tmp_path, monkeypatch):
    store = Store(f"memory://{tmp_path.name}")
    tile, _ = make_tile(store)
    cube = Cube(store, tile)
    cube.read((0, 9, 0, 9), ["g"])

    async def fails(*arguments, **keywords):
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(FsspecStore, "get", fails)
    with pytest.raises(StoreError, match=f"{tile.key}/image.*cannot be read"):
        cube.read((0, 9, 0, 9), ["g"], tolerant=True)


def test_a_damaged_window_is_logged_once(store, caplog):
    tile, _ = make_tile(store, weights=True)
    for name in ("image", "weight"):
        for path in shard_files(store, tile, name):
            path.unlink()
    # Memory that is not written may hold anything; a signalling NaN would be a warning.
    scratch = Scratch()
    for name, dtype in (("image", "float32"), ("weight", "float32")):
        scratch.array(name, (1, 700, 900), dtype).view(np.uint32)[:] = 0x7FA00000
    Cube(store, tile).read((0, 700, 0, 900), ["g"], tolerant=True, scratch=scratch)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert tile.key in record.message
    assert "ingest again" in record.message


@given(size=st.integers(1, 20_000))
def test_chunks_divide_the_tile_evenly(size):
    (chunk, _), (shard, _) = chunk_grid((size, 1))
    assert shard % chunk == 0
    assert chunk <= 256
    assert -(-size // chunk) * chunk - size < max(1, size // chunk + 1) + chunk * 0.02 + 1
