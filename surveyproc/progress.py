"""A live bar with a true total on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

# Where there is no terminal, nothing is drawn.
if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_INTERVAL_S = 5.0


class Meter:
    """Counts objects, units and bytes of one verb and shows them on standard error.

    Parameters
    ----------
    verb : str
        What is going on (`ingest`, `run`).
    objects, units : int
        True totals.
    noun : str
        What is counted, if not objects.
    """

    def __init__(self, verb: str, *, objects: int, units: int, noun: str = "objects") -> None:
        self.verb, self.noun = verb, noun
        self.total_objects, self.total_units = objects, units
        self.objects = self.units = self.bytes = 0
        self.started = self._last = time.monotonic()
        self._bar = _bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                self.verb, total=max(self.total_objects, 1), rate="", noun=self.noun
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None or kind is KeyboardInterrupt:
            print(self.line(), file=sys.stderr)

    def advance(self, *, objects: int, units: int = 1, nbytes: int = 0) -> None:
        """Count finished work and show it (plain lines at most every five seconds)."""
        self.objects += objects
        self.units += units
        self.bytes += nbytes
        if self._bar is not None:
            self._bar.update(self._task, completed=self.objects, rate=f"{self.rate:,.0f}/s")
        elif time.monotonic() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return max(time.monotonic() - self.started, 1e-9)

    @property
    def rate(self) -> float:
        """Objects a second so far."""
        return self.objects / self.seconds

    def line(self) -> str:
        """One plain line: objects, units, bytes, rate, time left."""
        counted = (
            f"{self.verb}: {self.objects}/{self.total_objects} {self.noun}, "
            f"{self.units}/{self.total_units} units, {self.bytes / 1e6:.1f} MB"
        )
        if not self.objects:
            return counted  # nothing is known of the pace
        left = (self.total_objects - self.objects) / self.rate
        return f"{counted}, {self.rate:,.0f} {self.noun}/s, {left:.0f} s left"


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[noun]}  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
