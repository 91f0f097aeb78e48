"""What a command imports, which is most of the time that a short one takes."""

import json
import subprocess
import sys
from pathlib import Path

import imports_worker
import pytest
import small_package

from surveyproc.simulate import simulate
from surveyproc.store.storage import Store

# Each takes a quarter of a second to import, Ray and torch several; so a verb has its reasons.
# pandas comes with pyarrow's first array, whoever makes it.
HEAVY = {
    "torch", "ray", "hats", "lsdb", "dask", "pandas", "matplotlib", "galsim", "photutils", "timm",
    "torchvision",
}  # fmt: skip
ARRAYS = {"numpy", "pyarrow", "astropy", "scipy", "zarr"}

# Runs commands one after the other and says what is loaded after each.
PROGRAM = """
import json, sys
from surveyproc.cli.app import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["surveyproc", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    print("LOADED", json.dumps([name for name in sys.modules if "." not in name]))
"""


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def loaded_after(*commands: tuple[str, ...]) -> list[set[str]]:
    """Which modules of note a process has loaded after each of these commands."""
    lines = run("-c", PROGRAM, json.dumps(commands)).splitlines()
    told = [line.removeprefix("LOADED ") for line in lines if line.startswith("LOADED ")]
    assert len(told) == len(commands)
    return [(HEAVY | ARRAYS) & set(json.loads(one)) for one in told]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a survey of 60 objects: photometry.toml, and survey.toml, which has a network too."""
    folder = tmp_path_factory.mktemp("imports")
    text = simulate(folder, objects=60, seed=3, workers=1, bands=tuple("ugri")).config.read_text()
    before, network, _ = text.partition('[[products]]\nname = "photoz"')
    assert network
    (folder / "photometry.toml").write_text(before)
    small_package.save(Store(str(folder / "store")), "gaznet-c4")
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> list[set[str]]:
    """After ingest, run, nightly of photometry. From here on it is published."""
    survey = str(folder / "photometry.toml")
    return loaded_after(("ingest", survey), ("run", survey), ("nightly", survey))


@pytest.fixture(scope="module")
def inferred(folder: Path, measured: list[set[str]]) -> list[set[str]]:
    """After plan, releases, run with the network. From here on that is published."""
    survey = str(folder / "survey.toml")
    return loaded_after(("plan", survey), ("releases", survey), ("run", survey))


def test_help_needs_no_array():
    (modules,) = loaded_after(("--help",))
    assert modules == set()


def test_ingest_and_photometry_need_no_network_and_no_cluster(measured):
    ingest, photometry, nightly = measured
    assert ingest & HEAVY <= {"pandas"}
    assert photometry & HEAVY <= {"pandas", "photutils"}
    assert nightly & HEAVY <= {"pandas", "photutils"}


def test_a_network_needs_torch_when_it_runs_and_not_before(inferred):
    plan, releases, photoz = inferred
    assert plan & HEAVY == set()
    assert releases & HEAVY == set()
    # Photometry is carried over from the release before.
    assert photoz & HEAVY == {"torch", "pandas"}


def test_what_is_published_needs_no_network_again(folder, inferred):
    survey = str(folder / "survey.toml")
    verbs = ("run", "nightly", "evaluate", "validate")
    again, nightly, evaluate, validate = loaded_after(*((verb, survey) for verb in verbs))
    assert again & HEAVY == set()
    assert nightly & HEAVY == set()
    assert evaluate & HEAVY <= {"pandas"}
    # The validator of HATS catalogs is that of hats, which draws.
    assert validate & HEAVY <= {"pandas", "hats", "matplotlib"}


@pytest.mark.ray
def test_a_worker_process_of_photometry_has_no_torch(folder, measured):
    own = ("run.place=ray", "run.workers=1", "products.photometry.aperture=1.1")
    options = [text for setting in own for text in ("--set", setting)]
    run(imports_worker.__file__, "run", str(folder / "photometry.toml"), *options)
    modules = set(Store(str(folder / "store")).read_json(imports_worker.KEY)["modules"])
    assert "ray" in modules
    assert modules & HEAVY <= {"ray", "pandas", "photutils"}
