"""Units read by some processes and computed by others: the same bytes, whatever fails."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import spots
from sums import is_leaf, leaves, sums
from unit_troubles import TroubledWorker, make_trouble

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.run import commit, pipeline
from surveyproc.run.plan import make_plan
from surveyproc.run.worker import Task, UnitWorker
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SICK = 2
"""Which unit of the plan is in trouble."""
APART = ["run.place=apart", "run.workers=2"]


def prepared(survey, monkeypatch, *trouble):
    monkeypatch.setattr(pipeline, "UnitWorker", TroubledWorker)
    config = load(survey)
    plan = make_plan(Survey(config))
    how, attempts, side = trouble
    make_trouble(Store(config.root), plan.units[SICK].name, how, attempts, side)
    return Store(config.root), plan


EVERY = [(how, side) for how in ("dies", "raises", "memory") for side in ("reading", "computing")]


@pytest.mark.parametrize(
    ("how", "side"),
    [("dies", "reading"), *(pytest.param(*one, marks=pytest.mark.slow) for one in EVERY[1:])],
)
def test_a_unit_that_fails_on_either_side_is_tried_again(
    survey_copy, published_survey, monkeypatch, ray_session, how, side
):
    store, plan = prepared(survey_copy, monkeypatch, how, 1, side)
    done = verbs.run(Survey(load(survey_copy, APART)))
    assert {one.place for one in done.places} == {"apart"}
    assert done.quarantined == []
    assert leaves(survey_copy) == leaves(published_survey)
    assert store.names(f"{plan.run_key}/attempts") == []


@pytest.mark.slow
@pytest.mark.parametrize("side", ["reading", "computing"])
@pytest.mark.parametrize("how", ["dies", "raises"])
def test_a_unit_that_always_fails_is_quarantined_alone(
    survey_copy, published_survey, monkeypatch, ray_session, how, side
):
    store, plan = prepared(survey_copy, monkeypatch, how, 99, side)
    settings = ["gates.max_quarantined_share=0.5", "run.attempts=2"]
    done = verbs.run(Survey(load(survey_copy, [*APART, *settings])))
    assert done.quarantined == [plan.units[SICK].name]
    record = commit.read(store, plan.run_key, plan.units[SICK].name)
    assert ("died" if how == "dies" else "ZeroDivisionError") in record.quarantined
    assert record.flags["photoz"]["quarantined"] == plan.units[SICK].rows
    monkeypatch.undo()
    verbs.run(Survey(load(survey_copy, APART)))
    assert leaves(survey_copy) == leaves(published_survey)


def test_the_seconds_of_a_unit_are_those_of_its_work_wherever_it_was_done(survey_copy):
    survey = Survey(load(survey_copy))
    plan = make_plan(survey)
    worker = UnitWorker(survey, plan.run)
    task = Task(plan.units[0].name)
    attempt, parts = worker.begin(task), 0
    for part in worker.read(task):
        assert 0 < part.seconds < 100
        # As if another machine, with a clock of its own, had taken long for it.
        assert attempt.take(replace(part, seconds=1000.0))
        parts += 1
    assert attempt.end().error == ""
    record = commit.read(survey.store, plan.run_key, task.unit)
    assert parts >= 2
    assert 1000 * parts < record.seconds < 1000 * parts + 100


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_bytes_with_few_cpus_and_any_product(survey_copy, tmp_path):
    """Columns, rows and pixels; batches of a unit that come one by one; devices that none has."""
    spots.install(tmp_path)
    path = [os.path.dirname(spots.__file__), str(tmp_path), os.environ["PYTHONPATH"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    survey_copy.write_text(f'{survey_copy.read_text()}\n[[products]]\nname = "spots"\n')
    expected = None
    devices = survey_copy.parent / "devices"
    for cpus, gpus, settings in (
        (0, 0, ["run.place=here"]),
        (1, 0, ["run.place=apart"]),
        (2, 1, ["run.place=apart"]),
        (3, 1, ["run.place=auto", "run.address=auto"]),
    ):
        for folder in ("releases", "runs"):
            shutil.rmtree(survey_copy.parent / "store" / folder, ignore_errors=True)
        shutil.rmtree(devices, ignore_errors=True)
        command = [sys.executable, spots.__file__, str(cpus), str(gpus), "run", str(survey_copy)]
        options = [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run(
            [*command, "--json", *options], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        ran = json.loads(done.stdout)
        (place,) = ran["places"]
        assert place["place"] == ("apart" if cpus else "here")
        assert {one.name.split("-")[0] for one in devices.iterdir()} == {"cuda" if gpus else "cpu"}
        files = {
            **sums(ran["url"], lambda name: is_leaf(name) or name.startswith("pixels/")),
            **sums(f"{ran['url']}-spots_found", is_leaf),
        }
        expected = expected or files
        assert files == expected
