"""Commands that meet: in no order of their store operations are readers left alone."""

import itertools
import shutil
from pathlib import Path

import interleaved
import pytest
import small_survey
from small_survey import OTHER

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.errors import StoreError, SurveyError
from surveyproc.releases import release
from surveyproc.releases.pointer import read_pointer
from surveyproc.run import commit
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.verbs.nightly import nightly


@pytest.fixture(scope="module")
def two_releases(tmp_path_factory):
    """A survey of one unit with two releases, the second one published. Do not change it."""
    folder = tmp_path_factory.mktemp("one") / "survey"
    survey = small_survey.make(folder, partition_rows=100, objects=4)
    verbs.ingest(Survey(load(survey)))
    first = verbs.run(Survey(load(survey))).release
    return survey, first, verbs.run(Survey(load(survey, [OTHER]))).release


@pytest.fixture
def arena(two_releases, tmp_path, monkeypatch):
    """Tries all orders of two commands; how many there were, and with which errors they ended."""
    survey, *names = two_releases
    folder = tmp_path / "survey"
    monkeypatch.setattr(commit, "ThreadPoolExecutor", interleaved.Serial)
    monkeypatch.setattr("surveyproc.run.adopt.ThreadPoolExecutor", interleaved.Serial)
    interleaved.watch(monkeypatch)
    store = Store(str(folder / "store"))

    def whole():
        """The release that readers are sent to has all its files."""
        seen = read_pointer(store, "small").release
        assert seen is not None
        records = commit.recorded(store, layout.run(seen.release))
        files = [
            one
            for record in commit.read_units(store, layout.run(seen.release), records)
            for one in record.files
        ]
        assert files
        assert all(store.size(seen.path + one.key) == one.nbytes for one in files)
        assert store.exists(f"{seen.path}/hats.properties")
        assert store.exists(layout.done(seen.release))

    def orders(one, other, way=interleaved.every_order, prepare=lambda: None):
        ended = set()

        def begin():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(survey.parent, folder)
            prepare()
            return (lambda: one(store, *names)), (lambda: other(store, *names))

        def end(errors):
            assert all(error is None or isinstance(error, SurveyError) for error in errors), errors
            assert release.problems(store, release.current_release(store, "small")) == []
            ended.add(
                (
                    *(error and type(error).__name__ for error in errors),
                    read_pointer(store, "small").name,
                )
            )

        return way(begin, whole, end), ended

    def cut_off(one, fault):
        def begin():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(survey.parent, folder)
            return lambda: one(store, *names)

        def end():
            one(store, *names)  # the same command again
            whole()
            assert release.problems(store, release.current_release(store, "small")) == []

        return interleaved.cut_off_at_each(begin, fault, whole, end)

    orders.first, orders.second = names
    orders.cut_off = cut_off
    return orders


def survey_of(store, *settings):
    return Survey(load(Path(store.root).parent / "survey.toml", list(settings)))


def back(store, first, second):
    verbs.rollback(survey_of(store), first)


def forth(store, first, second):
    verbs.rollback(survey_of(store), second)


def prune(store, first, second):
    release.prune(store, "small", 1)


def publish_first(store, first, second):
    """The older release is whole: only the pointer moves."""
    assert verbs.run(survey_of(store)).release.partition(".")[0] == first


def run_another(store, first, second):
    """Computes, publishes."""
    verbs.run(survey_of(store, "products.photometry.aperture=1.8"))


def night(store, first, second):
    """Ingests, computes, publishes, removes the oldest release."""
    allowed = ("nightly.max_drift=1.0", "nightly.max_flux_shift=1.0", "nightly.keep_releases=2")
    done = nightly(survey_of(store, "products.photometry.aperture=1.7", *allowed))
    if done.exit_code:
        raise SurveyError(done.error)


def ingest(store, first, second):
    verbs.ingest(survey_of(store))


def ingest_anew(store, first, second):
    """Writes another catalog in the place of the one that is there."""
    verbs.ingest(survey_of(store, "catalog.partition_rows=2"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rollback_against_prune(arena):
    tried, ended = arena(back, prune)
    assert tried > 500
    # Readers are sent to the older release, or it is removed; and both were met.
    assert {where for *_, where in ended} == {arena.first, arena.second}


COMMANDS = (publish_first, run_another, night, back, prune, ingest)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations_with_replacement(COMMANDS, 2))
)
def test_a_command_while_another_one_stands_still(arena, one, other):
    tried, ended = arena(one, other, interleaved.each_within_the_other)
    assert tried > 20
    assert all(None in errors for *errors, _ in ended)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [interleaved.Abandoned(), StoreError("no space left")])
@pytest.mark.parametrize("command", [*COMMANDS, ingest_anew])
def test_a_command_that_is_cut_off_at_any_operation(arena, command, fault):
    """Killed, or refused by the store: readers have a whole release, and repeating ends well."""
    assert arena.cut_off(command, fault) > 10
