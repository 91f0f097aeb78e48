"""Units that fail or kill their worker: tried again a few times, then given up, never for ever."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import unit_troubles
from sums import leaves, sums
from unit_troubles import DeadlyTileWorker, TroubledWorker, make_trouble

from surveyproc import schemas, verbs
from surveyproc.catalogs.hats import leaf_key
from surveyproc.config import load
from surveyproc.errors import (
    ClusterError,
    ConfigError,
    GateError,
    InputError,
    StoreError,
    UnitsFailedError,
)
from surveyproc.images import ingest
from surveyproc.models.package import load_package
from surveyproc.places import Ledger
from surveyproc.run import commit, pipeline
from surveyproc.run.pipeline import Work
from surveyproc.run.plan import make_plan
from surveyproc.store.storage import Store, digest
from surveyproc.survey import Survey

SICK = 2
"""Which unit of the plan is in trouble."""


def published(survey: Path) -> Path:
    return Path(verbs.releases(Survey(load(survey))).current.url)


def prepared(survey: Path, how: str, times: int, every: bool = False):
    config = load(survey)
    store = Store(config.root)
    plan = make_plan(Survey(config))
    make_trouble(store, "" if every else plan.units[SICK].name, how, times)
    return store, plan


def trouble(survey: Path, monkeypatch, how: str, times: int = 99, every: bool = False):
    monkeypatch.setattr(pipeline, "UnitWorker", TroubledWorker)
    return prepared(survey, how, times, every)


@pytest.mark.parametrize(
    ("how", "place"),
    [pytest.param("dies", "ray", marks=pytest.mark.ray), ("memory", "here")],
)
def test_a_unit_that_fails_once_is_tried_again(
    survey_copy, published_survey, monkeypatch, request, how, place
):
    if place == "ray":
        request.getfixturevalue("ray_session")
    store, plan = trouble(survey_copy, monkeypatch, how, times=1)
    attempts, attempt = [], Work.attempt

    def noted(self, tasks, meter, *, alone=False):
        attempts.append((len(tasks), alone))
        return attempt(self, tasks, meter, alone=alone)

    monkeypatch.setattr(Work, "attempt", noted)
    verbs.run(Survey(load(survey_copy, ["run.workers=2", f"run.place={place}"])))
    # All together first; what may have wanted for memory has the machine to itself after that.
    assert [one for one in attempts if one[0]] == [(len(plan.units), False), (1, True)]
    assert leaves(survey_copy) == leaves(published_survey)
    assert store.names(f"{plan.run_key}/attempts") == []


@pytest.mark.kill
def test_a_unit_that_crashes_the_command_has_a_process_of_its_own_in_the_next_one(
    survey_copy, published_survey
):
    store, plan = prepared(survey_copy, "dies", 1)
    command = [sys.executable, unit_troubles.__file__, str(survey_copy), "run.place=here"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    # Whoever was under way is not blamed: it may have been the user who killed the command.
    assert store.names(f"{plan.run_key}/attempts") == []
    under_way = Ledger(store, f"{plan.run_key}/begun").left()
    assert plan.units[SICK].name in under_way
    done = verbs.run(Survey(load(survey_copy, ["run.place=here"])))
    assert (done.did, done.quarantined) == ("published", [])
    assert store.names(f"{plan.run_key}/begun") == []
    assert leaves(survey_copy) == leaves(published_survey)


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.parametrize("place", ["here", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_unit_that_kills_every_process_is_quarantined_and_retried_by_the_next_run(
    survey_copy, published_survey, place
):
    """On Ray at once; here the command dies of it once, and the same command goes on."""
    store, plan = prepared(survey_copy, "dies", 99)
    sick = plan.units[SICK]
    settings = [f"run.place={place}", "run.workers=1", "run.attempts=2"]
    command = [sys.executable, unit_troubles.__file__, str(survey_copy), *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    if place == "here":
        assert done.returncode == -signal.SIGKILL
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert re.search(f"quarantined +{sick.name}", done.stderr)
    assert "its process died" in done.stderr
    assert commit.pending(store, plan) == []
    record = commit.read(store, plan.run_key, sick.name)
    assert record.quarantined.startswith("2 attempts failed")
    assert record.leaf.rows == sick.rows
    assert record.flags["photoz"] == {"any": sick.rows, "quarantined": sick.rows}
    table = pq.read_table(store.path(f"{plan.release_key}/{leaf_key(sick.order, sick.pixel)}"))
    assert table["flux_r"].null_count == table["gaznet_c9_z_quantiles"].null_count == sick.rows
    assert table["ra"].null_count == 0
    assert set(table["photometry_flag"].to_pylist()) == {schemas.flag("quarantined")}
    # Still deadly: the next run knows it, and no longer dies of it.
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 3, again.stderr
    # The trouble is over: only that unit is computed, and nothing shows that it ever was.
    done = verbs.run(Survey(load(survey_copy)))
    assert (done.units_computed, done.units_resumed) == (1, len(plan.units) - 1)
    assert leaves(survey_copy) == leaves(published_survey)
    assert store.names(f"{plan.run_key}/begun") == []


def test_a_model_that_cannot_be_loaded_is_not_held_against_the_units(survey_copy, tmp_path):
    store = Store(load(survey_copy).root)
    package = load_package(store, "gaznet-c9")
    weights = safetensors.torch.save({"stray": torch.zeros(1)})
    document = {**package.document, "weights_sha256": digest(weights)}
    folder = Store(str(tmp_path / "damaged"))
    folder.put("weights.safetensors", weights)
    folder.put_json("model.json", document)
    config = load(survey_copy, [f"products.photoz.model={tmp_path / 'damaged'}"])
    with pytest.raises(InputError, match=r"tensor '.*' is missing"):
        verbs.run(Survey(config))
    assert store.names(f"{make_plan(Survey(config)).run_key}/attempts") == []
    verbs.run(Survey(load(survey_copy)))


def test_two_products_that_write_one_column_are_named(survey_copy):
    path = Store(load(survey_copy).root).path("models/gaznet-c9")
    section = f'[[products]]\nname = "photoz_b"\nmodel = "{path}"\n'
    survey_copy.write_text(f"{survey_copy.read_text()}\n{section}")
    with pytest.raises(ConfigError, match=r"products\.photoz_b writes gaznet_c9_z_"):
        verbs.plan(Survey(load(survey_copy)))


def test_published_with_a_gap_and_filled_later_in_a_release_of_its_own(
    survey_copy, published_survey, monkeypatch
):
    store, plan = trouble(survey_copy, monkeypatch, "raises")
    allowed = load(survey_copy, ["gates.max_quarantined_share=0.5"])
    done = verbs.run(Survey(allowed))
    assert done.quarantined == [plan.units[SICK].name]
    assert done.flags["photometry"]["quarantined"] == plan.units[SICK].rows
    assert "ZeroDivisionError" in commit.read(store, plan.run_key, done.quarantined[0]).quarantined
    assert verbs.validate(Survey(allowed)).problems == []
    first = published(survey_copy)
    before = sums(first)
    # It fails again: the release stays, and nothing is left of the attempt.
    again = verbs.run(Survey(allowed))
    assert (again.did, again.release) == ("nothing", done.release)
    assert [one.release for one in verbs.releases(Survey(allowed)).releases] == [done.release]
    monkeypatch.undo()
    filled = verbs.run(Survey(load(survey_copy)))
    assert filled.release == f"{done.release}.2"  # the name of what was not published is used up
    assert (filled.units_computed, filled.units_adopted) == (1, len(plan.units) - 1)
    assert leaves(survey_copy) == leaves(published_survey)
    assert sums(first) == before
    assert verbs.run(Survey(load(survey_copy))).did == "nothing"
    assert verbs.validate(Survey(load(survey_copy))).problems == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_machine_on_which_every_process_dies_is_not_held_against_the_units(
    survey_copy, published_survey, monkeypatch, ray_session
):
    store, plan = trouble(survey_copy, monkeypatch, "dies", every=True)
    monkeypatch.setattr(pipeline, "DEATHS", 4)
    for _ in range(load(survey_copy).run.attempts):
        with pytest.raises(ClusterError, match=r"the processes of \d+ units in a row died"):
            verbs.run(Survey(load(survey_copy, ["run.workers=1", "run.place=ray"])))
    assert store.names(f"{plan.run_key}/attempts") == []
    monkeypatch.undo()
    assert verbs.run(Survey(load(survey_copy))).quarantined == []
    assert leaves(survey_copy) == leaves(published_survey)


def test_a_store_that_fails_run_after_run_ends_in_quarantine(survey_copy):
    cube = next(survey_copy.parent.glob("store/images/t00/*"))
    hidden = cube.rename(cube.parent / "hidden")
    config = load(survey_copy, ["run.attempts=2"])
    for _ in range(2):
        with pytest.raises(UnitsFailedError, match="the same command resumes"):
            verbs.run(Survey(config))
    with pytest.raises(GateError, match=r"2 attempts failed, the last: .*t00"):
        verbs.run(Survey(config))
    hidden.rename(cube)
    assert verbs.run(Survey(config)).quarantined == []


@pytest.mark.ray
def test_a_tile_that_kills_every_worker_fails_alone(survey_copy, monkeypatch, ray_session):
    shutil.rmtree(survey_copy.parent / "store" / "images")
    monkeypatch.setattr(ingest, "_TileWorker", DeadlyTileWorker)
    with pytest.raises(StoreError, match="1 of the tiles and files failed") as caught:
        verbs.ingest(Survey(load(survey_copy, ["run.place=ray"])))
    assert "tile t01: its process died" in str(caught.value)
    monkeypatch.undo()
    assert verbs.ingest(Survey(load(survey_copy))).tiles.written == 1
