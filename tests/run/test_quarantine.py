"""Units that fail or kill their worker: tried again a few times, then given up, never for ever."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from sums import leaves, sums
from unit_troubles import DeadlyTileWorker, TroubledWorker, make_trouble

from surveyproc import cluster, schemas, verbs
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
from surveyproc.run import commit, pipeline
from surveyproc.run.plan import make_plan
from surveyproc.storage import Store, digest

SICK = 2
"""Which unit of the plan is in trouble."""


def published(survey: Path) -> Path:
    return Path(verbs.releases(load(survey))["current"]["url"])


def trouble(survey: Path, monkeypatch, how: str, times: int = 99, every: bool = False):
    config = load(survey)
    store = Store(config.root)
    plan = make_plan(config, store)
    make_trouble(store, "" if every else plan.units[SICK].name, how, times)
    monkeypatch.setattr(pipeline, "UnitWorker", TroubledWorker)
    return store, plan


@pytest.mark.parametrize("how", ["dies", "memory"])
def test_a_unit_that_fails_once_is_tried_again(survey_copy, published_survey, monkeypatch, how):
    store, plan = trouble(survey_copy, monkeypatch, how, times=1)
    streams, stream = [], cluster.stream

    def noted(tasks, *arguments, workers, **more):
        streams.append((len(tasks), workers))
        return stream(tasks, *arguments, workers=workers, **more)

    monkeypatch.setattr(cluster, "stream", noted)
    verbs.run(load(survey_copy, ["run.workers=2"]))
    # All together first; what may have wanted for memory has the machine to itself after that.
    assert [one for one in streams if one[0]] == [(len(plan.units), 2), (1, 1)]
    assert leaves(survey_copy) == leaves(published_survey)
    assert store.names(f"{plan.run_key}/attempts") == []


def test_a_unit_that_kills_every_worker_is_quarantined_and_retried_by_the_next_run(
    survey_copy, published_survey, monkeypatch
):
    store, plan = trouble(survey_copy, monkeypatch, "dies")
    sick = plan.units[SICK]
    with pytest.raises(GateError, match=f"quarantined +{sick.name}") as caught:
        verbs.run(load(survey_copy))
    assert caught.value.exit_code == 3
    assert "its process died" in str(caught.value)
    assert commit.pending(store, plan) == []
    record = commit.read(store, plan.run_key, sick.name)
    assert record.quarantined.startswith("3 attempts failed")
    assert record.leaf.rows == sick.rows
    assert record.flags["photoz"] == {"any": sick.rows, "quarantined": sick.rows}
    table = pq.read_table(store.path(f"{plan.release_key}/{leaf_key(sick.order, sick.pixel)}"))
    assert table["flux_r"].null_count == table["gaznet_c9_z_quantiles"].null_count == sick.rows
    assert table["ra"].null_count == 0
    assert set(table["photometry_flag"].to_pylist()) == {schemas.flag("quarantined")}
    # The trouble is over: only that unit is computed, and nothing shows that it ever was.
    monkeypatch.undo()
    done = verbs.run(load(survey_copy))
    assert (done["units_computed"], done["units_resumed"]) == (1, len(plan.units) - 1)
    assert leaves(survey_copy) == leaves(published_survey)


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
        verbs.run(config)
    assert store.names(f"{make_plan(config, store).run_key}/attempts") == []
    verbs.run(load(survey_copy))


def test_two_products_that_write_one_column_are_named(survey_copy):
    path = Store(load(survey_copy).root).path("models/gaznet-c9")
    section = f'[[products]]\nname = "photoz_b"\nmodel = "{path}"\n'
    survey_copy.write_text(f"{survey_copy.read_text()}\n{section}")
    with pytest.raises(ConfigError, match=r"products\.photoz_b writes gaznet_c9_z_"):
        verbs.plan(load(survey_copy))


def test_published_with_a_gap_and_filled_later_in_a_release_of_its_own(
    survey_copy, published_survey, monkeypatch
):
    store, plan = trouble(survey_copy, monkeypatch, "raises")
    allowed = load(survey_copy, ["gates.max_quarantined_share=0.5"])
    done = verbs.run(allowed)
    assert done["quarantined"] == [plan.units[SICK].name]
    assert done["flags"]["photometry"]["quarantined"] == plan.units[SICK].rows
    assert (
        "ZeroDivisionError" in commit.read(store, plan.run_key, done["quarantined"][0]).quarantined
    )
    assert verbs.validate(allowed)["problems"] == []
    first = published(survey_copy)
    before = sums(first)
    # It fails again: the release stays, and nothing is left of the attempt.
    again = verbs.run(allowed)
    assert (again["did"], again["release"]) == ("nothing", done["release"])
    assert [one["release"] for one in verbs.releases(allowed)["releases"]] == [done["release"]]
    monkeypatch.undo()
    filled = verbs.run(load(survey_copy))
    assert filled["release"] == f"{done['release']}.1"
    assert (filled["units_computed"], filled["units_adopted"]) == (1, len(plan.units) - 1)
    assert leaves(survey_copy) == leaves(published_survey)
    assert sums(first) == before
    assert verbs.run(load(survey_copy))["did"] == "nothing"
    assert verbs.validate(load(survey_copy))["problems"] == []


def test_a_machine_on_which_every_process_dies_is_not_held_against_the_units(
    survey_copy, published_survey, monkeypatch
):
    store, plan = trouble(survey_copy, monkeypatch, "dies", every=True)
    monkeypatch.setattr(pipeline, "DEATHS", 4)
    for _ in range(load(survey_copy).run.attempts):
        with pytest.raises(ClusterError, match=r"the processes of \d+ units in a row died"):
            verbs.run(load(survey_copy, ["run.workers=1"]))
    assert store.names(f"{plan.run_key}/attempts") == []
    monkeypatch.undo()
    assert verbs.run(load(survey_copy))["quarantined"] == []
    assert leaves(survey_copy) == leaves(published_survey)


def test_a_store_that_fails_run_after_run_ends_in_quarantine(survey_copy):
    cube = next(survey_copy.parent.glob("store/images/t00/*"))
    hidden = cube.rename(cube.parent / "hidden")
    config = load(survey_copy, ["run.attempts=2"])
    for _ in range(2):
        with pytest.raises(UnitsFailedError, match="the same command resumes"):
            verbs.run(config)
    with pytest.raises(GateError, match=r"2 attempts failed, the last: .*t00"):
        verbs.run(config)
    hidden.rename(cube)
    assert verbs.run(config)["quarantined"] == []


def test_a_tile_that_kills_every_worker_fails_alone(survey_copy, monkeypatch):
    shutil.rmtree(survey_copy.parent / "store" / "images")
    monkeypatch.setattr(ingest, "_TileWorker", DeadlyTileWorker)
    with pytest.raises(StoreError, match="1 tiles or files failed") as caught:
        verbs.ingest(load(survey_copy))
    assert "tile t01: its process died" in str(caught.value)
    monkeypatch.undo()
    assert verbs.ingest(load(survey_copy))["tiles"].written == 1
