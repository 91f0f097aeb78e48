"""Commands that meet: in no order of their store operations are readers left alone."""

import itertools
import shutil
from contextlib import nullcontext
from pathlib import Path

import interleaved
import pytest
import small_survey
from small_survey import OTHER

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.errors import StoreError, SurveyError
from surveyproc.models.package import load_package, package_versions
from surveyproc.releases import release
from surveyproc.releases.pointer import read_pointer
from surveyproc.run import commit
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train import apart
from surveyproc.train.cube import TrainingCube
from surveyproc.verbs.nightly import nightly

NETWORK = """
[[products]]
name = "photoz"
model = "net"
architecture = "tabm"
architecture_settings = {members = 2, width = 4, depth = 1}
[products.training]
source = "labels.csv"
redshift = "z"
epochs = 2
batch_size = 2
held_out_share = 0
workers = 1
"""
OTHER_SEED = "products.photoz.training.seed=1"


@pytest.fixture(scope="module")
def two_releases(tmp_path_factory):
    """A survey of one unit with a network and two releases, the second one published.

    Do not change it.
    """
    folder = tmp_path_factory.mktemp("one") / "survey"
    survey = small_survey.make(folder, partition_rows=100, objects=4, bands="gr")
    header, *rows = (folder / "sources.csv").read_text().split()
    labels = [f"{header},z", *(f"{row},0.{number}" for number, row in enumerate(rows, 1))]
    (folder / "labels.csv").write_text("\n".join(labels))
    survey.write_text(survey.read_text() + NETWORK)
    verbs.ingest(Survey(load(survey)))
    verbs.train(Survey(load(survey)))
    first = verbs.run(Survey(load(survey))).release
    return survey, first, verbs.run(Survey(load(survey, [OTHER]))).release


@pytest.fixture
def arena(two_releases, tmp_path, monkeypatch):
    """Tries all orders of two commands; how many there were, and with which errors they ended."""
    survey, *names = two_releases
    folder = tmp_path / "survey"
    monkeypatch.setattr(commit, "ThreadPoolExecutor", interleaved.Serial)
    monkeypatch.setattr("surveyproc.run.adopt.ThreadPoolExecutor", interleaved.Serial)
    monkeypatch.setattr(apart, "SAVE_INTERVAL_S", -1.0)  # after every epoch
    # Up to Python 3.11 cached properties have a lock, which two processes do not share.
    monkeypatch.setattr(vars(TrainingCube)["index"], "lock", nullcontext(), raising=False)
    interleaved.watch(monkeypatch)
    store = Store(str(folder / "store"))
    leaves = {}

    def whole():
        """The release that readers are sent to has all its files, and there is a whole network."""
        load_package(store, "net")
        seen = read_pointer(store, "small").release
        assert seen is not None
        records = commit.recorded(store, layout.run(seen.release))
        files = [
            one
            for record in commit.read_units(store, layout.run(seen.release), records)
            for one in record.files
        ]
        assert files
        # A name is a hash of all inputs: the same network made these rows, whenever they were.
        contents = [one.sha256 for one in files]
        assert leaves.setdefault(seen.release, contents) == contents
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
        networks = set()

        def begin():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(survey.parent, folder)
            return lambda: one(store, *names)

        def end():
            one(store, *names)  # the same command again
            whole()
            assert release.problems(store, release.current_release(store, "small")) == []
            networks.add(load_package(store, "net").version)

        tried = interleaved.cut_off_at_each(begin, fault, whole, end)
        assert len(networks) == 1  # the last one was not cut off
        return tried

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
    done = verbs.run(survey_of(store)).release.partition(".")[0]
    assert done == first or len(package_versions(store, "net")) > 1  # trained meanwhile


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


def train(store, first, second):
    """Builds a training cube, trains in checkpoints, saves a network in the old one's place."""
    verbs.train(survey_of(store, OTHER_SEED))


def ingest_anew(store, first, second):
    """Writes another catalog in the place of the one that is there."""
    verbs.ingest(survey_of(store, "catalog.partition_rows=2"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rollback_against_prune(arena):
    tried, ended = arena(back, prune)
    print(f"{tried} orders")  # shown by pytest -rP
    assert tried > 300
    # Readers are sent to the older release, or it is removed; and both were met.
    assert {where for *_, where in ended} == {arena.first, arena.second}


COMMANDS = (publish_first, run_another, night, back, prune, ingest, train)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations_with_replacement(COMMANDS, 2))
)
def test_a_command_while_another_one_stands_still(arena, one, other):
    tried, ended = arena(one, other, interleaved.each_within_the_other)
    print(f"{tried} orders")
    assert tried > 20
    assert all(None in errors for *errors, _ in ended)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", [interleaved.Abandoned(), StoreError("no space left")])
@pytest.mark.parametrize("command", [*COMMANDS, ingest_anew])
def test_a_command_that_is_cut_off_at_any_operation(arena, command, fault):
    """Killed, or refused by the store: readers have a whole release, and repeating ends well."""
    tried = arena.cut_off(command, fault)
    print(f"{tried} operations")
    assert tried > 10
