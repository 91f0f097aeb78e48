"""The verb `blends`: files of stamps in, two cubes that share no galaxy out."""

import json
import re

import numpy as np
import pytest
from command import surveyproc

from surveyproc.errors import ConfigError, InputError
from surveyproc.store.storage import Store
from surveyproc.train.blends import BlendCounts, blend_truth
from surveyproc.train.cube import TrainingCube
from surveyproc.verbs.blends import blends


def stamps(path, n=40, side=48, bands=("g", "r"), **more):
    """Gaussian galaxies of 100 to 1,000 uJy in noise of 0.1, one of them with a hole."""
    random = np.random.default_rng(0)
    y, x = np.indices((side, side)) - side // 2
    shape = np.exp(-(x**2 + y**2) / 8) / 8 / np.pi
    flux = 10 ** random.uniform(2, 3, (n, len(bands), 1, 1))
    images = flux * shape + random.normal(0, 0.1, (n, len(bands), side, side))
    images[3, 0, 0, 0] = np.nan
    np.savez(path, images=images.astype(np.float32), bands=np.array(bands), **more)
    return path


def test_stamps_to_cubes(tmp_path):
    given = stamps(tmp_path / "stamps.npz", kind=np.array(["disc", "bulge"] * 20))
    out = tmp_path / "out"
    words = ("--out", out, "--stamps", given, "--bands", "r,g", "--unit", 1000, "--rule", "package")
    words += ("--galaxies", 3, "--train", 60, "--test", 20)
    done = surveyproc("blends", *map(str, words), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["dropped"] == {"with pixels that are not finite": 1}
    assert told["names"] == ["central", "companion", "companion_2"]
    assert told["train"]["galaxies"] + told["test"]["galaxies"] == 39
    cubes = [TrainingCube.open(Store(str(out)), f"blends/{part}") for part in ("train", "test")]
    assert [cube.n for cube in cubes] == [60, 20]
    for cube in cubes:
        assert (cube.bands, cube.pixel_targets) == (("r", "g"), {"masks": 3})
        truth = blend_truth(cube)
        assert ((truth.flux > 5e4) & (truth.flux < 2e6)).all()
        assert set(truth.kind.ravel()) == {"disc", "bulge"}
        assert cube.record["rule"]["most_of"] == "smaller"


def test_galaxies_are_drawn_without_stamps(tmp_path):
    counts = BlendCounts(40, 10)
    done = blends(str(tmp_path), parents=60, side=48, counts=counts)
    assert (done.train.blends, done.test.blends) == (40, 10)
    cube = TrainingCube.open(Store(str(tmp_path)), "blends/test")
    assert cube.index["noise"].to_numpy().min() > 0


def test_bands_noise_and_psfs_of_drawn_galaxies(tmp_path):
    words = ("--out", str(tmp_path), "--parents", "60", "--side", "32", "--train", "40")
    words += ("--test", "20", "--bands", "g,r,i", "--noise", "1,4", "--fwhm", "2,3,4")
    done = surveyproc("blends", *words)
    assert done.returncode == 0, done.stderr
    cube = TrainingCube.open(Store(str(tmp_path)), "blends/train")
    assert cube.bands == ("g", "r", "i")
    assert set(cube.index["noise"].to_pylist()) == {1.0, 4.0}
    assert set(cube.index["psf"].to_pylist()) == {2.0, 3.0, 4.0}
    for option, value, match in (
        ("--noise", "1,x", "--noise 1,x: .* give numbers, by commas"),
        ("--noise", "-1", "noise of -1 nJy a pixel is none"),
        ("--fwhm", "0", "a width of 0 pixels is none"),
    ):
        done = surveyproc("blends", *words, option, value)
        assert done.returncode == 2
        assert re.search(match, " ".join(done.stderr.split())), done.stderr


def test_what_is_no_file_of_stamps_is_named(tmp_path):
    text = tmp_path / "text.npz"
    text.write_text("no stamps")
    other = tmp_path / "other.npz"
    np.savez(other, pixels=np.zeros(3))
    half = tmp_path / "half.npz"
    half.write_bytes(other.read_bytes()[:100])
    odd = {
        "of one axis": {"images": np.zeros(3), "bands": ["r"]},
        "of more bands": {"images": np.zeros((4, 1, 48, 48)), "bands": ["r", "g"]},
        "one band, no list": {"images": np.zeros((4, 2, 48, 48)), "bands": "r"},
        "of text": {"images": np.full((4, 1, 48, 48), "x"), "bands": ["r"]},
        "fewer kinds": {"images": np.zeros((4, 1, 48, 48)), "bands": ["r"], "kind": ["disc"]},
    }
    for name, arrays in odd.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    paths = [tmp_path / f"{name}.npz" for name in ("nothing", *odd)]
    for path in (*paths, text, other, half):
        with pytest.raises(InputError, match=r"cannot be read as stamps .* `images`, shape"):
            blends(str(tmp_path), stamps=path)
    given = stamps(tmp_path / "stamps.npz")
    with pytest.raises(ConfigError, match="has no band 'K', only g, r"):
        blends(str(tmp_path), stamps=given, bands=("K",))
    with pytest.raises(ConfigError, match="no rule is called 'ours', only paper, package"):
        blends(str(tmp_path), rule="ours")
