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
from conftest import use
from faults import Faults
from hats.io.validation import is_valid_catalog
from sums import is_leaf, sums
from upath import UPath

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.simulate import simulate

OBJECTS, BANDS = 90, ("g", "r", "i")
# One start of Ray for two verbs. Its workers take the variables of this process.
SCRIPT = """
import json, sys
from surveyproc import cluster, verbs
from surveyproc.config import load
from surveyproc.errors import SurveyError
config = load(sys.argv[1], sys.argv[2].split())
try:
    with cluster.session(workers=2):
        verbs.ingest(config)
        print(json.dumps(verbs.run(config)))
except SurveyError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
TIMEOUT_S = 240


def start(survey: Path, root: str = "", script: str = SCRIPT) -> subprocess.Popen[str]:
    overrides = f"survey.root={root}" if root else ""
    return subprocess.Popen(
        [sys.executable, "-c", script, str(survey), overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SURVEYPROC_RUN_WORKERS": "2"},
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


def test_everything_on_s3_gives_the_same_leaves(remote_survey, bucket, proxy, expected):
    done = end(start(remote_survey))
    assert done["did"] == "published"
    per_unit = len([one for one in proxy.requests if one.key.startswith("store/")]) / done["units"]
    assert sums(f"{bucket}/store", is_leaf) == expected
    assert is_valid_catalog(UPath(done["url"]), strict=True)
    assert len(lsdb.open_catalog(UPath(done["url"])).compute()) == OBJECTS
    config = load(remote_survey)
    assert verbs.validate(config)["problems"] == []
    # A leaf, its record: one request each. The rest is sources, cubes, metadata and plans.
    written = proxy.counts(f"store/releases/simulated/{done['release']}/dataset/Norder")
    assert written["PUT"] == done["units"]
    assert proxy.counts(f"store/runs/{done['release']}/commits/")["PUT"] == done["units"]
    # Seven units share what a run asks for once.
    assert per_unit < 55
    proxy.requests.clear()
    assert verbs.run(config)["did"] == "nothing"
    assert len(proxy.requests) < 20
    assert not proxy.counts()["PUT"]


def test_faults_of_every_kind_give_the_same_leaves(remote_survey, bucket, proxy, expected):
    proxy.faults = Faults.all(0.05)
    done = end(start(remote_survey))
    proxy.faults = Faults()
    assert set(proxy.met()) >= {"error", "slow_down", "reset", "truncate", "delay"}
    assert done["did"] == "published"
    assert sums(f"{bucket}/store", is_leaf) == expected


def test_two_drivers_at_once_make_one_valid_release(survey, bucket, expected):
    root = f"{bucket}/store"
    drivers = [start(survey, root) for _ in range(2)]
    done = [end(driver) for driver in drivers]
    assert done[0]["url"] == done[1]["url"]
    assert sums(root, is_leaf) == expected
    config = load(survey, [f"survey.root={root}"])
    assert verbs.validate(config)["problems"] == []
    assert len(verbs.releases(config)["releases"]) == 1


def test_a_store_that_goes_is_an_error_and_the_run_resumes(remote_survey, bucket, proxy, expected):
    script = "import surveyproc.remote as r; r.PATIENCE_S = 4.0\n" + SCRIPT
    driver = start(remote_survey, script=script)
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


def test_tiles_of_a_web_server_are_read(survey, server, bucket, tmp_path, expected, monkeypatch):
    web = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        cwd=survey.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert web.stdout is not None
        port = int(web.stdout.readline().split(" port ")[1].split()[0])
        names = sorted(path.name for path in (survey.parent / "tiles").iterdir())
        urls = json.dumps([f"http://127.0.0.1:{port}/tiles/{name}?key=s3cret" for name in names])
        text = survey.read_text().replace('["tiles/*.fits"]', urls)
        text = text.replace('"sources.fits"', f'"http://127.0.0.1:{port}/sources.fits"')
        (tmp_path / "survey.toml").write_text(text)
        end(start(tmp_path / "survey.toml"))
    finally:
        web.kill()
        web.wait()
    assert sums(str(tmp_path / "store"), is_leaf) == expected
    written = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in written if b"s3cret" in path.read_bytes()]
    use(monkeypatch, server.endpoint)
