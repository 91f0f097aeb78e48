"""Hostile inputs through the command itself: named, refused, nothing run, nothing outside."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from command import surveyproc

WCS = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 10.0,
    "CRVAL2": -30.0,
    "CRPIX1": 32.0,
    "CRPIX2": 32.0,
    "CD1_1": -1e-4,
    "CD1_2": 0.0,
    "CD2_1": 0.0,
    "CD2_2": 1e-4,
}
HOSTILE = ["../../escaped", "/tmp/surveyproc-escaped", "..", "a/../../escaped"]


def outside_the_root(survey):
    """Everything in the survey's folder and the two above it, but for what lies in the store."""
    root = survey.parent / "store"
    return {path for path in survey.parents[2].rglob("*") if root not in [path, *path.parents]}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A survey whose catalog has 20 objects, and one tile of five calls itself by a plain name."""
    folder = tmp_path_factory.mktemp("deep") / "below" / "survey"
    (folder / "tiles").mkdir(parents=True)
    for index, name in enumerate([*HOSTILE, "good"]):
        header = fits.Header({**WCS, "OBJECT": name, "FILTER": "r", "MAGZERO": 25.0})
        pixels = np.ones((64, 64), np.float32)
        fits.PrimaryHDU(pixels, header).writeto(folder / "tiles" / f"{index}.fits")
    rows = "".join(f"{i},{10 + i / 9000},{-30 + i / 9000}\n" for i in range(20))
    (folder / "sources.csv").write_text("object_id,ra,dec\n" + rows)
    path = folder / "survey.toml"
    path.write_text(
        '[survey]\nname = "small"\nroot = "./store"\n[images]\nbands = ["r"]\n'
        'tiles = ["tiles/*.fits"]\n[catalog]\nsource = "sources.csv"\n'
        '[[products]]\nname = "photoz"\nmodel = "absent"\n'
    )
    return path


def test_a_tile_that_names_itself_out_of_the_root_is_refused(survey):
    before = outside_the_root(survey)
    done = surveyproc("ingest", survey, "--json")
    result = json.loads(done.stdout)
    problems = "\n".join(str(problem) for problem in result["tiles"]["problems"])
    for index, name in enumerate(HOSTILE):
        assert f"{index}.fits" in problems
        assert f"keyword OBJECT: tile id {name!r} may hold only letters" in problems
    assert result["tiles"]["tiles"] == 1
    cubes = {path.name for path in (survey.parent / "store" / "images").iterdir()}
    assert cubes == {"good", "tiles.parquet"}
    assert outside_the_root(survey) == before
    assert not Path("/tmp/surveyproc-escaped").exists()


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("name", ["model.pkl", "model.pt"])
def test_a_pickle_offered_as_a_model_is_refused_and_never_loaded(survey, tmp_path, name):
    mark, offered = tmp_path / "mark", tmp_path / name
    if name.endswith(".pt"):
        torch.save({"weights": Bomb(mark)}, offered)
    else:
        offered.write_bytes(pickle.dumps(Bomb(mark)))
    done = surveyproc("run", survey, "--set", f"products.photoz.model={offered}")
    assert done.returncode == 2
    assert f"{offered}: only safetensors packages are loaded, because a pickle can" in done.stderr
    assert "Traceback" not in done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("name", ["..", "a b"])
def test_a_model_name_never_becomes_a_path_unchecked(survey, name):
    done = surveyproc("run", survey, "--set", f"products.photoz.model={name}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
