from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sep
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from scipy.spatial import cKDTree
from sums import sums

from surveyproc.config import load
from surveyproc.errors import ConfigError, InputError
from surveyproc.simulate import DEFAULT_BANDS, SimulatedSurvey, simulate
from surveyproc.simulate.bands import BANDS
from surveyproc.simulate.draw import MOFFAT_BETA

N, CHOSEN = 600, ("r", "J", "H")


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSurvey:
    return simulate(tmp_path_factory.mktemp("survey"), objects=N, seed=3, workers=1, bands=CHOSEN)


def test_same_seed_same_bytes_whatever_the_workers_and_another_seed_differs(
    tmp_path: Path,
) -> None:
    for name, seed, workers in (("a", 7, 1), ("b", 7, 2), ("c", 8, 1)):
        simulate(tmp_path / name, objects=40, seed=seed, workers=workers, bands=("g", "H"))
    a, b, c = (sums(tmp_path / name) for name in "abc")
    assert a == b
    assert len(a) == 3 + 2 * (4 * 2 - 1)
    same = {name for name in a if a[name] == c[name]}
    assert {name for name in same if "weight" not in name} == {"survey.toml"}


def test_images_of_a_band_do_not_depend_on_the_other_bands(tmp_path: Path) -> None:
    simulate(tmp_path / "a", objects=30, seed=1, workers=1, bands=("g", "r"))
    simulate(tmp_path / "b", objects=30, seed=1, workers=1, bands=("r", "K"))
    assert sums(tmp_path / "a")["tiles/t00_r.fits"] == sums(tmp_path / "b")["tiles/t00_r.fits"]


def test_the_same_sky_in_other_pixels(tmp_path: Path) -> None:
    for name, scale in (("a", 0.25), ("b", 0.4)):
        simulate(tmp_path / name, objects=30, seed=1, workers=1, bands=("r",), pixel_scale=scale)
    assert sums(tmp_path / "a")["truth.parquet"] == sums(tmp_path / "b")["truth.parquet"]
    images = [fits.getdata(tmp_path / name / "tiles/t00_r.fits", header=True) for name in "ab"]
    scales = [header["CDELT2"] * 3600 for _, header in images]
    assert scales == pytest.approx([0.25, 0.4])
    light = [float(pixels.sum(dtype=np.float64)) for pixels, _ in images]
    assert light[1] == pytest.approx(light[0], rel=0.02)
    # The sky's noise in a given area is the same.
    noise = [np.median(np.abs(pixels)) for pixels, _ in images]
    assert noise[1] / noise[0] == pytest.approx(0.4 / 0.25, rel=0.1)


def test_config_loads_and_finds_every_file(survey: SimulatedSurvey, tmp_path: Path) -> None:
    config = load(survey.config, environment={})
    assert config.images.bands == list(CHOSEN)
    assert len(config.tile_files()) == 2 * survey.images == 2 * (4 * 3 - 1)
    assert config.catalog.partition_rows == N // 6
    assert config.product("photoz").model == "gaznet-c3"
    assert config.truth is not None
    assert config.truth.select == "test"
    nine = simulate(tmp_path / "nine", objects=10, workers=1)
    config = load(nine.config, environment={})
    assert config.images.bands == list(DEFAULT_BANDS)
    assert config.product("photoz").model == "gaznet-c9"
    training = config.product("photoz").training
    assert training is not None
    assert training.select == "spec"


def test_the_last_tile_lacks_one_band(survey: SimulatedSurvey) -> None:
    names = {path.name for path in (survey.config.parent / "tiles").iterdir()}
    assert {"t02_H.fits", "t03_J.fits", "t02_H.weight.fits"} <= names
    assert not {"t03_H.fits", "t03_H.weight.fits"} & names


def test_headers_name_tile_band_and_zero_point_and_hold_no_date(survey: SimulatedSurvey) -> None:
    header = fits.getheader(survey.config.parent / "tiles" / "t01_J.fits")
    assert (header["OBJECT"], header["FILTER"]) == ("t01", "J")
    assert header["MAGZERO"] == BANDS["J"].zeropoint == 27.5
    assert header["BITPIX"] == -32
    assert header["CTYPE1"] == "RA---TAN"
    assert not [key for key in header if "DATE" in key or "MJD" in key]


def test_weights_are_the_inverse_variance_of_the_noise(survey: SimulatedSurvey) -> None:
    for band in CHOSEN:
        tile = survey.config.parent / "tiles" / f"t00_{band}.fits"
        image, weight = fits.getdata(tile), fits.getdata(tile.with_suffix(".weight.fits"))
        assert weight.shape == image.shape
        np.testing.assert_allclose(weight, BANDS[band].sky_sigma ** -2.0, rtol=1e-6)
        # Few objects reach below the sky: the negative half of the noise is seen undisturbed.
        below = image[image < 0].astype(np.float64)
        assert np.sqrt((below**2).mean()) == pytest.approx(BANDS[band].sky_sigma, rel=0.08)


def test_stars_measured_on_the_images_have_their_true_magnitudes(survey: SimulatedSurvey) -> None:
    truth = Table(pq.read_table(survey.truth).to_pydict())
    coordinates = SkyCoord(truth["ra"], truth["dec"], unit="deg")
    places = coordinates.cartesian.xyz.value.T
    nearest = np.degrees(cKDTree(places).query(places, k=2)[0][:, 1]) * 3600
    good = np.array(truth["is_star"]) & (nearest > 5.0) & (np.array(truth["mag_r"]) < 23)
    offsets = []
    for path in sorted((survey.config.parent / "tiles").glob("t??_[rJ].fits")):
        header, image = fits.getheader(path), fits.getdata(path).astype(np.float64)
        band = BANDS[header["FILTER"]]
        x, y = WCS(header).world_to_pixel(coordinates[good])
        inside = (np.minimum(x, y) > 20) & (np.maximum(x, y) < len(image) - 20)
        flux, _, _ = sep.sum_circle(image, x[inside], y[inside], 1.2 / 0.25, subpix=0)
        alpha = band.fwhm / (2 * np.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
        share = 1 - (1 + (1.2 / alpha) ** 2) ** (1 - MOFFAT_BETA)
        mag = np.array(truth[f"mag_{band.name}"])[good][inside]
        true = 10 ** (-0.4 * (mag - header["MAGZERO"])) * share
        noise = band.sky_sigma * np.sqrt(np.pi) * 1.2 / 0.25
        assert (abs(flux - true) < 4 * noise + 0.03 * true).all()
        bright = mag < 21
        assert (abs(flux - true) < 0.03 * true)[bright].all()
        cx, cy, _ = sep.winpos(image, x[inside], y[inside], band.fwhm / 0.25 / 2.35)
        shift = np.stack([cx - x[inside], cy - y[inside]], axis=1)
        # A centroid scatters by about sigma / signal-to-noise; a neighbour's wing adds a little.
        scatter = band.fwhm / 0.25 / 2.35 * noise / true
        assert (abs(shift) < 5 * scatter[:, None] + 0.1).all(), (band.name, mag, shift, scatter)
        offsets += list(shift)
    assert len(offsets) >= 6
    # A wrong pixel convention would show as 0.5 or 1.
    assert abs(np.median(offsets, axis=0)).max() < 0.03


def test_an_object_of_the_overlap_is_in_both_tiles(survey: SimulatedSurvey) -> None:
    truth = Table(pq.read_table(survey.truth).to_pydict())
    seen = {}
    for name in ("t00", "t01"):
        path = survey.config.parent / "tiles" / f"{name}_r.fits"
        header, image = fits.getheader(path), fits.getdata(path).astype(np.float64)
        x, y = WCS(header).world_to_pixel_values(np.array(truth["ra"]), np.array(truth["dec"]))
        inside = (np.minimum(x, y) > 16) & (np.maximum(x, y) < len(image) - 16)
        flux, _, _ = sep.sum_circle(image, x[inside], y[inside], 6.0, subpix=0)
        seen[name] = dict(zip(np.flatnonzero(inside), flux, strict=True))
    both = sorted(set(seen["t00"]) & set(seen["t01"]))
    assert len(both) > 5
    first, second = (np.array([seen[name][row] for row in both]) for name in ("t00", "t01"))
    noise = BANDS["r"].sky_sigma * np.sqrt(2 * np.pi * 6.0**2)
    assert (abs(first - second) < 5 * noise + 0.01 * first).all()
    assert (first > 5 * noise).mean() > 0.9


def test_catalog_has_a_row_an_object_and_nothing_of_the_truth(survey: SimulatedSurvey) -> None:
    sources, truth = Table.read(survey.catalog), pq.read_table(survey.truth)
    assert sources.colnames == ["object_id", "ra", "dec"]
    assert len(sources) == truth.num_rows == N == survey.objects
    assert sources["object_id"].dtype.newbyteorder("=") == np.int64
    assert list(sources["object_id"]) == truth["object_id"].to_pylist()
    ra, dec = truth["ra"].to_numpy(), truth["dec"].to_numpy()
    assert ra.max() > 359
    assert ra.min() < 1
    there = SkyCoord(sources["ra"], sources["dec"], unit="deg")
    off = there.separation(SkyCoord(ra, dec, unit="deg")).arcsec
    assert np.sqrt((off**2).mean() / 2) == pytest.approx(0.02, rel=0.1)


def test_truth_declares_units_and_splits_galaxies(survey: SimulatedSurvey) -> None:
    table = pq.read_table(survey.truth)
    for field in table.schema:
        assert field.metadata[b"description"]
    assert table.schema.field("mag_J").metadata[b"unit"] == b"mag"
    star, spec, test = (table[name].to_numpy() for name in ("is_star", "spec", "test"))
    assert (star.astype(int) + spec + test == 1).all()
    assert (star.sum(), spec.sum(), test.sum()) == (survey.stars, survey.spec, survey.test)
    assert table["z"].null_count == survey.stars


def test_bad_arguments_and_strange_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        simulate(tmp_path, objects=0)
    with pytest.raises(ConfigError, match="'Ks'"):
        simulate(tmp_path, bands=("Ks",))
    for root in ("s3://key:hidden@bucket/survey", "https://example.org/survey"):
        with pytest.raises(ConfigError, match="simulate: root: ") as refused:
            simulate(tmp_path, objects=10, root=root)
        assert "hidden" not in str(refused.value)
    assert not any(tmp_path.iterdir())
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "mine.fits").touch()
    with pytest.raises(InputError, match=r"mine\.fits"):
        simulate(tmp_path, objects=10)
    assert not (tmp_path / "survey.toml").exists()
