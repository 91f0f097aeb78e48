"""The Ray cluster a command runs on: started and stopped by itself, or the one it is told of."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Ray samples these when it is imported. Its C++ core warns on standard error about every actor
# that can restart; what matters comes back as an exception.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")

import ray
import ray.data


@contextmanager
def session(address: str = "local", workers: int | None = None) -> Iterator[int]:
    """A Ray cluster for the duration of the block; yields the number of worker processes to use.

    Parameters
    ----------
    address : str
        "local" starts a cluster of this machine's CPUs that ends with the block; anything else is
        handed to `ray.init`. Inside a Ray job (`RAY_ADDRESS` set) the job's cluster is used.
    workers : int, optional
        Worker processes wanted; by default, and at most, one a CPU of the cluster.
    """
    if ray.is_initialized():
        yield _workers(workers)
        return
    address = os.environ.get("RAY_ADDRESS", address)
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    quiet_ray_data()
    try:
        yield _workers(workers)
    finally:
        ray.shutdown()


def quiet_ray_data() -> None:
    """Our own progress replaces Ray Data's bars."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _workers(wanted: int | None) -> int:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = max(1, int(resources.get("CPU", 1)))
    return cpus if wanted is None else min(wanted, cpus)


def stream(
    items: Sequence[dict[str, Any]],
    worker: type | Callable[[dict[str, Any]], dict[str, Any]],
    *,
    workers: int,
    arguments: tuple[Any, ...] = (),
) -> Iterator[dict[str, Any]]:
    """Apply `worker` to every item with Ray Data; results come as they finish, in no fixed order.

    Parameters
    ----------
    items : sequence of dict
        Small descriptions of the work, one task each.
    worker : class or function
        A class (constructed once a process with `arguments`, then called with each item) or a
        function. Returns one small dict an item.
    workers : int
        Processes; each reserves one CPU.
    """
    if not items:
        return
    rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items))
    size = min(workers, len(items))
    options: dict[str, Any] = {"num_cpus": 1}
    if isinstance(worker, type):
        # Ray Data restarts a killed process and gives its item out again, without end; that is
        # right here because every worker is idempotent.
        options |= {
            "fn_constructor_args": arguments,
            "compute": ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        }
    else:
        options |= {
            "fn_args": arguments,
            "compute": ray.data.TaskPoolStrategy(size=size),
        }
    yield from rows.map(worker, **options).iter_rows()
