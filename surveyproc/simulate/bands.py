"""The nine bands: where their throughput comes from, their PSF, depth and zero point."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from surveyproc.errors import ConfigError

PIXEL_SCALE = 0.25
"""Arcsec a pixel, unless asked otherwise; the same in all bands."""


@dataclass(frozen=True)
class Band:
    """One filter of the simulated survey.

    Attributes
    ----------
    name : str
        Name in file names, headers and survey.toml.
    curve : str
        Throughput: an LSST file of GalSim's `bandpasses` folder, or a column of its Roman
        effective-area table.
    fwhm : float
        Full width at half maximum of the Moffat PSF, arcsec.
    depth : float
        AB magnitude of a point source with a signal-to-noise ratio of 5.
    zeropoint : float
        AB magnitude of one count.
    index : int
        Place in the list of all bands. It seeds the noise, so that a band's image does not depend
        on which other bands are drawn.
    scale : float
        Arcsec a pixel of its images.
    """

    name: str
    curve: str
    fwhm: float
    depth: float
    zeropoint: float
    index: int
    scale: float = PIXEL_SCALE

    @property
    def sky_sigma(self) -> float:
        """Standard deviation of the noise of one pixel, counts.

        A point source measured with its own profile as weight gathers the noise of
        n_eff = 2.266 (FWHM / pixel)^2 pixels (Ivezic et al. 2019, ApJ 873, 111, section 3.2), so
        sigma = flux(depth) / (5 sqrt(n_eff)).
        """
        pixels = 2.266 * (self.fwhm / self.scale) ** 2
        return float(10 ** (-0.4 * (self.depth - self.zeropoint)) / (5 * pixels**0.5))


# Depths: about one year of LSST (u to y) and the VIDEO survey (J, H, K; Jarvis et al. 2013, MNRAS
# 428, 1281), rounded. The near-infrared zero point differs so that calibration is put to the test.
_TABLE = (
    ("u", "LSST_u.dat", 0.90, 25.3, 30.0),
    ("g", "LSST_g.dat", 0.80, 26.4, 30.0),
    ("r", "LSST_r.dat", 0.70, 26.4, 30.0),
    ("i", "LSST_i.dat", 0.70, 25.9, 30.0),
    ("z", "LSST_z.dat", 0.70, 25.2, 30.0),
    ("y", "LSST_y.dat", 0.75, 24.4, 30.0),
    ("J", "J129", 0.90, 24.5, 27.5),
    ("H", "H158", 0.85, 24.0, 27.5),
    ("K", "K213", 0.80, 23.5, 27.5),
)
BANDS = {row[0]: Band(*row, index=index) for index, row in enumerate(_TABLE)}
DEFAULT_BANDS = tuple(BANDS)


def choose(names: Iterable[str], scale: float = PIXEL_SCALE) -> tuple[Band, ...]:
    """The bands called `names`, in the order of wavelength, in pixels of `scale` arcsec.

    Raises
    ------
    ConfigError
        If a name is unknown, or none is given.
    """
    names = tuple(names)
    unknown = sorted(set(names) - set(BANDS))
    if unknown or not names:
        what = f"no band is called {unknown[0]!r}" if unknown else "no band is named"
        raise ConfigError(f"simulate: {what} (there are: {', '.join(BANDS)})")
    return tuple(replace(band, scale=scale) for band in BANDS.values() if band.name in names)
