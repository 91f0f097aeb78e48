"""Pixel grids: where they lie, whether two agree, planes moved to another grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.sky import (
    cap,
    is_nearly_icrs,
    local_pixel_scale,
    pixel_positions,
    sky_positions,
    wcs_from_header,
)

# Grids that agree to this many pixels everywhere are one grid.
SAME_GRID_PX = 1e-3
EDGE_SAMPLES = 17
# So many touching pixels, each so far above the background's scatter, are a source.
SOURCE_SIGMA, SOURCE_PIXELS = 1.5, 5


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
        """ICRS (ra, dec) in degrees of the four outer corners, counter-clockwise in pixels."""
        ny, nx = self.shape
        x = np.array([-0.5, nx - 0.5, nx - 0.5, -0.5])
        y = np.array([-0.5, -0.5, ny - 0.5, ny - 0.5])
        return sky_positions(wcs_from_header(self.wcs), x, y)

    def circle(self) -> tuple[float, float, float]:
        """ICRS (ra, dec, radius) in degrees of a circle that holds the whole grid."""
        ny, nx = self.shape
        x = np.linspace(-0.5, nx - 0.5, EDGE_SAMPLES)
        y = np.linspace(-0.5, ny - 0.5, EDGE_SAMPLES)
        xs = np.concatenate([x, x, np.full(y.size, x[0]), np.full(y.size, x[-1])])
        ys = np.concatenate([np.full(x.size, y[0]), np.full(x.size, y[-1]), y, y])
        lon, lat, radius = cap(*sky_positions(wcs_from_header(self.wcs), xs, ys))
        # The edge may bulge between two samples; a percent and an arcsecond cover that.
        return lon, lat, radius * 1.01 + 1 / 3600


def _disagreement(one: Grid, other: Grid) -> float:
    """Pixels that `other` puts nine positions of `one`, from edge to edge, away from it; or NaN."""
    ny, nx = one.shape
    y, x = (a.ravel() for a in np.meshgrid([0, ny / 2, ny - 1], [0, nx / 2, nx - 1]))
    ra, dec = sky_positions(wcs_from_header(one.wcs), x, y)
    px, py = pixel_positions(wcs_from_header(other.wcs), ra, dec)
    return float(np.hypot(px - x, py - y).max())


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same shape and put every pixel at the same place.

    Of two files with the same grid one often says FK5 of J2000 and the other ICRS or nothing; the
    23 mas between them are left aside, since interpolating would cost more.
    """
    if one.shape != other.shape:
        return False
    if all(is_nearly_icrs(wcs_from_header(grid.wcs)) for grid in (one, other)):
        one, other = _without_frame(one), _without_frame(other)
    return one.wcs == other.wcs or _disagreement(one, other) < SAME_GRID_PX


def _without_frame(grid: Grid) -> Grid:
    lines = grid.wcs.splitlines()
    kept = [line for line in lines if not line.startswith(("RADESYS", "EQUINOX"))]
    return replace(grid, wcs="\n".join(kept))


def inverts(grid: Grid) -> bool:
    """Whether pixels come back from the sky to where they were.

    Positions that do not would be taken for objects that no tile covers.
    """
    return _disagreement(grid, grid) < 0.1


def area_ratio(source: Grid, target: Grid) -> float:
    """Area on the sky of a target pixel over that of a source pixel, in the middle of `target`."""
    x, y = target.centre
    ra, dec = sky_positions(wcs_from_header(target.wcs), np.array([x]), np.array([y]))
    sx, sy = pixel_positions(wcs_from_header(source.wcs), ra, dec)
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
    from scipy.ndimage import label

    unusable = ~np.isfinite(values)
    if bad is not None:
        unusable |= bad
    if unusable.all():
        return np.zeros(values.shape, np.float32)
    image = np.where(unusable, 0, values).astype(np.float32)
    level = sep.Background(image, mask=unusable)
    # Wings and sources too faint to be clipped would pass for noise.
    regions, _ = label((image - level.back() > SOURCE_SIGMA * level.rms()) & ~unusable)
    source = np.bincount(regions.ravel())[regions] >= SOURCE_PIXELS
    empty = ~unusable & ((regions == 0) | ~source)
    rms = sep.Background(image, mask=~empty).rms() if empty.any() else np.zeros_like(image)
    rms = np.where(rms > 0, rms, level.rms())
    with np.errstate(divide="ignore"):
        return np.where(rms > 0, 1 / np.square(rms), 0).astype(np.float32)


def regrid_mask(bad: NDArray[np.bool_], source: Grid, target: Grid) -> NDArray[np.bool_]:
    """A mask on another grid: bad wherever a bad pixel contributes to the moved image."""
    moved = _average(bad.astype(np.float32), source, target)
    return np.asarray(moved > 1e-3)
