"""Units read and computed by the same process, or by two: objects/s, and the same leaves.

    python benchmarks/stages.py FOLDER [--objects 20000] [--networks 1] [--repeat 2] [--device RATE]

The survey and the network of start_to_exit.py. First what reading and computing an object take,
each alone, one thread, in one process; then `run` in the command's own process, on Ray, and apart,
its networks declared as if they held a device. Printed are objects/s from the first commit record
to the last, which is without the start of processes, and of `run` as a whole.

With `--device` a product that waits takes the place of the network: what a device of so many
objects/s would have computed, while no core is busy. Only what is read and written is real then,
and how long the device was left idle is what is measured; in process it is one thread's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import start_to_exit

PLACES = {
    "in process, one thread": ["run.place=here", "run.workers=1"],
    "in process, two threads": ["run.place=here", "run.workers=2"],
    "on Ray, two processes": ["run.place=ray", "run.workers=2"],
    "apart": ["run.place=apart"],
}
WAITS = """
import time

from surveyproc.config.sections import ProductSection
from surveyproc.products.base import Inputs
from surveyproc.schemas import Column


class Section(ProductSection):
    rate: float


class Waits:
    Section, reads, writes = Section, "cutouts", "their central pixels"
    name, version, wants_device = "waits", "1", True
    columns = (Column("waits_value", "float32"), Column("waits_flag", "int32"))

    @classmethod
    def build(cls, section, survey):
        product = cls()
        product.rate = section.rate
        product.inputs = Inputs(bands=tuple(survey.config.images.bands), cutout=64)
        return product

    def prepare(self):
        pass

    def compute(self, batch):
        time.sleep(len(batch.flags) / self.rate)
        return {"waits_value": batch.images[:, 0, 32, 32], "waits_flag": batch.flags}
"""


def bring_waits(folder: Path, survey: Path, rate: float) -> None:
    """Put the product that waits in the place of the network."""
    metadata = folder / "plugin" / "waits-0.1.dist-info"
    metadata.mkdir(exist_ok=True)
    (folder / "plugin/waits.py").write_text(WAITS)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: waits\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[surveyproc.products]\nwaits = waits:Waits\n")
    others, _, _ = survey.read_text().partition("[[products]]")
    survey.write_text(f'{others}[[products]]\nname = "waits"\nrate = {rate}\n')


def sides(survey: Path) -> None:
    """What each side of the work takes alone."""
    from surveyproc.config import load
    from surveyproc.run.plan import make_plan
    from surveyproc.run.worker import Task, UnitWorker
    from surveyproc.survey import Survey

    opened = Survey(load(survey))
    plan = make_plan(opened)
    worker = UnitWorker(opened, plan.run)
    spent, rows = {"reading": 0.0, "computing": 0.0, "writing": 0.0}, 0
    for number, unit in enumerate(plan.units):
        attempt = worker.begin(Task(unit.name))
        started = time.perf_counter()
        parts = list(worker.read(Task(unit.name)))
        read = time.perf_counter()
        for part in parts:
            attempt.take(part)
        computed = time.perf_counter()
        attempt.end()
        if number:  # the first one imports torch
            spent["reading"] += read - started
            spent["computing"] += computed - read
            spent["writing"] += time.perf_counter() - computed
            rows += unit.rows
    for what, seconds in spent.items():
        print(f"{what + ' alone':<28} {rows / seconds:10,.0f} objects/s", flush=True)


def run(survey: Path, settings: list[str], environment: dict[str, str]) -> dict[str, object]:
    """`run` on a store without releases; its summary, leaves, and the rate between records."""
    store = survey.parent / "store"
    for name in ("releases", "runs"):
        shutil.rmtree(store / name, ignore_errors=True)
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "surveyproc", "run", str(survey), "--json", *options]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    records = sorted(
        (store / "runs").glob("r*/commits/*.json"), key=lambda one: one.stat().st_mtime
    )
    documents = [json.loads(one.read_text()) for one in records]
    first, last = (records[place].stat().st_mtime for place in (0, -1))
    return {
        "rate": sum(one["leaf"]["rows"] for one in documents[1:]) / (last - first),
        "between": (first, last),
        "seconds": seconds,
        "leaves": {one["unit"]: one["leaf"]["sha256"] for one in documents},
        "why": "; ".join(one["why"] for one in json.loads(done.stdout)["places"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--networks", type=int, default=1)
    parser.add_argument("--device", type=float, help="objects/s of a device that nobody has")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if not (folder / "tiles").exists():
        start_to_exit.write_survey(folder)
    path = os.pathsep.join(filter(None, [str(folder / "plugin"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    sys.path.insert(0, str(folder / "plugin"))
    survey = start_to_exit.write_objects(folder, options.objects)
    save = [start_to_exit.SAVE, str(folder / "weights.pt"), str(survey.parent / "store")]
    start_to_exit.timed([sys.executable, "-c", *save], environment)
    places = dict(PLACES)
    if options.device:
        bring_waits(folder, survey, options.device)
        # Several processes, or threads, would have a device each.
        places = {name: PLACES[name] for name in ("in process, one thread", "apart")}
    start_to_exit.timed([sys.executable, "-m", "surveyproc", "ingest", str(survey)], environment)
    sides(survey)
    expected = None
    for _ in range(options.repeat):
        for name, settings in places.items():
            found = run(survey, [*settings, f"run.networks={options.networks}"], environment)
            expected = expected or found["leaves"]
            assert found["leaves"] == expected, f"other leaves {name}"
            whole = options.objects / found["seconds"]
            print(
                f"{name:<28} {found['rate']:10,.0f} objects/s, whole command {whole:8,.0f}   "
                f"({found['seconds']:.1f} s; {found['why']})",
                flush=True,
            )


if __name__ == "__main__":
    main()
