"""The files a survey is made of, as they are now: which are new, changed or gone.

A file is known by the checksum of its content, or in an object store by its ETag. A checksum is not
computed again while size, inode, modification time and change time of a local file stay as they
were: the change time is the system's own and cannot be set back, as the modification time can.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import fsspec

from surveyproc.config import SurveyConfig
from surveyproc.errors import SurveyError
from surveyproc.images.hdus import checksum
from surveyproc.store.urls import is_web, public_url

READERS = 16
# A file may change again within the clock's tick in which it was looked at.
SETTLED_NS = 2_000_000_000
TAGS = ("ETag", "etag", "md5Hash", "content_md5")

State = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """One input file.

    Attributes
    ----------
    content : str
        Checksum or ETag; empty if the file cannot be read.
    state : tuple of int
        What a local file must show for `content` to hold without reading it; empty otherwise.
    """

    content: str
    state: State = ()


@dataclass(frozen=True)
class Changes:
    """Files, or tiles, that are new, changed or gone since the last look.

    Attributes
    ----------
    new, changed, gone : list of str
        Their names, sorted.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.gone)


def look(config: SurveyConfig, last: Mapping[str, Source]) -> dict[str, Source]:
    """All input files of the survey, tiles, zero points and source catalog, by path or URL.

    Parameters
    ----------
    last : mapping
        What an earlier look gave; a local file that it still describes is not read.

    Raises
    ------
    ConfigError
        If a pattern of tiles matches nothing.
    """
    paths = [*config.tile_files(), *_catalog_files(config.resolve(config.catalog.source))]
    if config.images.zeropoint_file is not None:
        paths.append(config.resolve(config.images.zeropoint_file))
    names = _names(paths)
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(_look, paths, (last.get(name) for name in names))
        return dict(zip(names, found, strict=True))


def compare(last: Mapping[str, Source], now: Mapping[str, Source]) -> Changes:
    """What happened between two looks. A file that cannot be read counts as changed."""
    both = sorted(last.keys() & now.keys())
    return Changes(
        new=sorted(now.keys() - last.keys()),
        changed=[p for p in both if now[p].content != last[p].content or not now[p].content],
        gone=sorted(last.keys() - now.keys()),
    )


def _names(paths: Sequence[str]) -> list[str]:
    """What files are called in records: without the signature of a URL, yet each its own."""
    counts: Counter[str] = Counter()
    names = []
    for path in paths:
        name = public_url(path)
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return names


def _look(path: str, last: Source | None) -> Source:
    try:
        if "://" in path:
            return Source(_tag(path) or checksum(path)[0])
        state = _state(path)
        if last is not None and last.state == state:
            return last
        settled = time.time_ns() - state[-1] > SETTLED_NS
        return Source(checksum(path)[0], state if settled else ())
    except (OSError, SurveyError):
        # The ingest tells what is wrong with it.
        return Source("")


def _state(path: str) -> State:
    found = os.stat(path)
    return found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _tag(url: str) -> str:
    fs, path = fsspec.core.url_to_fs(url)
    info = fs.info(path)
    return next((f"{name}:{info[name]}" for name in TAGS if info.get(name)), "")


def _catalog_files(source: str) -> list[str]:
    """The file of a catalog, or all files of its folder."""
    if is_web(source):
        return [source]
    fs, path = fsspec.core.url_to_fs(source)
    if not fs.isdir(path):
        return [source]
    found = sorted(fs.find(path))
    return [fs.unstrip_protocol(name) for name in found] if "://" in source else found
