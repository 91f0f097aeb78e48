"""Which plane of which tile and band an HDU is: by survey.toml, by its names, by its BUNIT.

Layouts that are recognised, and where they are documented:

- DES: SCI, MSK, WGT (inverse variance); Abbott et al. 2018, ApJS 239, 18.
- HSC, LSST: IMAGE, MASK with its bits in MP_* cards, VARIANCE; Bosch et al. 2018, PASJ 70, S5.
- JWST i2d: SCI, ERR (standard deviation), CON, WHT (relative), VAR_*;
  jwst-pipeline.readthedocs.io, "Science products".
- HST drizzle: SCI, WHT, CTX; The DrizzlePac Handbook. What WHT is depends on `final_wht_type`.
- SDSS frame: image, a vector, tables; data.sdss.org/datamodel, "frame".
- SWarp: x.fits and x.weight.fits; SWarp User's Guide, WEIGHT_SUFFIX.
- Legacy Survey: one file a plane, legacysurvey-BRICK-image-g.fits.fz, -invvar-, -maskbits;
  legacysurvey.org/dr10/files, /dr8/bitmasks.
- Euclid MER: EUC_MER_BGSUB-MOSAIC-VIS_TILE..., MOSAIC-VIS-RMS, MOSAIC-VIS-FLAG; calibrated frames:
  SCI, RMS, FLAG or DQ; the Euclid Data Product Description Document.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from astropy.io.fits import Header, VerifyError

from surveyproc.config.inputs import ImagesSection
from surveyproc.errors import InputError, near
from surveyproc.images.hdus import Hdu, keyword
from surveyproc.images.units import noise_kind
from surveyproc.store import layout
from surveyproc.store.urls import file_name, public_url

SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}\Z")
TABLE_NAME = layout.TILES.rsplit("/", 1)[-1]
NOISE = ("weight", "variance", "rms")
USELESS = {
    "exposure": "a map of exposures, which nothing needs",
    "context": "a context image, which nothing needs",
    "part": "a part or another product, which nothing needs",
}
ASIDE = tuple(USELESS)
# Words of names of HDUs and files, the telling ones first: WEIGHT_RMS is an rms, VAR_POISSON only
# a part of the variance.
WORDS = (
    ("part", {"POISSON", "RNOISE", "FLAT", "ME", "WISEM1", "WISEM2"}),
    ("context", {"CON", "CTX", "CONTEXT"}),
    ("exposure", {"EXP", "EXPOSURE", "EXPTIME", "NEXP"}),
    ("mask", {"MASK", "MSK", "DQ", "DQM", "FLAG", "FLAGS", "FLG", "MASKBITS"}),
    ("weight", {"IVAR", "INVVAR", "INV", "INVERSE"}),
    ("rms", {"RMS", "ERR", "ERROR", "SIGMA", "STDDEV"}),
    ("variance", {"VAR", "VARIANCE"}),
    ("weight", {"WEIGHT", "WHT", "WT", "WGT"}),
    ("image", {"SCI", "SCIENCE", "IMAGE"}),
)
LETTERS = {"i": "image", "w": "weight", "d": "mask", "m": "mask"}
# Given to a compressed plane that has no name of its own.
NO_NAME = "COMPRESSED_IMAGE"
EVERY_BAND = "*"
FITS_SUFFIXES = {"fits", "fit", "fts", "fz", "gz", "bz2"}
SWARP = re.compile(r"(?P<stem>.+)\.weight\Z")
LEGACY = re.compile(
    r"(legacysurvey|decals)-(?P<tile>\d{4}[pm]\d{3})-(?P<kind>[a-z0-9]+)(-(?P<band>\w+))?\Z"
)
EUCLID = re.compile(
    r"EUC_MER_(?P<what>.+?)-(?P<band>VIS|[A-Z0-9]+-[A-Za-z0-9]+)(-(?P<kind>RMS|FLAG))?"
    r"_TILE(?P<tile>\d+)"
)
# Bits of maskbits for pixels of the band that are saturated, or bad in all exposures.
LEGACY_BITS = {"g": 1 << 2 | 1 << 5, "r": 1 << 3 | 1 << 6, "z": 1 << 4 | 1 << 7}
# Mask planes of HSC and LSST that say that a pixel is bad; DETECTED, for one, does not.
LSST_PLANES = ("BAD", "SAT", "CR", "EDGE", "NO_DATA", "UNMASKEDNAN")


@dataclass(frozen=True)
class FileNames:
    """What the name of a file says; empty where it says nothing.

    Attributes
    ----------
    tile, band, kind : str
        From the groups of `images.file_pattern`, which beat the header.
    layout_tile, layout_band, layout_kind : str
        From a name that is recognised. A layout's tile beats the header too.
    stem : str
        The tile if nothing else names one.
    legacy : bool
        Whether it is of the Legacy Survey, whose mask has bits of its own and is for all bands.
    """

    tile: str = ""
    band: str = ""
    kind: str = ""
    layout_tile: str = ""
    layout_band: str = ""
    layout_kind: str = ""
    stem: str = ""
    legacy: bool = False


@dataclass(frozen=True)
class Role:
    """What an HDU is.

    Attributes
    ----------
    tile, band : str
        Empty for what is left aside; band EVERY_BAND for a mask of all bands.
    kind : str
        image, weight, variance, rms or mask; or one of ASIDE; or "" for an image by default,
        because the name of the HDU says nothing.
    stated : bool
        Whether survey.toml says so.
    aside : str
        Why it is left aside; empty if it is used.
    """

    tile: str
    band: str
    kind: str
    stated: bool = False
    aside: str = ""


def names_of(path: str, images: ImagesSection) -> FileNames:
    """What the name of a file says of tile, band and kind.

    Raises
    ------
    InputError
        If `images.file_pattern` is no regular expression.
    """
    name = _stem(path)
    found = FileNames(stem=name)
    if match := SWARP.match(name):
        found = FileNames(layout_kind="weight", stem=match["stem"])
    elif match := LEGACY.match(name):
        kind = match["kind"] if _by_words(match["kind"]) else "part"
        found = FileNames("", "", "", match["tile"], match["band"] or "", kind, name, legacy=True)
    elif match := EUCLID.match(name):
        whole = match["what"] in ("BGSUB-MOSAIC", "MOSAIC")
        kind = (match["kind"] or "image") if whole else "part"
        found = FileNames("", "", "", f"TILE{match['tile']}", match["band"], kind, name)
    if images.file_pattern is None:
        return found
    try:
        pattern = re.search(images.file_pattern, file_name(path))
    except re.error as error:
        raise InputError(f"images.file_pattern: {error}") from error
    groups = pattern.groupdict() if pattern else {}
    tile, band, kind = (groups.get(name) or "" for name in ("tile", "band", "kind"))
    return replace(found, tile=tile, band=band, kind=kind)


def _stem(path: str) -> str:
    name = file_name(path)
    while True:
        base, dot, suffix = name.rpartition(".")
        if not dot or suffix.lower() not in FITS_SUFFIXES:
            return name
        name = base


def _words(text: str) -> set[str]:
    return set(re.split(r"[^A-Za-z0-9]+", text)) - {""}


def _by_words(name: str) -> str:
    upper = {word.upper() for word in _words(name)}
    return next((kind for kind, words in WORDS if upper & words), "")


class Naming:
    """Finds tile, band and kind of one HDU; remembers them for the message if one is bad."""

    def __init__(
        self, path: str, hdu: Hdu, primary: Header, images: ImagesSection, names: FileNames
    ) -> None:
        self.path, self.hdu, self.images, self.names = path, hdu, images, names
        self.where = f"{public_url(path)}[{hdu.index}]"
        # What a broken HDU does not say itself must not be blamed on what the file begins with.
        self.headers = (hdu.header,) if hdu.fault else (hdu.header, primary)
        self.tile, self.band = names.tile, names.band

    @property
    def name(self) -> str:
        """EXTNAME, or nothing.

        Raises
        ------
        InputError
            If its card cannot be parsed.
        """
        return self._text(self.hdu.header, "EXTNAME").replace(NO_NAME, "")

    @property
    def label(self) -> str:
        """What the HDU is called in a list: its name, or its place."""
        return self.name or f"HDU {self.hdu.index}"

    def identify(self, last_image: tuple[str, str]) -> Role:
        """The HDU's role; what its names lack is taken from the last image before it.

        Raises
        ------
        InputError
            If its names cannot be used, or survey.toml and the header contradict each other.
        """
        kind, stated = self._kind()
        if kind in ASIDE:
            return Role("", "", kind, stated, USELESS[kind])
        axes = 0 if self.hdu.fault else _axes(self.hdu.header)
        if not kind and axes not in (0, 2):
            why = f"of {axes} axes, where a two-dimensional image is expected"
            return Role("", "", "part", aside=why)
        inherited = last_image if kind not in ("", "image") else ("", "")
        self.tile = self._tile(inherited[0])
        self.band = self._band(inherited[1], kind)
        return Role(self.tile, self.band, kind, stated)

    def _text(self, header: Header, key: str) -> str:
        value = keyword(header, key, self.where)
        return "" if value is None else str(value).strip()

    def _own_or_primary(self, key: str) -> str:
        return next(filter(None, (self._text(header, key) for header in self.headers)), "")

    def _kind(self) -> tuple[str, bool]:
        stated = self._stated_kind()
        kind = stated or self._named_kind()
        if kind not in NOISE:
            return kind, bool(stated)
        unit = self._text(self.hdu.header, "BUNIT")
        believed = noise_kind(unit) or kind
        if stated and believed != kind:
            raise InputError(
                f"{self.where}: images.planes says {kind}, keyword BUNIT = {unit!r} says "
                f"{believed}: correct the one that is wrong"
            )
        return believed, bool(stated)

    def _stated_kind(self) -> str:
        """The kind of `images.planes` that names this HDU, or the kind that its file name holds."""
        of_file = self.names.kind or self.names.layout_kind
        name = (of_file or self.name).upper()
        for kind, patterns in self.images.planes.items():
            for pattern in patterns:
                if isinstance(pattern, int):
                    if pattern == self.hdu.index and not of_file:
                        return kind
                elif name and fnmatchcase(name, pattern.upper()):
                    return kind
        return ""

    def _named_kind(self) -> str:
        named = self.names.kind
        if not named:
            return (
                _by_words(self.names.layout_kind)
                or self.names.layout_kind
                or (_by_words(self.name))
            )
        kind = _by_words(named) or LETTERS.get(named.lower(), "")
        kind = kind or next(
            (k for k in ("image", *NOISE, "mask") if k.startswith(named.lower())), ""
        )
        if not kind:
            raise InputError(
                f"{public_url(self.path)}: images.file_pattern: kind {named!r} is not image, "
                f"weight, variance, rms or mask; say which in images.planes"
            )
        return kind

    def _tile(self, inherited: str) -> str:
        key = self.images.tile_keyword
        named = self.tile or self.names.layout_tile
        found = named or self._text(self.hdu.header, key) or inherited
        source = f"keyword {key}: tile"
        if named:
            source = "images.file_pattern: tile" if self.tile else "file name: tile"
        found = found or self._own_or_primary(key)
        if not found and not self.hdu.fault:
            found, source = self.names.stem, "file name: tile"
        remedy = "set images.tile_keyword or a group 'tile' in images.file_pattern"
        if not SAFE_NAME.match(found):
            raise InputError(
                f"{self.where}: {source} id {found!r} may hold only letters, digits, '_', '.' and "
                f"'-', and may not begin with '.'; {remedy}"
            )
        if found.lower() == TABLE_NAME:
            raise InputError(
                f"{self.where}: {source} id {found!r} is the name of the table of tiles; {remedy}"
            )
        return found

    def _band(self, inherited: str, kind: str) -> str:
        key, bands = self.images.band_keyword, self.images.bands
        named, layout = self.band, self.names.layout_band
        if self.names.legacy and kind == "mask" and not (named or layout):
            return EVERY_BAND
        own = self._text(self.hdu.header, key)
        found = named or own or inherited or self._own_or_primary(key) or layout
        if not found:
            by_name = [band for band in bands if band in _words(self.name)]
            if by_name:
                return by_name[0]
            raise InputError(
                f"{self.where}: keyword {key} (the band) is missing; set "
                "images.band_keyword, or a group 'band' in images.file_pattern"
            )
        # Euclid's NIR-Y is Y, or NIR_Y, to a survey.
        last = layout.rsplit("-", 1)[-1]
        for candidate in (found, found.split()[0], layout.replace("-", "_"), last):
            if candidate in bands:
                return candidate
        source = "images.file_pattern" if named else f"keyword {key}"
        raise InputError(
            f"{self.where}: {source}: band {found!r} is not in images.bands "
            f"({', '.join(bands)})" + near(found, bands)
        )

    def mask_bits(self, band: str) -> int | None:
        """Bits of a mask that are known to make a pixel of `band` bad; None if all may."""
        if self.names.legacy:
            return legacy_bits(band)
        numbers = {name: keyword(self.hdu.header, f"MP_{name}", self.where) for name in LSST_PLANES}
        found = [n for n in numbers.values() if isinstance(n, int) and 0 <= n < 64]
        return sum({1 << number for number in found}) if found else None


def legacy_bits(band: str) -> int:
    """Bits of the Legacy Survey's maskbits that make a pixel of a band bad; of all if unknown."""
    return LEGACY_BITS.get(band, sum(LEGACY_BITS.values()))


def _axes(header: Header) -> int:
    """How many axes are longer than one pixel; 0 if the header does not make that clear."""
    prefix = "Z" if header.get("ZIMAGE") else ""
    try:
        sizes = [int(header[f"{prefix}NAXIS{i + 1}"]) for i in range(int(header[f"{prefix}NAXIS"]))]
    except (KeyError, TypeError, ValueError, VerifyError):
        return 0
    return sum(size > 1 for size in sizes) if min(sizes, default=0) > 0 else 0


def settle(found: Sequence[tuple[Naming, Role]]) -> list[tuple[Naming, Role]]:
    """The HDUs of one file, some of them left aside because of the others.

    - Of a kind that `images.planes` names in this file, the others are not used.
    - Beside an HDU that is called an image, one of an unknown name is none.
    - A weight beside an rms or a variance is a relative one, and so is that of a drizzled image
      (with a context): of exposure times, for all that is known. What survey.toml states is used.
    """
    roles = [role for _, role in found]
    stated = {role.kind for role in roles if role.stated}
    drizzled = any(role.kind == "context" for role in roles)
    called = {(role.tile, role.band) for role in roles if role.kind == "image" and not role.aside}
    better = {(r.tile, r.band) for r in roles if r.kind in NOISE[1:] and not r.aside}
    better |= {(r.tile, r.band) for r in roles if r.kind in NOISE and r.stated}

    def aside(role: Role, name: str) -> str:
        place = (role.tile, role.band)
        if role.aside or role.stated:
            return role.aside
        if (role.kind or "image") in stated:
            return f"not what images.planes names as {role.kind or 'image'}"
        if not role.kind and name and place in called:
            return "of a name that says nothing, beside an image"
        if role.kind == "weight" and place in better:
            return "a relative weight beside the errors"
        if role.kind == "weight" and drizzled:
            return (
                "a drizzle weight, which may be of exposure times; if it is an inverse variance, "
                f'set images.planes.weight = "{name}"'
            )
        return ""

    return [
        (naming, replace(role, aside=aside(role, naming.name), kind=role.kind or "image"))
        for naming, role in found
    ]
