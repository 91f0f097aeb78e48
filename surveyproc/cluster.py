"""The Ray cluster a command runs on: started and stopped by itself, or the one it is told of."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Ray samples these when it is imported. Its C++ core warns on standard error about every actor
# that can restart; what matters comes back as an exception.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")

import ray
import ray.data
import ray.exceptions
from ray.experimental import internal_kv

from surveyproc.errors import ClusterError, SurveyError

CONNECT_S = 15.0
LATE_S = 5.0
"""How long the others wait for a result that is finished but does not come."""
DEATHS = 5
"""How often a worker process may die with an item, unless the caller says otherwise."""
DIED = "its process died (killed for memory, or a crash outside Python)"
"""What is said of an item that left no error."""


@contextmanager
def session(address: str = "local", workers: int | None = None) -> Iterator[int]:
    """A Ray cluster for the duration of the block; yields the number of worker processes to use.

    Parameters
    ----------
    address : str
        "local" starts a cluster of this machine's CPUs that ends with the block, except where
        `RAY_ADDRESS` names one, as inside a Ray job; anything else is handed to `ray.init`.
    workers : int, optional
        Worker processes wanted; by default one a CPU of the cluster as it is now. A cluster of
        this machine gives no more than that; another one may grow, so it is asked for them all.

    Raises
    ------
    ClusterError
        If no cluster answers at the address, or none can be started.
    """
    if ray.is_initialized():
        yield _workers(workers)
        return
    if address == "local":
        address = os.environ.get("RAY_ADDRESS", address)
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        with _silent_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # a node that starts too slowly is a bare Exception
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(f"run.address: no Ray cluster at {address!r}: {said[0]}") from error
    quiet_ray_data()
    try:
        yield _workers(workers) if local or workers is None else workers
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


def quiet_ray_data() -> None:
    """Our own progress replaces Ray Data's bars."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _workers(wanted: int | None) -> int:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = max(1, int(resources.get("CPU", 1)))
    return cpus if wanted is None else min(wanted, cpus)


class _Guarded:
    """A worker whose own errors travel as data, since Ray loses the cause of an exception.

    Which item is under way stands at Ray's head, where the next process finds it if this one dies.
    The worker itself is made for the first item, so that a death while it is made counts as well.
    """

    def __init__(
        self,
        worker: type | Callable[..., Any],
        arguments: tuple[Any, ...],
        died: Callable[[Any], Any],
        deaths: int,
        ledger: str,
    ) -> None:
        self.worker, self.arguments = worker, arguments
        self.died, self.deaths, self.ledger = died, deaths, ledger
        self.work: Callable[[Any], Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        key = f"{self.ledger}/{row['number']}"
        # Nodes on which it was begun and not ended: whoever began it died.
        begun = (internal_kv._internal_kv_get(key) or b"").decode().split()
        here = ray.get_runtime_context().get_node_id()
        internal_kv._internal_kv_put(key, " ".join([*begun, here]))
        try:
            result = self.result(pickle.loads(row["item"]), begun)
        except SurveyError as error:
            result = error
        internal_kv._internal_kv_del(key)
        return {"result": pickle.dumps(result)}

    def result(self, item: Any, begun: Sequence[str]) -> Any:
        if begun and (_deaths(begun) >= self.deaths or len(begun) >= max(DEATHS, self.deaths)):
            return self.died(item)
        if self.work is None:
            made = isinstance(self.worker, type)
            self.work = self.worker(*self.arguments) if made else self.worker
        return self.work(item)


def _deaths(begun: Sequence[str]) -> int:
    """Processes that died while their node lived: a node that is lost is not the item's fault."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    return sum(node in alive for node in begun)


def _arrived(bundles: Iterable[Any]) -> Iterator[bytes]:
    """The pickled results in `bundles`; one that does not come is left for the end.

    A result that was lost with its node is made again by the process that made it, which needs a
    free CPU. But Ray Data keeps idle processes until it is asked for the last bundle: whoever waits
    before that may wait for ever.
    """
    late = []
    for bundle in bundles:
        for entry in bundle.blocks:
            try:
                block = ray.get(entry.ref, timeout=LATE_S)
            except ray.exceptions.GetTimeoutError:
                late.append(entry.ref)
            else:
                yield from block["result"].to_pylist()
    for ref in late:
        yield from ray.get(ref)["result"].to_pylist()


def _refuse_deadly(item: Any) -> Any:
    raise ClusterError(
        f"{DEATHS} worker processes died one after the other with {str(item)[:200]}: {DIED}"
    )


def stream(
    items: Sequence[Any],
    worker: type | Callable[[Any], Any],
    *,
    workers: int,
    arguments: tuple[Any, ...] = (),
    gpus: float = 0.0,
    died: Callable[[Any], Any] = _refuse_deadly,
    deaths: int = DEATHS,
) -> Iterator[Any]:
    """Apply `worker` to every item with Ray Data; results come as they finish, in no fixed order.

    A process that dies comes back, and its item is given out again: workers must be idempotent.

    Parameters
    ----------
    items : sequence
        Small descriptions of the work, one task each.
    worker : class or function
        A class (constructed once a process with `arguments`, then called with each item) or a
        function of an item.
    workers : int
        Processes; each reserves one CPU.
    gpus : float
        GPUs that each reserves, or the share of one.
    died : function
        Gives the result of an item that has killed `deaths` processes. Unless given, such an item
        ends it all.
    deaths : int
        Processes that may die with an item before it is given up. One that went with its whole
        node counts only together with others, up to `DEATHS`.

    Raises
    ------
    ClusterError
        If Ray itself fails (the head or the last node died), or an item kills every process.
    SurveyError
        The first one that `worker` raised, as it is.
    """
    if not items:
        return
    rows = ray.data.from_items(
        [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)],
        override_num_blocks=len(items),
    )
    ledger = f"surveyproc/{uuid.uuid4().hex}"
    size = min(workers, len(items))
    done = rows.map(
        _Guarded,  # type: ignore[arg-type]
        fn_constructor_args=(worker, arguments, died, deaths, ledger),
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        num_gpus=gpus,
    )
    try:
        for pickled in _arrived(done.iter_internal_ref_bundles()):
            result = pickle.loads(pickled)
            if isinstance(result, SurveyError):
                raise result
            yield result
    except (ray.exceptions.RayError, ConnectionError) as error:
        if isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.UserCodeException):
            raise  # a defect of ours, with its traceback
        raise ClusterError(
            f"the Ray cluster failed: {str(error).strip().splitlines()[0]} What was finished is "
            "kept: repeat the command"
        ) from error
