"""Shared fixtures: real survey data where it is present, a small survey, one Ray for all tests."""

import functools
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hypothesis
import pytest
import where

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.places import Places
from surveyproc.simulate import simulate
from surveyproc.survey import Survey

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared" / "data"

# A busy machine is no defect of ours; how long a test may take is said in pyproject.toml.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Whoever starts the tests in the background has them ignore Ctrl-C, and so would all they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Ray's worker processes unpickle classes of test modules by importing them.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture(scope="session")
def survey_data() -> Path:
    """Folder of real survey data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("real survey data (../shared/data) is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Places]:
    """A local Ray of two processes, which ends with the tests."""
    places = where.on_ray()
    places.cluster()
    yield places
    places.close()


@pytest.fixture(scope="session")
def trained_survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 simulated objects in 9 bands, ingested, the network trained. Do not change it."""
    folder = tmp_path_factory.mktemp("survey")
    survey = simulate(folder / "sim", objects=240, seed=3, workers=1).config
    text = survey.read_text().replace("partition_rows = 40", "partition_rows = 30")
    survey.write_text(text)
    config = load(survey, ["products.photoz.training.epochs=1"])
    verbs.ingest(Survey(config))
    verbs.train(Survey(config))
    return survey


@pytest.fixture
def survey_copy(trained_survey: Path, tmp_path: Path) -> Path:
    """survey.toml of a private copy, ready for `run`."""
    shutil.copytree(trained_survey.parent, tmp_path / "copy")
    return tmp_path / "copy" / "survey.toml"


@pytest.fixture(scope="session")
def published_survey(trained_survey: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same survey after `run`. Do not change it."""
    folder = tmp_path_factory.mktemp("published") / "sim"
    shutil.copytree(trained_survey.parent, folder)
    verbs.run(Survey(load(folder / "survey.toml")))
    return folder / "survey.toml"


@pytest.fixture
def web() -> Iterator[Callable[[Path], str]]:
    """Starts a web server over a folder; its address."""
    running = []

    def serve(folder: Path) -> str:
        handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
        running.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield serve
    for server in running:
        server.shutdown()
        server.server_close()
