"""Rows too many for memory, sorted into groups on disk.

What is collected in memory is written as one run: a file of Arrow messages, one a group. Where
each lies is kept in memory, so that a reader of one group reads its bytes of each run and nothing
else; an index inside the files would be read once a group. Few files are open or written, however
many groups there are.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveyproc.errors import StoreError
from surveyproc.store.storage import Store

Int = NDArray[np.int64]
_ABANDONED_S = 2 * 86_400
# Names of the folders that ingests of this very process are using.
_IN_USE: set[str] = set()


class Spill:
    """Collects rows with a group number each and writes runs under a folder.

    Parameters
    ----------
    store : Store
        Where; workers on other machines must reach it too.
    folder : str
        Key of a folder of its own.
    schema : pyarrow.Schema
        Of the rows.
    budget : int
        Bytes of rows held before a run is written; about three times as much is used then.
    """

    def __init__(self, store: Store, folder: str, schema: pa.Schema, budget: int) -> None:
        self._store, self._folder, self._schema = store, folder, schema
        self._budget = budget
        self._rows: list[pa.RecordBatch] = []
        self._groups: list[Int] = []
        self._held = 0
        # One row a message: group, run, offset, length.
        self._index: list[Int] = []

    def add(self, groups: Int, arrays: list[pa.Array]) -> None:
        """Take rows, with their group numbers, shape (n,).

        Raises
        ------
        StoreError
            If a run cannot be written.
        """
        if not len(groups):
            return
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._rows.append(batch)
        self._groups.append(groups)
        self._held += batch.nbytes
        if self._held >= self._budget:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one run."""
        if not self._rows:
            return
        groups = np.concatenate(self._groups)
        order = np.argsort(groups, kind="stable")
        table = pa.Table.from_batches(self._rows, self._schema).combine_chunks()
        table = table.take(pa.array(order))
        self._rows, self._groups, self._held = [], [], 0
        present, starts = np.unique(groups[order], return_index=True)
        stops = np.append(starts[1:], len(groups))
        run = len(self._index)
        offset, entries = 0, []
        with self._store.writing(_run_key(self._folder, run), lasting=False) as stream:
            for group, start, stop in zip(
                present.tolist(), starts.tolist(), stops.tolist(), strict=True
            ):
                part = table.slice(start, stop - start).combine_chunks()
                message = part.to_batches()[0].serialize()
                stream.write(message)
                entries.append((group, run, offset, message.size))
                offset += message.size
        self._index.append(np.array(entries, np.int64))

    def places(self) -> dict[int, Int]:
        """For every group where its rows are: (run, offset, length), shape (k, 3)."""
        if not self._index:
            return {}
        index = np.concatenate(self._index)
        index = index[np.argsort(index[:, 0], kind="stable")]
        present, starts = np.unique(index[:, 0], return_index=True)
        return dict(zip(present.tolist(), np.split(index[:, 1:], starts[1:]), strict=True))


def _run_key(folder: str, run: int) -> str:
    return f"{folder}/run-{run:06d}.arrow"


def read_group(store: Store, folder: str, places: Int, schema: pa.Schema) -> pa.Table:
    """The rows of one group, as `Spill.places` located them.

    Raises
    ------
    StoreError
        If a run is gone or damaged.
    """
    parts = []
    for run, offset, length in places.tolist():
        key = _run_key(folder, run)
        message = store.read_range(key, offset, length)
        try:
            parts.append(pa.ipc.read_record_batch(pa.py_buffer(message), schema))
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(f"{store.url_of(key)}: {error}; repeat the command") from error
    return pa.Table.from_batches(parts, schema).combine_chunks()


def bucket(ids: Int, bits: int) -> Int:
    """Bucket of each id, 0 to 2**bits - 1, spread evenly whatever the ids."""
    if bits == 0:
        return np.zeros(len(ids), np.int64)
    with np.errstate(over="ignore"):
        mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(0xD6E8FEB86659FD93)
    return (mixed >> np.uint64(64 - bits)).astype(np.int64)


def at_most_two(*keys: Int) -> list[Int]:
    """Rows of these columns, sorted by the first, then the others; equal rows at most twice.

    Enough to tell which ids repeat.
    """
    order = np.lexsort(keys[::-1])
    columns = [key[order] for key in keys]
    third = np.zeros(len(order), bool)
    third[2:] = np.all([column[2:] == column[:-2] for column in columns], axis=0)
    return [column[~third] for column in columns]


def repeated(ids: Int) -> Int:
    """Sorted values that occur more than once."""
    ids = np.sort(ids)
    return np.unique(ids[1:][ids[1:] == ids[:-1]])


def collisions(ids: Int, check: Int) -> Int:
    """Ids, sorted, that stand for different things: they occur with different checks."""
    order = np.lexsort((check, ids))
    ids, check = ids[order], check[order]
    return np.unique(ids[1:][(ids[1:] == ids[:-1]) & (check[1:] != check[:-1])])


@contextmanager
def own_folder(store: Store, key: str) -> Iterator[str]:
    """A folder for this process's temporary files; those of processes that died are removed.

    Two ingests of one survey at once, in one process or in two, do not share it. Both write the
    same leaves, so the one that ends last leaves what the other one did.
    """
    base = f"{key}/.spill"
    host = socket.gethostname().replace("~", "-")
    for name in store.names(base):
        owner, _, rest = name.partition("~")
        pid, _, started = rest.partition("~")
        started = started.partition("~")[0]
        here = owner == host and pid.isdigit()
        old = started.isdigit() and time.time() - int(started) > _ABANDONED_S
        if (here and not _alive(int(pid), name)) or (not here and old):
            store.remove(f"{base}/{name}")
    mine = f"{host}~{os.getpid()}~{int(time.time())}~{uuid.uuid4().hex[:8]}"
    _IN_USE.add(mine)
    try:
        yield f"{base}/{mine}"
    finally:
        store.remove(f"{base}/{mine}")
        _IN_USE.discard(mine)
        if store.is_local:
            # Refused by the system while it holds another's folder; object stores have no folders.
            with suppress(OSError):
                store.fs.rmdir(store.path(base))


def _alive(pid: int, name: str) -> bool:
    if pid == os.getpid():
        # A container that was started again has the same host name and process numbers.
        return name in _IN_USE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
