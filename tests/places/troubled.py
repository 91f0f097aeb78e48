"""Workers in trouble. In a module of its own: other processes import it by name."""

import os
import signal
import time
from pathlib import Path

from surveyproc.errors import InputError


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
