"""What HDUs are taken for, in the layouts that surveys use and by the keys of [images]."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from conftest_images import header, pixels, write
from hypothesis import given
from hypothesis import strategies as st
from where import HERE

from surveyproc.config.inputs import ImagesSection
from surveyproc.images.build import inverse_variance
from surveyproc.images.cube import read_tiles, read_window
from surveyproc.images.fits import PlaneReader, planes_of
from surveyproc.images.headers import group_planes
from surveyproc.images.ingest import ingest_tiles
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

IMAGE = pixels()
MASK = np.zeros(IMAGE.shape, np.int32)


def images(**settings: Any) -> ImagesSection:
    return ImagesSection(tiles=[], **{"bands": ["g", "r", "z"], **settings})


def hdu(name: str = "", data: np.ndarray = IMAGE, **cards: Any) -> fits.ImageHDU:
    return fits.ImageHDU(data, header(**cards), name=name or None)


def kinds(path: Path, **settings: Any) -> tuple[dict[int, str], list[str], list[str]]:
    """HDU to kind, messages of problems, names of what is left aside."""
    aside: list[Any] = []
    planes, problems = planes_of(str(path), images(**settings), aside=aside)
    found = {plane.hdu: plane.kind for plane in planes}
    return found, [one.message for one in problems], [one.name for one in aside]


def multi(path: Path, *hdus: Any) -> Path:
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path, overwrite=True)
    return path


def table(name: str) -> fits.BinTableHDU:
    return fits.BinTableHDU.from_columns([fits.Column("A", "4E", array=np.ones((1, 4)))], name=name)


CUBE = np.zeros((3, *IMAGE.shape), np.int32)
LAYOUTS = {
    "DES": (
        [hdu("SCI"), hdu("MSK", MASK), hdu("WGT"), hdu("WGT_ME")],
        {1: "image", 2: "mask", 3: "weight"},
    ),
    "LSST": (
        [hdu("IMAGE"), hdu("MASK", MASK), hdu("VARIANCE"), table("ARCHIVE_INDEX")],
        {1: "image", 2: "mask", 3: "variance"},
    ),
    "JWST": (
        [hdu("SCI"), hdu("ERR"), hdu("CON", CUBE), hdu("WHT"), hdu("VAR_POISSON"),
         hdu("VAR_RNOISE"), hdu("VAR_FLAT"), table("HDRTAB"), table("ASDF")],
        {1: "image", 2: "rms"},
    ),
    "JWST, one context": (
        [hdu("SCI"), hdu("ERR"), hdu("CON", MASK[None]), hdu("WHT")],
        {1: "image", 2: "rms"},
    ),
    "HST drizzle": ([hdu("SCI"), hdu("WHT"), hdu("CTX", MASK)], {1: "image"}),
    "SDSS frame": (
        [hdu(), fits.ImageHDU(np.ones(100, np.float32)), table("")],
        {1: "image"},
    ),
    "Euclid frame": (
        [hdu("SCI"), hdu("RMS"), hdu("FLAG", MASK)],
        {1: "image", 2: "rms", 3: "mask"},
    ),
    "a model beside the image": ([hdu("SCI"), hdu("MODEL")], {1: "image"}),
    "a band each": ([hdu("one", FILTER="g"), hdu("two", FILTER="r")], {1: "image", 2: "image"}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognised(tmp_path, layout):
    hdus, expected = LAYOUTS[layout]
    path = multi(tmp_path / "a.fits", *hdus)
    found, problems, aside = kinds(path)
    assert (found, problems) == (expected, [])
    assert len(aside) == len(hdus) - len(expected)


@pytest.mark.parametrize(
    ("name", "tile", "band", "kind"),
    [
        ("coadd.weight.fits", "coadd", "g", "weight"),
        ("coadd.weight.fits.fz", "coadd", "g", "weight"),
        ("legacysurvey-0001m002-image-r.fits.fz", "0001m002", "r", "image"),
        ("legacysurvey-0001m002-invvar-r.fits.fz", "0001m002", "r", "weight"),
        ("legacysurvey-0001m002-maskbits.fits.fz", "0001m002", "*", "mask"),
        ("EUC_MER_BGSUB-MOSAIC-NIR-Z_TILE102018211-ACBD03_2025Z_00.00.fits", "TILE102018211", "z",
         "image"),
        ("EUC_MER_MOSAIC-NIR-Z-RMS_TILE102018211-ACBD03_2025Z_00.00.fits", "TILE102018211", "z",
         "rms"),
        ("EUC_MER_MOSAIC-NIR-Z-FLAG_TILE102018211-ACBD03_2025Z_00.00.fits", "TILE102018211", "z",
         "mask"),
    ],
)  # fmt: skip
def test_files_of_one_plane_are_recognised_by_their_names(tmp_path, name, tile, band, kind):
    bands = {"z": ["g", "r", "Z"]}.get(band, ["g", "r", "z"])
    own = "g" if band == "g" else None
    path = write(tmp_path / name, MASK if kind == "mask" else IMAGE, FILTER=own, OBJECT=None)
    (plane,), problems = planes_of(str(path), images(bands=bands))
    assert (plane.tile, plane.band.lower(), plane.kind) == (tile, band, kind)
    assert problems == []


@pytest.mark.parametrize(
    "name", ["legacysurvey-0001m002-chi2-r.fits", "EUC_MER_BGMOD-NIR-Z_TILE102018211-A_00.00.fits"]
)
def test_files_of_other_products_are_left_aside(tmp_path, name):
    assert kinds(write(tmp_path / name))[:2] == ({}, [])


def test_a_mask_of_all_bands_has_the_bits_of_each(tmp_path):
    for band in ("g", "r"):
        write(tmp_path / f"legacysurvey-0001m002-image-{band}.fits", FILTER=band, OBJECT=None)
    name = "legacysurvey-0001m002-maskbits.fits"
    write(tmp_path / name, MASK, FILTER=None, OBJECT=None)
    found = [planes_of(str(path), images()) for path in sorted(tmp_path.iterdir())]
    problems = [one for _, bad in found for one in bad]
    groups = group_planes([one for planes, _ in found for one in planes], problems, ["g", "r"])
    bits = {band: uses["mask"].mask_bits for band, uses in groups["0001m002"].items()}
    assert bits == {"g": 0b100100, "r": 0b1001000}
    assert problems == []
    # Without it, it is not known which pixels are bad.
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:4000])
    planes, bad = planes_of(str(tmp_path / name), images())
    assert planes == []
    left = group_planes([one for good, _ in found[:2] for one in good], bad, ["g", "r"])
    assert left == {"0001m002": {}}


def test_mask_planes_that_are_no_defects_do_not_count(tmp_path):
    long = {"HIERARCH MP_DETECTED": 5, "HIERARCH MP_NO_DATA": 8}
    mask = hdu("MASK", MASK, MP_BAD=0, MP_SAT=1, **long)
    path = multi(tmp_path / "a.fits", hdu("IMAGE"), mask, hdu("VARIANCE"))
    planes, _ = planes_of(str(path), images())
    assert [plane.mask_bits for plane in planes] == [None, 0b100000011, None]


@pytest.mark.parametrize(
    ("planes", "expected"),
    [
        ({"image": "A", "variance": "B"}, {1: "image", 2: "variance"}),
        ({"image": 1, "rms": 2}, {1: "image", 2: "rms"}),
        ({"image": "a", "mask": ["Q", "b*"]}, {1: "image", 2: "mask"}),
        ({"image": "A", "context": "B"}, {1: "image"}),
        ({"image": "A"}, {1: "image"}),
    ],
)
def test_keys_say_what_is_what(tmp_path, planes, expected):
    path = multi(tmp_path / "a.fits", hdu("A"), hdu("B", MASK))
    found, problems, aside = kinds(path, planes=planes)
    assert (found, problems) == (expected, [])
    assert len(aside) == 2 - len(expected)


def test_a_key_makes_a_drizzle_weight_an_inverse_variance(tmp_path):
    path = multi(tmp_path / "a.fits", hdu("SCI"), hdu("WHT"), hdu("CTX", MASK))
    assert kinds(path, planes={"weight": "WHT"})[0] == {1: "image", 2: "weight"}


def test_keys_name_what_the_file_pattern_finds(tmp_path):
    pattern = r"(?P<tile>t1)_g[.]?(?P<kind>\w+)?[.]fits"
    path = write(tmp_path / "t1_g.sky.fits")
    assert "kind 'sky'" in kinds(path, file_pattern=pattern)[1][0]
    settings = {"file_pattern": pattern, "planes": {"variance": "sk*"}}
    assert kinds(path, **settings)[0] == {0: "variance"}
    assert kinds(write(tmp_path / "t1_g.fits"), **settings)[0] == {0: "image"}


def test_bunit_is_believed_and_a_contradiction_is_named(tmp_path):
    path = multi(tmp_path / "a.fits", hdu("SCI"), hdu("WHT", BUNIT="variance"))
    assert kinds(path)[0] == {1: "image", 2: "variance"}
    (message,) = kinds(path, planes={"weight": "WHT"})[1]
    assert f"{path}[2]: images.planes says weight, keyword BUNIT = 'variance'" in message


def test_two_images_name_the_key_that_tells_them_apart(tmp_path):
    path = multi(tmp_path / "a.fits", hdu(), hdu())
    planes, problems = planes_of(str(path), images())
    assert group_planes(planes, problems, ["g"]) == {"T1": {}}
    assert "images.planes" in problems[0].message


def stored(path: Path, mask: np.ndarray, **settings: Any) -> np.ndarray:
    """Bits of a mask that goes through a file."""
    fits.PrimaryHDU(mask, header()).writeto(path, overwrite=True)
    (plane,), _ = planes_of(str(path), images(file_pattern="(?P<kind>m)", **settings))
    return PlaneReader(plane, plane.path).bits(0, mask.shape[0])


DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_integer_masks_keep_all_their_bits(tmp_path_factory, dtype, data):
    limits = np.iinfo(dtype)
    values = st.integers(int(limits.min), int(limits.max))
    mask = np.array(data.draw(st.lists(values, min_size=6, max_size=6)), dtype).reshape(2, 3)
    bits = stored(tmp_path_factory.getbasetemp() / f"m_{dtype}.fits", mask)
    expected = [int(value) % 2**64 for value in mask.ravel()]
    assert bits.ravel().tolist() == expected


def test_pixels_without_a_value_are_bad_by_any_bit(tmp_path):
    mask = np.array([[0, 1, np.nan, np.inf, 1e30]], np.float32)
    every = 2**64 - 1
    assert stored(tmp_path / "m.fits", mask).tolist() == [[0, 1, every, every, every]]
    path = tmp_path / "m.fits"
    fits.PrimaryHDU(np.array([[0, -9]], np.int16), header(BLANK=-9)).writeto(path, overwrite=True)
    (plane,), _ = planes_of(str(path), images(file_pattern="(?P<kind>m)"))
    assert PlaneReader(plane, str(path)).bits(0, 1).tolist() == [[0, every]]


@pytest.mark.parametrize("kind", ["weight", "variance", "rms"])
def test_every_kind_of_noise_becomes_an_inverse_variance(kind):
    sigma = np.array([0.5, 4.0, 0.0, -1.0, np.nan, np.inf], np.float32)
    with np.errstate(all="ignore"):
        noise = {"weight": 1 / (sigma * np.abs(sigma)), "variance": sigma * np.abs(sigma)}.get(
            kind, sigma
        )
    expected = [4.0, 0.0625, 0, 0, 0, 0]
    np.testing.assert_allclose(inverse_variance(noise.astype(np.float32), kind), expected)


@pytest.mark.parametrize("value", [-32768, -32768.0, "-32768", "-32768.0"])
def test_blank_in_any_spelling(tmp_path, value):
    data = np.array([[-32768, 5], [7, -32768]], np.int16)
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(data, header(XBLANK=value)).writeto(path)
    path.write_bytes(path.read_bytes().replace(b"XBLANK  =", b"BLANK   ="))
    (plane,), _ = planes_of(str(path), images())
    np.testing.assert_array_equal(
        PlaneReader(plane, str(path)).rows(0, 2), [[np.nan, 5], [7, np.nan]]
    )


@pytest.mark.parametrize("value", ["INDEF", 1.5, True])
def test_a_blank_that_is_no_integer_is_named(tmp_path, value):
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.ones((2, 2), np.int16), header(XBLANK=value)).writeto(path)
    path.write_bytes(path.read_bytes().replace(b"XBLANK  =", b"BLANK   ="))
    assert "keyword BLANK" in kinds(path)[1][0]


def test_asinh_pixels_become_counts(tmp_path):
    offset, soft = 12.0, 95.0
    stretched = 1.0857362 * np.arcsinh((IMAGE * 1000 - offset) / (2 * soft))
    cards = {"BOFFSET": offset, "BSOFTEN": soft, "BUNIT": "asinh"}
    path = write(tmp_path / "a.fits", stretched.astype(np.float32), **cards)
    (plane,), problems = planes_of(str(path), images())
    assert problems == []
    unpacked = PlaneReader(plane, str(path)).rows(0, 80)
    np.testing.assert_allclose(unpacked, IMAGE * 1000, rtol=1e-5, atol=1e-3)
    for cards, key in (
        ({"BOFFSET": offset}, "BSOFTEN"),
        ({"BOFFSET": offset, "BSOFTEN": -1.0}, "BSOFTEN"),
        ({"BUNIT": "asinh"}, "BUNIT"),
    ):
        assert f"keyword {key}" in kinds(write(tmp_path / "b.fits", **cards))[1][0]


def test_gaps_are_null_where_no_weight_says_otherwise(tmp_path, make_config):
    data = IMAGE.copy()
    data[:, 60:] = 0
    write(tmp_path / "a_g.fits", data)
    weight = hdu("WHT", IMAGE * 0 + 1, FILTER="r")
    multi(tmp_path / "a_r.fits", hdu("SCI", data, FILTER="r"), weight)
    config = make_config()
    store = Store(config.root)
    summary = ingest_tiles(Survey(config), HERE)
    assert summary.problems == []
    (tile,) = read_tiles(store)
    window = read_window(store, tile, 0, 80, 0, 100, ["g", "r"])
    assert np.isnan(window.image[0, :, 60:]).all()
    assert np.isfinite(window.image[0, :, :60]).all()
    assert (window.image[1, :, 60:] == 0).all()


def test_what_is_left_aside_is_said_once(tmp_path, make_config):
    for tile in ("T1", "T2"):
        multi(tmp_path / f"{tile}.fits", hdu("SCI", tile=tile), hdu("CTX", MASK, tile=tile))
    config = make_config()
    (note,) = ingest_tiles(Survey(config), HERE).notes
    assert note.startswith("left aside: CTX, a context image")
    assert note.endswith("T1.fits[2] and 1 more")
