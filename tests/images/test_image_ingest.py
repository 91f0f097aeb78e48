import errno
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import fitsio
import numpy as np
import pytest
import where
import zarr
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from conftest_images import header, pixels, write

from surveyproc.errors import InputError, StoreError
from surveyproc.images import fits as fits_planes
from surveyproc.images import ingest
from surveyproc.images.build import nanojansky_of_count
from surveyproc.images.cube import read_tiles, read_window
from surveyproc.images.ingest import ingest_tiles
from surveyproc.measure.aperture import annulus_for, aperture_photometry
from surveyproc.sky import pixel_positions, wcs_from_header
from surveyproc.store import layout, urls
from surveyproc.store.storage import Store
from surveyproc.survey import Survey


def run(config, places=where.HERE):
    store = Store(config.root)
    return ingest_tiles(Survey(config), places), store


def whole(store, tile, bands=None):
    return read_window(store, tile, 0, tile.height, 0, tile.width, bands or tile.bands)


def snapshot(root: str) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


def contents(root: str) -> dict[str, bytes]:
    return {name: data for name, (_, data) in snapshot(root).items()}


def write_two_bands(folder: Path) -> None:
    write(folder / "a_g.fits", pixels(1), band="g", zeropoint=30.0)
    write(folder / "a_r.fits", pixels(2), band="r", zeropoint=22.5)


def test_calibrated_cube_with_everything_recorded(tmp_path, make_config):
    write_two_bands(tmp_path)
    summary, store = run(make_config())
    assert (summary.tiles, summary.written, summary.problems) == (1, 1, [])
    assert summary.bytes == sum(p.stat().st_size for p in tmp_path.glob("*.fits"))
    (tile,) = read_tiles(store)
    assert tile.bands == ("g", "r")
    assert tile.shape == (80, 100)
    assert tile.pixel_scale == pytest.approx(0.36, rel=1e-6)
    window = whole(store, tile)
    np.testing.assert_allclose(window.image[0], pixels(1) * 10 ** (1.4 / 2.5), rtol=1e-6)
    np.testing.assert_allclose(window.image[1], pixels(2) * 10 ** (8.9 / 2.5), rtol=1e-6)
    assert window.variance is None
    # What we packed ourselves is a Zarr v3 array to anyone.
    group = zarr.open_group(store.path(tile.key), mode="r")
    np.testing.assert_array_equal(group["image"][:], window.image)
    assert group.attrs["bands"] == ["g", "r"]
    assert group["image"].metadata.zarr_format == 3


def test_weights_and_masks(tmp_path, make_config):
    rng = np.random.default_rng(3)
    weight = rng.uniform(0.5, 2, (80, 100)).astype(np.float32)
    weight[3, 4], weight[5, 6] = 0, -1
    mask = np.zeros((80, 100), np.int32)
    mask[10, 11], mask[12, 13] = 1, 2
    write(tmp_path / "a_i.fits", pixels(1))
    write(tmp_path / "a_w.fits", weight)
    write(tmp_path / "a_m.fits", mask)
    pattern = "_(?P<kind>[iwm])[.]"
    _, store = run(make_config(bands=["g"], file_pattern=pattern, mask_bits=2))
    (tile,) = read_tiles(store)
    assert (tile.has_weight, tile.has_mask) == (True, True)
    window = whole(store, tile)
    bad = np.zeros((80, 100), bool)
    bad[3, 4] = bad[5, 6] = bad[12, 13] = True
    np.testing.assert_array_equal(np.isnan(window.image[0]), bad)
    factor = nanojansky_of_count(30.0)
    good = weight > 0
    np.testing.assert_allclose(window.variance[0][good], factor**2 / weight[good], rtol=1e-5)
    assert np.isnan(window.variance[0][~good]).all()
    np.testing.assert_array_equal(zarr.open_group(store.path(tile.key))["mask"][0], bad)


def test_same_bytes_again_write_nothing_and_a_change_makes_a_new_version(tmp_path, make_config):
    write_two_bands(tmp_path)
    write(tmp_path / "b_g.fits", pixels(5), tile="T2")
    config = make_config()
    _, store = run(config)
    before, old = snapshot(store.root), read_tiles(store)
    summary, _ = run(config)
    assert (summary.written, summary.unchanged) == (0, 2)
    assert snapshot(store.root) == before
    write(tmp_path / "b_g.fits", pixels(6), tile="T2")
    summary, _ = run(config)
    assert (summary.written, summary.unchanged) == (1, 1)
    new = read_tiles(store)
    assert new[0] == old[0]
    assert new[1].version != old[1].version
    assert not np.array_equal(whole(store, old[1]).image, whole(store, new[1]).image)


def test_the_zero_point_is_part_of_the_version(tmp_path, make_config):
    write_two_bands(tmp_path)
    _, store = run(make_config())
    first = read_tiles(store)[0].version
    run(make_config(zeropoints={"g": 25.0}))
    assert read_tiles(store)[0].version != first


def test_killed_in_the_middle_the_same_command_ends_in_the_same_bytes(tmp_path, make_config):
    write_two_bands(tmp_path)
    run(make_config(root="reference"))
    _, store = run(make_config())
    # What a kill leaves: staged data of a process that is gone, and a cube without its record.
    store.remove(layout.TILES)
    next(Path(store.root).glob("images/T1/*/tile.json")).unlink()
    staged = Path(store.root) / ".staging" / f"cube-{os.uname().nodename}-999999999-x"
    staged.mkdir(parents=True)
    summary, _ = run(make_config())
    assert summary.written == 1
    assert contents(store.root) == contents(str(tmp_path / "reference"))
    assert not list(staged.parent.iterdir())


def test_a_bad_band_is_named_and_the_rest_of_the_tile_kept(tmp_path, make_config):
    write_two_bands(tmp_path)
    short = tmp_path / "a_r.fits"
    short.write_bytes(short.read_bytes()[:8000])
    summary, store = run(make_config())
    (message,) = summary.problems
    assert "a_r.fits" in message
    (tile,) = read_tiles(store)
    assert tile.bands == ("g",)
    window = whole(store, tile, ["r", "g"])
    assert np.isnan(window.image[0]).all()
    assert np.isfinite(window.image[1]).all()


def test_headers_that_are_refused_cost_no_other_tile(tmp_path, make_config):
    bad = {
        "text": {"CRVAL1": "10.0"},
        "tnx": {"CTYPE1": "RA---TNX", "CTYPE2": "DEC--TNX"},
        "table": {"CPDIS1": "LOOKUP"},
        "degrees": {"CDELT1": -1.0, "CDELT2": 1.0},
    }
    for name, cards in bad.items():
        write(tmp_path / f"{name}.fits", tile=name, **cards)
    write(tmp_path / "good.fits", tile="good", RADESYS="FK5", EQUINOX=2016.5)
    summary, store = run(make_config())
    (tile,) = read_tiles(store)
    assert tile.id == "good"
    there = SkyCoord(10.0, 2.0, unit="deg", frame="fk5", equinox="J2016.5").icrs
    assert there.separation(SkyCoord(tile.ra, tile.dec, unit="deg")).arcsec < 1
    for name, key in zip(bad, ("CRVAL1", "CTYPE1", "CPDIS1", "CDELT1"), strict=True):
        assert any(f"{name}.fits" in line and key in line for line in summary.problems)


def test_a_band_of_another_frame_is_moved_to_the_tiles_own(tmp_path, make_config):
    """The same sky in both: the second band's axes are galactic and turned."""
    icrs = header()
    centre = SkyCoord(10.0, 2.0, unit="deg").galactic
    cards = {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}
    cards |= {"CRVAL1": centre.l.deg, "CRVAL2": centre.b.deg, "CDELT1": -1.2e-4, "CDELT2": 1.2e-4}
    y, x = np.mgrid[:80, :100]
    star = WCS(icrs).pixel_to_world(60.0, 30.0)
    images = {}
    for band, head in (("g", icrs), ("r", header(**cards))):
        px, py = WCS(head).world_to_pixel(star)
        # Exact zeros would be gaps.
        profile = 1e-6 + np.exp(-((x - px) ** 2 + (y - py) ** 2) / 2 / 3.0**2)
        images[band] = profile.astype(np.float32)
    write(tmp_path / "g.fits", images["g"])
    write(tmp_path / "r.fits", images["r"], band="r", **cards)
    summary, store = run(make_config())
    assert summary.problems == []
    (tile,) = read_tiles(store)
    g, r = whole(store, tile).image[:2, 10:50, 40:80]
    for band in (g, r):
        weight = band / band.sum()
        assert (weight * x[10:50, 40:80]).sum() == pytest.approx(60.0, abs=0.02)
        assert (weight * y[10:50, 40:80]).sum() == pytest.approx(30.0, abs=0.02)


def test_an_image_of_nan_is_left_out_and_stays_known(tmp_path, make_config):
    write_two_bands(tmp_path)
    write(tmp_path / "a_r.fits", np.full((80, 100), np.nan, np.float32), band="r")
    for expected in ((1, 0), (0, 1)):
        summary, store = run(make_config())
        assert (summary.written, summary.unchanged) == expected
        assert "no pixel of the image is finite" in summary.problems[0]
        assert read_tiles(store)[0].bands == ("g",)


def test_two_images_of_one_tile_and_band(tmp_path, make_config):
    write_two_bands(tmp_path)
    write(tmp_path / "again.fits", pixels(9), band="r")
    summary, store = run(make_config())
    (message,) = summary.problems
    assert "again.fits" in message
    assert "a_r.fits" in message
    assert read_tiles(store)[0].bands == ("g",)


def test_a_tile_without_usable_band_is_skipped(tmp_path, make_config):
    write_two_bands(tmp_path)
    write(tmp_path / "b.fits", tile="T2", CTYPE1=None)
    summary, store = run(make_config())
    assert any("T2" in message and "skipped" in message for message in summary.problems)
    assert [tile.id for tile in read_tiles(store)] == ["T1"]


def test_a_mask_of_another_size_costs_its_band(tmp_path, make_config):
    write_two_bands(tmp_path)
    write(tmp_path / "a_g_m.fits", np.zeros((10, 10), np.int32), band="g")
    summary, store = run(make_config(file_pattern=r"_(?P<kind>m)\."))
    assert "size" in summary.problems[0]
    assert read_tiles(store)[0].bands == ("r",)


def test_nothing_usable_is_an_error(tmp_path, make_config):
    write(tmp_path / "a.fits", zeropoint=None)
    with pytest.raises(InputError, match="MAGZERO"):
        run(make_config())


def test_another_order_of_the_bands_rewrites_no_cube(tmp_path, make_config):
    write_two_bands(tmp_path)
    _, store = run(make_config(bands=["g", "r"]))
    before = snapshot(store.root)
    summary, _ = run(make_config(bands=["r", "g"]))
    assert (summary.written, summary.unchanged) == (0, 1)
    assert snapshot(store.root) == before
    (tile,) = read_tiles(store)
    both = whole(store, tile, ["r", "g"]).image
    for number, (name, band) in enumerate([("a_r.fits", 22.5), ("a_g.fits", 30.0)]):
        counts = fitsio.read(str(tmp_path / name))
        np.testing.assert_allclose(both[number], counts * nanojansky_of_count(band), rtol=1e-6)


def test_sky_that_nobody_saw_takes_no_bytes(tmp_path, make_config):
    half = pixels(1, (600, 600))
    half[:, :300] = np.nan
    write(tmp_path / "a_g.fits", half)
    _, store = run(make_config())
    (tile,) = read_tiles(store)
    np.testing.assert_array_equal(np.isnan(whole(store, tile).image[0]), np.isnan(half))
    sizes = store.sizes(tile.key)
    assert sum(sizes.values()) < 0.7 * half.nbytes


def test_only_regular_files_are_read(tmp_path, make_config):
    write_two_bands(tmp_path)
    os.mkfifo(tmp_path / "c.fits")
    (tmp_path / "d.fits").symlink_to("/dev/zero")
    summary, store = run(make_config())
    assert [problem.split(": ")[0][-6:] for problem in summary.problems] == ["c.fits", "d.fits"]
    assert all("not a regular file" in problem for problem in summary.problems)
    assert read_tiles(store)[0].bands == ("g", "r")


@pytest.mark.ray
def test_on_ray(tmp_path, make_config, ray_session):
    write_two_bands(tmp_path)
    write(tmp_path / "b_g.fits", pixels(5), tile="T2")
    _, here = run(make_config(root="here"))
    summary, store = run(make_config(root="ray"), ray_session)
    assert (summary.tiles, summary.written) == (2, 2)
    assert [tile.id for tile in read_tiles(store)] == ["T1", "T2"]
    assert contents(store.root) == contents(here.root)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root to mount")
def test_disk_full(tmp_path, make_config):
    write(tmp_path / "a.fits", pixels(1, (1000, 1000)))
    disk = tmp_path / "small"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        with pytest.raises(StoreError, match="no space left"):
            run(make_config(root=str(disk / "store")))
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        summary, _ = run(make_config(root=str(disk / "store")))
        assert summary.written == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_real_kids_viking_tiles(survey_data, make_config):
    bands = ["u", "g", "r", "i", "Z", "Y", "J", "H", "Ks"]
    files = str(survey_data / "kids_viking_field" / "tiles" / "*.fits.fz")
    # Four bands say MAGZERO = 0 and mean it.
    summary, store = run(make_config(tiles=[files], bands=bands, zeropoint_range=[0.0, 45.0]))
    assert summary.problems == []
    one, two = read_tiles(store)
    assert (one.id, two.id) == ("KV_A", "KV_B")
    assert one.shape == (1400, 1300)
    assert list(one.bands) == sorted(bands)
    # The two tiles overlap and straddle RA = 0: the same sky is the same flux in both.
    first = fitsio.read(str(survey_data / "kids_viking_field" / "tiles" / "KV_A_H.fits.fz"))
    window = whole(store, one, ["H"])
    np.testing.assert_allclose(window.image[0], first * nanojansky_of_count(30.0), rtol=1e-6)
    ra, dec = wcs_from_header(two.wcs).all_pix2world([300.0], [40.0], 0)
    x, _ = pixel_positions(wcs_from_header(one.wcs), ra, dec)
    assert x[0] % 1 == pytest.approx(0, abs=1e-3) or x[0] % 1 == pytest.approx(1, abs=1e-3)
    assert max(one.footprint_ra) > 300 > 60 > min(one.footprint_ra)


def test_real_gama_field_on_three_grids_conserves_flux(survey_data, make_config):
    folder = survey_data / "gama_field"
    _, store = run(
        make_config(
            tiles=[str(folder / "*.fits")],
            bands=["NUV", "r", "K"],
            file_pattern=r"_(?P<band>NUV|r|K)\.fits",
            zeropoints={"NUV": 20.08, "r": 0.0, "K": 30.0},
        )
    )
    (tile,) = read_tiles(store)
    # 4.5 degrees from the tangent point a pixel covers half a percent less sky than at it.
    assert tile.pixel_scale == pytest.approx(0.1991, abs=1e-4)
    assert tile.shape == (602, 602)
    window = whole(store, tile)
    for band, name, zeropoint in (("K", "VISTA_K", 30.0), ("NUV", "GALEX_NUV", 20.08)):
        raw, head = fitsio.read(str(folder / f"{name}.fits"), header=True)
        factor = nanojansky_of_count(zeropoint)
        wcs_text = "\n".join(
            f"{key:8s}= "
            + (f"'{head[key]}'" if isinstance(head[key], str) else f"{head[key]:.15E}")
            for key in head
            if key and key.startswith(("CTYPE", "CRPIX", "CRVAL", "CD", "CUNIT"))
        )
        inner = raw[raw.shape[0] // 4 : -raw.shape[0] // 4, raw.shape[1] // 4 : -raw.shape[1] // 4]
        y, x = np.unravel_index(np.argmax(inner), inner.shape)
        y, x = y + raw.shape[0] // 4, x + raw.shape[1] // 4
        ra, dec = wcs_from_header(wcs_text).all_pix2world([x], [y], 0)
        px, py = pixel_positions(wcs_from_header(tile.wcs), ra, dec)
        radius = 6.0
        fluxes = []
        scale = (1.5 if band == "NUV" else 0.339) * tile.pixel_scale / 0.2
        for image, cx, cy, r in (
            (raw * factor, x, y, radius / scale),
            (window.image[tile.bands.index(band)], px[0], py[0], radius / tile.pixel_scale),
        ):
            rows, columns = np.indices(image.shape)
            near = np.hypot(rows - cy, columns - cx) < r
            level = np.nanmedian(image)
            fluxes.append(np.nansum(image[near] - level))
        assert fluxes[1] == pytest.approx(fluxes[0], rel=0.06), band


def test_real_decam_exposures_with_weights_and_masks(survey_data, tmp_path, make_config):
    with tarfile.open(survey_data / "decam_exposures" / "decam_grz_exposures.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "testcase6"
    tables = fitsio.read(str(folder / "survey-ccds-1.fits.gz"))
    ccd = next(row for row in tables if row["ccdname"].strip() == "S4" and row["filter"] == "r")
    zeropoint = float(ccd["ccdzpt"]) + 2.5 * np.log10(float(ccd["exptime"]))
    pattern = r"(?P<tile>c4d_\d+_\d+)_oo(?P<kind>[iwd])_"
    summary, store = run(
        make_config(
            tiles=[str(folder / "images/**/c4d_171113_*.fits")],
            bands=["g", "r", "z"],
            file_pattern=pattern,
            zeropoints={"r": zeropoint},
        )
    )
    assert summary.problems == []
    (tile,) = read_tiles(store)
    assert tile.bands == ("r",)
    assert "TPV" in tile.wcs
    assert tile.pixel_scale == pytest.approx(0.262, abs=0.003)
    window = whole(store, tile)
    # The weights are inverse variances of counts: in nanojansky they give the noise that the
    # survey's own table states (sig1, in nanomaggies; one is 3631 nJy).
    noise = np.sqrt(np.nanmedian(window.variance[0]))
    assert noise == pytest.approx(float(ccd["sig1"]) * 3631, rel=0.12)
    mask = fitsio.read(str(next(folder.rglob("c4d_171113_*_ood_*"))), ext=1)
    assert np.isnan(window.image[0][mask != 0]).all()
    cut = window.image[None, :, 10:74, 10:74]
    flux, error, _ = aperture_photometry(
        cut, window.variance[None, :, 10:74, 10:74], np.zeros((1, 2)), 4.0, annulus_for(4.0)
    )
    assert np.isfinite(flux).all()
    assert (error > 0).all()


def fail_to_read(monkeypatch, name: str, number: int = errno.EIO) -> None:
    """From now on opening the file `name` fails, as a disk or network may."""

    def opens(path, *arguments):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return open(path, *arguments)

    for module in (urls, fits_planes):
        monkeypatch.setattr(module, "open", opens, raising=False)


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ENOENT])
@pytest.mark.parametrize("stage", ["headers", "checksum", "pixels"])
def test_a_read_error_fails_its_tile_until_the_next_ingest(
    tmp_path, make_config, monkeypatch, stage, number
):
    write_two_bands(tmp_path)
    write(tmp_path / "b_g.fits", pixels(5), tile="T2")
    config = make_config(file_pattern="(?P<tile>[ab])_")
    with monkeypatch.context() as patch:
        step = {"headers": "read_headers", "checksum": "checksum", "pixels": "build_cube"}[stage]
        real = getattr(ingest, step)

        def fails(*arguments):
            fail_to_read(patch, "a_r.fits", number)
            return real(*arguments)

        patch.setattr(ingest, step, fails)
        with pytest.raises(StoreError, match=r"tile a: .*a_r\.fits"):
            run(config)
    store = Store(config.root)
    assert [tile.id for tile in read_tiles(store)] == ["b"]
    assert not store.exists("images/a")
    summary, _ = run(config)
    assert (summary.written, summary.unchanged, summary.problems) == (1, 1, [])
    assert read_tiles(store)[0].bands == ("g", "r")


def test_a_tile_that_fails_keeps_the_row_it_had(tmp_path, make_config, monkeypatch):
    write_two_bands(tmp_path)
    write(tmp_path / "b_g.fits", pixels(5), tile="T2")
    _, store = run(make_config())
    before = snapshot(store.root)
    with monkeypatch.context() as patch:
        # No file name says to which tile this one belongs; the table of tiles does.
        fail_to_read(patch, "a_r.fits")
        with pytest.raises(StoreError, match=r"tile T1: .*a_r\.fits"):
            run(make_config())
    assert snapshot(store.root) == before


def test_a_file_of_an_unknown_tile_that_cannot_be_read_is_named(tmp_path, make_config):
    write_two_bands(tmp_path)
    (tmp_path / "gone.fits").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"gone\.fits: cannot be read"):
        run(make_config())
    assert len(read_tiles(Store(make_config().root))) == 1


@pytest.mark.parametrize("damage", ["gone", "short", "metadata", "record"])
def test_a_cube_that_lacks_a_part_is_built_anew(tmp_path, make_config, damage):
    write_two_bands(tmp_path)
    _, store = run(make_config())
    before = contents(store.root)
    folder = Path(store.path(read_tiles(store)[0].key))
    if damage == "gone":
        (folder / "image/c/0/0/0").unlink()
    elif damage == "short":
        os.truncate(folder / "image/c/0/0/0", 1000)
    else:
        (folder / ("image/zarr.json" if damage == "metadata" else "tile.json")).unlink()
    summary, _ = run(make_config())
    assert (summary.written, summary.unchanged) == (1, 0)
    assert contents(store.root) == before
    assert run(make_config())[0].unchanged == 1


def test_a_cube_in_an_object_store_that_lacks_a_part_is_built_anew(tmp_path, make_config):
    write_two_bands(tmp_path)
    config = make_config(root=f"memory://{tmp_path.name}")
    _, store = run(config)
    (tile,) = read_tiles(store)
    store.remove(f"{tile.key}/image/c/0/0/0")
    assert run(config)[0].written == 1
    assert run(config)[0].unchanged == 1
    assert np.isfinite(whole(store, tile).image).all()


def test_a_survey_without_images(make_config):
    summary, store = run(make_config(tiles=[]))
    assert (summary.tiles, summary.problems) == (0, [])
    assert read_tiles(store) == []
