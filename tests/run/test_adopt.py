"""Leaves of earlier releases are reused where their inputs are the same, and only there."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from sums import leaves

from surveyproc import verbs
from surveyproc.catalogs.hats import leaf_key
from surveyproc.config import load
from surveyproc.run import commit
from surveyproc.run.adopt import adopt, adoptable
from surveyproc.run.plan import make_plan
from surveyproc.store.storage import Store
from surveyproc.survey import Survey


@pytest.fixture
def release(published_survey, tmp_path):
    """Store, plan and configuration of a private copy of a published survey."""
    shutil.copytree(published_survey.parent, tmp_path / "copy")
    config = load(tmp_path / "copy" / "survey.toml")
    store = Store(config.root)
    return store, make_plan(Survey(config)), config


def renamed(plan, run="rnew"):
    """A plan of the same units, as of a catalog to which others were added."""
    return replace(plan, run=run)


def test_every_leaf_and_record_is_that_of_the_release(release):
    store, first, _ = release
    second = renamed(first)
    assert adoptable(store, second) == {unit.name for unit in first.units}
    assert adopt(store, second) == len(first.units)
    assert adoptable(store, second) == set()
    assert commit.pending(store, second) == []
    for unit in first.units:
        key = leaf_key(unit.order, unit.pixel)
        paths = [Path(store.path(f"{plan.release_key}/{key}")) for plan in (first, second)]
        assert os.path.samefile(*paths)
        one, other = (commit.read(store, plan.run_key, unit.name) for plan in (first, second))
        assert other.adopted == first.run
        assert other.provenance["surveyproc_run"] == second.run
        assert (one.leaf, one.stats, one.flags) == (other.leaf, other.stats, other.flags)
    assert adopt(store, second) == 0
    # Who adopts from an adopted release learns where the leaf was computed.
    shutil.rmtree(store.path(first.run_key))
    assert adopt(store, renamed(first, "rthird")) == len(first.units)
    assert commit.read(store, "runs/rthird", first.units[0].name).adopted == first.run


def test_a_leaf_cut_short_a_damaged_record_and_a_quarantined_unit_are_not_adopted(release):
    store, first, _ = release
    cut, lost, damaged, given_up = first.units[:4]
    leaf = Path(store.path(f"{first.release_key}/{leaf_key(cut.order, cut.pixel)}"))
    leaf.write_bytes(leaf.read_bytes()[:100])
    store.remove(f"{first.release_key}/{leaf_key(lost.order, lost.pixel)}")
    store.put(commit.record_key(first.run_key, damaged.name), b"{")
    key = commit.record_key(first.run_key, given_up.name)
    store.put_json(key, {**store.read_json(key), "quarantined": "3 attempts failed"})
    second = renamed(first)
    assert adopt(store, second) == len(first.units) - 4
    left = {unit.name for unit in commit.pending(store, second)}
    assert left == {unit.name for unit in (cut, lost, damaged, given_up)}


def test_a_changed_setting_adopts_nothing(release):
    store, _, config = release
    other = make_plan(
        Survey(load(Path(config.base) / "survey.toml", ["products.photometry.aperture=1.7"]))
    )
    assert adopt(store, other) == 0


def test_one_lost_partition_of_many_is_the_only_one_computed(release):
    store, first, config = release
    survey = Path(config.base) / "survey.toml"
    unit = first.units[3]
    before = leaves(survey)
    # As if the release had been made by another plan: nothing is published under this one's name.
    shutil.move(store.path(first.release_key), store.path("releases/simulated/rold"))
    shutil.move(store.path(first.run_key), store.path("runs/rold"))
    store.remove(commit.record_key("runs/rold", unit.name))
    done = verbs.run(Survey(load(survey)))
    assert (done.units_computed, done.units_adopted) == (1, len(first.units) - 1)
    assert leaves(survey) == before
    assert verbs.validate(Survey(config)).problems == []
