"""FITS files to image cubes: files grouped into tiles, one task a tile, the table of tiles."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import fsspec

from surveyproc.errors import DIED, InputError, StoreError, UnreachableError
from surveyproc.images.build import (
    BandError,
    build_cube,
    clear_debris,
    nanojansky_of_count,
    read_record,
)
from surveyproc.images.calibration import Calibration
from surveyproc.images.cube import read_rows, write_rows
from surveyproc.images.fits import Plane, Problem
from surveyproc.images.grid import Grid
from surveyproc.images.hdus import checksum, reading, unreadable
from surveyproc.images.headers import (
    Groups,
    group_planes,
    notes,
    read_headers,
    unforeseen,
)
from surveyproc.places import Item, Ledger, Places, Stage
from surveyproc.progress import Meter
from surveyproc.store import layout
from surveyproc.store.storage import Store, fingerprint
from surveyproc.store.urls import file_name, public_url
from surveyproc.survey import Survey

# Part of every cube's version: raise it when the same input makes other cubes.
FORMAT = 2
# Of one core, roughly: 100 MB of float32 pixels a second (benchmarks/ingest.py printed 113 to 163).
# What is expected only decides where work begins.
PIXELS_PER_S = 25e6


@dataclass
class TilesSummary:
    """What an ingest of images did.

    Attributes
    ----------
    tiles : int
        Tiles in the table of tiles.
    written, unchanged : int
        Cubes made now, and those that were there already.
    bytes : int
        Bytes of the input files of all tiles.
    problems : list of str
        What could not be used, each naming file and key.
    notes : list of str
        What was left aside because nothing needs it, each kind of plane once.
    kept : list of str
        Tiles that stay as they were because their files are broken now.
    complete : bool
        Whether everything could be read; if not, the same command may do more later.
    """

    tiles: int = 0
    written: int = 0
    unchanged: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    complete: bool = True

    def count(self, outcomes: Sequence[TileOutcome]) -> None:
        """Add up what was made of the tiles."""
        for outcome in outcomes:
            self.bytes += outcome.nbytes
            if outcome.row is not None:
                self.written += outcome.written
                self.unchanged += not outcome.written


@dataclass(frozen=True)
class TileOutcome:
    """What became of a tile.

    Attributes
    ----------
    tile : str
        Its id.
    row : dict or None
        Its row in the table of tiles; None if there is no cube.
    written : bool
        Whether the cube was made now.
    nbytes : int
        Bytes of its files.
    problems : list of str
        What in its files could not be used.
    failure : str
        Why it may succeed another time: a store failed, or its process died. Empty if not so.
    """

    tile: str
    row: dict[str, Any] | None = None
    written: bool = False
    nbytes: int = 0
    problems: list[str] = field(default_factory=list)
    failure: str = ""


def ingest_tiles(survey: Survey, places: Places, *, keep_last: bool = False) -> TilesSummary:
    """Bring the survey's FITS files into cubes; what is there already is left alone.

    Parameters
    ----------
    survey : Survey
        The survey.
    places : Places
        Where the work may run.
    keep_last : bool
        A tile that loses bands because its files are broken or cannot be read keeps the cube and
        the row it had, and that is no error: see `TilesSummary.kept`. One whose files are gone
        goes.

    Raises
    ------
    InputError
        If there are files and no tile at all could be made of them; the message lists why.
    StoreError
        If an input could not be read now, or the store could not take a cube (disk full). Raised
        when all other tiles are done and in the table; a tile that failed keeps the row it had.
    """
    config, store = survey.config, survey.store
    clear_debris(store)
    paths = config.tile_files()
    if not paths:  # a survey of catalogs alone
        write_rows(store, survey.name, [])
        return TilesSummary()
    planes, problems, aside = read_headers(paths, Calibration.of(config), store, places)
    groups = group_planes(planes, problems, config.images.bands)
    before = _former_rows(store, survey.name)
    failures = _unread(problems, before)
    outcomes = _make_cubes(_items(groups, failures), survey, places)
    failures |= {one.tile: f"tile {one.tile}: {one.failure}" for one in outcomes if one.failure}
    summary = TilesSummary(
        problems=_problems(problems, groups, failures, outcomes), notes=notes(aside)
    )
    summary.count(outcomes)
    rows = [one.row for one in outcomes if one.row is not None]
    rows += [before[tile] for tile in failures if tile in before]
    if keep_last:
        troubled = {one.tile for one in problems}
        troubled |= {one.tile for one in outcomes if one.problems}
        rows = _keep_last(survey, rows, before, troubled, summary)
        _excuse(failures, before, summary)
        failures = {}
    summary.tiles = len(rows)
    _write_table(store, survey.name, rows, failures, summary)
    return summary


def _items(groups: Groups, failures: dict[str, str]) -> list[Item]:
    """The tiles to make: those with a band that can be used, of which no file is unread."""
    return [
        _item(tile, [plane for kinds in bands.values() for plane in kinds.values()])
        for tile, bands in sorted(groups.items())
        if bands and tile not in failures
    ]


def _make_cubes(items: Sequence[Item], survey: Survey, places: Places) -> list[TileOutcome]:
    """The outcome of every tile, in any order."""
    outcomes = []
    ledger = Ledger(survey.store, layout.TILES_BEGUN)
    stage = Stage(
        "tiles",
        _TileWorker,
        (survey.store.url, survey.config.images.mask_bits),
        died=_TileWorker.died,
        ledger=ledger,
    )
    results = places.stream(items, stage)
    with Meter("ingest, images", objects=len(items), units=len(items), noun="tiles") as meter:
        for outcome in results:
            outcomes.append(outcome)
            meter.advance(objects=1, nbytes=outcome.nbytes)
    ledger.clear()
    return outcomes


def _problems(
    problems: Sequence[Problem],
    groups: Groups,
    failures: dict[str, str],
    outcomes: Sequence[TileOutcome],
) -> list[str]:
    """What of the files could not be used, but for those that could not be read."""
    told = [one.message for one in problems if not one.unread]
    told += [
        f"tile {tile}: no usable band; skipped"
        for tile, bands in groups.items()
        if not bands and tile not in failures
    ]
    return sorted(told + [message for one in outcomes for message in one.problems])


def _keep_last(
    survey: Survey,
    rows: list[dict[str, Any]],
    before: dict[str, dict[str, Any]],
    troubled: set[str],
    summary: TilesSummary,
) -> list[dict[str, Any]]:
    """`rows`, with the former row of every tile that lost bands to broken files.

    A band is lost to broken files if the tile has a problem, or if all files that the tile was
    made of are still there; else somebody took them away.
    """
    now = {str(row["id"]): row for row in rows}
    names = {file_name(path) for path in survey.config.tile_files()}
    bands = survey.config.images.bands
    for tile, row in before.items():
        found = set(now[tile]["bands"]) if tile in now else set()
        lost = [band for band in row["bands"] if band in bands and band not in found]
        broken = tile in troubled or names.issuperset(row["files"])
        key = layout.cube(tile, row["version"])
        if lost and broken and read_record(survey.store, key) is not None:
            now[tile] = row
            summary.kept.append(
                f"tile {tile}: band {', '.join(lost)} broken; version {row['version']} is kept"
            )
    return list(now.values())


def _excuse(
    failures: dict[str, str], before: dict[str, dict[str, Any]], summary: TilesSummary
) -> None:
    """Say of what failed whether it is kept as it was; nothing of it is an error then."""
    summary.complete = not failures
    summary.kept += [
        f"{message}; " + ("kept as it was" if tile in before else "left out")
        for tile, message in sorted(failures.items())
    ]


def _write_table(
    store: Store,
    survey: str,
    rows: list[dict[str, Any]],
    failures: dict[str, str],
    summary: TilesSummary,
) -> None:
    """Write the table of tiles, if there is a row; then raise what `ingest_tiles` says."""
    if not rows and not failures:
        raise InputError("no image tile could be ingested:\n" + "\n".join(summary.problems))
    if rows:
        write_rows(store, survey, rows)
    if failures:
        lines = [*sorted(failures.values()), *(f"problem: {one}" for one in summary.problems)]
        raise StoreError(
            f"{len(failures)} of the tiles and files failed; the other tiles are done, and the "
            "same command tries again:\n" + "\n".join(lines)
        )


def _former_rows(store: Store, survey: str) -> dict[str, dict[str, Any]]:
    """The survey's rows of the table of tiles, by id; none if there is none that can be used."""
    try:
        rows = read_rows(store)[1]
    except StoreError:
        return {}  # it is written anew
    return {row["id"]: row for row in rows if row["survey"] == survey}


def _unread(problems: Sequence[Problem], before: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Tile to message for the files that could not be read; the file where no tile is known.

    A cube made without such a file would lack its bands, and nobody would know.
    """
    failures: dict[str, str] = {}
    for problem in (one for one in problems if one.unread):
        name = file_name(problem.unread)
        tiles = {tile for tile, row in before.items() if name in row["files"]}
        tiles |= {problem.tile} - {""}
        failures |= {tile: f"tile {tile}: {problem.message}" for tile in tiles}
        if not tiles:
            failures[problem.unread] = problem.message
    return failures


def _item(tile: str, planes: list[Plane]) -> Item:
    # A cube does not depend on the order in which survey.toml lists its bands.
    planes = sorted(planes, key=lambda plane: (plane.band, plane.kind))
    pixels = sum(plane.shape[0] * plane.shape[1] for plane in planes)
    return Item(tile, {"tile": tile, "planes": planes}, pixels / PIXELS_PER_S)


def _state(path: str) -> tuple[Any, ...]:
    """What changes if the file does, as far as that can be told without reading it."""
    if "://" in path:
        with reading(path):
            fs, place = fsspec.core.url_to_fs(path)
            facts = fs.info(place)
        return tuple(str(facts.get(name)) for name in ("size", "ETag", "LastModified", "mtime"))
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return status.st_size, status.st_mtime_ns


class _TileWorker:
    """Makes one tile's cube unless it is there; what goes wrong is in its result."""

    def __init__(self, url: str, mask_bits: int | None) -> None:
        self.store, self.mask_bits = Store(url), mask_bits
        # A file of many tiles is read once a worker, and no longer: in one process a later ingest
        # may find other bytes in a file that looks the same.
        self.checksum = lru_cache(maxsize=1024)(lambda path, state: checksum(path))

    def __call__(self, item: dict[str, Any]) -> TileOutcome:
        tile = item["tile"]
        try:
            return _make_tile(self.store, tile, item["planes"], self.mask_bits, self.checksum)
        except InputError as error:
            return TileOutcome(tile, problems=[f"tile {tile}: {error}"])
        except UnreachableError:
            raise  # every other tile would wait as long
        except StoreError as error:
            return TileOutcome(tile, failure=str(error))
        except MemoryError:
            raise
        except Exception as error:  # whatever its files hold, it is this tile's problem only
            return TileOutcome(tile, problems=[f"tile {tile}: {unforeseen(error)}"])

    @staticmethod
    def died(item: dict[str, Any]) -> TileOutcome:
        """What became of a tile whose process died."""
        return TileOutcome(item["tile"], failure=DIED)


def _make_tile(
    store: Store,
    tile: str,
    planes: list[Plane],
    mask_bits: int | None,
    checksum_of: Callable[[str, tuple[Any, ...]], tuple[str, int]],
) -> TileOutcome:
    """The cube of one tile and its row in the table of tiles."""
    paths = sorted({plane.path for plane in planes})
    before = {path: _state(path) for path in paths}
    sums = {path: checksum_of(path, before[path]) for path in paths}
    nbytes = sum(size for _, size in sums.values())
    version = fingerprint(
        {
            "format": FORMAT,
            "mask_bits": mask_bits,
            # Where the files lie does not matter; what they hold and what it is taken for does.
            "planes": [
                (
                    *(sums[p.path][0], p.hdu, p.band, p.kind, p.mask_bits),
                    *(None if math.isnan(number) else number for number in (p.zeropoint, p.gain)),
                )
                for p in planes
            ],
        }
    )
    key = layout.cube(tile, version)
    record = read_record(store, key)
    if record is not None:
        return TileOutcome(tile, record["row"], False, nbytes, record["problems"])
    bands: dict[str, dict[str, Plane]] = {}
    for plane in planes:
        bands.setdefault(plane.band, {})[plane.use] = plane
    problems: list[str] = []

    def finish(grid: Grid, names: list[str], has: dict[str, bool]) -> dict[str, Any]:
        if before != {path: _state(path) for path in paths}:
            where = ", ".join(map(public_url, paths))
            raise StoreError(f"a file changed while it was read: {where}; ingest again")
        files = sorted({file_name(path) for path in paths})
        row = _row(tile, version, grid, names, has, files)
        row["electron_flux"] = [_electron_flux(bands[name]["image"]) for name in names]
        combined = "".join(sorted(found for found, _ in sums.values()))
        row["checksum"] = hashlib.sha256(combined.encode()).hexdigest()
        return {"format": FORMAT, "row": row, "problems": problems}

    while bands:
        try:
            made = build_cube(store, key, bands, mask_bits, finish)
        except BandError as error:
            problems.append(f"tile {tile}, band {error.band} left out: {error}")
            del bands[error.band]
        else:
            return TileOutcome(tile, made["row"], True, nbytes, problems)
    problems.append(f"tile {tile}: no usable band; skipped")
    return TileOutcome(tile, nbytes=nbytes, problems=problems)


def _electron_flux(image: Plane) -> float | None:
    """Nanojansky of one electron; None if the gain is unknown."""
    return None if math.isnan(image.gain) else nanojansky_of_count(image.zeropoint) / image.gain


def _row(
    tile: str,
    version: str,
    grid: Grid,
    bands: list[str],
    has: dict[str, bool],
    files: list[str],
) -> dict[str, Any]:
    ra, dec, radius = grid.circle()
    corner_ra, corner_dec = grid.corners()
    return {
        "id": tile,
        "version": version,
        "bands": bands,
        "wcs": grid.wcs,
        "height": grid.shape[0],
        "width": grid.shape[1],
        "pixel_scale": grid.pixel_scale,
        "ra": ra,
        "dec": dec,
        "radius": radius,
        "footprint_ra": corner_ra.tolist(),
        "footprint_dec": corner_dec.tolist(),
        **has,
        "files": files,
    }
