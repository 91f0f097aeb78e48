"""Units of positions: what a column says of itself, and the degrees that one of it is."""

from __future__ import annotations

import re

from astropy import units

# Written by people and archives, and by none of the standards that astropy reads; lower case.
_ALIASES = {
    "deg": "deg",
    "rad": "rad",
    "arcsec": "arcsec",
    "arcmin": "arcmin",
    "mas": "mas",
    "h": "hourangle",
    "hourangle": "hourangle",
    "degs": "deg",
    "degree": "deg",
    "degrees": "deg",
    "decimal degrees": "deg",
    "rads": "rad",
    "radian": "rad",
    "radians": "rad",
    "hr": "hourangle",
    "hrs": "hourangle",
    "hour": "hourangle",
    "hours": "hourangle",
    "decimal hours": "hourangle",
    "arcsecs": "arcsec",
    "arcseconds": "arcsec",
    "arcmins": "arcmin",
    "arcminutes": "arcmin",
    "milliarcsec": "mas",
    "milliarcseconds": "mas",
}
_NONE = ("", "-", "--", "---", "none")
_ENCLOSED = re.compile(r"(?:angle\s*)?([\[('\"])(.+)[\])'\"]", re.IGNORECASE)
# Hours of right ascension are an angle, and never one of declination.
_HOURS = (units.hour, units.hourangle)


def degrees_per(text: str, *, hours: bool) -> float:
    """Degrees in one unit of a position; without a unit positions are in degrees.

    Parameters
    ----------
    text : str
        As the file has it.
    hours : bool
        Whether an hour is 15 degrees, as of right ascension.

    Raises
    ------
    ValueError
        If it is no angle, or not understood.

    Examples
    --------
    >>> degrees_per("hours", hours=True), degrees_per("Angle[deg]", hours=False)
    (15.0, 1.0)
    """
    bare = text.strip().removesuffix(".")
    inside = _ENCLOSED.fullmatch(bare)
    if inside:
        bare = inside[2].strip()
    if bare.lower() in _NONE:
        return 1.0
    unit = _parsed(_ALIASES.get(bare.lower(), bare))
    if unit in _HOURS:
        if not hours:
            raise ValueError("hours are no unit of a declination")
        return 15.0
    if unit.physical_type != "angle":
        raise ValueError("it is no angle")
    return float(unit.to(units.deg))


def _parsed(text: str) -> units.UnitBase:
    for standard in (None, "vounit", "fits", "cds"):
        try:
            return units.Unit(text, format=standard, parse_strict="raise")
        except (ValueError, TypeError):
            continue
    raise ValueError("it is not understood")
