"""Where the work of a command runs: decided here, stage by stage, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from surveyproc.config import RunSection
from surveyproc.errors import ConfigError
from surveyproc.places.base import Item, Stage
from surveyproc.places.here import Here

# Who works here imports no Ray.
if TYPE_CHECKING:
    from surveyproc.places.cluster import Cluster

MOST_THREADS = 4
"""More than these mostly wait for Python's lock."""
START_S, RUNNING_S = 8.0, 3.0
"""Until the processes of a Ray of our own have begun, and those of one that runs (benchmarks)."""
LONG_S = 60.0
"""Work that takes longer is worth processes that can die, and be killed for memory, alone."""


def ray_pays(seconds: float, busy: float, workers: int, start: float) -> bool:
    """Whether work is better given to Ray than done here.

    Parameters
    ----------
    seconds : float
        What it would take here.
    busy : float
        Cores that it keeps busy here.
    workers : int
        Processes that Ray would use.
    start : float
        Seconds until they have begun.
    """
    return seconds > LONG_S or start + seconds * busy / workers < seconds


class Places:
    """The places of one command. A Ray of our own is started when it is first needed, and once.

    Parameters
    ----------
    run : RunSection
        `place`, `workers`, `address`, `niceness`.

    """

    def __init__(self, run: RunSection) -> None:
        self.run = run
        self._told: dict[tuple[str, str], str] = {}
        self._open = ExitStack()
        self._cluster: Cluster | None = None

    @property
    def workers(self) -> int:
        """Items done at once, as far as can be known before Ray is asked."""
        return self._cluster.workers if self._cluster else self.run.workers or _cores()

    def cluster(self) -> Cluster:
        """The Ray cluster, started if it does not run."""
        if self._cluster is None:
            from surveyproc.places.cluster import session

            run = self.run
            opened = session(run.address, run.workers, run.niceness)
            self._cluster = self._open.enter_context(opened)
        return self._cluster

    def close(self) -> None:
        """End the Ray that was started, if one was."""
        self._cluster = None
        self._open.close()

    def choose(self, what: str, seconds: float) -> str:
        """`here` or `ray`, for work that would take one core so many seconds; see `told`."""
        place, why = self._choice(seconds)
        self._note(what, place, why)
        return place

    def need_ray(self, what: str, why: str) -> Cluster:
        """The Ray cluster, for work that cannot be done without.

        Raises
        ------
        ConfigError
            If the configuration forbids it.
        """
        if self.run.place == "here":
            raise ConfigError(f"run.place = 'here', but {why} needs Ray: change one of the two")
        self._note(what, "ray", why)
        return self.cluster()

    def _choice(self, seconds: float) -> tuple[str, str]:
        if self.run.place != "auto":
            return self.run.place, f"run.place = {self.run.place!r}"
        if elsewhere := self._elsewhere():
            return "ray", elsewhere
        about = f"about {seconds:.0f} s of work" if seconds >= 1 else "less than a second of work"
        # Nothing is known yet of how much of it goes side by side: all, is assumed.
        if ray_pays(seconds / self.threads, self.threads, self.workers, self._start()):
            return "ray", about
        return "here", f"{about}, and Ray takes {self._start():.0f} s to start"

    def _elsewhere(self) -> str:
        """Why the work was meant for a cluster of somebody else's; empty if it was not."""
        if self.run.address != "local":
            return "run.address names a cluster"
        return "RAY_ADDRESS names a cluster" if os.environ.get("RAY_ADDRESS") else ""

    @property
    def threads(self) -> int:
        """Threads of this process that work."""
        return min(self.workers, _cores(), MOST_THREADS)

    def _start(self) -> float:
        ray = sys.modules.get("ray")
        return RUNNING_S if ray is not None and ray.is_initialized() else START_S

    def stream(self, items: Sequence[Item], stage: Stage, *, alone: bool = False) -> Iterator[Any]:
        """The result of every item, as they finish, in no fixed order.

        What was begun here and takes longer than expected goes on at Ray.

        Parameters
        ----------
        items : sequence of Item
            The work.
        stage : Stage
            What is done with it.
        alone : bool
            One after the other.

        Raises
        ------
        SurveyError
            The first one that the worker raised, or ClusterError if Ray failed.
        """
        if not items:
            return
        todo = deque(items)
        if self.choose(stage.what, sum(item.seconds for item in items)) == "here":
            threads = min(self.threads, len(items)) if stage.threads and not alone else 1
            here = Here(threads)
            for _, result in here.stream(self._while_well(todo, here), stage):
                yield result
            if todo:
                why = f"the last {len(todo)}, since they take longer than expected"
                self._note(stage.what, "ray", why)
        if todo:
            for _, result in self.cluster().stream(todo, stage, 1 if alone else None):
                yield result

    def _while_well(self, todo: deque[Item], here: Here) -> Iterator[Item]:
        """Hand out items for as long as what those before took says that they are well here."""
        while todo and not self._too_much(todo, here):
            yield todo.popleft()

    def _too_much(self, todo: Iterable[Item], here: Here) -> bool:
        pace = here.pace
        # As long as Ray takes to start is given to it: never twice of what was best, and a slow
        # beginning proves nothing.
        if self.run.place != "auto" or pace.wall < here.threads * self._start():
            return False
        left = sum(item.seconds for item in todo) * pace.wall / max(pace.expected, 1e-9)
        left /= here.threads
        busy = max(1.0, here.threads * pace.cpu / pace.wall)
        return ray_pays(left, busy, self.workers, self._start())

    def _note(self, what: str, place: str, why: str) -> None:
        # Units that are tried again are no news.
        self._told.setdefault((what, place), why)

    def told(self) -> list[dict[str, str]]:
        """What was decided since this was last asked, in order.

        Returns
        -------
        list of dict
            `what` (the items: `units`, `tiles`), `place` (`here` or `ray`) and `why`.
        """
        told = [
            {"what": what, "place": where, "why": why} for (what, where), why in self._told.items()
        ]
        self._told.clear()
        return told


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_opened: list[Places] = []


@contextmanager
def opened(run: RunSection | None = None) -> Iterator[Places]:
    """The places of a command, closed with the block; in a block of this kind, those of that one.

    Parameters
    ----------
    run : RunSection, optional
        The [run] section of the survey; its defaults unless given.
    """
    if _opened:
        yield _opened[-1]
        return
    places = Places(run or RunSection())  # type: ignore[call-arg]
    _opened.append(places)
    try:
        yield places
    finally:
        _opened.remove(places)
        places.close()
