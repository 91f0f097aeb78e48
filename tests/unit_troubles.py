"""Workers that fail on one unit, as a file in the survey's store tells them to, or on one tile.

In a module of its own: other processes import it by name. As a program it runs a survey with such
workers: `python unit_troubles.py survey.toml` and settings.
"""

import os
import signal
import sys

from surveyproc.cli.app import main
from surveyproc.images import ingest
from surveyproc.run import pipeline
from surveyproc.run.pipeline import UnitWorker
from surveyproc.store.storage import Store

KEY = "trouble.json"


def make_trouble(store: Store, unit: str, how: str, attempts: int, side: str = "computing") -> None:
    """The first attempts of a unit, or of all if it has no name: `dies`, `raises` or `memory`."""
    store.put_json(KEY, {"unit": unit, "how": how, "attempts": attempts, "side": side})


class TroubledWorker(UnitWorker):
    """Fails when a unit is read, or after it was computed."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.well, self.reading = self.reading, self.read_or_fail

    def read_or_fail(self, planned, donors):
        # One that is given up is asked for without donors, and for its rows alone.
        parts = self.well(planned, donors)
        yield next(parts)
        self.fail(planned.name, "reading")
        yield from parts

    def begin(self, task):
        attempt = super().begin(task)
        add = attempt._add

        def add_or_fail(content):
            add(content)
            if not task.quarantine:
                self.fail(task.unit, "computing")

        attempt._add = add_or_fail
        return attempt

    def fail(self, unit, side):
        trouble = self.store.read_json(KEY)
        if trouble["unit"] in ("", unit) and trouble["side"] == side and trouble["attempts"]:
            self.store.put_json(KEY, {**trouble, "attempts": trouble["attempts"] - 1})
            if trouble["how"] == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError if trouble["how"] == "memory" else ZeroDivisionError("one by zero")


class DeadlyTileWorker(ingest._TileWorker):
    """Every process that touches the tile t01 dies."""

    def __call__(self, item):
        if item["tile"] == "t01":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(item)


if __name__ == "__main__":
    # Not __main__'s: other processes import the class from this module by name.
    import unit_troubles

    pipeline.UnitWorker = unit_troubles.TroubledWorker
    sets = [word for setting in sys.argv[2:] for word in ("--set", setting)]
    sys.argv = ["surveyproc", "run", sys.argv[1], "--json", *sets]
    main()
