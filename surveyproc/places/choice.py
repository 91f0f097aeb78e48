"""Where the work of a command runs: decided here, stage by stage, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from surveyproc.config.sections import RunSection
from surveyproc.errors import ConfigError
from surveyproc.places.base import Item, Placement, Stage
from surveyproc.places.here import Here

# Who works here imports no Ray.
if TYPE_CHECKING:
    from surveyproc.places.cluster import Cluster

MOST_THREADS = 4
"""More than these mostly wait for Python's lock."""
START_S, RUNNING_S = 8.0, 3.0
"""Until the processes of a Ray of our own have begun (`run` of ten objects took 11 s more with it,
benchmarks/NOTES.md, on a slow machine), and, a guess, those of one that runs."""
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
        `place`, `workers`, `networks`, `address`, `niceness`.
    """

    def __init__(self, run: RunSection) -> None:
        self.run = run
        self._told: dict[tuple[str, str], str] = {}
        self._open = ExitStack()
        self._cluster: Cluster | None = None

    @property
    def workers(self) -> int:
        """Items done at once, as far as can be known before Ray is asked."""
        if self._cluster:
            return self._cluster.workers
        wanted = self.run.workers or _cores()
        return wanted if self._elsewhere() else min(wanted, _cores())

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

    def choose(self, what: str, seconds: float, at_once: int = 1) -> str:
        """`here` or `ray`, of work that cannot be divided; see `told`.

        Parameters
        ----------
        what : str
            The items, in the plural.
        seconds : float
            What they would take one core.
        at_once : int
            Items that this process would do side by side.
        """
        place, why = self._by_size(seconds, at_once)
        self._note(what, place, why)
        return place

    def _by_size(self, seconds: float, at_once: int) -> tuple[str, str]:
        about = f"about {seconds:.0f} s of work" if seconds >= 1 else "less than a second of work"
        # Nothing is known yet of how many cores that would keep busy: all, is assumed.
        pays = ray_pays(seconds / at_once, at_once, self.workers, self._start())
        start = "Ray runs already" if self._runs() else f"Ray takes {START_S:.0f} s to start"
        return self._decide(pays, about if pays else f"{about}, and {start}")

    def _decide(self, ray: bool, why: str) -> tuple[str, str]:
        if self.run.place != "auto":
            place = "here" if self.run.place == "here" else "ray"
            return place, f"run.place = {self.run.place!r}"
        if elsewhere := self._elsewhere():
            return "ray", elsewhere
        return "ray" if ray else "here", why

    def _choose_for(self, items: Sequence[Item], stage: Stage, at_once: int) -> tuple[str, str]:
        if stage.threads:
            return self._by_size(sum(item.seconds for item in items), at_once)
        if len(items) == 1:
            return self._decide(False, "one alone, nothing to share out")
        several = self.workers > 1
        why = f"{len(items)} of them, each with a process of its own"
        return self._decide(several, why if several else "one after the other")

    def need_ray(self, what: str, why: str) -> None:
        """Start Ray, for work that cannot be done without.

        Raises
        ------
        ConfigError
            If the configuration forbids it.
        """
        if self.run.place == "here":
            raise ConfigError(f"run.place = 'here', but {why} needs Ray: change one of the two")
        self._note(what, "ray", why)
        self.cluster()

    def _elsewhere(self) -> str:
        """Why the work was meant for a cluster of somebody else's; empty if it was not."""
        if self.run.address != "local":
            return "run.address names a cluster"
        return "RAY_ADDRESS names a cluster" if os.environ.get("RAY_ADDRESS") else ""

    @property
    def threads(self) -> int:
        """Threads of this process that work."""
        return min(self.workers, _cores(), MOST_THREADS)

    def _runs(self) -> bool:
        ray = sys.modules.get("ray")
        return ray is not None and bool(ray.is_initialized())

    def _start(self) -> float:
        return RUNNING_S if self._runs() else START_S

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
        threads = min(self.threads, len(items)) if stage.threads and not alone else 1
        place, why = self._choose_for(items, stage, threads)
        if place == "here":
            self._note(stage.what, place, why)
            here = Here(threads)
            yield from here.stream(self._while_well(todo, here), stage)
            why = f"the last {len(todo)}, since they take longer than expected"
        if todo:
            yield from self._on_ray(todo, stage, why, 1 if alone else None)

    def _on_ray(
        self, todo: Sequence[Item], stage: Stage, why: str, most: int | None
    ) -> Iterator[Any]:
        cluster = self.cluster()
        forced = self.run.place == "apart"
        if stage.divided and (forced or (stage.device and self.run.place == "auto")):
            from surveyproc.places.apart import Apart

            apart = Apart(cluster, self.run.networks)
            if forced or apart.gpus:
                self._note(stage.what, "apart", f"{why}: {apart}")
                yield from apart.stream(todo, stage, most)
                return
        elif forced:
            why += f", but {stage.what} are not read and computed apart"
        self._note(stage.what, "ray", why)
        yield from cluster.stream(todo, stage, most)

    def _while_well(self, todo: deque[Item], here: Here) -> Iterator[Item]:
        """Hand out items for as long as what those before took says that they are well here."""
        while todo and not self._too_much(todo, here):
            yield todo.popleft()

    def _too_much(self, todo: Iterable[Item], here: Here) -> bool:
        pace = here.pace
        # As long as Ray takes to start is given to it: a slow beginning proves nothing, and little
        # more than twice the time of the better place is the most that it takes.
        if self.run.place != "auto" or pace.wall < here.threads * self._start():
            return False
        left = sum(item.seconds for item in todo) * pace.wall / max(pace.expected, 1e-9)
        left /= here.threads
        busy = max(1.0, here.threads * pace.cpu / pace.wall)
        return ray_pays(left, busy, self.workers, self._start())

    def _note(self, what: str, place: str, why: str) -> None:
        # Units that are tried again are no news.
        self._told.setdefault((what, place), why)

    def told(self) -> list[Placement]:
        """What was decided since this was last asked, in order."""
        told = [Placement(what, where, why) for (what, where), why in self._told.items()]
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
