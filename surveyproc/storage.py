"""A URL (local path, s3://, ...) as a store: atomic puts, small JSON records."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from surveyproc.errors import StoreError

STAGING = ".staging"
# What the system says where a disk knows no hard links, or not between these two folders.
NO_LINK = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP)


def digest(data: bytes) -> str:
    """SHA-256 of `data`, as hex."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` written as canonical JSON.

    Examples
    --------
    >>> fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return digest(text.encode())[:16]


@dataclass(frozen=True)
class Store:
    """Everything under one root URL; keys are relative, with forward slashes.

    Parameters
    ----------
    url : str
        A local path or any URL fsspec reaches.

    Notes
    -----
    On a local disk a put goes to `.staging/` under the root and is renamed into place, so that a
    reader sees the old object or the new one. Object stores give that by themselves.
    """

    url: str

    @property
    def is_local(self) -> bool:
        """Whether the root lies on a local disk."""
        return "://" not in self.url or self.url.startswith("file://")

    @property
    def root(self) -> str:
        """The root without its protocol, as fsspec wants it."""
        if self.is_local:
            return str(Path(self.url.removeprefix("file://")).absolute())
        return str(self.url.rstrip("/").split("://", 1)[1])

    @property
    def fs(self) -> Any:
        """The fsspec filesystem behind the root."""
        return fsspec.filesystem("file" if self.is_local else self.url.split("://", 1)[0])

    def path(self, key: str) -> str:
        """Full path of `key` for `fs`; refuses a key that would leave the root."""
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"{key!r} would lie outside the root {self.url}")
        return f"{self.root}/{key}" if key else self.root

    def url_of(self, key: str) -> str:
        """`key` as a URL (a plain path on a local disk)."""
        return self.path(key) if self.is_local else f"{self.url.rstrip('/')}/{key}"

    def exists(self, key: str) -> bool:
        """Whether an object or folder `key` exists."""
        return bool(self.fs.exists(self.path(key)))

    def size(self, key: str) -> int | None:
        """Bytes of `key`; None if there is none."""
        try:
            return int(self.fs.size(self.path(key)))
        except FileNotFoundError:
            return None

    def read(self, key: str) -> bytes:
        """All bytes of `key`.

        Raises
        ------
        StoreError
            If it is missing or cannot be read.
        """
        try:
            data: bytes = self.fs.cat_file(self.path(key))
        except OSError as error:
            raise StoreError(f"cannot read {self.url_of(key)}: {error}") from error
        return data

    def read_table(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The named columns (all by default) of the Parquet file `key`.

        Raises
        ------
        StoreError
            If it is missing or damaged.
        """
        try:
            with self.fs.open(self.path(key), "rb") as stream:
                return parse_table(stream, columns)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot read {self.url_of(key)}: {error}") from error

    def read_json(self, key: str) -> Any:
        """The JSON document `key`, or None if there is none.

        Raises
        ------
        StoreError
            If it exists and is not JSON.
        """
        try:
            text = self.fs.cat_file(self.path(key))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {self.url_of(key)}: {error}") from error
        try:
            return json.loads(text)
        except ValueError as error:
            raise StoreError(f"{self.url_of(key)} is not JSON ({error}); remove it") from error

    def put(self, key: str, data: bytes) -> None:
        """Write `data` as `key`, replacing it in one step."""
        with self.writing(key) as stream:
            stream.write(data)

    def put_json(self, key: str, value: Any) -> None:
        """Write `value` as an indented JSON document, keys sorted, in one step."""
        self.put(key, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    @contextmanager
    def writing(self, key: str) -> Iterator[IO[bytes]]:
        """A binary stream whose content becomes `key` when the block ends without an error.

        Raises
        ------
        StoreError
            If the store cannot take it (disk full, no permission). Nothing of `key` changes then.
        """
        target = self.path(key)
        if not self.is_local:
            with self.fs.open(target, "wb") as stream:
                yield stream
            return
        staged = Path(self.root) / STAGING / uuid.uuid4().hex
        try:
            staged.parent.mkdir(parents=True, exist_ok=True)
            with open(staged, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
        except OSError as error:
            raise store_error(error, self.url_of(key)) from error
        finally:
            staged.unlink(missing_ok=True)

    def copy(self, source: str, target: str) -> None:
        """Make `target` the object that `source` is, in one step, its bytes unread where possible.

        A hard link on a local disk, a copy made by the store itself elsewhere. Neither may be
        changed in place afterwards.

        Raises
        ------
        StoreError
            If there is no `source`, or the store cannot take the copy.
        """
        if not self.is_local:
            try:
                self.fs.cp_file(self.path(source), self.path(target))
            except OSError as error:
                raise store_error(error, self.url_of(target)) from error
            return
        staged = Path(self.root) / STAGING / uuid.uuid4().hex
        try:
            staged.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.path(source), staged)
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                shutil.copyfile(self.path(source), staged)
            Path(self.path(target)).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, self.path(target))
        except OSError as error:
            raise store_error(error, self.url_of(target)) from error
        finally:
            # Renaming one link of a file over another leaves both names.
            staged.unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """Sorted names (last path parts) directly under the folder `prefix`; [] if it is absent."""
        try:
            found = self.fs.ls(self.path(prefix), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object in the folder `prefix`, however deep, by its name from there on.

        Raises
        ------
        StoreError
            If the folder cannot be listed. An absent one is empty.
        """
        folder = self.path(prefix)
        try:
            found = self.fs.find(folder, detail=True)
        except OSError as error:
            raise StoreError(f"cannot list {self.url_of(prefix)}: {error}") from error
        return {name.partition(f"{folder}/")[2]: int(info["size"]) for name, info in found.items()}

    def remove(self, key: str) -> None:
        """Remove the object or folder `key` with all it holds; nothing happens if it is absent."""
        if self.exists(key):
            self.fs.rm(self.path(key), recursive=True)

    def clear_staging(self, older_than_s: float = 3600.0) -> None:
        """Drop what killed processes left half written and nothing has touched for a while."""
        if not self.is_local:
            return
        for left in (Path(self.root) / STAGING).glob("*"):
            # Another driver may finish or drop its file between the listing and this line.
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > older_than_s:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def parse_table(source: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """The named columns (all by default) of a Parquet file given as a binary stream or buffer."""
    # Arrow's I/O threads would free Python's buffers; one that does so while the interpreter ends
    # aborts the process after its work is done.
    return pq.ParquetFile(source, pre_buffer=False).read(columns=columns, use_threads=False)


def store_error(error: OSError, where: str) -> StoreError:
    """An OSError as a StoreError that says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"no space left while writing {where}: free some, then repeat the command; "
            "what was finished is kept"
        )
    return StoreError(f"cannot write {where}: {error}")
