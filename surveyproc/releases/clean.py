"""Remove what nothing refers to any more: old cubes, training cubes, what killed processes left.

A cube is kept while the table of tiles names it, for any survey under the root, or a release does.
A training cube is kept while it is the last one of its product, or the model of a release was
trained with it. While an ingest is under way no cube is removed, and no training cube while a
network is trained: theirs are not named anywhere yet.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from surveyproc.errors import StoreError, UnreachableError
from surveyproc.images import build
from surveyproc.images.cube import read_rows
from surveyproc.models.package import DOCUMENT, package_versions
from surveyproc.places.base import ABANDONED, is_under_way
from surveyproc.run.plan import release_names
from surveyproc.store import layout
from surveyproc.store.storage import STAGING, Store
from surveyproc.train.cube import RECORD

STAGED = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Cleaned:
    """What a cleaning removed, or would remove.

    Attributes
    ----------
    removed : dict of str to int
        Folder or object under the root to its bytes.
    bytes : int
        Of all of them.
    left : list of str
        What was left alone, and why.
    dry_run : bool
        Whether nothing was removed, only said.
    """

    removed: dict[str, int]
    bytes: int
    left: list[str]
    dry_run: bool


def clean(store: Store, *, dry_run: bool = False) -> Cleaned:
    """Remove what no table of tiles and no release under the root refers to.

    Parameters
    ----------
    store : Store
        The root, with all its surveys.
    dry_run : bool
        Only say what would be removed.

    Raises
    ------
    StoreError
        If the store cannot be read, or a record of it is damaged: then nothing is removed.
    """
    left = []
    plans = dict(_plans(store))
    unknown = sorted(run for run, plan in plans.items() if "tiles" not in plan)
    unwanted = list(_stagings(store))
    if is_under_way(store, "ingest"):
        left.append("cubes, since an ingest is under way")
    elif unknown:
        left.append(f"cubes, since release {unknown[0]} does not say which it was made from")
    else:
        unwanted += _cubes(store, plans)
    if is_under_way(store, "train"):
        left.append("training cubes, since a network is being trained")
    else:
        unwanted += _training_cubes(store, plans)
    removed = {}
    for key in unwanted:
        removed[key] = sum(store.sizes(key).values())
        if not dry_run:
            store.remove(key)
    return Cleaned(removed, sum(removed.values()), left, dry_run)


def _plans(store: Store) -> Iterator[tuple[str, dict[str, Any]]]:
    """The plan of every release there is, finished or not, of all surveys."""
    for survey in store.names(layout.RELEASES):
        for run in release_names(store, survey):
            try:
                plan: dict[str, Any] = store.read_json(f"{layout.run(run)}/plan.json") or {}
            except UnreachableError:
                raise
            except StoreError:
                plan = {}  # damaged: it does not say, either
            yield run, plan


def _cubes(store: Store, plans: dict[str, dict[str, Any]]) -> Iterator[str]:
    wanted = {(row["id"], row["version"]) for row in read_rows(store)[1]}
    wanted |= {tuple(pair) for plan in plans.values() for pair in plan["tiles"]}
    for tile in store.names(layout.IMAGES):
        if f"{layout.IMAGES}/{tile}" == layout.TILES:
            continue
        for version in store.names(f"{layout.IMAGES}/{tile}"):
            key = layout.cube(tile, version)
            if (tile, version) not in wanted and _is_done_with(store, key, build.RECORD):
                yield key


def _training_cubes(store: Store, plans: dict[str, dict[str, Any]]) -> Iterator[str]:
    wanted = _trained_with(store, plans)
    for product in store.names(layout.TRAINING):
        keys = [
            layout.training_cube(product, version)
            for version in store.names(layout.training_cube(product))
        ]
        whole = {key: _modified(store, f"{key}/{RECORD}") for key in keys}
        finished = {key: moment for key, moment in whole.items() if moment is not None}
        last = max(finished, key=lambda key: finished[key], default=None)
        for key in keys:
            if key not in wanted and key != last and _is_done_with(store, key, RECORD):
                yield key


def _is_done_with(store: Store, key: str, record: str) -> bool:
    """Whether a cube is whole, or was left unfinished a week ago."""
    if store.exists(f"{key}/{record}"):
        return True
    moments = [_modified(store, f"{key}/{name}") for name in store.sizes(key)]
    return all(moment is None or moment < _ago(ABANDONED) for moment in moments)


def _trained_with(store: Store, plans: dict[str, dict[str, Any]]) -> set[str]:
    """Training cubes of the models whose columns are in a release."""
    used = {
        str(version) for plan in plans.values() for version in plan.get("provenance", {}).values()
    }
    found = set()
    for model in store.names(layout.MODELS):
        for version in package_versions(store, model):
            if any(one.startswith(version) for one in used):
                document = store.read_json(f"{layout.model(model, version)}/{DOCUMENT}")
                found.add(str(document["training"].get("cube")))
    return found


def _stagings(store: Store) -> Iterator[str]:
    """What killed processes left half written on a local disk, and the notes that they took."""
    notes = (f"{layout.UNDER_WAY}/{what}" for what in store.names(layout.UNDER_WAY))
    for folder in (STAGING, *notes):
        for name in store.names(folder):
            moment = _modified(store, f"{folder}/{name}")
            age = STAGED if folder == STAGING else ABANDONED
            if moment is not None and moment < _ago(age):
                yield f"{folder}/{name}"


def _ago(time: datetime.timedelta) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - time


def _modified(store: Store, key: str) -> datetime.datetime | None:
    """When an object was written last; None if it is gone."""
    try:
        moment: datetime.datetime = store.fs.modified(store.path(key))
    except FileNotFoundError:
        return None
    return moment
