"""Work in this very process: for what is done before a worker process would have started."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from surveyproc.errors import StoreError, SurveyError, UnreachableError
from surveyproc.places.base import Item, Stage


@dataclass
class Pace:
    """What items took, beside what they were expected to.

    Attributes
    ----------
    expected, wall, cpu : float
        Seconds of all of them: as told beforehand, on the clock, and of a processor. Making the
        worker is not in it.
    """

    expected: float = 0.0
    wall: float = 0.0
    cpu: float = 0.0


class Here:
    """This process, a worker in each of a few threads.

    The kernels release Python's lock (linear algebra, sorting, compression, file access), so that
    two threads keep two cores busy. An item that ended an earlier command, so that its note was
    left in the ledger, is given a process of its own.

    Parameters
    ----------
    threads : int
        With one, items are done in the thread that asks for the results.

    Attributes
    ----------
    pace : Pace
        What the items that are done took.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.pace = Pace()

    def stream(self, items: Iterable[Item], stage: Stage) -> Iterator[tuple[Item, Any]]:
        """As `Place.stream`. The next item is taken only when there is a thread free for it."""
        one = _Worker(stage, self.pace)
        with _torch_as_it_was():
            if self.threads == 1:
                yield from map(one, items)
            else:
                yield from _side_by_side(items, one, self.threads)
        one.forget()


def _side_by_side(
    items: Iterable[Item], one: Callable[[Item], tuple[Item, Any]], threads: int
) -> Iterator[tuple[Item, Any]]:
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[tuple[Item, Any]]] = set()
        for item in items:
            running.add(pool.submit(one, item))
            if len(running) >= threads:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


class _Worker:
    """Does one item after the other in each thread that calls it, noting what is under way."""

    def __init__(self, stage: Stage, pace: Pace) -> None:
        self.stage, self.pace, self.made = stage, pace, threading.local()
        self.lock = threading.Lock()
        self.left = stage.ledger.left() if stage.ledger else {}
        self.deadly = set[str]()

    def __call__(self, item: Item) -> tuple[Item, Any]:
        ledger, left = self.stage.ledger, self.left.get(item.name, [])
        if item.apart or left:
            result, ended = _apart(self.stage, item.payload)
            if not ended:
                self.deadly.add(item.name)
            return item, result
        note = self.begin(item)
        try:
            if not hasattr(self.made, "work"):
                self.made.work = self.stage.make()
            wall, cpu = time.monotonic(), time.thread_time()
            result = self.made.work(item.payload)
            with self.lock:
                self.pace.expected += item.seconds
                self.pace.wall += time.monotonic() - wall
                self.pace.cpu += time.thread_time() - cpu
            return item, result
        finally:
            if ledger and note:
                ledger.end(note)

    def begin(self, item: Item) -> str:
        """The note that an item is under way; none where there is no ledger."""
        try:
            return self.stage.ledger.begin(item.name) if self.stage.ledger else ""
        except UnreachableError:
            raise
        except StoreError:
            return ""  # a full disk: the item itself will meet it, and say what it means for it

    def forget(self) -> None:
        """Take back the notes found, but those of items that killed processes again.

        Those of other items than were to be done are of work that is done.
        """
        for name, notes in self.left.items():
            if name not in self.deadly and self.stage.ledger:
                self.stage.ledger.end(*notes)


def _apart(stage: Stage, payload: Any) -> tuple[Any, bool]:
    """The result of a payload in a process of its own, and whether that lived to give it."""
    # Not forked: this process has threads.
    context = multiprocessing.get_context("spawn")
    for _ in range(stage.deaths):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_do, args=(theirs, stage.worker, stage.arguments, payload))
        process.start()
        theirs.close()
        try:
            result = ours.recv()
        except EOFError:
            process.join()
            continue
        process.join()
        if isinstance(result, Exception):
            raise result
        return result, True
    return stage.give_up(payload), False


def _do(pipe: Connection, worker: Any, arguments: tuple[Any, ...], payload: Any) -> None:
    """One item, in a process that ends with it, also if nobody is there any more to be told."""
    try:
        result = Stage("", worker, arguments).make()(payload)
    except SurveyError as error:
        result = error
    except Exception:
        result = RuntimeError(traceback.format_exc())
    with suppress(BrokenPipeError):
        pipe.send(result)


@contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Workers set torch to one thread; whoever called us gets its own number back."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)
