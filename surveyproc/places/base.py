"""What the places of work have in common: items, stages, and what a dead process leaves."""

from __future__ import annotations

import datetime
import os
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from surveyproc.errors import DIED, ClusterError, StoreError
from surveyproc.store import layout
from surveyproc.store.storage import Store, as_json

DEATHS = 5
"""How often a worker process may die with an item, unless the stage says otherwise."""
PROC = Path("/proc")
ABANDONED = datetime.timedelta(days=7)
"""Without a sign of life for so long, what was begun is not waited for."""


@dataclass(frozen=True)
class Placement:
    """Where work ran, and why.

    Attributes
    ----------
    what : str
        The items, in the plural: `units`, `tiles`.
    place : str
        `here`, `ray` or `apart`.
    why : str
        Why there.
    """

    what: str
    place: str
    why: str


@dataclass(frozen=True)
class Item:
    """One piece of work.

    Attributes
    ----------
    name : str
        The same whenever the same work is asked for: by it an item that ended a command is known
        to the next one.
    payload : object
        What the worker is called with: a small description of the work.
    seconds : float
        What it is expected to take one core; it decides where work runs, not what comes of it.
    apart : bool
        Whether it must have a process of its own, because it killed one before.
    """

    name: str
    payload: Any
    seconds: float = 0.0
    apart: bool = False


class Computing(Protocol):
    """The computing side of one item."""

    def take(self, part: Any) -> bool:
        """Compute a part that was read; whether the others are wanted. Its arrays are read-only.

        What is kept of them must be copied.
        """

    def end(self) -> Any:
        """The item's result, when all parts were taken. May run beside the `take` of others."""


class Divided(ABC):
    """A worker with two sides, which two processes may share: one reads, one computes.

    Called with a payload it does both.

    Attributes
    ----------
    device : str
        Where it is to compute, as torch names it: `cuda`, or `cpu` where no GPU is held.
    """

    device: str = "cpu"

    @abstractmethod
    def read(self, payload: Any) -> Iterator[Any]:
        """What must be read of an item, part by part; only what is asked for is read."""

    @abstractmethod
    def begin(self, payload: Any) -> Computing:
        """The computing side of an item, which is given the parts in their order."""

    def __call__(self, payload: Any) -> Any:
        """Both sides of an item, one after the other."""
        computing = self.begin(payload)
        for part in self.read(payload):
            if not computing.take(part):
                break
        return computing.end()


@dataclass(frozen=True)
class Stage:
    """What is done with the items of one kind, wherever that is.

    Attributes
    ----------
    what : str
        What the items are, in the plural: `units`, `tiles`.
    worker : class or function
        A class (made once a process, or a thread, with `arguments`, then called with each payload)
        or a function of a payload. Called twice with a payload it must do no harm.
    arguments : tuple
        Of the class.
    died : function
        Gives the result of a payload that has killed `deaths` processes. Unless given, such an item
        ends it all.
    deaths : int
        Processes that may die with an item before it is given up. One that went with its whole
        node counts only together with others, up to `DEATHS`.
    gpus : bool
        Whether each process has a share of the cluster's GPUs, one at most.
    threads : bool
        Whether threads of one process may do several items at once.
    device : bool
        Whether a GPU makes the work faster, of a worker that is divided.
    ledger : Ledger, optional
        Where items that are under way are noted, if a crash would end the command itself.
    """

    what: str
    worker: type | Callable[[Any], Any]
    arguments: tuple[Any, ...] = ()
    died: Callable[[Any], Any] | None = None
    deaths: int = DEATHS
    gpus: bool = False
    threads: bool = True
    device: bool = False
    ledger: Ledger | None = None

    @property
    def divided(self) -> bool:
        """Whether one process can read what another computes."""
        return isinstance(self.worker, type) and issubclass(self.worker, Divided)

    def give_up(self, payload: Any) -> Any:
        """The result of a payload that killed every process it was given to.

        Raises
        ------
        ClusterError
            If the stage has none for it.
        """
        if self.died is not None:
            return self.died(payload)
        raise ClusterError(
            f"{self.deaths} worker processes died one after the other with {str(payload)[:200]}: "
            f"{DIED}"
        )


def make(worker: type | Callable[[Any], Any], arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    """A worker, ready to be called: an instance of a class, or the function itself."""
    made: Callable[[Any], Any] = worker(*arguments) if isinstance(worker, type) else worker
    return made


class Ledger:
    """Notes, in the store, of the items that this process has begun and not ended.

    Who finds a note of a process that is gone knows which item ended it, or was under way when
    somebody killed it.

    Parameters
    ----------
    store : Store
        Where.
    key : str
        Folder of the notes.
    """

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key

    def begin(self, name: str) -> str:
        """Note that an item is under way; the note's key, for `end`."""
        key = f"{self.key}/{uuid.uuid4().hex}.json"
        document = as_json({"item": name, **_process(os.getpid())})
        # It must outlive this process, not the machine.
        with self.store.writing(key, lasting=False) as stream:
            stream.write(document)
        return key

    def end(self, *notes: str) -> None:
        """Take notes back; one that stays costs its item a process of its own, no more."""
        for key in notes:
            with suppress(StoreError):
                self.store.remove(key)

    def clear(self) -> None:
        """Take back what processes that are gone left, when all work is done."""
        for notes in self.left().values():
            self.end(*notes)

    def left(self) -> dict[str, list[str]]:
        """Items that other processes left under way when they ended, and the notes of each."""
        found: dict[str, list[str]] = {}
        for name in self.store.names(self.key):
            note = self.store.read_json(f"{self.key}/{name}")
            if note is not None and not lives(note):
                found.setdefault(note.pop("item"), []).append(f"{self.key}/{name}")
        return found


def _process(number: int) -> dict[str, Any]:
    """What tells a process from all others, also from a later one of the same number.

    Raises
    ------
    OSError
        If there is no such process (where /proc tells of processes).
    """
    born = ""
    if PROC.is_dir():
        # The name of the program, in brackets, may hold anything; 20 fields later: ticks since
        # the machine started, which is told by the other file.
        born = (PROC / str(number) / "stat").read_text().rpartition(")")[2].split()[19]
        born += (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "process": number, "born": born}


def lives(note: dict[str, Any]) -> bool:
    """Whether the process of a note is known to live; of other machines nobody here can tell."""
    try:
        os.kill(note["process"], 0)
    except PermissionError:
        pass  # somebody else's
    except OSError:
        return False
    try:
        now = _process(note["process"])
    except OSError:
        return False
    return all(note[key] == value for key, value in now.items())


@contextmanager
def under_way(store: Store, what: str) -> Iterator[None]:
    """Note, in the store, that what the block does is under way; see `is_under_way`."""
    ledger = Ledger(store, f"{layout.UNDER_WAY}/{what}")
    note = ledger.begin(what)
    try:
        yield
    finally:
        ledger.end(note)


def is_under_way(store: Store, what: str) -> bool:
    """Whether a process, here or on another machine, is within a block of `under_way`.

    Of one on another machine that does not end its note nobody knows; after a week it is gone.
    """
    folder = f"{layout.UNDER_WAY}/{what}"
    for name in store.names(folder):
        note = store.read_json(f"{folder}/{name}")
        if note is None:
            continue
        if note["host"] == socket.gethostname():
            if lives(note):
                return True
        elif store.fs.modified(store.path(f"{folder}/{name}")) > (
            datetime.datetime.now(datetime.UTC) - ABANDONED
        ):
            return True
    return False
