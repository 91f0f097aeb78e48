"""The whole way with everything on a real object store: same bytes, faults, two drivers."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import lsdb
import pytest
from astropy.io import fits
from command import surveyproc
from conftest import use
from faults import Faults
from hats.io.validation import is_valid_catalog
from sums import is_leaf, sums
from upath import UPath

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.simulate import simulate
from surveyproc.survey import Survey
from surveyproc.verbs.nightly import nightly

OBJECTS, BANDS = 90, ("g", "r", "i")
# One process, and one start of Ray if there is any, for two verbs.
SCRIPT = """
import json, sys
from surveyproc import verbs
from surveyproc.config import load
from surveyproc.errors import SurveyError
from surveyproc.places import opened
from surveyproc.store.documents import document
from surveyproc.survey import Survey
config = load(sys.argv[1], sys.argv[2].split())
try:
    with opened(config.run):
        verbs.ingest(Survey(config))
        print(json.dumps(document(verbs.run(Survey(config)))))
except SurveyError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
TIMEOUT_S = 240
BY_RAY = (pytest.mark.ray, pytest.mark.slow)
pytestmark = pytest.mark.s3


def start(
    survey: Path, root: str = "", script: str = SCRIPT, place: str = "here"
) -> subprocess.Popen[str]:
    overrides = f"survey.root={root}" if root else ""
    return subprocess.Popen(
        [sys.executable, "-c", script, str(survey), overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SURVEYPROC_RUN_WORKERS": "2", "SURVEYPROC_RUN_PLACE": place},
    )


def end(process: subprocess.Popen[str]) -> dict:
    out, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A survey with photometry alone, run on the local disk."""
    folder = tmp_path_factory.mktemp("local") / "sim"
    file = simulate(folder, objects=OBJECTS, seed=3, bands=BANDS, pixel_scale=0.4, workers=1).config
    text = file.read_text()
    text = text[: text.index('[[products]]\nname = "photoz"')]
    file.write_text(re.sub("partition_rows = [0-9]+", "partition_rows = 12", text))
    end(start(file))
    return file


@pytest.fixture(scope="module")
def expected(survey):
    return sums(survey.parent / "store", is_leaf)


@pytest.fixture
def remote_survey(survey, bucket, tmp_path, proxy):
    """survey.toml whose tiles, catalog and root are `s3://` URLs."""
    fs = fsspec.filesystem("s3")
    fs.put(str(survey.parent / "tiles"), f"{bucket}/in/tiles", recursive=True)
    fs.put_file(str(survey.parent / "sources.fits"), f"{bucket}/in/sources.fits")
    text = survey.read_text().replace('"./store"', f'"{bucket}/store"')
    text = text.replace('"tiles/*.fits"', f'"{bucket}/in/tiles/*.fits"')
    (tmp_path / "survey.toml").write_text(
        text.replace('"sources.fits"', f'"{bucket}/in/sources.fits"')
    )
    proxy.requests.clear()
    return tmp_path / "survey.toml"


@pytest.mark.parametrize("place", ["here", pytest.param("ray", marks=BY_RAY)])
def test_everything_on_s3_gives_the_same_leaves(remote_survey, bucket, proxy, expected, place):
    done = end(start(remote_survey, place=place))
    assert done["did"] == "published"
    per_unit = len([one for one in proxy.requests if one.key.startswith("store/")]) / done["units"]
    assert sums(f"{bucket}/store", is_leaf) == expected
    assert is_valid_catalog(UPath(done["url"]), strict=True)
    assert len(lsdb.open_catalog(UPath(done["url"])).compute()) == OBJECTS
    config = load(remote_survey)
    assert verbs.validate(Survey(config)).problems == []
    # A leaf, its record: one request each. The rest is sources, cubes, metadata and plans.
    written = proxy.counts(f"store/releases/simulated/{done['release']}/dataset/Norder")
    assert written["PUT"] == done["units"]
    assert proxy.counts(f"store/runs/{done['release']}/commits/")["PUT"] == done["units"]
    # Seven units share what a run asks for once.
    assert per_unit < 60
    proxy.requests.clear()
    assert verbs.run(Survey(config)).did == "nothing"
    assert len(proxy.requests) < 20
    assert not proxy.counts()["PUT"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["here", pytest.param("ray", marks=BY_RAY)])
def test_faults_of_every_kind_give_the_same_leaves(remote_survey, bucket, proxy, expected, place):
    proxy.faults = Faults.all(0.05)
    done = end(start(remote_survey, place=place))
    proxy.faults = Faults()
    assert set(proxy.met()) >= {"error", "slow_down", "reset", "truncate", "delay"}
    assert done["did"] == "published"
    assert sums(f"{bucket}/store", is_leaf) == expected


@pytest.mark.parametrize("place", ["here", pytest.param("ray", marks=BY_RAY)])
def test_two_drivers_at_once_make_one_valid_release(survey, bucket, expected, place):
    root = f"{bucket}/store"
    drivers = [start(survey, root, place=place) for _ in range(2)]
    done = [end(driver) for driver in drivers]
    assert done[0]["url"] == done[1]["url"]
    assert sums(root, is_leaf) == expected
    config = load(survey, [f"survey.root={root}"])
    assert verbs.validate(Survey(config)).problems == []
    assert len(verbs.releases(Survey(config)).releases) == 1


@pytest.mark.slow
@pytest.mark.parametrize("place", ["here", pytest.param("ray", marks=BY_RAY)])
def test_a_store_that_goes_is_an_error_and_the_run_resumes(
    remote_survey, bucket, proxy, expected, place
):
    script = "import surveyproc.store.remote as r; r.PATIENCE_S = 4.0\n" + SCRIPT
    driver = start(remote_survey, script=script, place=place)
    until = time.monotonic() + TIMEOUT_S
    while not any("/commits/" in one.key and one.method == "PUT" for one in proxy.requests):
        assert time.monotonic() < until
        assert driver.poll() is None
        time.sleep(0.02)
    proxy.gone = True
    _, errors = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 1
    assert "UnreachableError" in errors
    assert "could not be reached" in errors
    proxy.gone = False
    done = end(start(remote_survey))
    assert done["did"] == "published"
    assert done["units_resumed"] > 0
    assert sums(f"{bucket}/store", is_leaf) == expected


def night(survey: Path, *settings: str) -> tuple[int, dict]:
    """Exit status and summary of a night by the command itself."""
    loose = ("nightly.max_drift=1.0", "nightly.max_share_growth=1.0", *settings)
    done = surveyproc("nightly", survey, "--json", *(w for one in loose for w in ("--set", one)))
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_nights_difference_and_rollback(remote_survey, bucket, proxy, tmp_path):
    status, first = night(remote_survey)
    assert (status, first["did"]) == (0, "published")
    proxy.requests.clear()
    assert night(remote_survey)[1]["did"] == "nothing"
    written = {one.key for one in proxy.requests if one.method == "PUT"}
    # Its summary, and what asks whether the store can be written to.
    (summary,) = (key for key in written if not key.startswith("store/.staging/"))
    assert summary.startswith("store/runs/nightly/2")

    tile = f"{bucket}/in/tiles/t00_r.fits"
    fsspec.filesystem("s3").get_file(tile, str(tmp_path / "tile.fits"))
    with fits.open(tmp_path / "tile.fits", mode="update") as file:
        file[0].data *= 1.02
    fsspec.filesystem("s3").put_file(str(tmp_path / "tile.fits"), tile)
    status, second = night(remote_survey, "nightly.keep_releases=2")
    assert (status, second["did"]) == (0, "published")
    assert second["files"]["changed"] == [tile]
    units = second["units"]
    assert units["computed"] == units["affected"] < units["total"]
    assert units["adopted"] == units["total"] - units["affected"]
    assert second["diff"]["changed"] > 0
    assert set(second["diff"]["columns"]) == {"flux_r", "flux_err_r"}

    releases = [first["release"], second["release"]]
    told = surveyproc("releases", remote_survey, "--diff", *releases, "--json")
    assert json.loads(told.stdout)["changed"] == second["diff"]["changed"]
    assert surveyproc("releases", remote_survey, "--rollback", releases[0]).returncode == 0
    listed = verbs.releases(Survey(load(remote_survey)))
    assert listed.current.release == releases[0]
    assert len(lsdb.open_catalog(UPath(listed.current.url)).compute()) == OBJECTS
    status, refused = night(remote_survey)
    assert (status, [one["gate"] for one in refused["gates"]]) == (3, ["withdrawn"])
    wider = ("products.photometry.aperture=1.4", "nightly.max_flux_shift=1.0")
    status, third = night(remote_survey, *wider, "nightly.keep_releases=2")
    assert (status, third["removed"]) == (0, releases[:1])
    assert verbs.validate(Survey(load(remote_survey))).problems == []


def test_a_night_without_its_store_still_says_what_happened(remote_survey, proxy, monkeypatch):
    monkeypatch.setattr("surveyproc.store.remote.PATIENCE_S", 1.0)
    proxy.gone = True
    done = nightly(Survey(load(remote_survey)))
    proxy.gone = False
    assert (done.did, done.exit_code) == ("failed", 1)
    assert "could not be reached" in done.error
    assert "could not be reached" in done.unsaved


def test_tiles_of_a_web_server_are_read(
    survey, web, server, bucket, tmp_path, expected, monkeypatch
):
    site = web(survey.parent)
    names = sorted(path.name for path in (survey.parent / "tiles").iterdir())
    urls = json.dumps([f"{site}/tiles/{name}?key=s3cret" for name in names])
    text = survey.read_text().replace('["tiles/*.fits"]', urls)
    text = text.replace('"sources.fits"', f'"{site}/sources.fits"')
    (tmp_path / "survey.toml").write_text(text)
    end(start(tmp_path / "survey.toml"))
    assert sums(str(tmp_path / "store"), is_leaf) == expected
    written = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in written if b"s3cret" in path.read_bytes()]
    use(monkeypatch, server.endpoint)
