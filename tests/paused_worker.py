"""`run` with a worker that stops at a stage of its unit and waits there to be killed.

In a module of its own: Ray's worker processes import it by name. As a program it runs a survey on
a cluster: `python paused_worker.py survey.toml address` and options of `surveyproc run`.
"""

import json
import os
import sys
import time

import ray

from surveyproc.cli.app import main
from surveyproc.run import pipeline, stages
from surveyproc.run.pipeline import UnitWorker
from surveyproc.store.storage import Store

STAGES = ("reading", "inference", "commit")
KEY, REACHED, WORKED = "pause.json", "paused.json", "worked"


def pause_at(store: Store, stage: str) -> None:
    """The first process that comes to `stage` waits there for ever."""
    assert stage in STAGES
    store.put_json(KEY, {"stage": stage})


def paused(store: Store) -> dict[str, str] | None:
    """Node, process and unit of the one that waits; None if nobody came there yet."""
    return store.read_json(REACHED)


def worked(store: Store) -> set[str]:
    """Nodes on which a unit was done."""
    return {name.split("-")[0] for name in store.names(WORKED)}


class PausedWorker(UnitWorker):
    def read(self, task):
        self.here(task)
        return super().read(task)

    def begin(self, task):
        self.here(task)
        attempt = super().begin(task)
        end = attempt.end

        def ended():
            outcome = end()
            self.store.put(f"{WORKED}/{self.node}-{task.unit}", b"")
            return outcome

        attempt.end = ended
        return attempt

    def here(self, task):
        self.node, self.unit = ray.get_runtime_context().get_node_id(), task.unit

    def __init__(self, config, run):
        super().__init__(config, run)
        stage = (self.store.read_json(KEY) or {"stage": ""})["stage"]
        if stage == "reading":
            reader = stages.CutoutReader
            reader.batches = self.after_the_first(reader.batches)
        elif stage == "inference":
            network = self.plan.products[-1]
            type(network).compute = self.before(type(network).compute)
        elif stage == "commit":
            # The leaf lies there, the record of it does not.
            stages.commit.write = self.before(stages.commit.write)

    def pause(self):
        here = {"node": self.node, "pid": os.getpid(), "unit": self.unit}
        if self.store.create(REACHED, json.dumps(here).encode()):
            time.sleep(3600)

    def before(self, function):
        def call(*arguments, **more):
            self.pause()
            return function(*arguments, **more)

        return call

    def after_the_first(self, batches):
        def call(*arguments):
            for number, batch in enumerate(batches(*arguments)):
                if number == 0:
                    self.pause()
                yield batch

        return call


if __name__ == "__main__":
    # Not __main__'s: the workers import the class from this module by name.
    import paused_worker

    pipeline.UnitWorker = paused_worker.PausedWorker
    addressed = ["--json", "--set", f"run.address={sys.argv[2]}"]
    sys.argv = ["surveyproc", "run", sys.argv[1], *addressed, *sys.argv[3:]]
    main()
