"""Zero points and gains: where they come from, what is believed, what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from conftest_images import header, pixels, write
from where import HERE

from surveyproc.config import SurveyConfig
from surveyproc.config.inputs import ImagesSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.images.calibration import Calibration
from surveyproc.images.cube import read_tiles
from surveyproc.images.fits import planes_of
from surveyproc.images.ingest import ingest_tiles
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

# Of a pixel of `conftest_images`, 0.36 arcsec wide.
AREA = math.radians(1e-4) ** 2


def images(**settings: Any) -> ImagesSection:
    return ImagesSection(tiles=[], **{"bands": ["g", "r", "z"], **settings})


def zeropoint(path: Path, **settings: Any) -> float:
    (plane,), problems = planes_of(str(path), images(**settings))
    assert problems == []
    return plane.zeropoint


def problem(path: Path, files: dict[str, float] | None = None, **settings: Any) -> str:
    planes, (one,) = planes_of(str(path), images(**settings), files or {})
    assert planes == []
    assert (one.tile, one.band) == ("T1", "g")
    assert str(path) in one.message
    return one.message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 30.0),
        ({"zeropoint_keyword": "MAGZERO1"}, 24.5),
        ({"zeropoint": 26.0}, 26.0),
        ({"zeropoint": "MAGZERO1 + 2.5*log10(EXPTIME)"}, 29.5),
        ({"zeropoint": '"ESO DET ZP" - 1'}, 22.0),
        ({"zeropoint": 26.0, "zeropoints": {"g": 25.0}}, 25.0),
        ({"zeropoints": {"g": "MAGZERO1", "r": 3.0}}, 24.5),
        ({"zeropoints": {"r": 25.0}}, 30.0),
        # Numbers in survey.toml are believed, whatever the range.
        ({"zeropoints": {"g": 0.0}}, 0.0),
        ({"zeropoint": -3.0}, -3.0),
    ],
)
def test_the_first_that_states_it_wins(tmp_path, settings, expected):
    cards = {"MAGZERO1": 24.5, "EXPTIME": 100.0, "HIERARCH ESO DET ZP": 23.0}
    path = write(tmp_path / "a.fits", **cards)
    assert zeropoint(path, **settings) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("bunit", "expected"),
    [
        ("nJy", 31.4),
        ("uJy", 23.9),
        ("nanomaggy", 22.5),
        ("MJy/sr", 31.4 - 2.5 * math.log10(1e15 * AREA)),
        ("ADU", None),
        ("electron/s", None),
    ],
)
def test_a_unit_of_flux_is_a_zero_point(tmp_path, bunit, expected):
    path = write(tmp_path / "a.fits", zeropoint=None, BUNIT=bunit)
    if expected is None:
        assert f"BUNIT ({bunit}) is no unit of flux" in problem(path)
    else:
        assert zeropoint(path) == pytest.approx(expected, abs=1e-6)
        assert zeropoint(path, zeropoints={"g": 20.0}) == 20.0


def test_the_area_of_a_pixel_is_the_headers_if_the_wcs_agrees(tmp_path):
    cards = {"zeropoint": None, "BUNIT": "MJy/sr"}
    path = write(tmp_path / "a.fits", PIXAR_SR=1.02 * AREA, **cards)
    expected = 31.4 - 2.5 * math.log10(1.02e15 * AREA)
    assert zeropoint(path) == pytest.approx(expected, abs=1e-9)
    assert "PIXAR_SR" in problem(write(tmp_path / "b.fits", PIXAR_SR=2 * AREA, **cards))
    assert "PIXAR_SR" in problem(write(tmp_path / "b.fits", PIXAR_SR="none", **cards))


def test_a_keyword_and_a_unit_must_agree(tmp_path):
    assert zeropoint(write(tmp_path / "a.fits", zeropoint=22.5, BUNIT="nanomaggy")) == 22.5
    message = problem(write(tmp_path / "b.fits", zeropoint=25.0, BUNIT="nanomaggy"))
    assert "MAGZERO = 25" in message
    assert "BUNIT = 'nanomaggy'" in message


@pytest.mark.parametrize("value", [0.0, -99.0, -999, 99.0, 999.0, 4.9])
def test_implausible_zero_points_are_named(tmp_path, value):
    path = write(tmp_path / "a.fits", zeropoint=value)
    message = problem(path)
    assert f"keyword MAGZERO = {value:g}" in message
    assert "images.zeropoint_range is 5 to 45" in message
    assert zeropoint(path, zeropoint_range=[-1000, 1000]) == value
    assert "log10" in problem(path, zeropoint="MAGZERO + log10(1)")
    assert "zeropoint_file: a.fits" in problem(path, {"a.fits": value}, zeropoint_file="z.csv")


@pytest.mark.parametrize("value", ["INDEF", "NaN", "inf", "25,3", True, "", None])
def test_what_is_no_number_is_named(tmp_path, value):
    path = write(tmp_path / "a.fits", zeropoint=value)
    assert "keyword MAGZERO" in problem(path)
    assert "keyword MAGZERO" in problem(path, zeropoint="MAGZERO + 1")


def test_expressions_name_what_they_lack(tmp_path):
    path = write(tmp_path / "a.fits", EXPTIME=0.0)
    assert "keyword NOSUCH is missing" in problem(path, zeropoint="MAGZERO + NOSUCH")
    assert "has no value" in problem(path, zeropoint="MAGZERO + 2.5*log10(EXPTIME)")
    with pytest.raises(ValueError, match="not allowed"):
        images(zeropoint="__import__('os').system('true')")
    with pytest.raises(ValueError, match="comes first"):
        images(zeropoint_range=[40, 20])


def test_zero_points_by_file(tmp_path, make_config):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.fits", tile=name.upper(), zeropoint=None)
    table = tmp_path / "zeropoints.csv"
    table.write_text("file,zeropoint\na.fits,25.5\nelsewhere/b.fits,-99\n")
    config: SurveyConfig = make_config(zeropoint_file="zeropoints.csv")
    files = Calibration.of(config).files
    assert files == {"a.fits": 25.5, "b.fits": -99.0}
    summary = ingest_tiles(Survey(config), HERE)
    assert [tile.id for tile in read_tiles(Store(config.root))] == ["A"]
    assert "images.zeropoint_file: b.fits = -99" in summary.problems[0]
    planes, (one,) = planes_of(str(tmp_path / "b.fits"), config.images, {"a.fits": 25.5})
    assert (planes, "has no row for 'b.fits'" in one.message) == ([], True)
    table.write_text("file,zp\na.fits,25.5\n")
    with pytest.raises(ConfigError, match="no column 'zeropoint'"):
        Calibration.of(config)
    table.write_text("file,zeropoint\na.fits,25.5\nx/a.fits,25.6\n")
    with pytest.raises(ConfigError, match="two rows"):
        Calibration.of(config)
    table.unlink()
    with pytest.raises(InputError, match=r"zeropoints\.csv"):
        Calibration.of(config)


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (None, None),
        (4.0, 4.0),
        ("GAIN", 2.5),
        ("GAIN * EXPTIME", 250.0),
        ({"g": "GAIN"}, 2.5),
        ({"r": 4.0}, None),
    ],
)
def test_gains_reach_the_table_of_tiles_as_flux_of_an_electron(
    tmp_path, make_config, gain, expected
):
    write(tmp_path / "a.fits", GAIN=2.5, EXPTIME=100.0)
    config = make_config(gain=gain)
    ingest_tiles(Survey(config), HERE)
    (tile,) = read_tiles(Store(config.root))
    flux = None if expected is None else pytest.approx(10 ** (1.4 / 2.5) / expected)
    assert tile.electron_flux == (flux,)


@pytest.mark.parametrize(("gain", "named"), [("GAIN", "GAIN"), (0.0, "images.gain"), (-1, "gain")])
def test_a_gain_that_cannot_be_is_named(tmp_path, gain, named):
    assert named in problem(write(tmp_path / "a.fits"), gain=gain)


def test_nothing_that_one_file_says_costs_another_tile(tmp_path, make_config):
    """Stated zero points are believed; this one no float can hold the flux of."""
    fits.PrimaryHDU(pixels(), header(tile="T2", band="r")).writeto(tmp_path / "b.fits")
    write(tmp_path / "a.fits")
    config = make_config(zeropoints={"g": -9000.0})
    summary = ingest_tiles(Survey(config), HERE)
    assert [tile.id for tile in read_tiles(Store(config.root))] == ["T2"]
    (message,) = summary.problems
    assert message.startswith("tile T1: cannot be used: OverflowError")
    assert np.isfinite(read_tiles(Store(config.root))[0].pixel_scale)
