"""Work in this very process: for what is done before a worker process would have started."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from surveyproc.errors import StoreError, SurveyError, UnreachableError
from surveyproc.places.base import Item, Stage, make

POLL_S = 0.2
"""Between two looks, so that Ctrl-C reaches a thread that waits for a process."""


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

    def stream(self, items: Iterable[Item], stage: Stage) -> Iterator[Any]:
        """The result of every item, as they finish, in no fixed order.

        The next item is taken only when there is a thread free for it. Where an earlier command was
        cut off there is one thread: it may have been memory that ended it.

        Raises
        ------
        SurveyError
            The first one that the worker raised, as it is.
        """
        one = _Worker(stage, self.pace)
        _keep_freed_memory()
        with _torch_as_it_was():
            if self.threads == 1 or one.left:
                yield from map(one, items)
            else:
                yield from _side_by_side(items, one, self.threads)
        one.forget()


def _side_by_side(items: Iterable[Item], one: _Worker, threads: int) -> Iterator[Any]:
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[Any]] = set()
        try:
            for item in items:
                running.add(pool.submit(one, item))
                if len(running) >= threads:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except (KeyboardInterrupt, GeneratorExit):
            # Ctrl-C here, or where the results are used: nobody waits for the others any more.
            one.interrupt()
            raise


class _Worker:
    """Does one item after the other in each thread that calls it, noting what is under way."""

    def __init__(self, stage: Stage, pace: Pace) -> None:
        self.stage, self.pace, self.made = stage, pace, threading.local()
        self.left = stage.ledger.left() if stage.ledger else {}
        self.lock, self.busy, self.interrupted = threading.Lock(), set[int](), False
        self.done = set[str]()

    def __call__(self, item: Item) -> Any:
        thread = threading.get_ident()
        with self.lock:
            self.busy.add(thread)
        try:
            return self.do(item)
        finally:
            with self.lock:
                self.busy.discard(thread)

    def do(self, item: Item) -> Any:
        """The result of an item, by this thread or in a process of its own."""
        if item.apart or item.name in self.left:
            return self.apart(item)
        note = self.begin(item)
        try:
            if not hasattr(self.made, "work"):
                self.made.work = make(self.stage.worker, self.stage.arguments)
            wall, cpu = time.monotonic(), time.thread_time()
            result = self.made.work(item.payload)
            with self.lock:
                self.pace.expected += item.seconds
                self.pace.wall += time.monotonic() - wall
                self.pace.cpu += time.thread_time() - cpu
            return result
        finally:
            if self.stage.ledger and note:
                self.stage.ledger.end(note)

    def begin(self, item: Item) -> str:
        """The note that an item is under way; none where there is no ledger."""
        try:
            return self.stage.ledger.begin(item.name) if self.stage.ledger else ""
        except UnreachableError:
            raise
        except StoreError:
            return ""  # a full disk: the item itself will meet it, and say what it means for it

    def apart(self, item: Item) -> Any:
        """The result of an item in a process of its own."""
        # Not forked: this process has threads.
        context = multiprocessing.get_context("spawn")
        for _ in range(self.stage.deaths):
            ours, theirs = context.Pipe(duplex=False)
            call = (theirs, self.stage.worker, self.stage.arguments, item.payload)
            process = context.Process(target=_do, args=call, daemon=True)
            process.start()
            theirs.close()
            try:
                while not ours.poll(POLL_S):
                    pass
                result = ours.recv()
            except EOFError:
                if self.interrupted:
                    raise KeyboardInterrupt from None
                continue
            finally:
                process.kill()
                process.join()
            if isinstance(result, Exception):
                raise result
            self.done.add(item.name)
            return result
        return self.stage.give_up(item.payload)

    def interrupt(self) -> None:
        """End what the threads are doing, as Ctrl-C ends what the first thread does.

        Python delivers it between two of its own instructions, so a kernel is done first. A thread
        that does nothing must not get it: the pool would wait for it for ever.
        """
        self.interrupted = True
        with self.lock:
            for thread in self.busy:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt)
                )

    def forget(self) -> None:
        """Take back the notes of items that did not kill their process this time."""
        for name in self.done & self.left.keys():
            if self.stage.ledger:
                self.stage.ledger.end(*self.left[name])


def _do(pipe: Connection, worker: Any, arguments: tuple[Any, ...], payload: Any) -> None:
    """One item, in a process that ends with it, also if nobody is there any more to be told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all; the command ends this one
    try:
        result = make(worker, arguments)(payload)
    except SurveyError as error:
        result = error
    except Exception:
        result = RuntimeError(traceback.format_exc())
    with suppress(BrokenPipeError):
        pipe.send(result)


@cache
def _keep_freed_memory() -> None:
    """Let the C library keep what was freed for the next array, in every thread.

    Else it maps and unmaps the arrays of all threads but the first one by one, and the threads wait
    for each other's pages: a small CNN gave 6,300 objects/s in two threads, and with this 9,200;
    in two processes 9,400.
    """
    # Numbers of glibc's malloc.h; the first may be 32 MB at most. Others have no such function.
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-3, 32 << 20), (-1, 1 << 30)):  # M_MMAP_, M_TRIM_THRESHOLD
            mallopt(parameter, value)


@contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Workers set torch to one thread; if it was in use before, it gets its own number back."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)
