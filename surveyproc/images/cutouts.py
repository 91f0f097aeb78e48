"""Cutouts: the kernels that plan windows and slice them, and a reader that batches objects."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import StoreError, UnreachableError
from surveyproc.images.cube import CHUNK_PX, Cube, Scratch, Tile, Window, chunk_grid
from surveyproc.images.shards import Rectangle
from surveyproc.schemas import flag
from surveyproc.sky import owners
from surveyproc.store import layout
from surveyproc.store.storage import Store

LOG = logging.getLogger(__name__)

Float = NDArray[np.float64]
Index = NDArray[np.int64]

# All pixels of all bands that one window may hold: 128 MB of float32, twice with variances.
WINDOW_PIXELS = 1 << 25
# A side that no cutout has.
NEVER = 1 << 30
# Open cubes a reader keeps.
OPEN_CUBES = 32


@dataclass(frozen=True)
class WindowPlan:
    """One window and the objects cut from it.

    Attributes
    ----------
    box : (y0, y1, x0, x1)
        Rows and columns of the tile, ends excluded; within the tile.
    objects : int64 ndarray
        Indices of the objects, ascending.
    """

    box: Rectangle
    objects: Index


def nearest_pixel(x: Float, y: Float, shape: tuple[int, int]) -> tuple[Index, Index]:
    """The pixel (column, row) in which each position lies; the last one on the upper edge."""
    column = np.clip(np.floor(np.asarray(x) + 0.5), 0, shape[1] - 1).astype(np.int64)
    row = np.clip(np.floor(np.asarray(y) + 0.5), 0, shape[0] - 1).astype(np.int64)
    return column, row


def over_edge(x: Float, y: Float, shape: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    """Whether a cutout reaches over the edge of its tile; false for NaN.

    Parameters
    ----------
    x, y : float64 ndarray, shape (n,)
        Zero-based positions within the tile, pixel centres at integers.
    shape : int32 ndarray, shape (n, 2) or (2,)
        (y, x) pixels of the tile of each.
    size : int
        Side of the cutout, whose pixel size // 2 is the nearest to the position.
    """
    height, width = np.moveaxis(np.asarray(shape), -1, 0)
    half, rest = size // 2, size - size // 2
    column = np.clip(np.floor(x + 0.5), 0, width - 1)
    row = np.clip(np.floor(y + 0.5), 0, height - 1)
    low = (column < half) | (row < half)
    over: NDArray[np.bool_] = low | (column + rest > width) | (row + rest > height)
    return over


def split_windows(
    x: Float, y: Float, shape: tuple[int, int], size: int, max_pixels: int
) -> list[WindowPlan]:
    """Windows from which all cutouts can be sliced, each object in exactly one.

    A window that is too large, or so sparsely filled that most of what it reads is of no use, is
    cut in two along its longer side, at a chunk boundary if there is one between the objects.

    Parameters
    ----------
    x, y : float64 ndarray, shape (n,)
        Zero-based positions within the tile, pixel centres at integers.
    shape : (int, int)
        (y, x) pixels of the tile.
    size : int
        Side of the cutouts.
    max_pixels : int
        Most pixels (of one band) a window may hold; a single cutout is never split.

    Returns
    -------
    list of WindowPlan
        A function of the arguments alone. Windows in order of the cuts, lower side first; the
        pixels of a window are the smallest box that holds its cutouts, clipped to the tile.
    """
    column, row = nearest_pixel(x, y, shape)
    (chunk_y, chunk_x), _ = chunk_grid(shape)
    plans: list[WindowPlan] = []
    pending = [np.arange(column.size, dtype=np.int64)] if column.size else []
    half, rest = size // 2, size - size // 2
    while pending:
        objects = pending.pop()
        rows, columns = row[objects], column[objects]
        box = (
            max(0, int(rows.min()) - half),
            min(shape[0], int(rows.max()) + rest),
            max(0, int(columns.min()) - half),
            min(shape[1], int(columns.max()) + rest),
        )
        area = (box[1] - box[0]) * (box[3] - box[2])
        # Reading an object alone costs about its cutout and a chunk more on every side.
        sparse = 2 * objects.size * (size + CHUNK_PX) ** 2 < area
        if area <= max_pixels and not sparse:
            plans.append(WindowPlan(box, objects))
            continue
        tall = np.ptp(rows) >= np.ptp(columns)
        along, chunk = (rows, chunk_y) if tall else (columns, chunk_x)
        low, high = int(along.min()), int(along.max())
        if low == high:
            plans.append(WindowPlan(box, objects))
            continue
        middle = (low + high + 1) // 2
        snapped = round(middle / chunk) * chunk
        cut_at = snapped if low < snapped <= high else middle
        pending += [objects[along >= cut_at], objects[along < cut_at]]
    return plans


def cut(
    image: NDArray[np.float32],
    x: Float,
    y: Float,
    origin: tuple[int, int],
    size: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Square cutouts of whole pixels, each centred on the pixel nearest to its position.

    Parameters
    ----------
    image : float32 ndarray, shape (band, ny, nx)
        A window of a tile.
    x, y : float64 ndarray, shape (n,)
        Zero-based positions on the tile; the nearest pixel is floor(x + 0.5).
    origin : (int, int)
        (y, x) of the window's first pixel on the tile.
    size : int
        Side of the cutouts in pixels; the nearest pixel comes to index size // 2.
    out : float32 ndarray, shape (n, band, size, size), optional
        Where to put them.

    Returns
    -------
    float32 ndarray, shape (n, band, size, size)
        Copies; NaN where a cutout reaches over the window.
    """
    bands, height, width = image.shape
    left = np.floor(np.asarray(x) + 0.5).astype(np.int64) - size // 2 - origin[1]
    low = np.floor(np.asarray(y) + 0.5).astype(np.int64) - size // 2 - origin[0]
    if out is None:
        out = np.empty((left.size, bands, size, size), np.float32)
    within = (left >= 0) & (low >= 0) & (left + size <= width) & (low + size <= height)
    # A loop of plain slices beats fancy indexing, which copies pixel by pixel.
    for i, (a, b, whole) in enumerate(
        zip(low.tolist(), left.tolist(), within.tolist(), strict=True)
    ):
        if whole:
            out[i] = image[:, a : a + size, b : b + size]
            continue
        out[i] = np.nan
        y0, y1, x0, x1 = max(a, 0), min(a + size, height), max(b, 0), min(b + size, width)
        if y0 < y1 and x0 < x1:
            out[i, :, y0 - a : y1 - a, x0 - b : x1 - b] = image[:, y0:y1, x0:x1]
    return out


def _reach(centre: Index, low: int, high: int) -> NDArray[np.int32]:
    """Side of the smallest cutouts about pixels `centre` that reach into low <= pixel < high.

    A cutout of side s holds the pixels centre - s // 2 to centre - s // 2 + s - 1.
    """
    below, above = centre - high + 1, low - centre + 1
    return np.maximum(np.maximum(2 * below, 2 * above - 1), 1).astype(np.int32)


@dataclass(frozen=True)
class Cutouts:
    """Objects with their pixels; all arrays share the first axis n.

    Attributes
    ----------
    index : int64 ndarray, shape (n,)
        Places in the (ra, dec) given to `CutoutReader.batches`.
    images : float32 ndarray, shape (n, band, size, size)
        Nanojansky a pixel; NaN where masked, outside the tile, absent or unreadable.
    variance : float32 ndarray, same shape, or None
        Nanojansky squared; None if no tile of the survey has weights.
    offsets : float32 ndarray, shape (n, 2)
        (x, y) of the object minus the centre of pixel size // 2, within [-0.5, 0.5].
    positions : float64 ndarray, shape (n, 2)
        Zero-based (x, y) on the tile.
    tiles : object ndarray of str, shape (n,)
        Tile each object was taken from.
    tile_shape : int32 ndarray, shape (n, 2)
        (y, x) pixels of that tile.
    pixel_scale : float64 ndarray, shape (n,)
        Arcsec a pixel.
    flags : int32 ndarray, shape (n,)
        edge, missing_band, corrupt_data.
    absent : bool ndarray, shape (n, band)
        Bands that the tile does not have.
    spoilt_from : int32 ndarray, shape (n,)
        Side of the smallest cutout of the object that touches a damaged chunk; `NEVER` without.
    electron_flux : float64 ndarray, shape (n, band), or None
        Nanojansky of one electron; NaN where the gain is unknown.
    """

    index: Index
    images: NDArray[np.float32]
    variance: NDArray[np.float32] | None
    offsets: NDArray[np.float32]
    positions: Float
    tiles: NDArray[np.object_]
    tile_shape: NDArray[np.int32]
    pixel_scale: Float
    flags: NDArray[np.int32]
    absent: NDArray[np.bool_]
    spoilt_from: NDArray[np.int32]
    electron_flux: Float | None = None


class CutoutReader:
    """Reads cutouts of many objects, window by window.

    Parameters
    ----------
    store : Store
        The survey's root.
    tiles : sequence of Tile
        All tiles (see `cube.read_tiles`).
    bands : sequence of str
        Bands wanted, in the order wanted.
    window_pixels : int, optional
        Most pixels of all bands together that a window may hold.
    """

    def __init__(
        self,
        store: Store,
        tiles: Sequence[Tile],
        bands: Sequence[str],
        window_pixels: int = WINDOW_PIXELS,
    ) -> None:
        self.store, self.tiles, self.bands = store, list(tiles), tuple(bands)
        self.max_pixels = max(1, window_pixels // max(1, len(self.bands)))
        self._weights = any(tile.has_weight for tile in self.tiles)
        self._cubes: OrderedDict[int, Cube] = OrderedDict()

    def _cube(self, tile: int) -> Cube:
        cube = self._cubes.pop(tile, None) or Cube(self.store, self.tiles[tile])
        self._cubes[tile] = cube
        if len(self._cubes) > OPEN_CUBES:
            self._cubes.popitem(last=False)
        return cube

    def batches(self, ra: Float, dec: Float, size: int, rows: int) -> Iterator[Cutouts]:
        """Cutouts of all objects that a tile covers, in batches of `rows`, the last one shorter.

        Objects come tile by tile in order of tile id, within a tile window by window as
        `split_windows` orders them, within a window by index. Which object is in which batch
        depends on (ra, dec, tiles, size, rows) alone. Objects that no tile covers do not come.

        Every window is read once. Pixels of a chunk that cannot be read are NaN, and the objects
        whose cutouts touch it have the flag corrupt_data; all others are unharmed.

        Parameters
        ----------
        ra, dec : float64 ndarray, shape (n,)
            Degrees, ICRS.
        size : int
            Side of the cutouts in pixels.
        rows : int
            Most objects a batch may hold.
        """
        owner, x, y = owners(self.tiles, ra, dec)
        left = int((owner >= 0).sum())
        batch, filled, scratch = None, 0, Scratch()
        for tile in sorted(set(owner[owner >= 0].tolist()), key=lambda i: self.tiles[i].id):
            mine = np.flatnonzero(owner == tile)
            for plan in split_windows(
                x[mine], y[mine], self.tiles[tile].shape, size, self.max_pixels
            ):
                window = self._cube(tile).read(plan.box, self.bands, tolerant=True, scratch=scratch)
                if window.damaged:
                    self._declare_void(tile)
                objects, start = mine[plan.objects], 0
                while start < objects.size:
                    if batch is None:
                        batch, filled = self._empty(min(rows, left), size), 0
                    part = objects[start : start + batch.index.size - filled]
                    self._fill(batch, filled, part, tile, (x[part], y[part]), window, plan.box)
                    start, filled = start + part.size, filled + part.size
                    if filled == batch.index.size:
                        yield batch
                        left -= filled
                        batch = None

    def _declare_void(self, tile: int) -> None:
        """Leave word for the next ingest, which would find a cube of the right size."""
        key = layout.void(self.tiles[tile].key)
        try:
            self.store.put_json(key, {"why": "a chunk is missing or fails its checksum"})
        except UnreachableError:
            raise
        except StoreError as error:
            LOG.warning(f"{self.store.url_of(key)} cannot be written ({error})")

    def _empty(self, count: int, size: int) -> Cutouts:
        shape = (count, len(self.bands), size, size)
        return Cutouts(
            index=np.empty(count, np.int64),
            images=np.empty(shape, np.float32),
            variance=np.empty(shape, np.float32) if self._weights else None,
            offsets=np.empty((count, 2), np.float32),
            positions=np.empty((count, 2), np.float64),
            tiles=np.empty(count, object),
            tile_shape=np.empty((count, 2), np.int32),
            pixel_scale=np.empty(count, np.float64),
            flags=np.zeros(count, np.int32),
            absent=np.zeros((count, len(self.bands)), bool),
            spoilt_from=np.full(count, NEVER, np.int32),
            electron_flux=np.full((count, len(self.bands)), np.nan),
        )

    def _fill(
        self,
        batch: Cutouts,
        place: int,
        objects: Index,
        number: int,
        at: tuple[Float, Float],
        window: Window,
        box: Rectangle,
    ) -> None:
        tile, size = self.tiles[number], batch.images.shape[-1]
        here, (x, y) = np.s_[place : place + objects.size], at
        column, row = nearest_pixel(x, y, tile.shape)
        # Whole pixels from here on: the upper edge itself belongs to the last pixel.
        cx, cy = column.astype(np.float64), row.astype(np.float64)
        cut(window.image, cx, cy, (box[0], box[2]), size, batch.images[here])
        if batch.variance is not None:
            if window.variance is None:
                batch.variance[here] = np.nan
            else:
                cut(window.variance, cx, cy, (box[0], box[2]), size, batch.variance[here])
        batch.index[here] = objects
        batch.positions[here] = np.stack([x, y], axis=-1)
        batch.offsets[here] = np.stack([x - cx, y - cy], axis=-1)
        batch.tiles[here] = tile.id
        batch.tile_shape[here] = tile.shape
        batch.pixel_scale[here] = tile.pixel_scale
        if batch.electron_flux is not None:
            known = dict(zip(tile.bands, tile.electron_flux, strict=False))
            batch.electron_flux[here] = [known.get(band) or np.nan for band in self.bands]
        edge = over_edge(x, y, batch.tile_shape[here], size)
        flags = np.where(edge, flag("edge"), 0).astype(np.int32)
        batch.absent[here] = [band not in tile.bands for band in self.bands]
        if not set(self.bands) <= set(tile.bands):
            flags |= flag("missing_band")
        for y0, y1, x0, x1 in window.damaged:
            touching = np.maximum(_reach(column, x0, x1), _reach(row, y0, y1))
            batch.spoilt_from[here] = np.minimum(batch.spoilt_from[here], touching)
        flags[batch.spoilt_from[here] <= size] |= flag("corrupt_data")
        batch.flags[here] = flags
