"""What a BUNIT says: how much flux one unit is, or what a plane of errors holds."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable

from astropy import units as u

from surveyproc.schemas import AB_ZEROPOINT_NJY

NANOMAGGY_ZEROPOINT = 22.5
SPELLINGS = (
    (re.compile(r"\bnano-?magg(y|ies)\b", re.IGNORECASE), "nmgy"),
    (re.compile(r"\bmagg(y|ies)\b", re.IGNORECASE), "mgy"),
    (re.compile(r"\bmicro-?(jy|janskys?)\b", re.IGNORECASE), "uJy"),
    (re.compile(r"\bnano-?(jy|janskys?)\b", re.IGNORECASE), "nJy"),
    (re.compile(r"\bmilli-?(jy|janskys?)\b", re.IGNORECASE), "mJy"),
    (re.compile(r"\bjanskys?\b", re.IGNORECASE), "Jy"),
    # A pixel's value is per pixel anyway.
    (re.compile(r"\s*(/\s*pix(el)?|\bpix(el)?(\^|\*\*)?-1)\s*\Z", re.IGNORECASE), ""),
)
# A unit with one of these that is not understood is refused rather than taken for counts.
FLUX_WORD = re.compile(r"jy|jansky|magg|\bmag|asinh|\bdex\b|\blog", re.IGNORECASE)
COUNTED = {"adu", "ct", "count", "DN", "electron", "ph", "photon", "nmgy", "mgy"}
NOISE_WORDS = (
    ("weight", r"\b(inverse|inv|ivar|invvar|weights?)\b"),
    ("variance", r"\b(variance|var)\b"),
    ("rms", r"\b(rms|sigma|std|stddev|standard deviation|error)\b"),
)
SQUARED = re.compile(r"\((.+)\)\s*(?:\^|\*\*)?\s*([+-]?\d)\Z")


def _parsed(text: str) -> u.UnitBase | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", u.UnitsWarning)
        try:
            found = u.Unit(text, parse_strict="silent")
        except (ValueError, TypeError):
            return None
    return None if isinstance(found, u.UnrecognizedUnit) else found


def zeropoint_of(bunit: str, pixel_area: Callable[[], float]) -> float | None:
    """AB magnitude of one unit; None if the unit is none of flux (counts, electrons a second).

    Parameters
    ----------
    bunit : str
        nJy, uJy, mJy, Jy (a pixel), MJy/sr and the like, nanomaggy; as astropy or people spell it.
    pixel_area : callable
        Steradian of a pixel; asked for surface brightness only.

    Raises
    ------
    ValueError
        If it is a unit of flux that cannot be used: magnitudes, a beam, an unknown spelling.

    Examples
    --------
    >>> zeropoint_of("nanomaggies", float), zeropoint_of("electron/s", float)
    (22.5, None)
    """
    text = bunit.strip()
    for spelling, name in SPELLINGS:
        text = spelling.sub(name, text)
    unit = _parsed(text)
    if unit is not None and not isinstance(unit, u.function.FunctionUnitBase):
        if unit.is_equivalent(u.nJy):
            return AB_ZEROPOINT_NJY - 2.5 * math.log10(unit.to(u.nJy))
        if unit.is_equivalent(u.nJy / u.sr):
            return AB_ZEROPOINT_NJY - 2.5 * math.log10(unit.to(u.nJy / u.sr) * pixel_area())
        maggy = u.Unit("nmgy")
        if unit.is_equivalent(maggy):
            return NANOMAGGY_ZEROPOINT - 2.5 * math.log10(unit.to(maggy))
    if FLUX_WORD.search(text):
        raise ValueError("is no linear unit of flux that is known")
    return None


def noise_kind(bunit: str) -> str:
    """weight, variance or rms, if a plane's BUNIT says it in a word or as a power; else empty.

    A first power says nothing: it is often the image's own BUNIT, copied.

    Examples
    --------
    >>> noise_kind("variance"), noise_kind("1/nanomaggy^2"), noise_kind("nJy2"), noise_kind("adu")
    ('variance', 'weight', 'variance', '')
    """
    text = bunit.strip().lower()
    for kind, words in NOISE_WORDS:
        if re.search(words, text):
            return kind
    if match := SQUARED.match(bunit.strip()):
        return {2: "variance", -2: "weight"}.get(int(match[2]), "")
    unit = _parsed(re.sub(r"nano-?magg(y|ies)", "nmgy", bunit.strip(), flags=re.IGNORECASE))
    if unit is None or isinstance(unit, u.function.FunctionUnitBase):
        return ""
    # The powers of seconds, say, follow those of what was counted.
    powers = {
        int(power)
        for base, power in zip(unit.bases, unit.powers, strict=True)
        if base.is_equivalent(u.Jy) or base.to_string().rstrip("s") in COUNTED
    }
    return {2: "variance", -2: "weight"}.get(powers.pop(), "") if len(powers) == 1 else ""
