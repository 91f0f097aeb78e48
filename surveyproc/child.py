"""A process for what may kill one: files of strangers, which libraries in C read.

The command's own process talks with it. It is started when it is first needed, is given one piece
of work after the other, and ends with the command. `python -m surveyproc.child` is its side;
unlike a process of `multiprocessing` it does not run the program again that we are part of.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from surveyproc.errors import DIED, DiedError, SurveyError, store_error

GONE = (EOFError, ConnectionError)
"""What a pipe raises whose other end is closed."""

Work = Callable[..., Generator[Any, Any, None]]


class _Child:
    """A process that waits for work."""

    def __init__(self, *modules: str) -> None:
        try:
            self.bulk = tempfile.TemporaryFile(prefix="surveyproc-")  # noqa: SIM115 (see `end`)
        except OSError as error:
            raise store_error(error, "a temporary file") from error
        self.pipe, theirs = Pipe()
        with theirs:
            numbers = [theirs.fileno(), self.bulk.fileno()]
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, numbers), *modules],
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
            )

    def hear(self) -> tuple[bool, Any]:
        """Whether the generator is at its end, and what it yielded, or the error that it raised."""
        over, pickled, sizes = self.pipe.recv()
        buffers, place = [], 0
        for size in sizes:
            view = memoryview(bytearray(size))
            buffers.append(view)
            while view:
                if not (count := os.preadv(self.bulk.fileno(), [view], place)):
                    raise EOFError
                place, view = place + count, view[count:]
        return over, pickle.loads(pickled, buffers=buffers)

    def end(self) -> None:
        """Let it go; nobody waits for what it is doing."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        self.bulk.close()


_idle: list[_Child] = []
# A fork of this process would share their pipes with it.
os.register_at_fork(after_in_child=_idle.clear)


@atexit.register
def _end() -> None:
    while _idle:
        _idle.pop().end()


def begin(*modules: str) -> None:
    """Start a process that imports `modules`, so that it is there when it is needed."""
    if not _idle:
        _idle.append(_Child(*modules))


class Talk:
    """A generator in another process, which may die of what it does.

    Parameters
    ----------
    work : callable
        A generator function of a module. It ends when it is closed; what it yields and is sent is
        pickled.
    arguments : object
        What it is called with.

    Attributes
    ----------
    owed : int
        How often it was told to go on and not yet heard.
    """

    def __init__(self, work: Work, *arguments: Any) -> None:
        self._child = _idle.pop() if _idle else _Child()
        # Not __del__, which may find the pipe closed by its own.
        self._end = weakref.finalize(self, self._child.end)
        self.owed, self._over = 0, False
        self.say((work, arguments))

    def say(self, message: Any) -> None:
        """Have the generator go on, with this as what its `yield` gives."""
        self.owed += 1
        with suppress(*GONE):  # who listens is told
            self._child.pipe.send((message,))

    def hear(self, where: str) -> Any:
        """What the generator yields next, of the file `where`.

        Raises
        ------
        DiedError
            If its process died; the message names the file.
        SurveyError
            The one that it raised.
        """
        try:
            self._over, answer = self._child.hear()
        except GONE:
            raise DiedError(
                f"{where}: {DIED} while it was read; leave it out, or write it anew"
            ) from None
        self.owed -= 1
        if self._over:
            raise answer
        return answer

    def close(self) -> None:
        """Close the generator. Its process is kept for others unless it is at work, or died."""
        if not self._end.alive:
            return
        with suppress(*GONE):
            if not self.owed and not self._over:
                self._child.pipe.send(None)
                self._over, _ = self._child.hear()
        if self._over and not self.owed:
            self._end.detach()
            _idle.append(self._child)
        else:
            self._end()


def _serve(pipe: Connection, bulk: int) -> None:
    """The other side: one generator after the other, until nobody is there any more."""
    while True:
        ((work, arguments),) = pipe.recv()
        generator, over = work(*arguments), False
        message: tuple[Any] | None = (None,)
        while message is not None and not over:
            over, *answer = _answer(generator, *message, bulk)
            pipe.send((over, *answer))
            message = None if over else pipe.recv()
        if not over:
            generator.close()
            pipe.send((True, pickle.dumps(None), []))


def _answer(
    generator: Generator[Any, Any, None], message: Any, bulk: int
) -> tuple[bool, bytes, list[int]]:
    """What the generator yields, or the error that it raises. Without memory it is as if killed."""
    try:
        return False, *_packed(generator.send(message), bulk)
    except SurveyError as error:
        return True, pickle.dumps(error), []
    except MemoryError:
        os._exit(1)
    except Exception:
        return True, pickle.dumps(RuntimeError(traceback.format_exc())), []


def _packed(answer: Any, bulk: int) -> tuple[bytes, list[int]]:
    """An answer pickled but for its arrays, and the bytes of each of these.

    They go through a file that both have open: a pipe takes a quarter of a GB a second.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickled, place = pickle.dumps(answer, 5, buffer_callback=buffers.append), 0
    sizes = []
    try:
        for buffer in buffers:
            view = buffer.raw()
            sizes.append(view.nbytes)
            while view:
                count = os.pwrite(bulk, view, place)
                place, view = place + count, view[count:]
    except OSError as error:
        raise store_error(error, tempfile.gettempdir()) from error
    return pickled, sizes


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all; the command ends this one
    for module in sys.argv[3:]:
        importlib.import_module(module)
    with suppress(*GONE):
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
