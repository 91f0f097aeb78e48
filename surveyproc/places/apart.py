"""Work on a Ray cluster whose two sides have processes of their own: readers feed networks.

A network holds a GPU, if there is one, and computes what readers on CPUs put into Ray's object
store, so that no GPU idles while pixels are read. See docs/design.md, "Where work runs".
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import ray.cloudpickle
import ray.exceptions

from surveyproc.errors import DIED, ClusterError
from surveyproc.places.base import DEATHS, Item, Stage
from surveyproc.places.cluster import LOST, Cluster, Failures, failures_of_ray, gpus
from surveyproc.places.sides import Network, Note, Reader

PARTS = 3
"""Parts of an item that are read, wait, or are computed at once (benchmarks/NOTES.md)."""
READER_CPU, NETWORK_CPU = 0.99, 0.0001
"""What they reserve: next to nothing keeps a network off nodes without CPUs, such as a head, and
still leaves room for as many readers as there are CPUs."""
SPARE = 1.25
"""Readers beyond those that the measured times ask for, as a factor."""
MEASURED = 8
"""Parts on either side, before their times say how many readers there should be."""
GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
)


class Apart:
    """Readers and networks on a Ray cluster.

    A network reserves no whole CPU at Ray: of two commands one could hold the GPU, the other the
    CPUs, each waiting for what the other has. There are as many fewer readers instead, and one at
    least, and no reader is asked for before there is a network: so nothing waits for ever with one
    CPU, or beside another command.

    Parameters
    ----------
    cluster : Cluster
        Where; its `workers` are the most processes of both kinds, but for the first of each.
    networks : int, optional
        Processes that compute; by default as many as GPUs, and one if there is none.

    Attributes
    ----------
    networks, readers : int
        The most processes of each kind.
    gpus : int
        Those of the cluster.
    """

    def __init__(self, cluster: Cluster, networks: int | None = None) -> None:
        self.gpus = int(gpus())
        self.networks = networks or max(1, self.gpus)
        self.readers = max(1, cluster.workers - self.networks)

    def __str__(self) -> str:
        return f"networks {self.networks}, GPUs {self.gpus}, readers {self.readers} at most"

    def stream(self, items: Iterable[Item], stage: Stage, most: int | None = None) -> Iterator[Any]:
        """The result of every item, as they finish; at most `most` are under way at once.

        The item of a process that dies is given out again; of several that a network has, the one
        that it was computing is held responsible.

        Raises
        ------
        ClusterError
            If Ray itself fails, or an item kills every process.
        SurveyError
            The first one that the worker raised, as it is.
        """
        yield from _Flow(self, items, stage, most).results()


@dataclass(eq=False)
class _Process:
    """A process as the driver knows it.

    Attributes
    ----------
    calls : ray.actor.ActorHandle
        The process itself.
    node : str
        Where it is; empty until it has started.
    reads : _Job, optional
        What a reader reads.
    gone : bool
        Whether it died, or was ended.
    blamed : set of _Job, optional
        What it was doing when it was first heard to be in trouble.
    unanswered : set of _Job
        Items of which a part was asked for and will not come.
    """

    calls: Any
    node: str = ""
    reads: _Job | None = None
    gone: bool = False
    blamed: set[_Job] | None = None
    unanswered: set[_Job] = field(default_factory=set)


@dataclass(eq=False)
class _Job:
    """An item under way.

    Attributes
    ----------
    read, over : bool
        Whether reading has ended; whether the item ended, or goes on elsewhere.
    asked, parts : int
        Parts that were asked for, and those of them that are not yet computed.
    """

    number: int
    item: Item
    reader: _Process
    network: _Process
    read: bool = False
    over: bool = False
    asked: int = 0
    parts: int = 0


@dataclass(frozen=True)
class _Call:
    """A call that was not yet answered: `what` is done, for which item, and what follows."""

    process: _Process
    what: str
    then: Callable[[Any], list[Any] | None]
    job: _Job | None = None


class _Rate:
    """Seconds that a part takes."""

    def __init__(self) -> None:
        self.seconds, self.parts = 0.0, 0

    def add(self, seconds: float) -> None:
        self.seconds, self.parts = self.seconds + seconds, self.parts + 1


class _Flow:
    """One stage's items on their way through readers and networks."""

    def __init__(self, place: Apart, items: Iterable[Item], stage: Stage, most: int | None) -> None:
        self.stage, self.waiting = stage, deque(items)
        most = most or len(self.waiting)
        self.most_networks, self.most_readers = min(place.networks, most), min(place.readers, most)
        # Those that are read, and for each network one whose last parts it computes.
        self.most_jobs = min(most, self.most_readers + self.most_networks)
        self.jobs, self.count = set[_Job](), 0
        self.readers, self.networks = list[_Process](), list[_Process]()
        self.pending = dict[Any, _Call]()
        self.reading, self.computing = _Rate(), _Rate()
        self.failures, self.unexplained = Failures(stage), 0
        recipe = ray.cloudpickle.dumps((stage.worker, stage.arguments))  # type: ignore[no-untyped-call]
        share = 1 / math.ceil(place.networks / place.gpus) if place.gpus else 0
        more: dict[str, Any] = {"num_gpus": share, "concurrency_groups": {"end": 1}}
        network = ray.remote(num_cpus=0 if share else NETWORK_CPU, **more)(Network)
        reader = ray.remote(num_cpus=READER_CPU)(Reader)
        self.new_network: Callable[[], Any] = partial(network.remote, recipe)
        self.new_reader: Callable[[], Any] = partial(reader.remote, recipe)

    def results(self) -> Iterator[Any]:
        """The result of every item."""
        try:
            with failures_of_ray():
                while self.waiting or self.jobs:
                    self.staff()
                    self.hand_out()
                    (answer,), _ = ray.wait(list(self.pending))
                    for result in self.hear(answer):
                        self.unexplained = 0
                        yield result
        finally:
            with suppress(ray.exceptions.RayError):
                for process in (*self.readers, *self.networks):
                    ray.kill(process.calls)

    def wanted(self) -> int:
        """Readers that keep the networks busy, as far as there is room and work for them."""
        wanted = 2 * self.most_networks
        if min(self.reading.parts, self.computing.parts) >= MEASURED:
            read = self.reading.seconds / self.reading.parts
            compute = self.computing.seconds / self.computing.parts
            wanted = math.ceil(SPARE * self.most_networks * read / max(compute, 1e-9))
        busy = sum(one.reads is not None for one in self.readers)
        room = min(self.most_readers, len(self.waiting) + busy)
        return min(max(wanted, self.most_networks), room)

    def staff(self) -> None:
        """Start processes that are lacking, and end readers that are not needed."""
        while len(self.networks) < min(self.most_networks, len(self.waiting) + len(self.jobs)):
            self.start(self.new_network(), self.networks)
        if not any(one.node for one in self.networks):
            return
        wanted = self.wanted()
        while len(self.readers) < wanted:
            self.start(self.new_reader(), self.readers)
        called = {call.process for call in self.pending.values()}
        for reader in [one for one in self.readers if one.reads is None and one not in called]:
            if len(self.readers) > wanted:
                self.readers.remove(reader)
                reader.gone = True
                ray.kill(reader.calls)

    def start(self, calls: Any, among: list[_Process]) -> None:
        """Wait for a process that was asked for; it may be long until there is room for it."""
        process = _Process(calls)
        among.append(process)
        self.pending[calls.node.remote()] = _Call(
            process, "start", lambda node: setattr(process, "node", node)
        )

    def hand_out(self) -> None:
        """Give items to readers that have none, each for the network that has the fewest."""
        for reader in self.readers:
            if not self.waiting or len(self.jobs) >= self.most_jobs:
                return
            networks = [one for one in self.networks if one.node and one.blamed is None]
            if networks and reader.node and reader.blamed is None and reader.reads is None:
                self.count += 1
                network = min(networks, key=self.load)
                job = _Job(self.count, self.waiting.popleft(), reader, network)
                reader.reads = job
                self.jobs.add(job)
                for _ in range(PARTS):
                    self.ask(job)

    def load(self, network: _Process) -> int:
        """Items that a network has."""
        return sum(job.network is network for job in self.jobs)

    def ask(self, job: _Job) -> None:
        """Have the next part of an item read."""
        index = job.asked
        note, part = job.reader.calls.read.remote(None if index else (job.item.payload,))
        job.asked, job.parts = index + 1, job.parts + 1
        self.pending[note] = _Call(
            job.reader, "read", lambda said: self.pass_on(job, said, index, part), job
        )

    def pass_on(self, job: _Job, said: Note, index: int, part: Any) -> None:
        """Give a part that was read to the network."""
        if job.over:
            return
        if said.more:
            self.reading.add(said.seconds)
            taken = job.network.calls.take.remote(job.number, index, job.item.payload, part)
            self.pending[taken] = _Call(
                job.network, "take", lambda said: self.computed(job, said), job
            )
            return
        job.parts -= 1
        self.end_reading(job)
        self.end(job)

    def computed(self, job: _Job, said: Note) -> None:
        """Ask for another part in the place of one that is computed."""
        if job.over:
            return
        self.computing.add(said.seconds)
        job.parts -= 1
        if not said.more:
            self.end_reading(job)
        if not job.read:
            self.ask(job)
        self.end(job)

    def end_reading(self, job: _Job) -> None:
        """Free the reader of an item."""
        job.read = True
        if job.reader.reads is job:
            job.reader.reads = None

    def end(self, job: _Job) -> None:
        """Have the result made, if all parts are computed."""
        if job.read and not job.parts:
            ended = job.network.calls.end.remote(job.number)
            self.pending[ended] = _Call(
                job.network, "end", lambda said: self.finish(job, said), job
            )

    def finish(self, job: _Job, result: Any) -> list[Any]:
        """The item's result."""
        if job.over:
            return []
        job.over = True
        self.jobs.discard(job)
        return [result]

    def hear(self, answer: Any) -> list[Any]:
        """Go on with what was answered; the results that came of it."""
        call = self.pending[answer]
        try:
            said = ray.get(answer)
        except GONE as error:
            return self.trouble(call, error)
        except ray.exceptions.RayError as error:
            # One that a network was to be given comes as the cause of its failure.
            lost = isinstance(error, LOST) or isinstance(getattr(error, "cause", None), LOST)
            if not lost or call.job is None:
                raise
            return self.lose(call.job, died=False)
        finally:
            del self.pending[answer]
        if isinstance(said, Note) and said.error is not None:
            raise said.error
        return call.then(said) or []

    def trouble(self, call: _Call, error: Exception) -> list[Any]:
        """What follows from a call that found its process dead, or out of reach."""
        process = call.process
        if call.what == "read" and call.job is not None:
            process.unanswered.add(call.job)
        if process.gone or (process.blamed is not None and call.what != "start"):
            return []
        if process.blamed is None:
            process.blamed = self.doing(process)
        if isinstance(error, ray.exceptions.ActorUnavailableError):
            # It will be known when the cluster has looked after its node.
            again = process.calls.node.remote()
            self.pending[again] = _Call(process, "start", lambda _: self.bury(process))
            return []
        return self.bury(process)

    def doing(self, process: _Process) -> set[_Job]:
        """What a process was at: reading, or computing the first of its parts, and writing."""
        if process.reads is not None:
            return {process.reads}
        calls = [one for one in self.pending.values() if one.process is process and one.job]
        takes = [one.job for one in calls if one.what == "take"]
        ends = [one.job for one in calls if one.what == "end"]
        return {job for job in (*takes[:1], *ends) if job is not None and not job.over}

    def bury(self, process: _Process) -> list[Any]:
        """Give out anew what a process had that died, or lost its calls."""
        process.gone = True
        for among in (self.readers, self.networks):
            if process in among:
                among.remove(process)
        ray.kill(process.calls)
        alive = {one["NodeID"] for one in ray.nodes() if one["Alive"]}  # type: ignore[no-untyped-call]
        blamed = process.blamed or set()
        if not blamed:
            self.unexplained += 1
            if self.unexplained >= DEATHS:
                raise ClusterError(
                    f"{DEATHS} processes of {self.stage.what} died one after the other that did "
                    f"nothing: {DIED}"
                )
        # The end of an item may have been heard, and a part before it not.
        lost = process.unanswered | {
            call.job
            for call in self.pending.values()
            if call.process is process and call.what == "read" and call.job is not None
        }
        results = []
        for job in [
            one
            for one in self.jobs
            if one in lost or process in (None if one.read else one.reader, one.network)
        ]:
            if job in blamed:
                results += self.lose(job, died=process.node in alive)
            else:
                self.leave(job)
                self.waiting.appendleft(job.item)
        return results

    def lose(self, job: _Job, *, died: bool) -> list[Any]:
        """Give out anew an item with which a process died, or was lost, or its result if not."""
        if job.over:
            return []
        self.leave(job)
        if not self.failures.again(job.item, died=died):
            return [self.stage.give_up(job.item.payload)]
        self.waiting.append(job.item)
        return []

    def leave(self, job: _Job) -> None:
        """End an item here."""
        job.over = True
        self.jobs.discard(job)
        self.end_reading(job)
        if not job.network.gone:
            job.network.calls.forget.remote(job.number)
