"""From stored numbers to flux: zero points, gains, and what to do with asinh pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from astropy.io.fits import Header

from surveyproc.config import SurveyConfig
from surveyproc.config.expressions import evaluate
from surveyproc.config.inputs import ImagesSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.images.grid import Grid
from surveyproc.images.hdus import keyword
from surveyproc.images.units import zeropoint_of
from surveyproc.store.urls import file_name, public_url

# A keyword and a BUNIT may differ by so much before they contradict each other, mag.
SAME_ZEROPOINT = 0.01
# PIXAR_SR and the WCS may differ by this share; distorted pixels do by a few percent.
SAME_AREA = 0.05


@dataclass(frozen=True)
class Calibration:
    """Zero points and gains, as survey.toml and the headers state them.

    Attributes
    ----------
    images : ImagesSection
        The survey's.
    files : mapping
        File name to AB magnitude of one count, from `images.zeropoint_file`.
    """

    images: ImagesSection
    files: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, config: SurveyConfig) -> Calibration:
        """That of a survey; reads the table of zero points if there is one.

        Raises
        ------
        ConfigError
            If the table lacks the columns `file` and `zeropoint`.
        InputError
            If it cannot be read.
        """
        if config.images.zeropoint_file is None:
            return cls(config.images)
        return cls(config.images, _table(config.resolve(config.images.zeropoint_file)))

    def zeropoint(
        self, header: Header, primary: Header, grid: Grid, path: str, band: str, where: str
    ) -> float:
        """AB magnitude of one unit of an image's pixels.

        What survey.toml states comes first: by band, by file, for all. Then the header: the
        keyword, and BUNIT if it is a unit of flux.

        Parameters
        ----------
        header, primary : Header
            The HDU's own header, and the first one of the file.
        grid : Grid
            Its pixels, for surface brightness.
        path, band, where : str
            File, band, and both with the HDU, for messages.

        Raises
        ------
        InputError
            If there is none, it is no number or implausible, or two contradict each other.
        """
        images, read = self.images, _reader(header, primary, where)
        stated = images.zeropoints.get(band)
        if stated is None and images.zeropoint_file is not None:
            name = file_name(path)
            if name not in self.files:
                raise InputError(f"{where}: images.zeropoint_file has no row for {name!r}")
            return self._plausible(self.files[name], where, f"images.zeropoint_file: {name}")
        stated = images.zeropoint if stated is None else stated
        if isinstance(stated, str):
            value = _evaluated(stated, read, where)
            return self._plausible(value, where, f"images: zero point {stated!r}")
        if stated is not None:
            return stated  # what somebody wrote down on purpose is believed
        key = images.zeropoint_keyword
        unit, of_unit = _of_unit(header, primary, grid, where)
        present = any(keyword(one, key, where) is not None for one in (header, primary))
        if of_unit is None:
            if not present:
                raise InputError(
                    f"{where}: keyword {key} (AB magnitude of one count) is missing, and BUNIT "
                    f"({unit or 'absent'}) is no unit of flux; set images.zeropoint_keyword, "
                    f"images.zeropoint, or images.zeropoints = {{ {band} = ... }}"
                )
            try:
                value = read(key)
            except InputError as error:
                raise InputError(
                    f"{error}: set images.zeropoints = {{ {band} = ... }} if it is known"
                ) from error
            return self._plausible(value, where, f"keyword {key}")
        if present and not abs(read(key) - of_unit) <= SAME_ZEROPOINT:
            raise InputError(
                f"{where}: keyword {key} = {read(key):g} and BUNIT = {unit!r} (zero point "
                f"{of_unit:.4g}) contradict each other; "
                f"state images.zeropoints = {{ {band} = ... }}"
            )
        return of_unit

    def _plausible(self, value: float, where: str, source: str) -> float:
        low, high = self.images.zeropoint_range
        if not low <= value <= high:
            raise InputError(
                f"{where}: {source} = {value:g} is no plausible AB magnitude of one count: "
                f"images.zeropoint_range is {low:g} to {high:g}; widen it, or state "
                "images.zeropoints, if it is meant"
            )
        return value

    def gain(self, header: Header, primary: Header, band: str, where: str) -> float:
        """Electrons that one unit of an image's pixels stands for; NaN if nobody says.

        Raises
        ------
        InputError
            If survey.toml names a keyword that is missing, or it is not positive.
        """
        stated = self.images.gain
        if isinstance(stated, Mapping):
            stated = stated.get(band)
        if stated is None:
            return math.nan
        value = stated
        if isinstance(value, str):
            value = _evaluated(value, _reader(header, primary, where), where)
        if not value > 0:
            raise InputError(f"{where}: images.gain: {stated!r} gives {value:g}, not above 0")
        return value


def _table(url: str) -> dict[str, float]:
    from surveyproc.catalogs.readers import open_table

    found: dict[str, float] = {}
    with open_table(url) as table:
        missing = {"file", "zeropoint"} - set(table.names)
        if missing:
            raise ConfigError(
                f"images.zeropoint_file: {public_url(url)} has no column {sorted(missing)[0]!r} "
                f"(file, zeropoint are read; there are {', '.join(table.names)})"
            )
        for batch in table.batches(65_536, ["file", "zeropoint"]):
            for name, value in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                try:
                    number = math.nan if value is None else float(value)
                except ValueError:
                    number = math.nan
                if file_name(str(name)) in found:
                    raise ConfigError(f"images.zeropoint_file: {name!r} has two rows")
                found[file_name(str(name))] = number
    return found


def _reader(header: Header, primary: Header, where: str) -> Callable[[str], float]:
    """A function that gives a keyword of the header, or of the primary one, as a finite number."""

    def read(key: str) -> float:
        value = keyword(header, key, where)
        value = keyword(primary, key, where) if value is None else value
        if value is None:
            raise InputError(f"{where}: keyword {key} is missing")
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{where}: keyword {key} is {value!r}, not a number")
        return number

    return read


def _evaluated(text: str, read: Callable[[str], float], where: str) -> float:
    try:
        return evaluate(text, read)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _of_unit(header: Header, primary: Header, grid: Grid, where: str) -> tuple[str, float | None]:
    """BUNIT, and the zero point that it implies; None if it implies none."""
    value = keyword(header, "BUNIT", where)
    value = keyword(primary, "BUNIT", where) if value is None else value
    text = "" if value is None else str(value).strip()
    if softening(header, where) is not None:
        return text, None  # BUNIT is that of the logarithm
    try:
        return text, zeropoint_of(text, lambda: _pixel_area(header, grid, where))
    except ValueError as error:
        raise InputError(
            f"{where}: keyword BUNIT = {text!r} {error}: convert the image, or state "
            "images.zeropoints if it is linear all the same"
        ) from error


def _pixel_area(header: Header, grid: Grid, where: str) -> float:
    """Steradian of a pixel: the header's own figure (PIXAR_SR) if the WCS agrees with it."""
    area = math.radians(grid.pixel_scale / 3600) ** 2
    stated = keyword(header, "PIXAR_SR", where)
    if stated is None:
        return area
    if not isinstance(stated, int | float) or not abs(stated / area - 1) <= SAME_AREA:
        raise InputError(
            f"{where}: keyword PIXAR_SR = {stated!r}, but a pixel of the WCS has {area:.4g} sr; "
            "correct or remove it"
        )
    return float(stated)


def softening(header: Header, where: str) -> tuple[float, float] | None:
    """(BOFFSET, BSOFTEN) of a plane of asinh pixels, as Pan-STARRS writes its stacks; else None.

    The pixels are a asinh((flux - BOFFSET) / (2 BSOFTEN)) with a = 2.5 log10(e): "PS1 Stack
    images", Pan-STARRS data archive home page.

    Raises
    ------
    InputError
        If one of the two is missing, or they are no numbers.
    """
    keys = ("BOFFSET", "BSOFTEN")
    if all(keyword(header, key, where) is None for key in keys):
        return None
    offset, soft = (_reader(header, header, where)(key) for key in keys)
    if soft <= 0:
        raise InputError(f"{where}: keyword BSOFTEN = {soft:g}: asinh pixels need one above 0")
    return offset, soft
