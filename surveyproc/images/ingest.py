"""FITS files to image cubes: files grouped into tiles, one task a tile, the table of tiles."""

from __future__ import annotations

import hashlib
import math
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import fsspec

from surveyproc.config import SurveyConfig
from surveyproc.errors import InputError, StoreError, SurveyError, UnreachableError
from surveyproc.images.build import (
    BandError,
    build_cube,
    clear_debris,
    nanojansky_of_count,
    read_record,
)
from surveyproc.images.calibration import Calibration
from surveyproc.images.cube import cube_key, read_rows, write_rows
from surveyproc.images.fits import Aside, Plane, Problem, planes_of
from surveyproc.images.grid import Grid
from surveyproc.images.hdus import checksum, reading, unreadable
from surveyproc.images.planes import EVERY_BAND, legacy_bits
from surveyproc.places import DIED, Item, Ledger, Places, Stage
from surveyproc.progress import Meter
from surveyproc.store.storage import Store, fingerprint
from surveyproc.store.urls import file_name, public_url
from surveyproc.survey import Survey

# Part of every cube's version: raise it when the same input makes other cubes.
FORMAT = 2
# Headers are read in groups of so many files.
SCAN_GROUP = 32
# Of one core, roughly: 100 MB of float32 pixels a second (benchmarks/ingest.py printed 113 to 163);
# the files' headers are a guess. What is expected only decides where work begins.
PIXELS_PER_S = 25e6
FILES_PER_S = 100.0
LEDGER = "runs/ingest/begun"


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


def ingest_tiles(survey: Survey, places: Places, *, keep_last: bool = False) -> TilesSummary:
    """Bring the survey's FITS files into cubes; what is there already is left alone.

    Parameters
    ----------
    config : SurveyConfig
        The survey.
    store : Store
        Its root.
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
    clear_debris(survey.store)
    paths = survey.config.tile_files()
    if not paths:  # a survey of catalogs alone
        write_rows(survey.store, survey.name, [])
        return TilesSummary()
    planes, problems, aside = _scan(paths, Calibration.of(survey.config), survey.store, places)
    groups = group_planes(planes, problems, survey.config.images.bands)
    before = _former_rows(survey.store, survey.name)
    failures = _unread(problems, before)
    summary = TilesSummary(
        problems=[one.message for one in problems if not one.unread], notes=_notes(aside)
    )
    troubled = {one.tile for one in problems}
    items = [
        _item(tile, [plane for kinds in bands.values() for plane in kinds.values()])
        for tile, bands in sorted(groups.items())
        if bands and tile not in failures
    ]
    for tile, bands in sorted(groups.items()):
        if not bands and tile not in failures:
            summary.problems.append(f"tile {tile}: no usable band; skipped")
    rows: list[dict[str, Any]] = []
    ledger = Ledger(survey.store, LEDGER)
    stage = Stage(
        "tiles",
        _TileWorker,
        (survey.store.url, survey.config.images.mask_bits),
        died=_TileWorker.nothing,
        ledger=ledger,
    )
    results = places.stream(items, stage)
    with Meter("ingest, images", objects=len(items), units=len(items), noun="tiles") as meter:
        for outcome in results:
            summary.bytes += outcome["bytes"]
            summary.problems += outcome["problems"]
            troubled |= {outcome["tile"]} if outcome["problems"] else set()
            if outcome["failure"]:
                failures[outcome["tile"]] = f"tile {outcome['tile']}: {outcome['failure']}"
            if outcome["row"] is not None:
                rows.append(outcome["row"])
                summary.written += outcome["written"]
                summary.unchanged += not outcome["written"]
            meter.advance(objects=1, nbytes=outcome["bytes"])
    ledger.clear()
    summary.tiles = len(rows)
    summary.problems.sort()
    rows += [before[tile] for tile in failures if tile in before]
    if keep_last:
        rows = _keep_last(survey.store, survey.config, rows, before, troubled, summary)
        summary.complete = not failures
        summary.kept += [
            f"{message}; " + ("kept as it was" if tile in before else "left out")
            for tile, message in sorted(failures.items())
        ]
        failures = {}
        summary.tiles = len(rows)
    if not rows and not failures:
        raise InputError("no image tile could be ingested:\n" + "\n".join(summary.problems))
    if rows:
        write_rows(survey.store, survey.name, rows)
    if failures:
        lines = [*sorted(failures.values()), *(f"problem: {one}" for one in summary.problems)]
        raise StoreError(
            f"{len(failures)} of the tiles and files failed; the other tiles are done, and the "
            "same command tries again:\n" + "\n".join(lines)
        )
    return summary


def _keep_last(
    store: Store,
    config: SurveyConfig,
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
    names = {file_name(path) for path in config.tile_files()}
    for tile, row in before.items():
        found = set(now[tile]["bands"]) if tile in now else set()
        lost = [band for band in row["bands"] if band in config.images.bands and band not in found]
        broken = tile in troubled or names.issuperset(row["files"])
        if lost and broken and read_record(store, cube_key(tile, row["version"])) is not None:
            now[tile] = row
            summary.kept.append(
                f"tile {tile}: band {', '.join(lost)} broken; version {row['version']} is kept"
            )
    return list(now.values())


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


def _scan(
    paths: Sequence[str], calibration: Calibration, store: Store, places: Places
) -> tuple[list[Plane], list[Problem], list[Aside]]:
    planes: list[Plane] = []
    problems: list[Problem] = []
    aside: list[Aside] = []
    groups = [paths[i : i + SCAN_GROUP] for i in range(0, len(paths), SCAN_GROUP)]
    items = [Item(group[0], group, len(group) / FILES_PER_S) for group in groups]
    ledger = Ledger(store, f"{LEDGER}-headers")
    stage = Stage("headers", _ScanWorker, (calibration,), ledger=ledger)
    for found, bad, left in places.stream(items, stage):
        planes += found
        problems += bad
        aside += left
    # Results come in any order.
    planes.sort(key=lambda plane: (plane.path, plane.hdu))
    problems.sort(key=lambda problem: problem.message)
    aside.sort(key=lambda one: one.where)
    return planes, problems, aside


class _ScanWorker:
    """Reads the headers of a group of files."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    def __call__(self, paths: list[str]) -> tuple[list[Plane], list[Problem], list[Aside]]:
        planes: list[Plane] = []
        problems: list[Problem] = []
        aside: list[Aside] = []
        images, files = self.calibration.images, self.calibration.files
        for path in paths:
            try:
                found, bad = planes_of(path, images, files, aside)
            except (SurveyError, MemoryError):
                raise
            except Exception as error:  # whatever a header holds, it costs its own file only
                found, bad = [], [Problem("", "", f"{public_url(path)}: {_unforeseen(error)}")]
            planes += found
            problems += bad
        return planes, problems, aside


def _unforeseen(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
    return f"cannot be used: {type(error).__name__}: {error} ({place})"


def _notes(aside: Sequence[Aside]) -> list[str]:
    """One line for all planes of the same name that were left aside for the same reason."""
    alike: dict[tuple[str, str], list[str]] = {}
    for one in aside:
        alike.setdefault((one.name, one.why), []).append(one.where)
    return [
        f"left aside: {name}, {why}: {where[0]}"
        + (f" and {len(where) - 1} more" if len(where) > 1 else "")
        for (name, why), where in sorted(alike.items())
    ]


def group_planes(
    planes: Sequence[Plane], problems: list[Problem], bands: Sequence[str]
) -> dict[str, dict[str, dict[str, Plane]]]:
    """Tile to band (in the survey's order) to use (image, weight, mask) to plane.

    Only bands that can be used: one is left out if any of its planes has a problem, if two planes
    claim the same place, or if it has a weight or mask but no image. A mask of all bands is that
    of each band without its own. What is found here is appended to `problems`.
    """
    places: dict[tuple[str, str], dict[str, list[Plane]]] = {}
    shared: dict[str, list[Plane]] = {}
    for plane in planes:
        if plane.band == EVERY_BAND:
            shared.setdefault(plane.tile, []).append(plane)
            continue
        kinds = places.setdefault((plane.tile, plane.band), {})
        kinds.setdefault(plane.use, []).append(plane)
    for (tile, band), kinds in places.items():
        if tile in shared and "mask" not in kinds:
            kinds["mask"] = [
                replace(mask, band=band, mask_bits=legacy_bits(band)) for mask in shared[tile]
            ]
    bad = {(problem.tile, problem.band) for problem in problems}
    bad |= {place for place in places if (place[0], EVERY_BAND) in bad}
    tiles = {tile for tile, _ in places} | {tile for tile, _ in bad if tile}
    groups: dict[str, dict[str, dict[str, Plane]]] = {tile: {} for tile in tiles}
    order = {band: place for place, band in enumerate(bands)}
    for (tile, band), kinds in sorted(places.items(), key=lambda item: order[item[0][1]]):
        if (tile, band) in bad:
            continue
        twice = next((found for found in kinds.values() if len(found) > 1), None)
        if twice is not None:
            where = " and ".join(plane.where for plane in twice)
            message = (
                f"tile {tile}, band {band}: two {twice[0].use}s: {where}; band left out: say in "
                "images.planes which is what"
            )
            problems.append(Problem(tile, band, message))
        elif "image" not in kinds:
            first = next(iter(kinds.values()))[0]
            message = f"{first.where}: a {first.kind} without an image (tile {tile}, band {band})"
            problems.append(Problem(tile, band, message))
        else:
            groups[tile][band] = {kind: found[0] for kind, found in kinds.items()}
    return groups


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

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        outcome = self.nothing(item, "")
        try:
            outcome |= _make_tile(
                self.store, item["tile"], item["planes"], self.mask_bits, self.checksum
            )
        except InputError as error:
            outcome["problems"] = [f"tile {item['tile']}: {error}"]
        except UnreachableError:
            raise  # every other tile would wait as long
        except StoreError as error:
            outcome["failure"] = str(error)
        except MemoryError:
            raise
        except Exception as error:  # whatever its files hold, it is this tile's problem only
            outcome["problems"] = [f"tile {item['tile']}: {_unforeseen(error)}"]
        return outcome

    @staticmethod
    def nothing(item: dict[str, Any], failure: str = DIED) -> dict[str, Any]:
        """The result of a tile of which nothing is known but, perhaps, what failed."""
        return {
            "tile": item["tile"],
            "failure": failure,
            "row": None,
            "written": False,
            "bytes": 0,
            "problems": [],
        }


def _make_tile(
    store: Store,
    tile: str,
    planes: list[Plane],
    mask_bits: int | None,
    checksum_of: Callable[[str, tuple[Any, ...]], tuple[str, int]],
) -> dict[str, Any]:
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
    key = cube_key(tile, version)
    record = read_record(store, key)
    if record is not None:
        return {
            "row": record["row"],
            "written": False,
            "bytes": nbytes,
            "problems": record["problems"],
        }
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
            return {"row": made["row"], "written": True, "bytes": nbytes, "problems": problems}
    problems.append(f"tile {tile}: no usable band; skipped")
    return {"problems": problems, "bytes": nbytes}


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
