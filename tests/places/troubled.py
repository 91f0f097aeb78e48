"""Workers in trouble. In a module of its own: other processes import it by name."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from surveyproc.errors import InputError
from surveyproc.places import Divided


class Squarer:
    def __init__(self, offset: int):
        self.offset = offset

    def __call__(self, number):
        return {"number": number, "square": number**2 + self.offset, "process": os.getpid()}


class DiesOnce:
    """Kills its own process the first time it sees item 3."""

    def __init__(self, marker: str):
        self.marker = Path(marker)

    def __call__(self, number):
        if number == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


class Deadly:
    """Kills every process that touches item 3, or that makes one if told so."""

    def __init__(self, at_once: bool = False):
        if at_once:
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    @staticmethod
    def died(number):
        return -number


def refuse(number):
    raise InputError(f"number {number} is not welcome")


class Refuser:
    def __call__(self, number):
        return refuse(number)


class Waits:
    """Waits until both items are under way, each in a process of its own; gives its process."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def __call__(self, number):
        (self.folder / str(os.getpid())).touch()
        until = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < 2:
            assert time.monotonic() < until, "the other item is not under way"
            time.sleep(0.01)
        return os.getpid()


class Slow:
    """Takes 50 ms."""

    def __call__(self, number):
        time.sleep(0.05)
        return number, os.getpid()


class Halves(Divided):
    """Sums arrays of a megabyte, six of each number; a part that is read waits as a file.

    Parameters
    ----------
    folder : str
        Where `alive` has the parts that were read and are not yet computed, `counts` how many that
        were, and `reading-7`, say, how and how often a side is to fail at 7.
    slow : str
        The side that takes its time.
    enough : int
        Parts of which no more are wanted.
    """

    def __init__(self, folder: str, slow: str = "", enough: int = 6):
        self.folder, self.slow, self.enough = Path(folder), slow, enough

    def read(self, number):
        alive = self.folder / "alive"
        for part in range(6):
            self.work("reading", number)
            (alive / f"{number}-{part}").touch()
            (self.folder / "counts" / f"{len([*alive.iterdir()])}").touch()
            yield part, np.full(1 << 17, number, np.int64)

    def begin(self, number):
        return Half(self, number)

    def work(self, side, number):
        time.sleep(0.03 * (self.slow == side))
        note = self.folder / f"{side}-{number}"
        if not note.exists():
            return
        how, times = note.read_text().split()
        note.unlink()
        if times != "1":
            note.write_text(f"{how} {int(times) - 1}")
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise InputError(f"{side} {number} failed") if how == "refuses" else ZeroDivisionError(side)

    @staticmethod
    def died(number):
        return {"number": number, "died": True}


class Half:
    def __init__(self, whole, number):
        self.whole, self.number, self.sum, self.copied = whole, number, 0, False
        self.next = 0

    def take(self, part):
        index, array = part
        assert index == self.next, "out of order"
        self.next += 1
        self.whole.work("computing", self.number)
        self.sum += int(array[::1024].sum()) >> 7
        self.copied |= array.flags.writeable
        (self.whole.folder / "alive" / f"{self.number}-{index}").unlink(missing_ok=True)
        return index + 1 < self.whole.enough

    def end(self):
        self.whole.work("ending", self.number)
        found = {"number": self.number, "sum": self.sum, "copied": self.copied}
        return {**found, "process": os.getpid(), "device": self.whole.device}
