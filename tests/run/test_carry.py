"""One product of several changed: the others are carried over, bit for bit."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from surveyproc import verbs
from surveyproc.catalogs import hats
from surveyproc.config import load
from surveyproc.images.cutouts import CutoutReader
from surveyproc.models.package import load_package, save_package
from surveyproc.run import commit
from surveyproc.run.plan import make_plan
from surveyproc.survey import Survey
from surveyproc.verbs.nightly import nightly


@pytest.fixture
def survey(published_survey, tmp_path):
    shutil.copytree(published_survey.parent, tmp_path / "copy")
    return tmp_path / "copy" / "survey.toml"


def new_model(survey: Survey) -> None:
    """Another version of the model, as a training gives one."""
    section = next(iter(survey.config.networks))
    package = load_package(survey.store, section.model)
    shifted = {name: one + 1e-3 for name, one in package.tensors.items()}
    document = package.document
    save_package(
        survey.store,
        section.model,
        architecture=document["architecture"],
        settings=document["settings"],
        bands=package.bands,
        scaling=package.scaling,
        members=[shifted],
        absent_bands=document["absent_bands"],
    )


def columns_of(survey: Survey, url: str):
    plan = make_plan(survey)
    parts = [pq.read_table(f"{url}/{hats.leaf_key(one.order, one.pixel)}") for one in plan.units]
    return {name: [part[name] for part in parts] for name in parts[0].column_names}


def forbid_pixels(monkeypatch):
    """From here on whoever opens a cube fails."""

    def refused(*_arguments, **_named):
        raise AssertionError("pixels were read")

    monkeypatch.setattr(CutoutReader, "batches", refused)


def test_a_new_photoz_model_reads_no_pixels_and_runs_no_other_product(survey, monkeypatch):
    opened = Survey(load(survey, ["run.place=here"]))
    before = columns_of(opened, verbs.releases(opened).current.url)
    new_model(opened)
    forbid_pixels(monkeypatch)
    done = verbs.run(opened)
    units = len(make_plan(opened).units)
    assert done.by_product == {
        "photometry": {"computed": 0, "carried": units, "kept": 0},
        "photoz": {"computed": units, "carried": 0, "kept": 0},
    }
    after = columns_of(opened, done.url)
    assert after.keys() == before.keys()
    changed = {
        name
        for name in before
        if any(not a.equals(b) for a, b in zip(before[name], after[name], strict=True))
    }
    assert changed
    assert all("_z_" in name for name in changed - {"photoz_flag"})
    assert verbs.validate(opened).problems == []
    records = list(commit.read_all(opened.store, make_plan(opened)))
    assert all(
        record.carried == {"photometry": records[0].carried["photometry"]} for record in records
    )


def test_carried_or_computed_the_leaves_are_the_same_bytes(survey, tmp_path, monkeypatch):
    opened = Survey(load(survey, ["run.place=here"]))
    new_model(opened)
    plan = make_plan(opened)
    shutil.copytree(survey.parent, tmp_path / "fresh")
    fresh = Survey(load(tmp_path / "fresh" / "survey.toml", ["run.place=here"]))
    for name in fresh.store.names("runs"):
        if name.startswith("r"):
            fresh.store.remove(f"runs/{name}/commits")
    verbs.run(fresh)
    forbid_pixels(monkeypatch)
    verbs.run(opened)
    sums = [
        [record.leaf.sha256 for record in commit.read_all(one.store, plan)]
        for one in (opened, fresh)
    ]
    assert sums[0] == sums[1]


def test_a_damaged_leaf_gives_nothing_and_is_computed(survey):
    opened = Survey(load(survey, ["run.place=here"]))
    url = verbs.releases(opened).current.url
    first = make_plan(opened).units[0]
    new_model(opened)
    path = f"{url}/{hats.leaf_key(first.order, first.pixel)}"
    with open(path, "r+b") as file:
        file.seek(200)
        file.write(b"\0\0\0\0")
    done = verbs.run(opened)
    counts = done.by_product["photometry"]
    assert (counts["computed"], counts["carried"]) == (1, len(make_plan(opened).units) - 1)
    assert verbs.validate(opened).problems == []


def test_another_description_recomputes_nothing(survey, monkeypatch):
    opened = Survey(load(survey, ["run.place=here"]))
    kind = type(make_plan(opened).products[0])
    columns = make_plan(opened).products[0].columns
    reworded = tuple(replace(one, description=f"{one.description} Reworded.") for one in columns)
    monkeypatch.setattr(kind, "columns", property(lambda _self: reworded))
    forbid_pixels(monkeypatch)
    done = verbs.run(opened)
    assert done.did == "published"
    assert {counts["computed"] for counts in done.by_product.values()} == {0}
    first = make_plan(opened).units[0]
    footer = pq.read_schema(f"{done.url}/{hats.leaf_key(first.order, first.pixel)}").metadata
    assert b"Reworded." in footer[b"IVOA.VOTable-Parquet.content"]


def test_a_night_says_product_by_product_what_was_computed(survey, monkeypatch):
    opened = Survey(load(survey, ["run.place=here", "nightly.max_drift=1.0"]))
    nightly(opened)
    new_model(opened)
    forbid_pixels(monkeypatch)
    night = nightly(opened)
    assert night.error == ""
    units = night.units.total
    assert night.products["photometry"] == {"computed": 0, "carried": units, "kept": 0}
    assert night.products["photoz"]["computed"] == units
    assert np.isfinite(night.seconds)
