"""Networks trained each by one process, side by side if there are several."""

from __future__ import annotations

import time

from surveyproc.models.inference import device_here
from surveyproc.places import Item, Ledger, Places, Stage
from surveyproc.store.storage import Store
from surveyproc.train.fit import FitState, fit
from surveyproc.train.job import Job, deterministic, history_key, saved_state

SAVE_INTERVAL_S = 2.0


def train_apart(job: Job, networks: int, places: Places) -> list[FitState]:
    """Train each network by itself; the last state of each.

    One that was interrupted goes on from its last saved state. A single one is trained in this
    process if the choice is free: there is nothing to share out.
    """
    store = Store(job.root)
    # They draw from torch's own generator, so one process trains one at a time.
    stage = Stage(
        "networks",
        _Alone,
        (job,),
        gpus=True,
        threads=False,
        ledger=Ledger(store, f"{job.folder}/begun"),
    )
    items = [Item(str(number), number) for number in range(networks)]
    for _ in places.stream(items, stage):
        pass
    return [FitState.from_bytes(store.read(_state_key(job, k))) for k in range(networks)]


class _Alone:
    """Trains single networks; their states lie in the store."""

    def __init__(self, job: Job) -> None:
        self.job, self.store = job, Store(job.root)

    def __call__(self, number: int) -> int:
        key = _state_key(self.job, number)
        with deterministic():
            network, examples, settings = self.job.load(number)
            last = saved_state(self.store.read_if_there(key))
            saved = time.monotonic()
            for state in fit(network, examples, settings, last, device=device_here()):
                over = settings.stage(state.epoch) is None
                if over or time.monotonic() - saved > SAVE_INTERVAL_S:
                    self.store.put(key, state.to_bytes())
                    self.store.put_json(history_key(self.job.folder, number), state.history)
                    saved = time.monotonic()
        return number


def _state_key(job: Job, number: int) -> str:
    return f"{job.folder}/network-{number}.safetensors"
