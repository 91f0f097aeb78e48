"""Headers against astropy's own answer for them, and what is refused."""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from conftest_images import WCS_CARDS, header, pixels, write
from hypothesis import event, given, settings
from hypothesis import strategies as st

from surveyproc.config.inputs import ImagesSection
from surveyproc.errors import InputError
from surveyproc.images.fits import PlaneReader, planes_of
from surveyproc.images.grid import Grid, same_grid
from surveyproc.images.hdus import scan
from surveyproc.images.wcs import image_axes, wcs_text
from surveyproc.sky import owners, pixel_positions, sky_positions, wcs_from_header

SHAPE = (300, 400)
FRAMES: list[dict[str, Any]] = [
    {},
    {"RADESYS": "ICRS"},
    {"RADESYS": "FK5"},
    {"EQUINOX": 2000.0},
    {"RADESYS": "FK5", "EQUINOX": 2016.5},
    {"RADECSYS": "FK5", "EQUINOX": 1975.0},
    {"RADESYS": "FK4", "EQUINOX": 1950.0},
    {"EPOCH": 1950.0},
    {"RADESYS": "FK4", "EQUINOX": 1975.0},
    {"RADESYS": "FK4-NO-E"},
    {"RADESYS": "ICRS", "EQUINOX": 2016.5},
]
PROJECTIONS = ["TAN", "SIN", "ZEA", "STG", "ARC", "ZPN", "CAR", "CEA", "SFL", "TPV", "TAN-SIP"]
SPELLINGS = ["{name}{i}_{j}", "{name}{i:02}_{j:02}", "{name}{i:03}{j:03}"]


@st.composite
def headers(draw: Any) -> fits.Header:
    """Legal headers of images, in one of many spellings; the sky at scales that surveys have."""
    cards: list[tuple[str, Any]] = []
    projection = draw(st.sampled_from(PROJECTIONS))
    galactic = draw(st.booleans())
    pair = ("GLON", "GLAT") if galactic else ("RA", "DEC")
    tpv = projection == "TPV"
    lon, lat = (1, 2) if tpv or draw(st.booleans()) else (2, 1)
    kinds = {lon: f"{pair[0]:-<4}-{projection}", lat: f"{pair[1]:-<4}-{projection}"}
    # wcslib has TPV wrong with latitude first, CDELT, or CUNIT: see the test on TPV below.
    unit, size = draw(
        st.sampled_from([(None, 1.0), ("deg", 1.0)] + [("arcsec", 3600.0)] * (not tpv))
    )
    cylinder = projection in ("CAR", "CEA", "SFL")
    crval = {
        lon: draw(st.floats(0, 360, exclude_max=True)),
        lat: 0.0 if cylinder else draw(st.floats(-90, 90)),
    }
    scale = 10 ** draw(st.floats(-2, 0.7)) / 3600
    for i in (1, 2):
        cards.append((f"CTYPE{i}", kinds[i]))
        cards.append((f"CRVAL{i}", crval[i] * size))
        cards.append((f"CRPIX{i}", draw(st.floats(-1000, 1000))))
        if unit:
            cards.append((f"CUNIT{i}", unit))
    angle, mirror = np.radians(draw(st.floats(0, 360))), draw(st.sampled_from([-1, 1]))
    cdelt = {1: mirror * scale * size, 2: scale * size * draw(st.floats(0.7, 1.4))}
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    way = "CD" if tpv else draw(st.sampled_from(["PC", "CD", "CROTA", "CDELT"]))
    spelled = draw(st.sampled_from(SPELLINGS))
    if way != "CD":
        cards += [(f"CDELT{i}", cdelt[i]) for i in (1, 2)]
    if way == "CROTA":
        cards.append((f"CROTA{lat}", float(np.degrees(angle))))
    if way in ("PC", "CD"):
        for i in (1, 2):
            for j in (1, 2):
                value = turn[i - 1][j - 1] * (cdelt[i] if way == "CD" else 1.0)
                cards.append((spelled.format(name=way, i=i, j=j), float(value)))
    if projection == "TAN-SIP":
        cards += [("A_ORDER", 2), ("B_ORDER", 3), ("A_2_0", 1e-7), ("A_1_1", -3e-7)]
        cards += [("B_0_2", 2e-7), ("B_3_0", 1e-11)]
    if tpv:
        cards += [("PV1_1", 1.001), ("PV1_7", 0.01), ("PV2_1", 0.999), ("PV2_9", -0.02)]
    if projection == "ZPN":
        cards += [(f"PV{lat}_1", 1.0), (f"PV{lat}_3", 42.0)]
    cards += list(draw(st.sampled_from(FRAMES)).items())
    if draw(st.booleans()):
        cards += [("LONPOLE", 180.0)] if not cylinder else []
    event(projection)
    return fits.Header(draw(st.permutations(cards)))


@st.composite
def bytes_of(draw: Any, cards: fits.Header) -> tuple[bytes, fits.Header]:
    """The header as bytes of a file, as odd as files are, and as astropy must be given it."""
    plain = fits.Header([("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 0)]) + cards
    lines = []
    for card in plain.cards:
        line = card.image
        if isinstance(card.value, float) and draw(st.booleans()):
            number = f"{card.value:.17E}"
            number = draw(st.sampled_from([number, number.replace("E", "D")]))
            gap = draw(st.sampled_from([" ", "  ", ""]))
            line = f"{card.keyword:8}={gap}{number}"
        comment = draw(st.sampled_from(["", " / in degrees", " / \xb0"]))
        lines.append(f"{line.rstrip()}{comment}".ljust(80).encode("latin-1"))
    text = b"".join([*lines, b"END".ljust(80)])
    return text.ljust(-(-len(text) // 2880) * 2880), plain


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_legal_header_means_what_it_means_to_astropy(tmp_path_factory, data):
    cards = data.draw(headers())
    content, plain = data.draw(bytes_of(cards))
    path = tmp_path_factory.mktemp("header") / "a.fits"
    path.write_bytes(content)
    (hdu,) = scan(str(path))
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, SHAPE[1], 20), rng.uniform(0, SHAPE[0], 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = WCS(plain)
        there = theirs.pixel_to_world(x, y).icrs
        theirs_x, theirs_y = theirs.world_to_pixel(there)
    text = wcs_text(hdu.header, hdu.header, (0, 1), SHAPE, "a", required=True)
    ours = wcs_from_header(text)
    ra, dec = sky_positions(ours, x, y)
    apart = SkyCoord(ra, dec, unit="deg").separation(there).to_value(units.arcsec)
    assert apart.max() < 1e-6
    found = pixel_positions(ours, there.ra.deg, there.dec.deg)
    np.testing.assert_allclose(found, [theirs_x, theirs_y], atol=1e-4)
    lon, lat, radius = Grid(text, SHAPE).circle()
    assert SkyCoord(lon, lat, unit="deg").separation(there).deg.max() <= radius


def text_of(shape: tuple[int, int] = (80, 100), primary: Any = None, **cards: Any) -> str:
    """What we make of a header with these cards; one of None is left out."""
    head = header(**cards)
    return wcs_text(head, primary or head, (0, 1), shape, "file", required=True)


def refusal(**cards: Any) -> str:
    with pytest.raises(InputError) as caught:
        text_of(**cards)
    return str(caught.value)


ANGLE = float(np.degrees(np.arcsin(0.6)))
SIP_CARDS = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-7}
PV_CARDS = {"PV1_1": 1.0, "PV2_1": 1.0, "PV2_2": 1e-3}


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ({"CTYPE1": "RA---TNX", "CTYPE2": "DEC--TNX"}, "CTYPE1 = RA---TNX: IRAF's distortion"),
        ({"CTYPE1": "RA---ZPX", "CTYPE2": "DEC--ZPX"}, "CTYPE1 = RA---ZPX: IRAF's distortion"),
        ({"CTYPE2": "DEC--TAB"}, "CTYPE2 = DEC--TAB: coordinates in a table"),
        ({"CTYPE1": "RA---TAN-XYZ"}, "CTYPE1 = RA---TAN-XYZ: distortion -XYZ"),
        (SIP_CARDS, "A_2_0: a SIP distortion, but CTYPE1"),
        ({**SIP_CARDS, "CTYPE1": "RA---TAN-SIP"}, "A_2_0: a SIP distortion, but CTYPE1"),
        (
            {**SIP_CARDS, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "B_1_2": 1e-9},
            "B_1_2: beyond B_ORDER, which is 2",
        ),
        (PV_CARDS, "PV2_1: TAN has no such parameter"),
        ({"CPDIS1": "LOOKUP"}, "CPDIS1: table distortions"),
        ({"CQDIS2": "TPD"}, "CQDIS2: table distortions"),
        ({"D2IMDIS1": "LOOKUP"}, "D2IMDIS1: table distortions"),
        ({"CRVAL1": "10.0"}, "CRVAL1 is '10.0', not a number"),
        ({"CRPIX2": True}, "CRPIX2 is True, not a number"),
        ({"CDELT1": "-1e-4"}, "CDELT1 is '-1e-4', not a number"),
        ({"EQUINOX": "of date"}, "EQUINOX is 'of date', not a number"),
        ({"RADESYS": 5}, "RADESYS is 5, not text"),
        ({"RADESYS": "GAPPT"}, "RADESYS = 'GAPPT': no frame"),
        ({"RADESYS": "FK5", "EQUINOX": 0.0}, "EQUINOX = 0: years"),
        ({"CTYPE1": "ELON-TAN", "CTYPE2": "ELAT-TAN"}, "CTYPE1, CTYPE2 = ELON-TAN, ELAT-TAN"),
        ({"CTYPE1": "FREQ", "CTYPE2": "RA---TAN"}, "CTYPE1, CTYPE2 = FREQ, RA---TAN"),
        ({"CTYPE2": None}, "CTYPE2 is missing"),
        ({"CRVAL2": None}, "CRVAL2 is missing"),
        ({"CUNIT1": "parsec"}, "CUNIT1"),
        ({"CRVAL1": 36000.0}, "CRVAL1: a longitude of 36000 degrees"),
        ({"CRVAL2": 91.0}, "CTYPE1, CTYPE2 = RA---TAN, DEC--TAN"),
        ({"CD1_1": -2e-4, "PC1_1": 1.0}, "CD1_1 is not CDELT1 x PC1_1"),
        ({"CROTA1": 30.0}, "CROTA1 = 30.0: a rotation is that of"),
        ({"CD1_3": 0.1, "CD1_1": -1e-4, "CD2_2": 1e-4}, "CD1_3 = 0.1 mixes"),
        ({"CDELT1": None}, "CDELT2, CUNIT1, CUNIT2: a pixel would be 3.6e+03 x 0.36"),
        ({"CDELT1": None, "CDELT2": None, "CUNIT1": None, "CUNIT2": None}, "CDELT2 are missing"),
        ({"CDELT1": -1e-8, "CDELT2": 1e-8}, "a pixel would be 3.6e-05"),
        ({"shape": (4000, 4000), "CDELT1": -0.05, "CDELT2": 0.05}, "would reach"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(cards, said):
    assert said in refusal(**cards)


@pytest.mark.parametrize(
    "cards",
    [
        {"PC001001": 0.8, "PC001002": -0.6, "PC002001": 0.6, "PC002002": 0.8},
        {"PC01_01": 0.8, "PC01_02": -0.6, "PC02_01": 0.6, "PC02_02": 0.8},
        {"CD1_1": -8e-5, "CD1_2": 6e-5, "CD2_1": 6e-5, "CD2_2": 8e-5},
        {"CD001001": -8e-5, "CD001002": 6e-5, "CD002001": 6e-5, "CD002002": 8e-5, "CDELT1": None},
        {"CROTA2": -ANGLE},
        {"CTYPE1": "ra---tan", "PC1_1": 0.8, "PC1_2": -0.6, "PC2_1": 0.6, "PC2_2": 0.8},
        {"RADESYS": "icrs", "EQUINOX": "J2000.0", "CROTA2": -ANGLE},
        {"RADECSYS": "FK5", "EPOCH": 2000, "CROTA2": -ANGLE},
    ],
)
def test_spellings_of_one_grid(cards):
    turned = {"PC1_1": 0.8, "PC1_2": -0.6, "PC2_1": 0.6, "PC2_2": 0.8}
    plain = Grid("\n".join(header(**turned).tostring(sep="\n").splitlines()[:-1]), (80, 100))
    assert same_grid(Grid(text_of(**cards), (80, 100)), plain)


@pytest.mark.parametrize(
    "cards",
    [
        {"PC1_1": 0.8, "PC1_2": -0.6, "PC2_1": 0.6, "PC2_2": 0.8},
        {"CROTA2": -ANGLE},
        {
            **{"CD1_1": -0.288, "CD1_2": 0.216, "CD2_1": 0.216, "CD2_2": 0.288, "CDELT1": None},
            **{"CUNIT1": "arcsec", "CUNIT2": "arcsec", "CRVAL1": 36000.0, "CRVAL2": 7200.0},
        },
        {
            **{"CD1_1": 6e-5, "CD1_2": 8e-5, "CD2_1": -8e-5, "CD2_2": 6e-5, "CDELT1": None},
            **{"CTYPE1": "DEC--TPV", "CTYPE2": "RA---TPV", "CRVAL1": 2.0, "CRVAL2": 10.0},
            **{"PV1_4": None, "PV2_4": 2.0},
        },
    ],
)
def test_tpv_means_the_same_whatever_gives_scales_turns_and_order(cards):
    """The polynomial follows the matrix: xi' = xi + 2 xi^2 in degrees on the tangent plane."""
    assert "PV2_9" in text_of(**PV_CARDS, PV2_9=0.0)  # SCAMP's, before it wrote TPV
    tpv = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV2_1": 1.0, "PV1_4": 2.0}
    x, y = np.array([9.0, 90.0]), np.array([3.0, 70.0])
    ra, dec = sky_positions(wcs_from_header(text_of(**{**tpv, **cards})), x, y)
    dx, dy = x - 49.5, y - 39.5
    xi, eta = -8e-5 * dx + 6e-5 * dy, 6e-5 * dx + 8e-5 * dy
    plane = WCS(header(CRPIX1=1.0, CRPIX2=1.0, CDELT1=1.0, CDELT2=1.0))
    expected = plane.all_pix2world(xi + 2 * xi**2, eta, 0)
    np.testing.assert_allclose([ra, dec], expected, atol=1e-9)


def test_a_keyword_given_twice_is_taken_if_it_says_the_same():
    head = header()
    head.append(("CRVAL1", 10.0))
    assert wcs_text(head, head, (0, 1), (80, 100), "file", required=True) == text_of()
    head.append(("CRVAL1", 11.0))
    with pytest.raises(InputError, match=r"CRVAL1 is given twice, as 10\.0 and 11\.0"):
        wcs_text(head, head, (0, 1), (80, 100), "file", required=True)


def test_the_galactic_frame_has_no_equinox():
    galactic = {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}
    wcs = wcs_from_header(text_of(**galactic, RADESYS="FK5", EQUINOX=2000.0))
    ra, dec = sky_positions(wcs, np.array([49.5]), np.array([39.5]))
    there = SkyCoord(10.0, 2.0, unit="deg", frame="galactic").icrs
    np.testing.assert_allclose([ra[0], dec[0]], [there.ra.deg, there.dec.deg], atol=1e-9)


def test_the_frame_may_stand_in_the_primary_header():
    primary = fits.Header([("RADESYS", "FK5"), ("EQUINOX", 2016.5), ("EPOCH", 2011.0)])
    assert text_of(primary=primary) == text_of(RADESYS="FK5", EQUINOX=2016.5)
    assert text_of(primary=primary, RADESYS="ICRS") == text_of(RADESYS="ICRS")


def test_icrs_and_fk5_of_j2000_are_one_grid_and_another_equinox_is_another():
    grids = [Grid(text_of(EQUINOX=year), (80, 100)) for year in (None, 2000.0, 2000.5, 1950.0)]
    assert [same_grid(grids[0], grid) for grid in grids] == [True, True, False, False]
    # The positions are honoured all the same.
    ra = [sky_positions(wcs_from_header(grid.wcs), [0.0], [0.0])[0][0] for grid in grids[:2]]
    assert 1e-6 < abs(ra[1] - ra[0]) < 1e-5


@dataclass(frozen=True)
class Tile:
    id: str
    wcs: str
    shape: tuple[int, int]
    pixel_scale: float
    ra: float
    dec: float
    radius: float


def test_objects_go_to_tiles_of_any_frame_and_axis_order():
    """Four tiles side by side, each of a frame of its own; every object lies on one."""
    swapped = {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN"}
    frames: list[tuple[str, dict[str, Any]]] = [
        ("icrs", {}),
        ("fk5", {"RADESYS": "FK5", "EQUINOX": 2016.5}),
        ("fk4", {"RADESYS": "FK4", "EQUINOX": 1950.0}),
        ("swapped", {**swapped, "CRVAL1": 2.0, "CRVAL2": 10.0}),
    ]
    tiles, ra, dec, names = [], [], [], []
    for number, (name, cards) in enumerate(frames):
        text = text_of(**{**cards, "CRPIX1": 50.5 - 101 * number})
        grid = Grid(text, (80, 100))
        tiles.append(Tile(name, text, grid.shape, grid.pixel_scale, *grid.circle()))
        sky = WCS(fits.Header.fromstring(text, sep="\n")).pixel_to_world([3.0, 96.0], [4.0, 70.0])
        ra += list(sky.icrs.ra.deg)
        dec += list(sky.icrs.dec.deg)
        names += [name, name]
    index, x, y = owners(tiles, np.array(ra), np.array(dec))
    assert [tiles[i].id for i in index] == names
    np.testing.assert_allclose(x, [3.0, 96.0] * 4, atol=1e-5)
    np.testing.assert_allclose(y, [4.0, 70.0] * 4, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "axes"),
    [
        ([7, 5], (0, 1)),
        ([7, 5, 1], (0, 1)),
        ([7, 5, 1, 1], (0, 1)),
        ([1, 7, 5], (1, 2)),
        ([7, 1, 5], (0, 2)),
        ([1, 5], (0, 1)),
        ([7, 1, 1], (0, 1)),
        ([7, 5, 2], None),
        ([7], None),
        ([7, 0], None),
        ([], None),
    ],
)
def test_an_axis_of_length_one_is_none(sizes, axes):
    assert image_axes(sizes) == axes


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_pixels_and_wcs_of_an_image_with_an_axis_of_one(tmp_path, where, packed):
    """A frequency axis before, between and after those of the sky."""
    data = pixels()
    order = [1, 2]
    order.insert(where, 0)
    cards: dict[str, Any] = {key: None for key in WCS_CARDS}
    for place, axis in enumerate(order, start=1):
        for name in ("CTYPE", "CRPIX", "CRVAL", "CDELT"):
            frequency = {"CTYPE": "FREQ", "CRPIX": 1.0, "CRVAL": 1.4e9, "CDELT": 1e6}[name]
            cards[f"{name}{place}"] = WCS_CARDS[f"{name}{axis}"] if axis else frequency
    path = tmp_path / "a.fits"
    deep = np.expand_dims(data, 2 - where)
    if packed:
        fits.HDUList(
            [
                fits.PrimaryHDU(),
                fits.CompImageHDU(
                    deep, header(**cards), compression_type="GZIP_2", quantize_level=0
                ),
            ]
        ).writeto(path)
    else:
        write(path, deep, **cards)
    (plane,), problems = planes_of(str(path), ImagesSection(tiles=[], bands=["g"]))
    assert not problems
    assert plane.shape == data.shape
    assert same_grid(Grid(plane.wcs, plane.shape), Grid(text_of(), data.shape))
    np.testing.assert_array_equal(PlaneReader(plane, str(path)).rows(10, 30), data[10:30])


def test_bytes_that_are_no_ascii(tmp_path):
    path = write(tmp_path / "a.fits", OBSERVER="Zoe")
    text = path.read_bytes()
    for key, card in {
        b"CRVAL1": b"CRVAL1  =                 10.0 / RA [\xb0]",
        b"CDELT1": b"CDELT1  =-1E-4",
        b"OBSERVER": b"OBSERVER= 'Zo\xc3\xab'",
        b"MAGZERO": b"MAGZERO =30.0" + bytes(67),
    }.items():
        start = re.search(rb"%-8s=" % key, text).start()
        text = text[:start] + card.ljust(80) + text[start + 80 :]
    path.write_bytes(text)
    (plane,), problems = planes_of(str(path), ImagesSection(tiles=[], bands=["g"]))
    assert not problems
    assert plane.wcs == text_of()
    assert plane.zeropoint == 30.0
