"""What the records of finished releases say; they are read and written here, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from surveyproc.errors import StoreError, UnreachableError
from surveyproc.store import layout
from surveyproc.store.documents import document
from surveyproc.store.storage import Store

MEND = "`surveyproc run`, with the settings that the release was made with, makes it anew"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A finished release.

    What older releases did not record is empty.

    Attributes
    ----------
    release : str
        Its name, which is that of its run.
    url, path : str
        Its catalog, and the catalog's key under the survey's root.
    rows, rejected, duplicates : int
        Objects; rows of the source beside the catalog; objects whose id another row carries too.
    partitions : int
        Leaves of the catalog.
    rows_per_second : float
        Objects a second of one worker.
    published : str
        When, ISO 8601, UTC.
    products, kinds : dict of str to str
        Product to its version, and to its kind.
    tables : dict of str to int
        Table beside the catalog to its rows.
    pixels : list of str
        Arrays of pixels beside the catalog.
    searched : dict of str to str
        Column that has an index of neighbours to its product.
    flags, band_flags : dict
        Product, or flag column of a band, to flag to objects; `any` stands for all flags.
    quarantined : list of str
        Units of which nothing could be computed.
    damaged : list of str
        Units some of whose pixels lay in a damaged cube.
    metadata : dict of str to dict of str to str
        Catalog (empty for the main one, else a table) to its files beside the leaves to their
        SHA-256, as `metadata.sums` tells.
    """

    release: str
    url: str
    path: str
    rows: int
    rejected: int
    duplicates: int
    partitions: int
    rows_per_second: float
    published: str
    products: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    pixels: list[str] = field(default_factory=list)
    searched: dict[str, str] = field(default_factory=dict)
    flags: dict[str, dict[str, int]] = field(default_factory=dict)
    band_flags: dict[str, dict[str, int]] = field(default_factory=dict)
    quarantined: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def gaps(self) -> list[str]:
        """Units that may become another leaf from the same inputs, sorted."""
        return sorted({*self.quarantined, *self.damaged})

    @property
    def record(self) -> dict[str, Any]:
        """What lies in the store: all but the URL, which depends on who looks."""
        return {name: value for name, value in document(self).items() if name != "url"}


@dataclass(frozen=True, kw_only=True)
class ListedRelease(Release):
    """A release among others.

    Attributes
    ----------
    current : bool
        Whether it is the one that readers are sent to.
    """

    current: bool


def parsed(store: Store, key: str, text: bytes | None, advice: str) -> Release | None:
    """The release that the record `text`, which was read from `key`, tells of; None for None.

    Parameters
    ----------
    advice : str
        What makes the record anew.

    Raises
    ------
    StoreError
        If the record is damaged.
    """
    found = store.parsed(key, text, advice)
    if found is None:
        return None
    names = {one.name for one in fields(Release)}
    try:
        known = {name: value for name, value in found.items() if name in names}
        return Release(url=store.url_of(found["path"]), **known)
    except (AttributeError, KeyError, TypeError) as error:
        raise StoreError(f"{store.url_of(key)} is damaged ({error}); {advice}") from error


def finished(store: Store, run: str) -> Release | None:
    """The finished release of a run; None if it was never published.

    Raises
    ------
    StoreError
        If its record is damaged.
    """
    key = layout.done(run)
    return parsed(store, key, store.read_if_there(key), MEND)


def finished_if_whole(store: Store, run: str) -> Release | None:
    """The same, and None if the record is damaged: then the run has to finish it again."""
    try:
        return finished(store, run)
    except UnreachableError:
        raise
    except StoreError:
        return None
