"""Every order in which two commands can do their store operations, but for those that are alike.

Operations that do not touch the same object may change places without any difference, so of all
orders that differ by that alone one is tried (Flanagan & Godefroid 2005, with sleep sets).
Commands are run again from the beginning for each order, as threads of which one at a time may do
its next operation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from surveyproc.store.storage import Store

READS = ("exists", "size", "read", "read_if_there", "read_range", "names", "sizes")
WRITES = ("put", "create", "swap", "remove", "copy", "writing", "reading")


@dataclass(frozen=True)
class Step:
    """An operation that a command is about to do."""

    kind: str
    keys: tuple[str, ...]

    def touches(self, other: Step) -> bool:
        """Whether it matters which of the two is done first."""
        if self.kind in READS and other.kind in READS:
            return False
        return any(_meet(one, two) for one in self.keys for two in other.keys)


def _meet(one: str, other: str) -> bool:
    """Whether a key is the other one, or a folder above it."""
    return one == other or f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


class Abandoned(BaseException):
    """Ends a command whose order was tried already."""


class Actor(threading.Thread):
    """A command that stops before each of its operations until it is told to go on."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work, self.next = work, None
        self.may, self.stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.depth = 0
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except (Exception, Abandoned) as error:
            self.error = error
        self.next = None
        self.stopped.release()

    def before(self, step: Step) -> None:
        """Called by the command's own thread."""
        self._fail()
        self.next = step
        self.stopped.release()
        self.may.acquire()
        self._fail()

    def _fail(self) -> None:
        """Raise the fault: whoever is gone does nothing more, others may clean up."""
        fault = self.fault
        if fault is not None:
            self.fault = fault if isinstance(fault, Abandoned) else None
            raise fault

    def go(self) -> None:
        """Let it do its next operation, and whatever follows up to the one after that."""
        self.may.release()
        self.stopped.acquire()


class Serial:
    """A pool whose work is done by who asks for it."""

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def map(self, work: Callable[..., Any], *items: Any) -> Iterator[Any]:
        return map(work, *items)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done


def watch(patch: pytest.MonkeyPatch) -> None:
    """Make every operation of every store one that an actor stops before."""
    for name in (*READS, *WRITES):
        patch.setattr(Store, name, _stopping(name, getattr(Store, name)))


def _stopping(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def stop(self: Store, key: str, *rest: Any, **more: Any) -> Any:
        actor = threading.current_thread()
        # What an operation is made of belongs to it.
        if not isinstance(actor, Actor) or actor.depth or key.startswith(".staging"):
            return real(self, key, *rest, **more)
        if name == "remove" and Path(self.path(key)).is_dir():
            return _remove(self, key, actor, real)
        actor.before(Step(name, (key, rest[0]) if name == "copy" else (key,)))
        actor.depth += 1
        try:
            return real(self, key, *rest, **more)
        finally:
            actor.depth -= 1

    return stop


def _remove(store: Store, key: str, actor: Actor, real: Callable[..., Any]) -> None:
    """A folder does not go in one step: here in two, of half of its files each."""
    files = sorted(one for one in Path(store.path(key)).rglob("*") if one.is_file())
    half = files[: -(-len(files) // 2)]
    actor.before(Step("remove", tuple(one.relative_to(store.root).as_posix() for one in half)))
    for path in half:
        path.unlink(missing_ok=True)
    actor.before(Step("remove", (key,)))
    real(store, key)


Begin = Callable[[], tuple[Callable[[], Any], Callable[[], Any]]]


def each_within_the_other(
    begin: Begin, look: Callable[[], None], end: Callable[[list[BaseException | None]], None]
) -> int:
    """Stop one of two commands before each operation, while the other one runs from end to end."""
    tried = 0
    for outer in (0, 1):
        stop, reached = 0, True
        while reached:
            actors = _started(begin)
            for _ in range(stop):
                if actors[outer].next is not None:
                    actors[outer].go()
                    look()
            reached = actors[outer].next is not None
            for actor in (actors[1 - outer], actors[outer]):
                while actor.next is not None:
                    actor.go()
                    look()
                actor.join()
            end([actor.error for actor in actors])
            tried, stop = tried + 1, stop + 1
    return tried


def cut_off_at_each(
    begin: Callable[[], Callable[[], Any]],
    fault: BaseException,
    look: Callable[[], None],
    end: Callable[[], None],
) -> int:
    """End a command with `fault` at each of its operations in turn; at how many.

    Parameters
    ----------
    begin : callable
        Puts the store in its first state; the command.
    fault : BaseException
        `Abandoned` is as good as killed: nothing more is done to the store.
    look, end : callable
        Called when it has ended.
    """
    tried = 0
    while True:
        (actor,) = _started(lambda: (begin(),))
        for _ in range(tried):
            if actor.next is not None:
                actor.go()
        over = actor.next is None
        _abandon(actor, fault)
        look()
        end()
        if over:
            return tried
        tried += 1


def _started(begin: Callable[[], Sequence[Callable[[], Any]]]) -> list[Actor]:
    actors = [Actor(work) for work in begin()]
    for actor in actors:
        actor.start()
        actor.stopped.acquire()
    return actors


def every_order(
    begin: Begin, look: Callable[[], None], end: Callable[[list[BaseException | None]], None]
) -> int:
    """Try all orders; how many there were.

    Parameters
    ----------
    begin : callable
        Puts the store in its first state; the two commands.
    look : callable
        Called after every operation.
    end : callable
        Called with the errors of both commands when they have ended.
    """
    tried = 0
    nodes: list[_Node] = []
    while True:
        actors = _started(begin)
        trace: list[tuple[int, Step]] = []
        asleep: set[int] = set()
        while alive := {one for one in (0, 1) if actors[one].next is not None}:
            if len(trace) == len(nodes):
                if not alive - asleep:
                    break
                nodes.append(_Node(min(alive - asleep), asleep))
            node = nodes[len(trace)]
            step = actors[node.choice].next
            asleep = {
                one
                for one in (node.asleep | node.done) - {node.choice}
                if not _wakes(actors[one], step)
            }
            trace.append((node.choice, step))
            actors[node.choice].go()
            look()
        _turn_round(nodes, [*trace, *((one, actors[one].next) for one in alive)])
        if alive:
            for actor in actors:
                _abandon(actor)
        else:
            tried += 1
            for actor in actors:
                actor.join()
            end([actor.error for actor in actors])
        while nodes:
            nodes[-1].done.add(nodes[-1].choice)
            if left := nodes[-1].wanted - nodes[-1].done - nodes[-1].asleep:
                nodes[-1].choice = min(left)
                break
            nodes.pop()
        else:
            return tried


@dataclass
class _Node:
    """A moment at which one of the commands may go on: which does, did, must yet, and need not."""

    choice: int
    asleep: set[int]
    done: set[int] = field(default_factory=set)
    wanted: set[int] = field(default_factory=set)


def _turn_round(nodes: list[_Node], trace: list[tuple[int, Step]]) -> None:
    """Have every two operations that touch the same object done the other way round, too."""
    for at, (actor, step) in enumerate(trace):
        for before in range(min(at, len(nodes)) - 1, -1, -1):
            other, earlier = trace[before]
            if other != actor and step.touches(earlier):
                nodes[before].wanted.add(actor)
                break


def _wakes(sleeper: Actor, step: Step) -> bool:
    return sleeper.next is None or sleeper.next.touches(step)


def _abandon(actor: Actor, fault: BaseException | None = None) -> None:
    actor.fault = fault or Abandoned()
    while actor.next is not None:
        actor.go()
    actor.join()
