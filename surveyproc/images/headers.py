"""Headers of the survey's files to planes, and planes to tiles and bands."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from dataclasses import replace

from surveyproc.errors import SurveyError
from surveyproc.images.calibration import Calibration
from surveyproc.images.fits import Aside, Plane, Problem, planes_of
from surveyproc.images.planes import EVERY_BAND, legacy_bits
from surveyproc.places import Item, Ledger, Places, Stage
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.store.urls import public_url

# Headers are read in groups of so many files.
HEADER_GROUP = 32
# Of one core, a guess. What is expected only decides where work begins.
FILES_PER_S = 100.0

Groups = dict[str, dict[str, dict[str, Plane]]]
"""Tile to band to use (image, weight, mask) to plane."""


def read_headers(
    paths: Sequence[str], calibration: Calibration, store: Store, places: Places
) -> tuple[list[Plane], list[Problem], list[Aside]]:
    """Planes, problems and what was left aside, of all files, sorted; no pixel is read."""
    planes: list[Plane] = []
    problems: list[Problem] = []
    aside: list[Aside] = []
    groups = [paths[i : i + HEADER_GROUP] for i in range(0, len(paths), HEADER_GROUP)]
    items = [Item(group[0], group, len(group) / FILES_PER_S) for group in groups]
    stage = Stage(
        "headers", _HeaderWorker, (calibration,), ledger=Ledger(store, layout.HEADERS_BEGUN)
    )
    for found, bad, left in places.stream(items, stage):
        planes += found
        problems += bad
        aside += left
    # Results come in any order.
    planes.sort(key=lambda plane: (plane.path, plane.hdu))
    problems.sort(key=lambda problem: problem.message)
    aside.sort(key=lambda one: one.where)
    return planes, problems, aside


class _HeaderWorker:
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
                found, bad = [], [Problem("", "", f"{public_url(path)}: {unforeseen(error)}")]
            planes += found
            problems += bad
        return planes, problems, aside


def unforeseen(error: Exception) -> str:
    """What is said of an error that no input should have caused: its words and where it arose."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
    return f"cannot be used: {type(error).__name__}: {error} ({place})"


def notes(aside: Sequence[Aside]) -> list[str]:
    """One line for all planes of the same name that were left aside for the same reason."""
    alike: dict[tuple[str, str], list[str]] = {}
    for one in aside:
        alike.setdefault((one.name, one.why), []).append(one.where)
    return [
        f"left aside: {name}, {why}: {where[0]}"
        + (f" and {len(where) - 1} more" if len(where) > 1 else "")
        for (name, why), where in sorted(alike.items())
    ]


def group_planes(planes: Sequence[Plane], problems: list[Problem], bands: Sequence[str]) -> Groups:
    """The planes of every tile, bands in the survey's order.

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
    groups: Groups = {tile: {} for tile in tiles}
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
