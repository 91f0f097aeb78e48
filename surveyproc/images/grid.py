"""Pixel grids: the WCS cards of a header, whether two grids agree, planes moved to another grid."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS, FITSFixedWarning
from numpy.typing import NDArray

from surveyproc.errors import InputError
from surveyproc.sky import cap, local_pixel_scale, pixel_positions, wcs_from_header

# Everything of a celestial WCS with TAN, TPV (PV cards) or SIP (A, B, AP, BP) distortion.
WCS_CARD = re.compile(
    r"(CRPIX[12]|CRVAL[12]|CDELT[12]|CTYPE[12]|CUNIT[12]|CROTA[12]|CD[12]_[12]|PC[12]_[12]|"
    r"PV[12]_\d+|PS[12]_\d+|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX|[AB]P?_(\d+_\d+|ORDER|DMAX))\Z"
)
# Grids that agree to this many pixels everywhere are one grid.
SAME_GRID_PX = 1e-3
EDGE_SAMPLES = 17


@dataclass(frozen=True)
class Grid:
    """A pixel grid on the sky.

    Attributes
    ----------
    wcs : str
        WCS header cards separated by newlines.
    shape : (int, int)
        (y, x) pixels.
    """

    wcs: str
    shape: tuple[int, int]

    @property
    def centre(self) -> tuple[float, float]:
        """Zero-based (x, y) of the middle."""
        return (self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2

    @property
    def pixel_scale(self) -> float:
        """Arcsec a pixel in the middle."""
        return local_pixel_scale(wcs_from_header(self.wcs), *self.centre)

    def corners(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(ra, dec) in degrees of the four outer corners, counter-clockwise in pixels."""
        ny, nx = self.shape
        x = np.array([-0.5, nx - 0.5, nx - 0.5, -0.5])
        y = np.array([-0.5, -0.5, ny - 0.5, ny - 0.5])
        ra, dec = wcs_from_header(self.wcs).all_pix2world(x, y, 0)
        return np.asarray(ra) % 360.0 % 360.0, np.asarray(dec)

    def circle(self) -> tuple[float, float, float]:
        """(ra, dec, radius) in degrees of a circle that holds the whole grid."""
        ny, nx = self.shape
        x = np.linspace(-0.5, nx - 0.5, EDGE_SAMPLES)
        y = np.linspace(-0.5, ny - 0.5, EDGE_SAMPLES)
        xs = np.concatenate([x, x, np.full(y.size, x[0]), np.full(y.size, x[-1])])
        ys = np.concatenate([np.full(x.size, y[0]), np.full(x.size, y[-1]), y, y])
        ra, dec = wcs_from_header(self.wcs).all_pix2world(xs, ys, 0)
        lon, lat, radius = cap(np.asarray(ra), np.asarray(dec))
        # The edge may bulge between two samples; a percent and an arcsecond cover that.
        return lon, lat, radius * 1.01 + 1 / 3600


def wcs_text(
    header: Header, primary: Header, shape: tuple[int, int], where: str, *, required: bool
) -> str:
    """The WCS cards of an HDU, checked; the primary header's if it has none of its own.

    Parameters
    ----------
    header, primary : Header
        The HDU's own header, and the first one of the file.
    shape : (int, int)
        (y, x) pixels.
    where : str
        File and HDU, for messages.
    required : bool
        Whether a missing WCS is an error; "" is returned if not.

    Raises
    ------
    InputError
        If the WCS is missing, singular, not equatorial, or has distortions kept in tables.
    """
    source = header if "CTYPE1" in header else primary
    if "CTYPE1" not in source:
        if required:
            raise InputError(f"{where}: no WCS (keyword CTYPE1 is missing)")
        return ""
    for key in ("CPDIS1", "CPDIS2", "D2IMDIS1", "D2IMDIS2"):
        if key in source:
            raise InputError(f"{where}: keyword {key}: table distortions are not supported")
    try:
        chosen = Header([card for card in source.cards if WCS_CARD.match(card.keyword)])
        list(chosen.values())  # a card that cannot be parsed raises here; wcslib would pass it over
        for key in ("RADESYS", "RADECSYS", "EQUINOX"):
            # RADESYS given by the extension beats the primary's obsolete spelling of it.
            if key in primary and key not in chosen and "RADESYS" not in chosen:
                chosen[key] = primary[key]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            wcs = WCS(chosen, naxis=2)
            kinds = [str(kind)[:4].rstrip("-") for kind in wcs.wcs.ctype]
            scale = local_pixel_scale(wcs, (shape[1] - 1) / 2, (shape[0] - 1) / 2)
    except Exception as error:
        raise InputError(f"{where}: broken WCS: {str(error).strip()}") from error
    if sorted(kinds) != ["DEC", "RA"]:
        raise InputError(
            f"{where}: no equatorial WCS (CTYPE1, CTYPE2 = {', '.join(wcs.wcs.ctype)}; "
            "RA---..., DEC--... expected)"
        )
    if not 0 < scale < 3600:
        raise InputError(f"{where}: broken WCS: a pixel would be {scale} arcsec wide")
    text = str(chosen.tostring(sep="\n", endcard=False, padding=False))
    if not _inverts(Grid(text, shape)):
        raise InputError(
            f"{where}: broken WCS: its distortion (PV or A, B, AP, BP cards) cannot be inverted"
        )
    return text


def _sample(grid: Grid) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(x, y) of nine pixels from edge to edge, and their (ra, dec)."""
    ny, nx = grid.shape
    y, x = (a.ravel() for a in np.meshgrid([0, ny / 2, ny - 1], [0, nx / 2, nx - 1]))
    ra, dec = wcs_from_header(grid.wcs).all_pix2world(x, y, 0)
    return x, y, np.asarray(ra), np.asarray(dec)


def _inverts(grid: Grid) -> bool:
    # Positions that do not come back would be taken for objects that no tile covers.
    x, y, ra, dec = _sample(grid)
    px, py = pixel_positions(wcs_from_header(grid.wcs), ra, dec)
    return bool((np.hypot(px - x, py - y) < 0.1).all())


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same shape and put every pixel at the same place."""
    if one.shape != other.shape:
        return False
    if one.wcs == other.wcs:
        return True
    x, y, ra, dec = _sample(one)
    px, py = pixel_positions(wcs_from_header(other.wcs), ra, dec)
    return bool((np.hypot(px - x, py - y) < SAME_GRID_PX).all())


def area_ratio(source: Grid, target: Grid) -> float:
    """Area on the sky of a target pixel over that of a source pixel, in the middle of `target`."""
    x, y = target.centre
    ra, dec = wcs_from_header(target.wcs).all_pix2world([x], [y], 0)
    sx, sy = pixel_positions(wcs_from_header(source.wcs), np.asarray(ra), np.asarray(dec))
    place = (float(sx[0]), float(sy[0])) if np.isfinite(sx[0]) else source.centre
    scale = local_pixel_scale(wcs_from_header(source.wcs), *place)
    return (target.pixel_scale / scale) ** 2


def _average(values: NDArray[Any], source: Grid, target: Grid) -> NDArray[np.float32]:
    # Imports half a second's worth of dask, which most tiles and most processes never need.
    from reproject import reproject_exact

    wcs_in, wcs_out = wcs_from_header(source.wcs), wcs_from_header(target.wcs)
    moved, covered = reproject_exact(
        (values.astype(np.float64), wcs_in), wcs_out, shape_out=target.shape, parallel=False
    )
    moved[covered <= 0] = np.nan
    return np.asarray(moved, np.float32)


def regrid_flux(values: NDArray[np.float32], source: Grid, target: Grid) -> NDArray[np.float32]:
    """An image in flux a pixel on another grid, total flux conserved.

    The surface brightness is averaged over each target pixel and multiplied by the ratio of the
    pixels' areas, so that a sum over an aperture is what the source's own pixels give; bilinear
    interpolation smooths, which cost fluxes in small apertures 3 %. Pixels outside the source are
    NaN.

    Parameters
    ----------
    values : float32 ndarray, shape source.shape
        Flux a pixel.
    """
    return _average(values, source, target) * np.float32(area_ratio(source, target))


def regrid_weight(values: NDArray[np.float32], source: Grid, target: Grid) -> NDArray[np.float32]:
    """An inverse variance on another grid; 0 where it is unknown or not positive.

    Notes
    -----
    Pixels made from the same source pixel share noise, so the variance of a sum over them is more
    than the sum of their variances. We scale the variance by the area ratio r, not by r squared:
    the sum over an aperture of many pixels is then right (N pixels of variance v become N / r
    pixels of variance r v), which is what photometry adds up.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(values > 0, np.float32(1) / values, np.float32(np.nan))
        moved = _average(variance, source, target) * np.float32(area_ratio(source, target))
        weight = np.float32(1) / moved
    weight[~np.isfinite(weight)] = 0
    return np.asarray(weight, np.float32)


def noise_weight(values: NDArray[np.float32], bad: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Inverse variance from the scatter of an image's background, where no weights are given.

    On another grid the scatter of pixels no longer tells their noise, which they share.

    Parameters
    ----------
    values : float32 ndarray, shape (y, x)
        An image on its own grid.
    bad : bool ndarray, shape (y, x), or None
        Pixels to leave out.
    """
    import sep

    unusable = ~np.isfinite(values)
    if bad is not None:
        unusable |= bad
    if unusable.all():
        return np.zeros(values.shape, np.float32)
    rms = sep.Background(np.where(unusable, 0, values).astype(np.float32), mask=unusable).rms()
    with np.errstate(divide="ignore"):
        return np.where(rms > 0, 1 / np.square(rms), 0).astype(np.float32)


def regrid_mask(bad: NDArray[np.bool_], source: Grid, target: Grid) -> NDArray[np.bool_]:
    """A mask on another grid: bad wherever a bad pixel contributes to the moved image."""
    moved = _average(bad.astype(np.float32), source, target)
    return np.asarray(moved > 1e-3)
