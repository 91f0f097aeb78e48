"""What an image header says of its pixels: which axes are the image's, and where they lie.

The answer is astropy's, whatever the spelling of the cards. Cards that astropy passes over, takes
for something else or cannot apply are refused by name: the pixels would silently lie elsewhere.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.io.fits import Card, Header, VerifyError
from astropy.io.fits.card import Undefined

from surveyproc.errors import InputError
from surveyproc.images.grid import Grid, inverts
from surveyproc.sky import pixel_sides, turn_of, wcs_from_header

# CRPIX1; PC1_2, also spelled PC01_02 and, before the WCS papers, PC001002; PV2_1.
INDEXED = re.compile(
    r"(CTYPE|CUNIT|CRPIX|CRVAL|CDELT|CROTA|PC|CD|PV|PS)0*([1-9]\d?)(?:_0*(\d{1,3})|00(\d))?\Z"
)
PAIRED = ("PC", "CD", "PV", "PS")
SIP = re.compile(r"([AB]P?)_(?:(\d+)_(\d+)|ORDER|DMAX)\Z")
# The first two names are what the last two were called.
FRAME = ("RADECSYS", "EPOCH", "RADESYS", "EQUINOX")
OTHERS = (*FRAME, "LONPOLE", "LATPOLE")
TEXTS = ("CTYPE", "CUNIT", "PS", "RADE")
TABLES = re.compile(r"(?:CPDIS|CQDIS|D2IMDIS)\d+\Z|AXISCORR\Z")
UNAPPLIED = {
    "TNX": "IRAF's distortion (WAT cards) is not applied; write it as TPV or SIP",
    "ZPX": "IRAF's distortion (WAT cards) is not applied; write it as TPV or SIP",
    "TAB": "coordinates in a table are not supported",
}
SYSTEMS = {("RA", "DEC"), ("GLON", "GLAT")}
# 'J2000.0' for 2000.0 is written by many, and means nothing else.
EQUINOX_TEXT = re.compile(r"[JB](\d{4}(?:\.\d*)?)\Z")
# From the first precise catalogs to what nobody has a reason to use yet.
EQUINOXES = (1850.0, 2100.0)
# Arcsec. The finest cameras of the largest telescopes have a few milliarcseconds, lenses that
# watch the whole sky a minute, single dishes some minutes. A degree is a CDELT that is missing.
SCALES = (1e-3, 600.0)
# Longest over shortest side of a pixel: grids of longitude and latitude reach it at 84 degrees.
MAX_ASPECT = 10.0
# Degrees. The widest cameras reach 40. A circle round the edge of half a sky need not hold what
# is inside.
MAX_RADIUS = 60.0

Value = float | str
Cards = dict[str, Value]


def image_axes(sizes: Sequence[int]) -> tuple[int, int] | None:
    """Zero-based FITS axes that are x and y; an axis of length one is none if two others are left.

    Parameters
    ----------
    sizes : sequence of int
        NAXIS1, NAXIS2, ...

    Returns
    -------
    (int, int) or None
        None if these are not the pixels of one image.
    """
    axes = list(range(len(sizes)))
    for axis in reversed(range(len(sizes))):
        if len(axes) > 2 and sizes[axis] == 1:
            axes.remove(axis)
    return (axes[0], axes[1]) if len(axes) == 2 and min(sizes) > 0 else None


def wcs_text(
    header: Header,
    primary: Header,
    axes: tuple[int, int],
    shape: tuple[int, int],
    where: str,
    *,
    required: bool,
) -> str:
    """The WCS cards of an HDU in one spelling, checked; the primary header's if it has none.

    Parameters
    ----------
    header, primary : Header
        The HDU's own header, and the first one of the file.
    axes : (int, int)
        Zero-based FITS axes that are x and y; they are 1 and 2 in the result.
    shape : (int, int)
        (y, x) pixels.
    where : str
        File and HDU, for messages.
    required : bool
        Whether a missing WCS is an error; "" is returned if not.

    Returns
    -------
    str
        Cards separated by newlines, for `sky.wcs_from_header`; longitude first, in degrees.

    Raises
    ------
    InputError
        If the WCS is missing, broken, not one of the sky, not wholly understood, or puts the
        pixels where no survey has them. The message names the keyword.
    """
    source = next((one for one in (header, primary) if one["CTYPE*"]), None)
    if source is None:
        if required:
            raise InputError(f"{where}: no WCS (keyword CTYPE1 is missing)")
        return ""
    cards = _cards(source, axes, where)
    if "RADESYS" not in cards:
        # Written once for all extensions by many; EPOCH there is that of the observation.
        inherited = _cards(primary, axes, where, only=("RADECSYS", "RADESYS", "EQUINOX"))
        cards |= {key: value for key, value in inherited.items() if key not in cards}
    cards = _understood(cards, where)
    try:
        wcs = wcs_from_header(_text(cards))
    except Exception as error:  # wcslib's errors are a dozen classes, and plain ValueError
        raise InputError(f"{where}: broken WCS ({_kinds(cards)}): {_said(error)}") from error
    _check_frame(wcs, cards, where)
    text = _text(_standard_axes(cards, wcs))
    _check_place(Grid(text, shape), cards, where)
    return text


def _said(error: Exception) -> str:
    """What an error of wcslib says, without the lines of its C code that it came through."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("ERROR")) or repr(error)


def _cards(header: Header, axes: tuple[int, int], where: str, only: Sequence[str] = ()) -> Cards:
    """The WCS cards of two axes in the spelling of the WCS papers, the axes numbered 1 and 2."""
    found: Cards = {}
    for card in header.cards:
        spelled = card.keyword.strip().upper()
        if only and spelled not in only:
            continue
        if TABLES.match(spelled):
            raise InputError(f"{where}: keyword {spelled}: table distortions are not supported")
        key = _standard(spelled, axes)
        value = None if key is None else _value(card, where)
        if key is None or value is None:
            continue
        if key.endswith("_none"):
            if value:
                raise InputError(
                    f"{where}: keyword {spelled} = {value} mixes the image's axes with one that "
                    "it does not have"
                )
        elif found.setdefault(key, value) != value:
            raise InputError(
                f"{where}: keyword {spelled} is given twice, as {found[key]!r} and {value!r}"
            )
    for old, new in zip(FRAME[:2], FRAME[2:], strict=True):
        if old in found:
            found.setdefault(new, found.pop(old))
    return found


def _standard(spelled: str, axes: tuple[int, int]) -> str | None:
    """How the WCS papers spell a keyword; None if it is none of the image's WCS.

    "PC1_none" is the element of a matrix that takes an axis of the image from one it does not have.
    """
    if spelled in OTHERS or SIP.match(spelled):
        return spelled
    match = INDEXED.match(spelled)
    if match is None:
        return None
    places = {str(axis + 1): str(place) for place, axis in enumerate(axes, start=1)}
    name, place, index = match[1], places.get(match[2]), match[3] or match[4]
    if place is None or (index is None) == (name in PAIRED):
        return None
    if name in ("PC", "CD"):
        index = places.get(index, "none")
    return f"{name}{place}" + ("" if index is None else f"_{index}")


def _value(card: Card, where: str) -> Value | None:
    """The value of a WCS card, None if it has none; text where it belongs, a number elsewhere."""
    key = card.keyword.strip().upper()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is raised here anyway
            value = card.value
    except (VerifyError, ValueError) as error:
        raise InputError(f"{where}: keyword {key}: its card is not valid FITS") from error
    if isinstance(value, Undefined):
        return None
    if key.startswith(TEXTS):
        if not isinstance(value, str):
            raise InputError(f"{where}: keyword {key} is {value!r}, not text")
        return value.strip() if key.startswith(("CUNIT", "PS")) else value.strip().upper()
    if key in ("EQUINOX", "EPOCH") and isinstance(value, str):
        named = EQUINOX_TEXT.match(value.strip().upper())
        value = float(named[1]) if named else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: keyword {key} is {value!r}, not a number")
    return value


def _kinds(cards: Cards) -> str:
    return f"CTYPE1, CTYPE2 = {cards['CTYPE1']}, {cards['CTYPE2']}"


def _number(cards: Cards, key: str, default: float = 0.0) -> float:
    return float(cards.get(key, default))


def _understood(cards: Cards, where: str) -> Cards:
    """The cards that astropy shall see.

    Raises
    ------
    InputError
        If astropy would fill in a value or pass over a card without which the pixels lie elsewhere.
    """
    for key in ("CTYPE1", "CTYPE2", "CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2"):
        if key not in cards:
            raise InputError(f"{where}: broken WCS: keyword {key} is missing")
    kinds = [str(cards["CTYPE1"]), str(cards["CTYPE2"])]
    for key, kind in zip(("CTYPE1", "CTYPE2"), kinds, strict=True):
        if kind[5:8] in UNAPPLIED:
            raise InputError(f"{where}: keyword {key} = {kind}: {UNAPPLIED[kind[5:8]]}")
        if kind[8:] not in ("", "-SIP"):
            raise InputError(f"{where}: keyword {key} = {kind}: distortion {kind[8:]} is unknown")
    _check_sip(cards, all(kind[8:] for kind in kinds), where)
    _check_turning(cards, kinds, where)
    latitude = 1 if kinds[0].startswith(("DEC", "GLAT")) else 2
    # astropy takes TAN for TPV if there is a term of index 5 or more.
    parameters = [key for key in cards if key.startswith("PV")]
    unused = [key for key in parameters if key.startswith(f"PV{latitude}_") and cards[key]]
    if kinds[0].endswith("-TAN") and unused and max(int(key[4:]) for key in parameters) < 5:
        raise InputError(
            f"{where}: keyword {unused[0]}: TAN has no such parameter; if the PV cards are a "
            "polynomial of SCAMP, CTYPE1 and CTYPE2 must say TPV"
        )
    if all(kind[8:] for kind in kinds):
        return cards
    return {key: value for key, value in cards.items() if not SIP.match(key)}  # all of them zero


def _text(cards: Cards) -> str:
    return str(Header(list(cards.items())).tostring(sep="\n", endcard=False, padding=False))


def _standard_axes(cards: Cards, wcs: Any) -> Cards:
    """The same WCS with longitude first, CRVAL and CD in degrees, no CUNIT, CDELT, PC or CROTA.

    wcslib takes TPV polynomials for those of other axes if latitude comes first, and applies them
    before CDELT and CUNIT, where they belong after.
    """
    standard: Cards = {}
    for place, axis in enumerate((wcs.wcs.lng, wcs.wcs.lat), start=1):
        standard[f"CTYPE{place}"] = cards[f"CTYPE{axis + 1}"]
        standard[f"CRPIX{place}"] = cards[f"CRPIX{place}"]  # of the pixels' axes
        standard[f"CRVAL{place}"] = float(wcs.wcs.crval[axis])
        for j in (1, 2):
            standard[f"CD{place}_{j}"] = float(wcs.pixel_scale_matrix[axis, j - 1])
        for key in cards:
            if key.startswith((f"PV{axis + 1}_", f"PS{axis + 1}_")):
                standard[f"{key[:2]}{place}{key[3:]}"] = cards[key]
    others = {key: value for key, value in cards.items() if key in OTHERS or SIP.match(key)}
    return standard | others


def _check_sip(cards: Cards, named: bool, where: str) -> None:
    for key, value in cards.items():
        match = SIP.match(key)
        if match is None or match[2] is None or not value:
            continue
        if not named:
            raise InputError(
                f"{where}: keyword {key}: a SIP distortion, but {_kinds(cards)} do not say so: "
                "add -SIP to them if it holds, else remove the A, B, AP and BP cards"
            )
        order = _number(cards, f"{match[1]}_ORDER")
        if int(match[2]) + int(match[3]) > order and match[1] in ("A", "B"):
            raise InputError(
                f"{where}: keyword {key}: beyond {match[1]}_ORDER, which is {order:.0f} or missing"
            )


def _check_turning(cards: Cards, kinds: list[str], where: str) -> None:
    """That CD, PC, CDELT and CROTA do not say two things, of which astropy would take one."""
    pairs = [(i, j) for i in (1, 2) for j in (1, 2)]
    cd = [key for i, j in pairs if (key := f"CD{i}_{j}") in cards]
    pc = [key for i, j in pairs if (key := f"PC{i}_{j}") in cards]
    if cd and pc:
        for i, j in pairs:
            scaled = _number(cards, f"CDELT{i}", 1.0) * _number(cards, f"PC{i}_{j}", float(i == j))
            if not math.isclose(_number(cards, f"CD{i}_{j}"), scaled, rel_tol=1e-6, abs_tol=1e-12):
                raise InputError(
                    f"{where}: keywords {cd[0]} and {pc[0]}: both matrices are given, and they "
                    f"differ: CD{i}_{j} is not CDELT{i} x PC{i}_{j}"
                )
    if not cd and not pc:
        lon, lat = (2, 1) if kinds[0].startswith(("DEC", "GLAT")) else (1, 2)
        angle = _number(cards, f"CROTA{lon}")
        if angle and angle != _number(cards, f"CROTA{lat}"):
            raise InputError(
                f"{where}: keyword CROTA{lon} = {angle}: a rotation is that of the latitude's "
                f"axis, CROTA{lat}, which says another"
            )


def _check_frame(wcs: Any, cards: Cards, where: str) -> None:
    if (wcs.wcs.lngtyp.strip(), wcs.wcs.lattyp.strip()) not in SYSTEMS or wcs.wcs.lng < 0:
        raise InputError(
            f"{where}: no WCS of equatorial or galactic positions ({_kinds(cards)}; RA---..., "
            "DEC--... or GLON-..., GLAT-... expected)"
        )
    longitude = wcs.wcs.crval[wcs.wcs.lng]
    if not -360.0 <= longitude <= 360.0:
        raise InputError(
            f"{where}: keyword CRVAL{wcs.wcs.lng + 1}: a longitude of {longitude:g} degrees; the "
            f"unit is that of CUNIT{wcs.wcs.lng + 1}, degrees if it is missing"
        )
    equinox = wcs.wcs.equinox
    if not math.isnan(equinox) and not EQUINOXES[0] <= equinox <= EQUINOXES[1]:
        raise InputError(
            f"{where}: keyword EQUINOX = {equinox:g}: years {EQUINOXES[0]:.0f} to "
            f"{EQUINOXES[1]:.0f} are possible"
        )
    try:
        turn_of(wcs)
    except ValueError as error:
        raise InputError(
            f"{where}: keyword RADESYS = {cards.get('RADESYS', '')!r}: no frame that astropy turns "
            "to ICRS (ICRS, FK5, FK4, FK4-NO-E)"
        ) from error


def _check_place(grid: Grid, cards: Cards, where: str) -> None:
    matrix = ", ".join(key for key in sorted(cards) if re.match(r"CDELT|CD\d|PC\d|CUNIT", key))
    matrix = f"keywords {matrix}" if matrix else "keywords CDELT1, CDELT2 are missing"
    try:
        scale = grid.pixel_scale
        sides = np.linalg.svd(
            np.stack(pixel_sides(wcs_from_header(grid.wcs), *grid.centre)), compute_uv=False
        )
        radius = grid.circle()[2]
        back = inverts(grid)
    except Exception as error:  # of numpy and wcslib, for positions that are none
        raise InputError(f"{where}: broken WCS ({_kinds(cards)}): {_said(error)}") from error
    if not SCALES[0] <= scale <= SCALES[1] or not sides[0] <= MAX_ASPECT * sides[1]:
        widths = np.degrees(sides) * 3600
        raise InputError(
            f"{where}: broken WCS: {matrix}: a pixel would be {widths[0]:.3g} x {widths[1]:.3g} "
            f"arcsec ({SCALES[0]:g} to {SCALES[1]:g}, sides of 1 : {MAX_ASPECT:g} at most, are "
            "possible)"
        )
    if not radius <= MAX_RADIUS:
        raise InputError(
            f"{where}: broken WCS: {matrix}: the image would reach {radius:.3g} degrees from its "
            f"centre ({MAX_RADIUS:g} are possible)"
        )
    if not back:
        distorted = any(SIP.match(key) or key.startswith("PV") for key in cards)
        raise InputError(
            f"{where}: broken WCS: its distortion (PV or A, B, AP, BP cards) cannot be inverted"
            if distorted
            else f"{where}: broken WCS: {matrix}, CRPIX: pixels do not come back from the sky"
        )
