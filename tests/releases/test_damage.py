"""Every kind of object of a store, damaged: it is named, and what the message names mends it."""

import re
import shutil

import pytest
import small_survey
from command import surveyproc
from small_survey import OTHER

from surveyproc import verbs
from surveyproc.cli.text import gap_lines
from surveyproc.config import load
from surveyproc.errors import SurveyError
from surveyproc.releases.pointer import pointed_to
from surveyproc.releases.record import MEND
from surveyproc.survey import Survey
from surveyproc.verbs.core import Validated
from surveyproc.verbs.nightly import nightly

LATER = "products.photometry.aperture=1.8"
VERB = re.compile(r"`surveyproc (ingest|run|releases --rollback)")

OBJECTS = {
    "source leaf": "catalogs/small/dataset/Norder*/Dir*/*.parquet",
    "source metadata": "catalogs/small/hats.properties",
    "partitions.parquet": "catalogs/small/partitions.parquet",
    "ingest.json": "catalogs/small/ingest.json",
    "published leaf": "releases/small/{second}/dataset/Norder*/Dir*/*.parquet",
    "older leaf": "releases/small/{first}/dataset/Norder*/Dir*/*.parquet",
    "_metadata": "releases/small/{second}/dataset/_metadata",
    "_common_metadata": "releases/small/{second}/dataset/_common_metadata",
    "partition_info.csv": "releases/small/{second}/partition_info.csv",
    "point_map.fits": "releases/small/{second}/point_map.fits",
    "hats.properties": "releases/small/{second}/hats.properties",
    "properties": "releases/small/{second}/properties",
    "commit record": "runs/{second}/commits/*.json",
    "older commit record": "runs/{first}/commits/*.json",
    "plan.json": "runs/{second}/plan.json",
    "done.json": "runs/{second}/done.json",
    "older done.json": "runs/{first}/done.json",
    "current.json": "releases/small/current.json",
    "tiles.parquet": "images/tiles.parquet",
    "tile.json": "images/t0/*/tile.json",
    "cube chunk": "images/t0/*/image/c/0/0/0",
    "sources.json": "runs/nightly/small/sources.json",
}


OTHER_BYTES = ("properties", "tiles.parquet", "partitions.parquet")


def flip(place):
    def change(path):
        data = bytearray(path.read_bytes())
        at = {"start": min(4, len(data) - 1), "middle": len(data) // 2, "end": len(data) - 12}[
            place
        ]
        if path.suffix == ".json":  # a digit of a number, so that it stays JSON
            digits = [one.start() for one in re.finditer(rb"(?<=[\d ])\d(?=[\d,.\n])", bytes(data))]
            if digits:
                at = digits[{"start": 0, "middle": len(digits) // 2, "end": -1}[place]]
        data[at] ^= 1 if path.suffix == ".json" else 0x10
        path.unlink()  # copies share their files
        path.write_bytes(data)

    return change


def empty(path):
    path.unlink()
    path.write_bytes(b"")


def remove(path):
    path.unlink()


DAMAGES = {f"flip {place}": flip(place) for place in ("start", "middle", "end")}
DAMAGES |= {"empty": empty, "remove": remove}


class World:
    """A survey with two releases, the second one published, made whole again for a trial."""

    def __init__(self, folder):
        self.folder, self.kept = folder / "survey", folder / "kept"
        self.survey = small_survey.make(self.folder)
        self.first = nightly(Survey(load(self.survey))).release
        self.second = nightly(
            self.of(OTHER, "nightly.max_flux_shift=9", "nightly.max_drift=1")
        ).release
        shutil.copytree(self.folder, self.kept)
        self.expected = self.leaves(self.second)
        self.later = self.leaves(verbs.run(self.of(LATER)).release)

    def of(self, *settings):
        return Survey(load(self.survey, list(settings)))

    def again(self):
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder)

    def path(self, what):
        pattern = OBJECTS[what].format(first=self.first, second=self.second)
        found = sorted(self.folder.glob(f"store/{pattern}"))
        return found[len(found) // 2]

    def leaves(self, release):
        root = self.folder / f"store/releases/small/{release}/dataset"
        return {path.relative_to(root): path.read_bytes() for path in root.glob("**/Npix*")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def complaint(action):
    """What a verb complains of; empty if it does not."""
    try:
        done = action()
    except SurveyError as error:
        return str(error)
    if isinstance(done, Validated):
        return "\n".join([*done.problems, MEND]) if done.problems else ""
    if getattr(done, "damaged", None):
        return "\n".join(gap_lines([], done.damaged))
    return getattr(done, "error", "")


def heal(world, actions, settings, release):
    """Do what messages name until no verb complains; what was done."""
    did = []
    for _ in range(6):
        said = next(filter(None, map(complaint, actions)), "")
        if not said:
            return did
        assert VERB.search(said), f"no way out: {said}"
        verb = VERB.search(said)[1]
        did.append(verb)
        mending = {
            "ingest": lambda: verbs.ingest(world.of(*settings)),
            "run": lambda: verbs.run(world.of(*settings)),
            "releases --rollback": lambda: verbs.rollback(world.of(*settings), release),
        }
        complaint(mending[verb])
    raise AssertionError(f"it does not end: {did}, {said}")


def all_trials():
    quick = {("published leaf", "empty"), ("ingest.json", "empty"), ("source leaf", "flip middle")}
    quick |= {("done.json", "remove"), ("current.json", "flip middle"), ("_metadata", "remove")}
    for what in OBJECTS:
        for how in DAMAGES:
            slow = () if (what, how) in quick else pytest.mark.slow
            yield pytest.param(what, how, marks=slow, id=f"{what}, {how}")


@pytest.mark.parametrize(("what", "how"), list(all_trials()))
def test_what_a_message_names_mends_the_damage(world, what, how):
    world.again()
    path = world.path(what)
    whole = path.read_bytes()
    DAMAGES[how](path)
    loose = ("nightly.max_flux_shift=9", "nightly.max_drift=1")
    survey = world.of(OTHER, *loose)
    did = heal(
        world,
        [lambda: verbs.validate(survey), lambda: verbs.run(survey), lambda: nightly(survey)],
        (OTHER,),
        world.second,
    )
    assert pointed_to(survey.store, "small").release == world.second
    assert world.leaves(world.second) == world.expected
    # What lay hidden comes to light when it is read.
    did += heal(world, [lambda: verbs.run(world.of(LATER))], (LATER,), world.second)
    assert world.leaves(pointed_to(survey.store, "small").release) == world.later
    did += heal(world, [lambda: verbs.rollback(world.of(), world.first)], (), world.first)
    assert verbs.validate(world.of()).problems == []
    # Not in all bytes of these: what is written again has another date, or a damaged name of the
    # library that wrote it does not matter.
    if path.suffix not in (".json", ".properties") and what not in OTHER_BYTES:
        assert path.read_bytes() == whole, did
    print(f"{what}, {how}: {', '.join(did) or 'by itself, or nothing reads it'}")


def bind(path):
    """One bit, which says that a column has a value in every row: Arrow ends who reads that."""
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    place = data.index(b"\x25\x02\x18", footer) + 1
    path.unlink()
    path.write_bytes(data[:place] + b"\0" + data[place + 1 :])


TABLES = [what for what in OBJECTS if what.endswith(("leaf", "_metadata", ".parquet"))]


@pytest.mark.parametrize(
    "what",
    [one if one == "_metadata" else pytest.param(one, marks=pytest.mark.slow) for one in TABLES],
)
def test_one_bit_that_aborts_arrow_ends_no_command(world, what):
    world.again()
    bind(world.path(what))
    ended = {
        verb: surveyproc(verb, world.survey, "--set", setting)
        for verb, setting in (("validate", OTHER), ("run", LATER), ("nightly", OTHER))
    }
    for verb, done in ended.items():
        assert done.returncode >= 0, (verb, done.stderr)
    told = "".join(done.stdout + done.stderr for done in ended.values())
    assert re.search(r"is damaged|differs from|cannot read|is not the leaf", told) or (
        surveyproc("validate", world.survey).returncode == 0
    )
