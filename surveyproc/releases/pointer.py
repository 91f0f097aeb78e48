"""The pointer that readers follow: who moves it, and who removes what it does not point to.

One object serves both. It tells which release readers are sent to and which were removed, and it
is only ever replaced if it still says what was read. So a release is marked as removed before its
first file goes, unless readers were sent to it meanwhile, and nobody sends readers to one so
marked. A name that was removed is not given again (`surveyproc.run.plan`): nobody writes where
another one may still be removing.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surveyproc.errors import StoreError
from surveyproc.releases.record import Release, parsed
from surveyproc.run.plan import POINT_ANEW
from surveyproc.store import layout
from surveyproc.store.documents import sealed
from surveyproc.store.storage import Store, as_json

REMEMBERED = 1000
"""Names of removed releases that the pointer tells, the last ones."""


@dataclass(frozen=True)
class Pointer:
    """What the pointer says.

    Attributes
    ----------
    text : bytes or None
        As it was read; None if there is none.
    release : Release or None
        Where readers are sent.
    since : str
        When they were sent there, which tells one such moment from all others.
    removed : tuple of str
        Releases that are gone, or of which parts may be.
    """

    text: bytes | None
    release: Release | None
    since: str
    removed: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the release; empty if there is none."""
        return self.release.release if self.release else ""


def read_pointer(store: Store, survey: str, *, damaged_too: bool = False) -> Pointer:
    """The pointer as it is now; with `damaged_too` a damaged one sends nobody anywhere.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    key = layout.pointer(survey)
    text = store.read_if_there(key)
    try:
        release = parsed(store, key, text, POINT_ANEW)
    except StoreError:
        if not damaged_too:
            raise
        return Pointer(text, None, "", ())
    more: dict[str, Any] = store.parsed(key, text) or {}
    return Pointer(text, release, more.get("since", ""), tuple(more.get("removed", ())))


def pointed_to(store: Store, survey: str) -> Release | None:
    """The release that readers are sent to; None if nothing was published yet."""
    return read_pointer(store, survey).release


def point_to(store: Store, survey: str, seen: Pointer, to: Release) -> None:
    """Send readers to a release, unless they were sent anywhere since the pointer was `seen`.

    Whether the release is whole must have been looked at after that.

    Raises
    ------
    StoreError
        If another command sent them to another release meanwhile, or removed this one.
    """
    key = layout.pointer(survey)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    while True:
        refuse_removed(store, survey, seen, to.release)
        if store.swap(key, seen.text, _text(to, now, seen.removed)):
            return
        found = read_pointer(store, survey)
        if found.name == to.release:
            return
        if (found.name, found.since) != (seen.name, seen.since):
            raise StoreError(
                f"{store.url_of(key)}: another driver published {found.name or 'none'} meanwhile, "
                f"so release {to.release} is complete but not published: repeat the command if it "
                "should be"
            )
        seen = found


def refuse_removed(store: Store, survey: str, seen: Pointer, release: str) -> None:
    """Raise a StoreError if a release was removed."""
    if release in seen.removed:
        raise StoreError(
            f"{store.url_of(layout.release(survey, release))}: another command removed this "
            "release meanwhile: repeat the command"
        )


def retire(store: Store, survey: str, releases: Sequence[str]) -> list[str]:
    """Remove releases and the records of their runs, but for the one that readers are sent to.

    Without a pointer nothing is removed: whoever sends readers somewhere for the first time would
    not learn of it.

    Returns
    -------
    list of str
        What was removed.
    """
    key = layout.pointer(survey)
    while True:
        seen = read_pointer(store, survey)
        doomed = [one for one in releases if one != seen.name]
        if seen.release is None or not doomed:
            return []
        removed = dict.fromkeys([*seen.removed, *doomed])
        after = _text(seen.release, seen.since, tuple(removed)[-REMEMBERED:])
        if set(doomed) <= set(seen.removed) or store.swap(key, seen.text, after):
            break
    for release in doomed:
        _remove(store, survey, release)
    return doomed


def _remove(store: Store, survey: str, release: str) -> None:
    store.remove(layout.done(release))
    folder, _, name = layout.release(survey, release).rpartition("/")
    for one in store.names(folder):
        if one == name or one.startswith(layout.table(name, "")):
            store.remove(f"{folder}/{one}")
    store.remove(layout.run(release))


def _text(release: Release, since: str, removed: Sequence[str]) -> bytes:
    return as_json(sealed({**release.record, "since": since, "removed": list(removed)}))
