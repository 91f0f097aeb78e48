"""Image cubes: the table of tiles, how a cube is laid out, windows read from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from surveyproc.errors import InputError, StoreError, SurveyError, UnreachableError
from surveyproc.images.shards import LayoutError, Rectangle, ShardedArray, unreadable
from surveyproc.store import layout
from surveyproc.store.storage import Store, parse_table

# Cubes of ours on a local disk are read without Zarr.
if TYPE_CHECKING:
    from zarr.storage import FsspecStore, LocalStore, ObjectStore

LOG = logging.getLogger(__name__)
# A chunk is what one checksum covers and the least that is read; a shard is one file. Both hold
# all bands: a cutout wants them all, and fewer, larger pieces read faster. Measured with Zarr on
# 5 x 4096 x 4096 float32 in page cache, MB/s written and read: (5, 256, 256) in (5, 1024, 1024)
# 2470, 2340; (1, 256, 256) in the same 1060, 1090; (1, 1024, 1024) in (5, 2048, 2048) 1250, 395.
CHUNK_PX = 256
SHARD_PX = 1024

TILES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("version", pa.string()),
        pa.field("bands", pa.list_(pa.string())),
        pa.field("wcs", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("pixel_scale", pa.float64(), metadata={"unit": "arcsec"}),
        pa.field("ra", pa.float64(), metadata={"unit": "deg"}),
        pa.field("dec", pa.float64(), metadata={"unit": "deg"}),
        pa.field("radius", pa.float64(), metadata={"unit": "deg"}),
        pa.field("footprint_ra", pa.list_(pa.float64()), metadata={"unit": "deg"}),
        pa.field("footprint_dec", pa.list_(pa.float64()), metadata={"unit": "deg"}),
        pa.field("has_weight", pa.bool_()),
        pa.field("has_mask", pa.bool_()),
        pa.field("checksum", pa.string()),
        pa.field("files", pa.list_(pa.string())),
        pa.field("electron_flux", pa.list_(pa.float64()), metadata={"unit": "nJy"}),
    ]
)
"""What is known of a cube. In the table of tiles it is followed by the name of the survey."""
TABLE_SCHEMA = TILES_SCHEMA.append(pa.field("survey", pa.string()))
SURVEYS = b"surveys"
"""Key of the table's metadata: names of the surveys that were ingested, a JSON list."""


@dataclass(frozen=True)
class Tile:
    """One row of the table of tiles.

    Attributes
    ----------
    id, version : str
        Name of the tile, and the hash of what its cube was made of.
    bands : tuple of str
        Bands of the cube, sorted by name.
    wcs : str
        WCS header cards separated by newlines.
    height, width : int
        Pixels along y and x.
    pixel_scale : float
        Arcsec a pixel in the middle of the tile.
    ra, dec, radius : float
        Bounding circle, degrees.
    footprint_ra, footprint_dec : tuple of float
        The four outer corners, degrees.
    has_weight, has_mask : bool
        Which arrays lie beside `image`.
    checksum : str
        SHA-256 over the checksums of the input files.
    files : tuple of str
        Names of the input files, without folders.
    electron_flux : tuple of float or None
        Nanojansky of one electron in each band; None where the gain is unknown.
    """

    id: str
    version: str
    bands: tuple[str, ...]
    wcs: str
    height: int
    width: int
    pixel_scale: float
    ra: float
    dec: float
    radius: float
    footprint_ra: tuple[float, ...]
    footprint_dec: tuple[float, ...]
    has_weight: bool
    has_mask: bool
    checksum: str
    files: tuple[str, ...]
    electron_flux: tuple[float | None, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) pixels."""
        return self.height, self.width

    @property
    def key(self) -> str:
        """Where the cube lies under the survey's root."""
        return layout.cube(self.id, self.version)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Tile:
        """The tile in one row of the table, or in a cube's commit record."""
        lists = ("bands", "footprint_ra", "footprint_dec", "files")
        values = {name: row[name] for name in TILES_SCHEMA.names if name != "electron_flux"}
        # Tables of earlier versions have no such column.
        electrons = tuple(row.get("electron_flux") or (None,) * len(row["bands"]))
        return cls(
            **{**values, **{name: tuple(row[name]) for name in lists}, "electron_flux": electrons}
        )


@dataclass(frozen=True)
class Window:
    """Pixels of a rectangle of one tile.

    Attributes
    ----------
    image : float32 ndarray, shape (band, y, x)
        Nanojansky a pixel; NaN where masked, or where the tile lacks the band.
    variance : float32 ndarray, shape (band, y, x), or None
        Nanojansky squared; NaN where unknown. None if the tile has no weights.
    damaged : list of (y0, y1, x0, x1)
        Rectangles of the tile that could not be read; their pixels are NaN.
    """

    image: NDArray[np.float32]
    variance: NDArray[np.float32] | None
    damaged: list[Rectangle] = field(default_factory=list)


class Scratch:
    """Memory for windows, used again and again: fresh pages cost as much as filling them."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """An array with undefined content over the memory held under `name`."""
        count = int(np.prod(shape))
        if name not in self._held or self._held[name].size < count:
            self._held[name] = np.empty(count, dtype)
        return self._held[name][:count].reshape(shape)


def read_tiles(store: Store, survey: str = "") -> list[Tile]:
    """All tiles of a survey, sorted by id.

    Parameters
    ----------
    survey : str
        Its name; may be left out where only one lies under the root.

    Raises
    ------
    InputError
        If the survey was not ingested yet.
    StoreError
        If the table cannot be read.
    ValueError
        If none is named and there are several.
    """
    known, rows = read_rows(store)
    if not survey and len(known) > 1:
        raise ValueError(f"tiles of which survey? There are {', '.join(known)}")
    if not known or survey not in {*known, ""}:
        whose = f" of {survey}" if survey else ""
        raise InputError(
            f"{store.url_of(layout.TILES)}: there are no tiles{whose}; run `surveyproc ingest` "
            "first"
        )
    mine = [row for row in rows if survey in (row["survey"], "")]
    return [Tile.from_row(row) for row in mine]


def read_rows(store: Store) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the surveys that were ingested, and the rows of the table of tiles of them all.

    Raises
    ------
    StoreError
        If the table cannot be read.
    """
    return _parsed(store, store.read_if_there(layout.TILES))


def _parsed(store: Store, data: bytes | None) -> tuple[list[str], list[dict[str, Any]]]:
    if data is None:
        return [], []
    try:
        table = parse_table(pa.BufferReader(data))
        known = json.loads((table.schema.metadata or {})[SURVEYS])
        rows = table.select(TABLE_SCHEMA.names).to_pylist()
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{store.url_of(layout.TILES)} is damaged or of an earlier version ({error}); "
            "`surveyproc ingest` makes it anew"
        ) from error
    return known, rows


def is_ingested(store: Store, survey: str) -> bool:
    """Whether the table of tiles can be used and knows of the survey, if only that it has none.

    Raises
    ------
    StoreError
        If the store cannot be read.
    """
    data = store.read_if_there(layout.TILES)
    try:
        return survey in _parsed(store, data)[0]
    except StoreError:
        return False


def write_rows(store: Store, survey: str, rows: Sequence[dict[str, Any]]) -> None:
    """Make `rows` those of `survey` in the table of tiles; those of other surveys stay.

    Nothing is written if the table says so already.

    Raises
    ------
    StoreError
        If the store cannot take it.
    """
    while True:
        before = store.read_if_there(layout.TILES)
        try:
            known, others = _parsed(store, before)
        except StoreError:
            known, others = [], []  # it is written anew; other surveys are told to ingest again
        every = [row for row in others if row["survey"] != survey]
        every += [{**row, "survey": survey} for row in rows]
        every.sort(key=lambda row: (row["id"], row["survey"]))
        names = json.dumps(sorted({*known, survey}))
        schema = TABLE_SCHEMA.with_metadata({SURVEYS: names})
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(every, schema=schema), sink, write_page_checksum=True)
        after = sink.getvalue().to_pybytes()
        # Another survey may be ingested at the same time.
        if after == before or store.swap(layout.TILES, before, after):
            return


def finest_tile(store: Store, survey: str) -> tuple[float, str] | None:
    """Arcsec a pixel and name of the survey's tile with the smallest pixels; None without tiles.

    Without a table that can be used there are none either: the next ingest writes it anew.

    Raises
    ------
    StoreError
        If the table of tiles cannot be read.
    """
    if not is_ingested(store, survey):
        return None
    _, rows = read_rows(store)
    mine = ((row["pixel_scale"], row["id"]) for row in rows if row["survey"] == survey)
    return min(mine, default=None)


def chunk_grid(shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels (y, x) of a chunk and of a shard for a tile of this shape.

    The tile is divided evenly, because a chunk that sticks out over the edge is stored whole.
    """

    def along(size: int) -> tuple[int, int]:
        chunk = -(-size // -(-size // CHUNK_PX))
        return chunk, chunk * min(max(1, round(SHARD_PX / chunk)), -(-size // chunk))

    (chunk_y, shard_y), (chunk_x, shard_x) = along(shape[0]), along(shape[1])
    return (chunk_y, chunk_x), (shard_y, shard_x)


def zarr_store(store: Store, key: str) -> LocalStore | FsspecStore | ObjectStore[Any]:
    """The folder `key` of a store, as Zarr reads it."""
    from zarr.storage import FsspecStore, LocalStore, ObjectStore

    if store.is_local:
        return LocalStore(store.path(key), read_only=True)
    if store.url.startswith("s3"):
        from surveyproc.store.remote import chunk_store

        return ObjectStore(chunk_store(store.fs, store.path(key)), read_only=True)
    return FsspecStore.from_url(store.url_of(key), read_only=True)


class Cube:
    """The arrays of one tile's cube, opened once and read window by window.

    Raises
    ------
    StoreError
        If the cube is not there at all. Damage inside it is met when it is read.
    """

    def __init__(self, store: Store, tile: Tile) -> None:
        if not store.exists(f"{tile.key}/tile.json"):
            raise StoreError(
                f"the cube of tile {tile.id}, {store.url_of(tile.key)}, is gone or incomplete: "
                "run `surveyproc ingest` again"
            )
        self.store, self.tile = store, tile
        self._arrays: dict[str, Any] = {}

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            self._arrays[name] = self._open(name)
        return self._arrays[name]

    def _open(self, name: str) -> Any:
        key = f"{self.tile.key}/{name}"
        if self.store.is_local:
            try:
                return ShardedArray.open(Path(self.store.path(key)))
            except LayoutError:
                pass
        import zarr

        array = zarr.open_array(zarr_store(self.store, key), mode="r", zarr_format=3)
        # Zarr fills in for a shard that is gone; a cube is written whole, so count them.
        expected = int(
            np.prod([-(-s // p) for s, p in zip(array.shape, _shard(array), strict=True)])
        )
        if len(self.store.sizes(f"{key}/c")) != expected:
            raise ValueError(f"shards of {name} are missing")
        return array

    def _fill(
        self, name: str, box: Rectangle, bands: list[int], out: NDArray[Any], damaged: Any
    ) -> None:
        where = self.store.url_of(f"{self.tile.key}/{name}")
        try:
            array = self._array(name)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            damaged(box, f"{name}: {error}")
            return
        except Exception as error:
            self._blame_store(where, error)
            raise
        if isinstance(array, ShardedArray):
            array.read(box, bands, out, damaged)
            return
        y0, y1, x0, x1 = box
        try:
            out[:] = array.oindex[bands, y0:y1, x0:x1]
        except (ValueError, RuntimeError) as error:
            _, height, width = array.chunks
            rows, columns = (
                range(y0 // height, -(-y1 // height)),
                range(x0 // width, -(-x1 // width)),
            )
            cells = [(row * height, column * width) for row in rows for column in columns]
            if len(cells) == 1:
                damaged(box, f"{name}: {error}")
                return
            for y, x in cells:
                cell = (max(y, y0), min(y + height, y1), max(x, x0), min(x + width, x1))
                part = out[:, cell[0] - y0 : cell[1] - y0, cell[2] - x0 : cell[3] - x0]
                self._fill(name, cell, bands, part, damaged)
        except Exception as error:
            self._blame_store(where, error)
            raise

    def _blame_store(self, where: str, error: Exception) -> None:
        """Raise what says that a part which may be whole cannot be read now, if it is that."""
        # Clients of object stores have families of errors of their own.
        foreign = isinstance(error, OSError) or not self.store.is_local
        if foreign and not isinstance(error, SurveyError):
            if self.store.url.startswith("s3"):
                from surveyproc.store.remote import is_out_of_reach

                if is_out_of_reach(error):
                    raise UnreachableError(str(unreadable(where, error))) from error
            raise unreadable(where, error) from error

    def read(
        self,
        box: Rectangle,
        bands: Sequence[str],
        *,
        tolerant: bool = False,
        scratch: Scratch | None = None,
    ) -> Window:
        """One window; see `read_window`.

        Parameters
        ----------
        tolerant : bool
            Keep what can be read of a damaged window instead of raising.
        scratch : Scratch, optional
            Memory to use again: the window is valid until the next read with the same scratch.

        Raises
        ------
        StoreError
            If a part that may be whole cannot be read now, tolerant or not.
        """
        y0, y1, x0, x1 = box
        height, width = self.tile.shape
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise ValueError(f"window {box} does not lie within tile {self.tile.id}")
        rectangles: list[Rectangle] = []
        complaint = ""

        def damaged(rectangle: Rectangle, reason: str) -> None:
            nonlocal complaint
            complaint = complaint or (
                f"{self.store.url_of(self.tile.key)}: corrupt data ({reason}); ingest again"
            )
            if not tolerant:
                raise StoreError(complaint)
            rectangles.append(rectangle)

        present = [self.tile.bands.index(band) for band in bands if band in self.tile.bands]
        slots = [slot for slot, band in enumerate(bands) if band in self.tile.bands]
        whole = len(slots) == len(bands)
        shape = (len(present), y1 - y0, x1 - x0)

        def within(cell: Rectangle) -> tuple[slice, ...]:
            a, b, c, d = cell
            return np.s_[:, max(a - y0, 0) : b - y0, max(c - x0, 0) : d - x0]

        def load(name: str, dtype: str) -> NDArray[Any]:
            out = np.empty(shape, dtype) if scratch is None else scratch.array(name, shape, dtype)
            if present:
                self._fill(name, box, present, out, damaged)
            for lost in map(within, rectangles):
                out[lost] = 0  # what lies there now may be a signalling NaN
            return out

        def spread(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            if whole:
                return pixels
            out = np.full((len(bands), *shape[1:]), np.nan, np.float32)
            out[slots] = pixels
            return out

        image, variance = load("image", "float32"), None
        if self.tile.has_weight:
            variance = load("weight", "float32")
            # A weight of NaN means that the band has none; only zero says that the pixel is bad.
            image[variance <= 0] = np.nan
            with np.errstate(divide="ignore", over="ignore"):
                np.divide(np.float32(1), variance, out=variance)
            variance[np.isinf(variance)] = np.nan
        if self.tile.has_mask:
            image[load("mask", "bool")] = np.nan
        if complaint:
            LOG.warning(complaint)
        for lost in map(within, rectangles):
            image[lost] = np.nan
            if variance is not None:
                variance[lost] = np.nan
        return Window(spread(image), None if variance is None else spread(variance), rectangles)


def _shard(array: Any) -> tuple[int, ...]:
    return tuple(array.shards or array.chunks)


def read_window(
    store: Store, tile: Tile, y0: int, y1: int, x0: int, x1: int, bands: Sequence[str]
) -> Window:
    """Rows y0 to y1 and columns x0 to x1 (ends excluded) of a tile.

    Parameters
    ----------
    bands : sequence of str
        The bands wanted, in the order wanted; one that the tile lacks is a plane of NaN.

    Raises
    ------
    StoreError
        If a chunk is missing or fails its checksum; the message names the cube.
    ValueError
        If the window does not lie within the tile.
    """
    return Cube(store, tile).read((y0, y1, x0, x1), bands)
