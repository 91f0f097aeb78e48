"""The Ray cluster a command works on: started and stopped by itself, or the one it is told of.

Items are Ray tasks, not blocks of Ray Data: see docs/design.md, "Where work runs".
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

# Ray samples these when it is imported. Its C++ core warns on standard error about what it tries
# again; what matters comes back as an exception.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")

import ray
import ray.cloudpickle
import ray.exceptions
from ray._private import ray_constants

from surveyproc.errors import ClusterError, SurveyError
from surveyproc.places.base import DEATHS, Item, Stage, make

CONNECT_S = 15.0
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
DIED_WITH_IT = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
"""A process died with an item. The other two: its node, or the node that held its result."""
LOST = (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)


@contextmanager
def session(
    address: str = "local", workers: int | None = None, niceness: int = 0
) -> Iterator[Cluster]:
    """A Ray cluster for the duration of the block; in a process that has one already, that one.

    Parameters
    ----------
    address : str
        "local" starts a cluster of this machine's CPUs that ends with the block, except where
        `RAY_ADDRESS` names one, as inside a Ray job; anything else is handed to `ray.init`.
    workers : int, optional
        Worker processes wanted; by default one a CPU of the cluster as it is now. A cluster of
        this machine gives no more than that; another one may grow, so it is asked for them all.
    niceness : int
        Of the worker processes, 0 to 19, if the cluster is our own.

    Raises
    ------
    ClusterError
        If no cluster answers at the address, or none can be started.
    """
    if ray.is_initialized():
        yield Cluster(min(_cpus(), workers or _cpus()))
        return
    if address == "local":
        address = os.environ.get("RAY_ADDRESS", address)
    own = address == "local"
    if own:
        os.environ["RAY_worker_niceness"] = str(niceness)  # noqa: SIM112
    with ExitStack() as stack:
        local = stack.enter_context(_private()) if own else {}
        yield stack.enter_context(_connected(address, workers, own, local))


@contextmanager
def _private() -> Iterator[dict[str, Any]]:
    """What keeps a Ray of our own from other users of the machine, and from other machines.

    Ray opens its session's folder, logs and sockets to all, so they lie in a folder that does not.
    It is not the one for temporary files: names of sockets may have 107 bytes.
    """
    folder = os.environ.get("RAY_TMPDIR", "/tmp")
    private = tempfile.TemporaryDirectory(prefix="ray-", dir=folder, ignore_cleanup_errors=True)
    with private, _on_loopback():
        # What it makes there it opens to all; what lies above it stays closed.
        yield {"include_dashboard": False, "_temp_dir": f"{private.name}/r"}


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have Ray listen on the loopback interface alone, as it does by itself on some systems.

    There is no option for it. The variable is for the processes that it starts; ours has read it.
    """
    was, own = os.environ.get(LOOPBACK), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[LOOPBACK], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = own
        if was is None:
            del os.environ[LOOPBACK]
        else:
            os.environ[LOOPBACK] = was


@contextmanager
def _connected(
    address: str, workers: int | None, own: bool, local: dict[str, Any]
) -> Iterator[Cluster]:
    try:
        _knock(address)
        with _silent_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # a node that starts too slowly is a bare Exception
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(f"run.address: no Ray cluster at {address!r}: {said[0]}") from error
    try:
        wanted = workers or _cpus()
        # A cluster of others may grow to what it is asked for, and should not beyond.
        yield Cluster(min(_cpus(), wanted), full=wanted >= _cpus()) if own else Cluster(wanted)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Connect to a `host:port` once: Ray itself would try a dead address for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's core announces its log level on the descriptor itself; errors come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def gpus() -> float:
    """GPUs of the cluster as it is now."""
    return float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]


def _cpus() -> int:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))


class Failures:
    """How often processes died with each item of a stage, or with their nodes."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.deaths, self.losses = Counter[str](), Counter[str]()

    def again(self, item: Item, *, died: bool) -> bool:
        """Count that a process died with an item, or was lost; whether to give it out anew."""
        (self.deaths if died else self.losses)[item.name] += 1
        deaths, losses, most = self.deaths[item.name], self.losses[item.name], self.stage.deaths
        return deaths < most and deaths + losses < max(DEATHS, most)


@contextmanager
def failures_of_ray() -> Iterator[None]:
    """Make a ClusterError of what Ray itself raises within the block."""
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError) as error:
        if isinstance(error, ray.exceptions.RayTaskError):
            raise  # a defect of ours, with its traceback
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(
            f"the Ray cluster failed: {said[0]} What was finished is kept: repeat the command"
        ) from error


class Cluster:
    """The processes of a Ray cluster. They stay between stages, and with them what they imported.

    Parameters
    ----------
    workers : int
        Items done at once, each by a process that reserves one CPU.
    full : bool
        Whether that is all that there will ever be room for: then as many items again wait at Ray,
        and no process for the driver.
    """

    def __init__(self, workers: int, *, full: bool = False) -> None:
        self.workers, self.full = workers, full

    def stream(
        self, items: Iterable[Item], stage: Stage, workers: int | None = None
    ) -> Iterator[Any]:
        """The result of every item, as they finish, in no fixed order.

        At most `workers` items are done at once, if that is less than there are processes.

        The item of a process that dies is given out again. There is no limit on the time an item
        may take; Ray itself knows which processes live.

        Raises
        ------
        ClusterError
            If Ray itself fails (the head or the last node died), or an item kills every process.
        SurveyError
            The first one that the worker raised, as it is.
        """
        most = min(self.workers, workers or self.workers)
        ahead = 2 * most if self.full and most == self.workers else most
        waiting, running = deque(items), dict[Any, Item]()
        each = gpus() / max(1, min(most, len(waiting))) if stage.gpus else 0.0
        # Told of a GPU here, and not by `options`, Ray ends the process after each item: the next
        # one may be given another GPU.
        share: dict[str, Any] = {"num_gpus": min(1.0, each)} if each else {}
        do = ray.remote(num_cpus=1, max_retries=0, **share)(_do)
        recipe = ray.cloudpickle.dumps((stage.worker, stage.arguments))  # type: ignore[no-untyped-call]
        token, failures = uuid.uuid4().hex, Failures(stage)
        try:
            with failures_of_ray():
                while waiting or running:
                    while waiting and len(running) < ahead:
                        item = waiting.popleft()
                        running[do.remote(token, recipe, item.payload)] = item
                    (done,), _ = ray.wait(list(running))
                    item = running.pop(done)
                    try:
                        result = ray.get(done)
                    except (*DIED_WITH_IT, *LOST) as error:
                        if failures.again(item, died=isinstance(error, DIED_WITH_IT)):
                            waiting.append(item)
                        else:
                            yield stage.give_up(item.payload)
                        continue
                    if isinstance(result, SurveyError):
                        raise result
                    yield result
        finally:
            with suppress(ray.exceptions.RayError):
                for one in running:
                    ray.cancel(one, force=True)


_made: dict[str, Callable[[Any], Any]] = {}
"""In a worker process: the worker of the stage that is going on."""


def _do(token: str, recipe: bytes, payload: Any) -> Any:
    """One item, in a worker process. Our own errors travel as data: Ray would wrap them."""
    try:
        if token not in _made:
            _made.clear()
            worker, arguments = ray.cloudpickle.loads(recipe)
            _made[token] = make(worker, arguments)
        return _made[token](payload)
    except SurveyError as error:
        return error
