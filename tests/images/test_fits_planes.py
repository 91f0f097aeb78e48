import bz2
import contextlib
import errno
import gzip
import lzma
import os
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
from astropy.io import fits
from conftest_images import header, pixels, write
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc.config.inputs import ImagesSection
from surveyproc.errors import InputError, StoreError
from surveyproc.images import fits as fits_planes
from surveyproc.images.fits import Plane, PlaneReader, planes_of
from surveyproc.images.hdus import checksum, local_copy, reading
from surveyproc.store import urls


def images(**settings) -> ImagesSection:
    return ImagesSection(tiles=[], **{"bands": ["g", "r", "z"], **settings})


def only_problem(path: Path, **settings) -> str:
    planes, problems = planes_of(str(path), images(**settings))
    assert not planes
    (problem,) = problems
    assert str(path) in problem.message
    return problem.message


def read(plane: Plane) -> np.ndarray:
    with local_copy(plane.path) as path:
        return PlaneReader(plane, path).rows(0, plane.shape[0])


@pytest.mark.parametrize("form", ["fits", "fits.gz", "fits.bz2", "fits.fz"])
def test_a_plane_reads_the_same_from_every_container(tmp_path, form):
    data = pixels()
    path = tmp_path / f"a.{form}"
    plain = write(tmp_path / "plain.fits", data)
    if form == "fits.gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    elif form == "fits.bz2":
        path.write_bytes(bz2.compress(plain.read_bytes()))
    elif form == "fits.fz":
        fits.HDUList(
            [
                fits.PrimaryHDU(),
                fits.CompImageHDU(data, header(), compression_type="GZIP_2", quantize_level=0),
            ]
        ).writeto(path)
    else:
        path.write_bytes(plain.read_bytes())
    (plane,), problems = planes_of(str(path), images())
    assert not problems
    assert (plane.tile, plane.band, plane.kind, plane.shape) == ("T1", "g", "image", (80, 100))
    assert plane.zeropoint == 30.0
    np.testing.assert_array_equal(read(plane), data)
    assert checksum(str(path))[1] == path.stat().st_size


def test_scaled_integers_and_blank_pixels(tmp_path):
    stored = np.arange(12, dtype=np.int16).reshape(3, 4)
    head = header(BLANK=7)
    hdu = fits.PrimaryHDU(stored, head)
    hdu.writeto(tmp_path / "a.fits")
    # astropy would rewrite the pixels if we set these before.
    for key, value in (("BSCALE", 2.0), ("BZERO", 100.0)):
        fits.setval(tmp_path / "a.fits", key, value=value)
    (plane,), _ = planes_of(str(tmp_path / "a.fits"), images())
    expected = stored * 2.0 + 100
    expected[stored == 7] = np.nan
    np.testing.assert_array_equal(read(plane), expected)


def test_extensions_inherit_the_primary_header_and_are_told_apart_by_name(tmp_path):
    primary = fits.PrimaryHDU(header=fits.Header([("OBJECT", "T9"), ("MAGZERO", 22.5)]))
    primary.header["FILTER"] = "z DECam SDSS c0004 9260.0 1520.0"
    bare = header(OBJECT=None, FILTER=None, MAGZERO=None)
    names = ["SCI", "g_WHT", "DQ"]
    hdus = [fits.ImageHDU(pixels(i), bare, name=name) for i, name in enumerate(names)]
    fits.HDUList([primary, *hdus]).writeto(tmp_path / "a.fits")
    planes, problems = planes_of(str(tmp_path / "a.fits"), images())
    assert not problems
    assert [(p.tile, p.band, p.kind) for p in planes] == [
        ("T9", "z", "image"),
        ("T9", "z", "weight"),
        ("T9", "z", "mask"),
    ]
    assert planes[0].zeropoint == 22.5


def test_file_pattern_beats_the_header(tmp_path):
    path = write(tmp_path / "field7_oow_r.fits", band="g", tile="no/good")
    pattern = r"(?P<tile>\w+)_oo(?P<kind>[iwd])_(?P<band>[a-z])"
    (plane,), _ = planes_of(str(path), images(file_pattern=pattern))
    assert (plane.tile, plane.band, plane.kind) == ("field7", "r", "weight")


def test_tile_falls_back_to_the_file_stem(tmp_path):
    path = write(tmp_path / "p0042.fits", OBJECT=None)
    assert planes_of(str(path), images())[0][0].tile == "p0042"


@pytest.mark.parametrize("name", ["../etc", "a/b", ".hidden", "a b", "x" * 200])
def test_tile_ids_never_become_paths_unchecked(tmp_path, name):
    path = write(tmp_path / "a.fits", tile=name)
    assert "keyword OBJECT" in only_problem(path)


def test_truncated_file(tmp_path):
    path = write(tmp_path / "a.fits")
    path.write_bytes(path.read_bytes()[:9000])
    message = only_problem(path)
    assert "truncated" in message
    _, (problem,) = planes_of(str(path), images())
    assert (problem.tile, problem.band) == ("T1", "g")


@pytest.mark.parametrize("keep", [100, 3000])
def test_file_truncated_in_its_header(tmp_path, keep):
    path = write(tmp_path / "a.fits", **{f"KEY{i}": i for i in range(60)})
    path.write_bytes(path.read_bytes()[:keep])
    assert "truncated" in only_problem(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_truncated_packed_file(tmp_path, pack):
    suffix = "gz" if pack is gzip.compress else "bz2"
    plain = write(tmp_path / "plain.fits")
    path = tmp_path / f"a.fits.{suffix}"
    path.write_bytes(pack(plain.read_bytes())[:-5000])
    assert "truncated" in only_problem(path) or "cannot be read" in only_problem(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("name", ["a.fits", "a.fits.fz", "a.FITS.GZ", "a.fits.bz2", "a.fits.gz"])
def test_packing_is_told_by_bytes_and_not_by_names(tmp_path, pack, name):
    plain = write(tmp_path / "plain.fits")
    path = tmp_path / name
    path.write_bytes(pack(plain.read_bytes()))
    (plane,), problems = planes_of(str(path), images())
    assert problems == []
    np.testing.assert_array_equal(read(plane), pixels())
    path.write_bytes(plain.read_bytes())
    (plane,), _ = planes_of(str(path), images())
    np.testing.assert_array_equal(read(plane), pixels())


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_packed_files_in_object_stores_are_told_by_bytes(tmp_path, pack):
    data = pack(write(tmp_path / "plain.fits").read_bytes())
    url = f"memory://{tmp_path.name}/a.fits"
    fsspec.filesystem("memory").pipe(url, data)
    (plane,), problems = planes_of(url, images())
    assert problems == []
    np.testing.assert_array_equal(read(plane), pixels())


def test_another_packing_is_named(tmp_path):
    path = tmp_path / "a.fits.gz"
    path.write_bytes(lzma.compress(write(tmp_path / "plain.fits").read_bytes()))
    assert "is packed by xz: use gzip, bzip2 or fpack" in only_problem(path)


def test_not_fits(tmp_path):
    (tmp_path / "a.fits").write_text("not at all")
    assert "not a FITS file" in only_problem(tmp_path / "a.fits")


def test_missing_file(tmp_path):
    assert "cannot be read" in only_problem(tmp_path / "absent.fits")


def test_no_wcs(tmp_path):
    assert "CTYPE1" in only_problem(write(tmp_path / "a.fits", CTYPE1=None))


@pytest.mark.parametrize(
    "cards",
    [
        {"CDELT1": 0.0},
        {"CTYPE1": "ELON-TAN", "CTYPE2": "ELAT-TAN"},
        {"CTYPE1": "RA---XXX"},
        {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV2_1": 1.0, "PV1_7": 1e6},
    ],
)
def test_broken_wcs(tmp_path, cards):
    """Singular, ecliptic, unknown, or with a distortion that has no inverse."""
    assert "WCS" in only_problem(write(tmp_path / "a.fits", **cards))


@pytest.mark.parametrize("value", [None, "dark"])
def test_no_zero_point(tmp_path, value):
    path = write(tmp_path / "a.fits", zeropoint=value)
    message = only_problem(path)
    assert "MAGZERO" in message
    assert "zeropoints" in message
    (plane,), _ = planes_of(str(path), images(zeropoints={"g": 25.0}))
    assert plane.zeropoint == 25.0


def test_unknown_band_names_the_list_and_the_nearest(tmp_path):
    message = only_problem(write(tmp_path / "a.fits", band="gg"))
    assert "FILTER" in message
    assert "g, r, z" in message
    assert "nearest is 'g'" in message


def test_missing_band_keyword(tmp_path):
    assert "FILTER" in only_problem(write(tmp_path / "a.fits", FILTER=None))


@pytest.mark.parametrize("shape", [(5,), (2, 5, 5)])
def test_two_dimensions_expected(tmp_path, shape):
    path = write(tmp_path / "a.fits", np.zeros(shape, np.float32))
    assert "two-dimensional" in only_problem(path)


def test_huge_claims_in_a_small_file_are_refused_before_allocating(tmp_path):
    path = write(tmp_path / "a.fits")
    for key in ("NAXIS1", "NAXIS2"):
        text = path.read_bytes()
        place = text.index(key.encode())
        card = f"{key:8s}= {2_000_000:20d}".ljust(80).encode()
        path.write_bytes(text[:place] + card + text[place + 80 :])
    assert "2000000 x 2000000" in only_problem(path)


def test_huge_claims_in_a_compressed_file_are_refused(tmp_path):
    path = tmp_path / "a.fits.fz"
    compressed = fits.CompImageHDU(pixels(), header(), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), compressed]).writeto(path)
    text = path.read_bytes()
    for key in ("ZNAXIS1", "ZNAXIS2", "ZTILE1", "ZTILE2"):
        place = text.index(key.encode() + b" ")
        size = 2_000_000 if key != "ZTILE2" else 25_000
        card = f"{key:8s}= {size:20d}".ljust(80).encode()
        text = text[:place] + card + text[place + 80 :]
    path.write_bytes(text)
    assert "cannot hold" in only_problem(path)


def test_no_image_at_all(tmp_path):
    fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "a.fits")
    assert "holds no image" in only_problem(tmp_path / "a.fits")


def test_masks_as_integers(tmp_path):
    path = write(tmp_path / "m.fits", np.array([[0, 1], [4, 65535]], np.uint16), band="r")
    (plane,), _ = planes_of(str(path), images(file_pattern="(?P<kind>m)"))
    np.testing.assert_array_equal(PlaneReader(plane, plane.path).bits(0, 2), [[0, 1], [4, 65535]])


def change(path: Path, key: str, value: str | None, hdu: int = 0) -> None:
    """Put `value` in the card of `key` as it stands, or take the card away."""
    with fits.open(path) as hdus:
        start = hdus[hdu].fileinfo()["hdrLoc"]
    text = path.read_bytes()
    place = text.index(f"{key:8s}=".encode(), start)
    card = (f"{key:8s}= {value}" if value is not None else "COMMENT").ljust(80).encode()
    path.write_bytes(text[:place] + card + text[place + 80 :])


@pytest.mark.parametrize("key", ["NAXIS", "NAXIS1", "BITPIX"])
@pytest.mark.parametrize("value", [None, "", "abc", "'two'", "2.5", "-7", "T", "10" * 30])
def test_headers_that_make_no_sense(tmp_path, key, value):
    path = tmp_path / "a.fits"
    fits.HDUList(
        [
            fits.PrimaryHDU(pixels(), header()),
            fits.ImageHDU(pixels(), header(band="r")),
            fits.ImageHDU(pixels(), header(band="z")),
        ]
    ).writeto(path)
    change(path, key, value, 1)
    (plane,), (problem,) = planes_of(str(path), images())
    assert plane.band == "g"
    assert f"{path}[1]" in problem.message
    # Twenty digits of pixels are possible; the file ends before them.
    assert key in problem.message or "truncated" in problem.message
    assert (problem.tile, problem.band) == ("T1", "r")


@pytest.mark.parametrize("key", ["FILTER", "OBJECT", "MAGZERO", "CRVAL1", "BLANK"])
def test_a_card_that_cannot_be_parsed(tmp_path, key):
    path = write(tmp_path / "a.fits", np.zeros((80, 100), np.int16), BLANK=3)
    change(path, key, "not 'valid")
    assert key in only_problem(path)


@pytest.mark.parametrize(("key", "other"), [("MAGZERO", 29.0), ("FILTER", "r"), ("OBJECT", "T2")])
def test_a_keyword_with_two_values_is_refused_and_a_value_given_twice_is_not(tmp_path, key, other):
    for name, value in (("same", header()[key]), ("other", other)):
        head = header()
        head.append((key, value), end=True)
        fits.PrimaryHDU(pixels(), head).writeto(tmp_path / f"{name}.fits")
    assert f"keyword {key} is given 2 times" in only_problem(tmp_path / "other.fits")
    assert len(planes_of(str(tmp_path / "same.fits"), images())[0]) == 1


@pytest.mark.parametrize("key", ["ZNAXIS", "ZBITPIX", "ZNAXIS1", "ZTILE1", "NAXIS2"])
@pytest.mark.parametrize("value", [None, "0", "abc", "-3", "9000000000"])
def test_compressed_headers_that_make_no_sense(tmp_path, key, value):
    path = tmp_path / "a.fits.fz"
    hdu = fits.CompImageHDU(pixels(), header(), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    change(path, key, value)
    if (key, value) == ("ZTILE1", None):  # a row by default, as here
        assert len(planes_of(str(path), images())[0]) == 1
    else:
        message = only_problem(path)
        assert f"{path}[1]" in message
        assert "ZNAXIS" in message or key in message or "truncated" in message


def test_a_weight_with_a_broken_header_takes_its_band_with_it(tmp_path):
    path = tmp_path / "a.fits"
    bare = header(OBJECT=None, FILTER=None)
    fits.HDUList(
        [fits.PrimaryHDU(pixels(), header()), fits.ImageHDU(pixels(), bare, name="WHT")]
    ).writeto(path)
    change(path, "BITPIX", "abc", 1)
    _, (problem,) = planes_of(str(path), images())
    assert (problem.tile, problem.band) == ("T1", "g")


def test_images_before_a_truncated_header_are_kept(tmp_path):
    path = tmp_path / "a.fits"
    fits.HDUList(
        [
            fits.PrimaryHDU(pixels(), header()),
            fits.ImageHDU(pixels(), header(band="r")),
            fits.ImageHDU(pixels(), header(band="z", **{f"KEY{i}": i for i in range(60)})),
        ]
    ).writeto(path)
    with fits.open(path) as hdus:
        start = hdus[2].fileinfo()["hdrLoc"]
    path.write_bytes(path.read_bytes()[: start + 3000])
    planes, (problem,) = planes_of(str(path), images())
    assert [plane.band for plane in planes] == ["g", "r"]
    assert f"{path}[2]: truncated" in problem.message
    assert (problem.tile, problem.band) == ("", "")
    _, (problem,) = planes_of(str(path), images(file_pattern="(?P<tile>a)"))
    assert problem.tile == "a"


@pytest.mark.parametrize("name", ["tiles.parquet", "Tiles.Parquet"])
def test_a_tile_never_takes_the_place_of_the_table_of_tiles(tmp_path, name):
    assert "table of tiles" in only_problem(write(tmp_path / "a.fits", tile=name))


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOENT])
def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch, number):
    path = str(write(tmp_path / "a.fits"))
    (plane,), _ = planes_of(path, images())
    reader = PlaneReader(plane, path)

    def fails(*arguments, **keywords):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fits_planes, "open", fails, raising=False)
    monkeypatch.setattr(urls, "open", fails, raising=False)
    with pytest.raises(StoreError, match=re.escape(path)):
        reader.rows(0, 10)
    with pytest.raises(StoreError, match=re.escape(path)):
        checksum(path)
    planes, (problem,) = planes_of(path, images())
    assert not planes
    assert problem.unread == path


@pytest.mark.parametrize("compressed", [True, False])
def test_some_rows_are_those_of_all(tmp_path, compressed):
    path = tmp_path / "a.fits"
    packed = fits.CompImageHDU(pixels(), header(), compression_type="GZIP_2")
    plain = fits.ImageHDU(pixels(), header())
    fits.HDUList([fits.PrimaryHDU(), packed if compressed else plain]).writeto(path)
    (plane,), _ = planes_of(str(path), images())
    reader = PlaneReader(plane, str(path))
    height = plane.shape[0]
    np.testing.assert_array_equal(reader.rows(1, height, 3), reader.rows(0, height)[1::3])


def test_cfitsio_tells_a_failing_disk_from_damage(tmp_path, monkeypatch):
    path = tmp_path / "a.fits.fz"
    hdu = fits.CompImageHDU(pixels(), header(), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    (plane,), _ = planes_of(str(path), images())
    with pytest.raises(StoreError, match=re.escape(str(path))):
        PlaneReader(plane, str(tmp_path / "gone.fits"))
    (tmp_path / "b.fits.fz").write_bytes(path.read_bytes()[:2880])
    with pytest.raises(InputError, match="damaged"):
        PlaneReader(plane, str(tmp_path / "b.fits.fz"))


def test_a_connection_that_breaks_is_no_damage():
    class Broken(Exception):
        """Clients of web servers have errors of their own."""

    with pytest.raises(StoreError, match="reset"), reading("https://there/a.fits"):
        raise Broken("reset")
    with pytest.raises(Broken), reading("/here/a.fits"):
        raise Broken


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 35), junk=st.binary(min_size=1, max_size=72), extension=st.booleans())
def test_junk_in_any_card_is_a_problem_at_most(tmp_path_factory, place, junk, extension):
    path = tmp_path_factory.mktemp("junk") / "a.fits"
    first = fits.PrimaryHDU() if extension else fits.PrimaryHDU(pixels(), header())
    rest = [fits.CompImageHDU(pixels(), header(), compression_type="RICE_1")] if extension else []
    fits.HDUList([first, *rest]).writeto(path)
    text = bytearray(path.read_bytes())
    start = 2880 * extension + 80 * place + 8
    text[start : start + len(junk)] = junk
    path.write_bytes(bytes(text))
    planes, problems = planes_of(str(path), images())
    assert planes or problems
    for plane in planes:
        with contextlib.suppress(InputError):
            read(plane)


@pytest.mark.parametrize("form", ["plain", "packed", "compressed"])
def test_bytes_that_do_not_sum_to_what_the_header_says_are_refused(tmp_path, form):
    path = tmp_path / "a.fits"
    hdu = fits.PrimaryHDU(pixels(), header())
    hdus = [hdu]
    if form == "compressed":
        hdus = [fits.PrimaryHDU(), fits.CompImageHDU(pixels(), header(), compression_type="RICE_1")]
    fits.HDUList(hdus).writeto(path, checksum=True)
    content = path.read_bytes()
    (good,), _ = planes_of(str(path), images())
    assert good.datasum is not None
    PlaneReader(good, str(path)).verify()
    damaged = bytearray(content)
    damaged[good.offset + 40] ^= 0x10
    path.write_bytes(gzip.compress(bytes(damaged)) if form == "packed" else bytes(damaged))
    (bad,), _ = planes_of(str(path), images())
    with local_copy(str(path)) as copy, pytest.raises(InputError, match=r"keyword DATASUM = \d+"):
        PlaneReader(bad, copy).verify()
