"""Jobs on a Ray head of its own: a process with a token, its own ports and its own folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from own_package import install
from ray_head import RAY, START_S, TOKEN, environment, free_port, head

from surveyproc.config import load
from surveyproc.errors import ConfigError, InputError
from surveyproc.simulate import simulate
from surveyproc.verbs import submit

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """URL of the dashboard of a Ray head that knows `TOKEN`."""
    port = free_port()
    options = [f"--port={free_port()}", f"--ray-client-server-port={free_port()}", "--num-cpus=2"]
    options += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    options += ["--dashboard-agent-listen-port=0"]
    # Jobs must get their code from what is submitted.
    with head(tmp_path_factory.mktemp("r"), port, *options, PYTHONPATH=""):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def survey(tmp_path):
    """A survey of 40 objects and no images, by absolute paths."""
    rows = "".join(f"{i},{10 + i / 1000},{-30 - i / 1000}\n" for i in range(40))
    (tmp_path / "sources.csv").write_text("object_id,ra,dec\n" + rows)
    path = tmp_path / "survey.toml"
    path.write_text(
        f'[survey]\nname = "small"\nroot = "{tmp_path}/store"\n[images]\nbands = ["r"]\n'
        f'[catalog]\nsource = "{tmp_path}/sources.csv"\n[[products]]\nname = "photometry"\n'
    )
    return path


def command(survey, address, *arguments):
    start = [sys.executable, "-m", "surveyproc", "submit", survey, "--address", address]
    return [*map(str, start), *map(str, arguments)]


def call(survey, address, *arguments, env=None):
    return subprocess.run(
        command(survey, address, *arguments),
        capture_output=True,
        text=True,
        timeout=300,
        env=env or environment(),
    )


@contextmanager
def blocked(survey):
    """Make the catalog one of a server that takes the question and never answers."""
    text = survey.read_text()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/sources.csv"
        survey.write_text(text.replace(f"{survey.parent}/sources.csv", url))
        yield
    survey.write_text(text)


def driver_of(job):
    """The process of the job's entry point, once it runs."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if line[1:3] == ["-m", "surveyproc"] and "submit" not in line:
                with_job = process.environ().get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
                if job in with_job:
                    return process
        time.sleep(0.2)
    raise AssertionError(f"job {job} did not start")


def test_a_job_runs_the_shipped_code_and_its_log_is_followed(survey, address):
    done = call(survey, address, "--verb", "ingest", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["exit_code"]) == ("SUCCEEDED", 0)
    assert result["job"].startswith("raysubmit_")
    assert "40 rows in, 40 in 1 partitions" in done.stderr
    assert (survey.parent / "store" / "catalogs").is_dir()
    # No images at all: every flux is null, and the gate's refusal comes back as it is.
    refused = call(survey, address)
    assert refused.returncode == 3
    assert "gates refused" in refused.stdout
    assert "FAILED" in refused.stdout.splitlines()[-1]


def test_a_product_of_another_package_goes_along(address, tmp_path):
    """It is installed where the job is submitted, and not on the cluster."""
    installed = install("own_product", tmp_path / "installed", tmp_path)
    simulate(tmp_path, objects=40, workers=1)
    path = tmp_path / "peaks.toml"
    path.write_text(
        f'[survey]\nname = "peaks"\nroot = "{tmp_path}/store"\n[run]\nplace = "ray"\n'
        f'[images]\ntiles = "{tmp_path}/tiles/*_r.*"\nbands = ["r"]\n'
        "file_pattern = '(?P<tile>[^_/]+)_(?P<band>r)[.](?:(?P<kind>weight)[.])?fits$'\n"
        f'[catalog]\nsource = "{tmp_path}/sources.fits"\n'
        '[[products]]\nname = "peaks"\nband = "r"\n'
    )
    path_here = os.pathsep.join([str(installed), os.environ["PYTHONPATH"]])
    done = call(path, address, "--verb", "nightly", env=environment(PYTHONPATH=path_here))
    assert done.returncode == 0, done.stdout + done.stderr
    releases = list((tmp_path / "store" / "releases" / "peaks").glob("r*"))
    (release,) = (one for one in releases if not one.name.endswith("-peaks"))
    leaves = (release / "dataset").rglob("Npix=*.parquet")
    counts = np.concatenate([pq.read_table(leaf)["peaks_n"].to_numpy() for leaf in leaves])
    assert len(counts) == 40
    assert (counts > 0).mean() > 0.5


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_stop_ends_it(survey, address):
    with (
        blocked(survey),
        subprocess.Popen(
            command(survey, address, "--verb", "ingest"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as following,
    ):
        job = following.stdout.readline().split()[1]
        driver = driver_of(job)
        following.send_signal(signal.SIGINT)
        said = following.communicate(timeout=60)[1]
        assert following.returncode == 130
        assert f"--stop {job}" in said
        assert "Traceback" not in said
        assert driver.is_running()
        assert driver.cmdline()[0] == sys.executable
        stopped = call(survey, address, "--stop", job)
        assert stopped.returncode == 0, stopped.stderr
        assert f"job {job}: STOPPED" in stopped.stdout
        assert not driver.is_running()


@pytest.mark.slow
def test_a_driver_that_dies_is_started_again_by_the_same_command(survey, address):
    with blocked(survey):
        detached = call(survey, address, "--verb", "ingest", "--detach", "--json")
        assert detached.returncode == 0, detached.stderr
        driver_of(json.loads(detached.stdout)["job"]).kill()
    again = call(survey, address, "--verb", "ingest")
    assert again.returncode == 0, again.stderr
    assert "40 rows in, 40 in 1 partitions" in again.stdout


@pytest.mark.slow
def test_ray_job_submit_runs_the_entry_points(survey, address):
    job = ["python", "jobs/ingest.py", survey]
    done = subprocess.run(
        [RAY, "job", "submit", "--address", address, "--working-dir", REPOSITORY, "--", *job],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 rows in, 40 in 1 partitions" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RAY_AUTH_TOKEN": "another"}, "the cluster refused our token: set RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "", "HOME": "/nowhere"}, "the cluster refused our token"),
        (
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere/token"},
            "the token of the Ray cluster cannot be read",
        ),
    ],
)
def test_a_wrong_or_missing_token_is_refused(survey, address, change, message):
    done = call(survey, address, env=environment(**change))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_unknown_jobs_are_named(survey, address):
    done = call(survey, address, "--stop", "raysubmit_never")
    assert done.returncode == 1
    assert "there is no job raysubmit_never" in done.stderr


@pytest.mark.parametrize(
    ("where", "status", "message"),
    [
        ("http://127.0.0.1:1", 1, "no Ray cluster answers at http://127.0.0.1:1"),
        ("127.0.0.1:6379", 1, "is not the URL of a Ray dashboard"),
        ("http://me:word@127.0.0.1:1", 2, "--address: this URL holds a user name or password"),
    ],
)
def test_addresses_where_no_cluster_is(survey, where, status, message):
    done = call(survey, where)
    assert done.returncode == status
    assert message in done.stderr
    assert "word@" not in done.stderr


def test_nothing_but_the_survey_and_the_package_is_shipped(survey, tmp_path):
    (tmp_path / "packed").mkdir()
    size = submit.pack(load(survey), survey, tmp_path / "packed")
    names = {path.name for path in (tmp_path / "packed").iterdir()}
    assert {"survey.toml", "surveyproc", "schemas"} <= names
    assert len(names) == 4  # and the package's metadata
    assert size < 3e6
    assert not list((tmp_path / "packed").rglob("__pycache__"))


def test_too_much_to_ship_is_refused_by_name(survey):
    config = load(survey)
    with open(survey, "ab") as stream:
        stream.write(b"#" * (submit.MAX_BYTES + 1))
    with pytest.raises(InputError, match=r"at most 21 MB.*largest file is .*survey\.toml"):
        submit.pack(config, survey, survey.parent)


def test_relative_paths_and_logins_never_reach_a_cluster(survey):
    sets = ["survey.root=./store", "images.tiles=['tiles/*.fits']"]
    with pytest.raises(ConfigError, match=r"survey\.root = './store', images\.tiles = 'tiles"):
        submit.check_portable(load(survey, sets))
    secret = load(survey, ["survey.root=s3://bucket/x", "catalog.source=s3://key:secret@bucket/x"])
    with pytest.raises(ConfigError, match=r"catalog\.source: this URL holds") as caught:
        submit.check_portable(secret)
    assert "secret" not in str(caught.value)
