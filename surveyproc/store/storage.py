"""A URL (local path, s3://, ...) as a store: atomic and conditional puts, small JSON records."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
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

from surveyproc.errors import StoreError, SurveyError, store_error
from surveyproc.store.documents import sealed, unsealed
from surveyproc.store.urls import public_url

STAGING = ".staging"
# What the system says where a disk knows no hard links, or not between these two folders.
NO_LINK = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
# Read ahead by streams of remote objects: what is wanted is mostly a footer and a few columns.
AHEAD_BYTES = 1 << 20


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
        return str(fsspec.core.url_to_fs(self.url)[1]).rstrip("/")

    @property
    def fs(self) -> Any:
        """The fsspec filesystem behind the root."""
        return fsspec.filesystem("file") if self.is_local else fsspec.core.url_to_fs(self.url)[0]

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
        with self._named("read", key):
            return bool(self.fs.exists(self.path(key)))

    def size(self, key: str) -> int | None:
        """Bytes of `key`; None if there is none."""
        with self._named("read", key):
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
        with self._named("read", key):
            data: bytes = self.fs.cat_file(self.path(key))
        return data

    def read_if_there(self, key: str) -> bytes | None:
        """All bytes of `key`; None if there is no such object.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        with self._named("read", key):
            try:
                data: bytes = self.fs.cat_file(self.path(key))
            except FileNotFoundError:
                return None
        return data

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes of `key` from `offset` on; fewer where it ends.

        Raises
        ------
        StoreError
            If it is missing or cannot be read.
        """
        with self._named("read", key):
            data: bytes = self.fs.cat_file(self.path(key), start=offset, end=offset + length)
        return data

    @contextmanager
    def reading(self, key: str, ahead: int = AHEAD_BYTES) -> Iterator[IO[bytes]]:
        """A binary stream over `key` that can be sought in.

        Parameters
        ----------
        ahead : int
            Bytes fetched at once, at least, where the object is remote.

        Raises
        ------
        StoreError
            If it is missing or cannot be read, when it is opened or within the block.
        """
        with (
            self._named("read", key),
            self.fs.open(self.path(key), "rb", block_size=ahead) as stream,
        ):
            yield stream

    def read_table(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The named columns (all by default) of the Parquet file `key`.

        Raises
        ------
        StoreError
            If it is missing or damaged.
        """
        try:
            with self.reading(key) as stream:
                return parse_table(stream, columns)
        except pa.ArrowException as error:
            raise StoreError(f"cannot read {self.url_of(key)}: {error}") from error

    def read_json(self, key: str, advice: str = "remove it") -> Any:
        """The JSON document `key`, or None if there is none; see `parsed`."""
        return self.parsed(key, self.read_if_there(key), advice)

    def parsed(self, key: str, text: bytes | None, advice: str = "remove it") -> Any:
        """The JSON document in `text`, which was read from `key`; None for None.

        Parameters
        ----------
        advice : str
            What makes it anew, for who reads that it is damaged.

        Raises
        ------
        StoreError
            If it is not JSON, or a record whose checksum is another.
        """
        if text is None:
            return None
        try:
            return unsealed(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{self.url_of(key)} is not JSON ({error}); {advice}") from error

    def put(self, key: str, data: bytes) -> None:
        """Write `data` as `key`, replacing it in one step."""
        if self.is_local:
            with self.writing(key) as stream:
                stream.write(data)
            return
        with self._named("write", key):
            self.fs.pipe_file(self.path(key), data)

    def put_json(self, key: str, value: Any) -> None:
        """Write `value` as an indented JSON document, keys sorted, in one step."""
        self.put(key, as_json(value))

    def put_record(self, key: str, value: dict[str, Any]) -> None:
        """The same with a checksum in it, which is looked at, and taken out, when it is read."""
        self.put_json(key, sealed(value))

    def create(self, key: str, data: bytes) -> bool:
        """Write `data` as `key` if there is no such object; whether `key` now holds `data`.

        Of many that create one key at once, those whose `data` got there are told so, also if they
        are asked twice: who must know that it was the only one puts its own name in.

        Notes
        -----
        An object store that has no conditional put (answers 501, or NotImplementedError of its
        client) is asked first whether the object is there: two that ask at the same moment then
        both write, and the last one stays.
        """
        with self._named("write", key):
            if self.is_local:
                made = self._link(key, data)
            else:
                made = self._put_if(key, data, mode="create")
            return made or self.fs.cat_file(self.path(key)) == data

    def swap(self, key: str, before: bytes | None, after: bytes) -> bool:
        """Replace `key` if it still holds `before` (None: if it is absent); whether it did.

        Notes
        -----
        On S3 by a conditional put (`If-Match`), on a local disk under a lock, elsewhere by reading
        before writing: another writer between the two is overwritten.
        """
        if before is None:
            return self.create(key, after)
        path = self.path(key)
        with self._named("write", key):
            if self.is_local:
                with self._locked():
                    if Path(path).read_bytes() != before:
                        return False
                    self.put(key, after)
                    return True
            if not self.url.startswith("s3"):
                found, conditions = self.fs.cat_file(path), {}
            else:
                found, tag = self.fs.cat_tagged(path)
                conditions = {"IfMatch": tag}
            if found != before:
                return False
            return self._put_if(key, after, **conditions) or self.fs.cat_file(path) == after

    def _link(self, key: str, data: bytes) -> bool:
        target, staged = Path(self.path(key)), Path(self.root) / STAGING / uuid.uuid4().hex
        self.put(f"{STAGING}/{staged.name}", data)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(staged, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            with self._locked():
                if target.exists():
                    return False
                os.replace(staged, target)
        finally:
            _drop(staged)
        return True

    def _put_if(self, key: str, data: bytes, **conditions: str) -> bool:
        """A conditional put to an object store; False if the condition does not hold."""
        path = self.path(key)
        try:
            self.fs.pipe_file(path, data, **conditions)
        except FileExistsError:
            return False
        except (OSError, NotImplementedError) as error:
            answer = getattr(error.__cause__, "response", None) or {}
            code = answer.get("Error", {}).get("Code")
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                return False
            lacking = isinstance(error, NotImplementedError) or error.errno == errno.ENOSYS
            if not lacking or ("mode" in conditions and self.fs.exists(path)):
                if lacking:
                    return False
                raise
            self.fs.pipe_file(path, data)
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The block alone among all processes of this root on a local disk."""
        lock = Path(self.root) / f"{STAGING}.lock"
        with open(lock, "wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield

    @contextmanager
    def writing(
        self, key: str, *, lasting: bool = True, in_place: bool = False
    ) -> Iterator[IO[bytes]]:
        """A binary stream whose content becomes `key` when the block ends without an error.

        Parameters
        ----------
        lasting : bool
            False for what need not survive a power cut.
        in_place : bool
            True for a temporary file that stays open for long: on a local disk it is written where
            it will lie, and may be left behind half written.

        Notes
        -----
        What goes to an object store waits in a temporary file until the block ends: no upload is
        begun that would have to be taken back.

        Raises
        ------
        StoreError
            If the store cannot take it (disk full, no permission). Nothing of `key` changes then.
        """
        target = self.path(key)
        if not self.is_local:
            with tempfile.NamedTemporaryFile(prefix="surveyproc-") as held:
                yield held
                held.flush()
                with self._named("write", key):
                    self.fs.put_file(held.name, target)
            return
        staged = Path(self.root) / STAGING / uuid.uuid4().hex
        try:
            if in_place:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as stream:
                    yield stream
                return
            staged.parent.mkdir(parents=True, exist_ok=True)
            with open(staged, "wb") as stream:
                yield stream
                if lasting:
                    stream.flush()
                    os.fsync(stream.fileno())
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
        except OSError as error:
            raise store_error(error, self.url_of(key)) from error
        finally:
            _drop(staged)

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
            with self._named("copy", source):
                self.fs.cp_file(self.path(source), self.path(target))
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
            _drop(staged)

    def probe(self) -> None:
        """Put a small object and remove it.

        Raises
        ------
        StoreError
            If the store does not take it.
        """
        key = f"{STAGING}/{uuid.uuid4().hex}"
        self.put(key, b"")
        self.remove(key)

    def names(self, prefix: str) -> list[str]:
        """Sorted names (last path parts) directly under the folder `prefix`; [] if it is absent."""
        with self._named("list", prefix):
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
        with self._named("list", prefix):
            found = self.fs.find(folder, detail=True)
        # An absent or empty folder may be listed as itself.
        files = {name: info for name, info in found.items() if info["type"] == "file"}
        return {name.partition(f"{folder}/")[2]: int(info["size"]) for name, info in files.items()}

    def remove(self, key: str) -> None:
        """Remove the object or folder `key` with all it holds; nothing happens if it is absent."""
        with self._named("remove", key), suppress(FileNotFoundError):
            self.fs.rm(self.path(key), recursive=True)

    @contextmanager
    def _named(self, action: str, key: str) -> Iterator[None]:
        """Errors of the store within the block become StoreErrors that name `key`."""
        where = public_url(self.url_of(key))
        try:
            yield
        except (SurveyError, pa.ArrowException):
            raise
        except OSError as error:
            raise store_error(error, where, action) from error
        except Exception as error:
            # Clients of object stores have families of errors of their own.
            if self.is_local:
                raise
            reason = str(error) or type(error).__name__
            raise StoreError(f"cannot {action} {where}: {reason}") from error

    def clear_staging(self, older_than_s: float = 3600.0) -> None:
        """Drop what killed processes left half written and nothing has touched for a while."""
        if not self.is_local:
            return
        for left in (Path(self.root) / STAGING).glob("*"):
            # Another driver may finish or drop its file between the listing and this line.
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > older_than_s:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def _drop(staged: Path) -> None:
    """Remove what was staged; what went wrong before counts, not what goes wrong here."""
    with suppress(OSError):  # a read-only disk says so of a file that is not there, too
        staged.unlink()


def parse_table(source: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """The named columns (all by default) of a Parquet file given as a binary stream or buffer.

    Raises
    ------
    pyarrow.ArrowException
        If it is damaged.
    """
    # Arrow's I/O threads would free Python's buffers; one that does so while the interpreter ends
    # aborts the process after its work is done.
    # Few files have checksums of pages; where they have, damage is an error.
    try:
        file = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
        return file.read(columns=columns, use_threads=False)
    except OSError as error:
        if error.errno is not None:
            raise
        raise pa.ArrowInvalid(str(error)) from error  # damaged bytes, not a disk that fails


def as_json(value: Any) -> bytes:
    """`value` as `Store.put_json` writes it."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
