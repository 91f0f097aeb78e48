"""Aperture photometry on cutouts: the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import ConfigError

# The background annulus, in aperture radii. Beyond this many pixels it grows no further than a
# background needs: to twice the radius.
ANNULUS = (3.0, 5.0)
WIDE_PX = 31.5
# The largest cutout: a gigabyte holds nine bands of 250 of them.
MAX_CUTOUT = 1024
CLIP_SIGMA, CLIP_ROUNDS = 3.0, 5
# A background from fewer pixels than this is none.
MIN_BACKGROUND_PIXELS = 12
# The variance of the annulus is smooth: one of so many of its pixels will do.
RING_STEP = 8
# Objects handled at a time: their annulus pixels stay in the cache.
BLOCK = 64


def aperture_weights(offsets: NDArray[np.floating[Any]], radius_px: float) -> NDArray[np.float64]:
    """Exact overlap of each pixel with a circle, as a fraction of the pixel.

    Parameters
    ----------
    offsets : ndarray, shape (n, 2)
        (x, y) of the circle's centre minus the centre of the middle pixel, each in [-0.5, 0.5].
    radius_px : float
        Radius in pixels.

    Returns
    -------
    float64 ndarray, shape (n, k, k)
        k is odd; rows are y, and the middle element is the middle pixel.
    """
    # Planning needs this module for the product's version; photutils takes half a second.
    from photutils.geometry import circular_overlap_grid

    half = int(np.ceil(radius_px))
    side, edge = 2 * half + 1, half + 0.5
    weights = np.empty((len(offsets), side, side))
    for i, (dx, dy) in enumerate(np.asarray(offsets, np.float64).tolist()):
        weights[i] = circular_overlap_grid(
            -edge - dx, edge - dx, -edge - dy, edge - dy, side, side, radius_px, 1, 1
        )
    return weights


def clipped_background(
    pixels: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Sigma-clipped median and robust scatter along the last axis; NaN pixels are ignored.

    The scatter is half the distance between the 15.87 and 84.13 percentiles, so that sources in
    the annulus inflate it little. Once sorted, what clipping leaves is a run of the sorted values:
    median and percentiles cost nothing.

    Parameters
    ----------
    pixels : float32 ndarray, shape (..., m)
        Sorted in place.

    Returns
    -------
    median, scatter : float64 ndarray, shape (...)
        NaN where fewer than MIN_BACKGROUND_PIXELS are left.
    count : int64 ndarray, shape (...)
        Pixels left.
    """
    shape = pixels.shape[:-1]
    pixels[np.isinf(pixels)] = np.nan
    pixels.sort(axis=-1)
    rows = pixels.reshape(-1, pixels.shape[-1])
    high = np.isfinite(rows).sum(axis=1)
    low = np.zeros_like(high)
    every = np.arange(len(rows))

    def quantile(share: float) -> NDArray[np.float64]:
        place = low + share * np.maximum(high - low - 1, 0)
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(high - 1, below))
        part = place - below
        return np.asarray(rows[every, below] * (1 - part) + rows[every, above] * part, np.float64)

    for _ in range(CLIP_ROUNDS):
        median, scatter = quantile(0.5), (quantile(0.8413447) - quantile(0.1586553)) / 2
        reach = CLIP_SIGMA * scatter
        with np.errstate(invalid="ignore"):
            # Comparisons with NaN are false, so NaN pixels are never counted.
            new_low = (rows < (median - reach)[:, None]).sum(axis=1)
            new_high = (rows <= (median + reach)[:, None]).sum(axis=1)
        if (new_low <= low).all() and (new_high >= high).all():
            break
        low, high = np.maximum(low, new_low), np.minimum(high, new_high)
    median, scatter = quantile(0.5), (quantile(0.8413447) - quantile(0.1586553)) / 2
    count = np.maximum(high - low, 0)
    few = count < MIN_BACKGROUND_PIXELS
    median[few] = scatter[few] = np.nan
    return median.reshape(shape), scatter.reshape(shape), count.reshape(shape)


def aperture_photometry(
    images: NDArray[np.float32],
    variance: NDArray[np.float32] | None,
    offsets: NDArray[np.floating[Any]],
    radius_px: float,
    annulus_px: tuple[float, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Flux in a circle around each object, local background subtracted.

    Parameters
    ----------
    images : float32 ndarray, shape (n, band, size, size)
        Nanojansky a pixel; NaN where no good pixel exists.
    variance : float32 ndarray, same shape, or None
        Nanojansky squared. Where it is NaN, or None at all, the scatter of the annulus serves.
    offsets : float ndarray, shape (n, 2)
        (x, y) of the object minus the centre of pixel size // 2, in pixels.
    radius_px : float
        Radius of the aperture.
    annulus_px : (float, float)
        Inner and outer radius of the background annulus, around pixel size // 2 (half a pixel
        does not matter to a background, and one pixel set serves all objects).

    Returns
    -------
    flux, flux_err : float64 ndarray, shape (n, band)
        Nanojansky; NaN where the aperture or the background has no usable pixels.
    bad : bool ndarray, shape (n, band)
        Some pixel of the aperture is not finite (it counts as background, that is, adds no flux),
        or less than half of the annulus is of use.

    Raises
    ------
    ValueError
        If aperture and annulus do not lie within the cutout.

    Notes
    -----
    With w the overlap of a pixel with the circle, A = sum w, m annulus pixels of variance u, the
    variance is sum w^2 v + A^2 (pi / 2) u / m: pixels are independent, and pi / 2 is what a median
    loses to a mean. u is the square of the annulus' scatter, or the median of `variance` there if
    that is more. Where `variance` is unknown, v is the square of the scatter, which leaves out the
    object's own photon noise (see `with_photon_noise`). Noise shared by neighbouring pixels (images
    resampled before they came) is not in it; where ours resampled, it is in `variance`.
    """
    n, bands, size, _ = images.shape
    middle, half = size // 2, int(np.ceil(radius_px))
    if size < side_of(annulus_px) or middle + half + 1 > size:
        raise ValueError(
            f"an aperture of {radius_px} px with an annulus up to {annulus_px[1]} px does not fit "
            f"a cutout of {size} px"
        )
    box = np.s_[middle - half : middle + half + 1]
    row, column = np.indices((size, size)) - middle
    distance = np.hypot(row, column)
    ring = np.flatnonzero((distance >= annulus_px[0]) & (distance < annulus_px[1]))
    flat = images.reshape(n, bands, size * size)
    flux, error = np.full((n, bands), np.nan), np.full((n, bands), np.nan)
    bad = np.zeros((n, bands), bool)
    for start in range(0, n, BLOCK):
        part = np.s_[start : min(start + BLOCK, n)]
        median, scatter, count = clipped_background(np.take(flat[part], ring, axis=-1))
        weights = aperture_weights(offsets[part], radius_px)[:, None]
        pixels = images[part, :, box, box].astype(np.float64)
        good = np.isfinite(pixels)
        touched = weights > 0
        bad[part] = (~good & touched).any(axis=(2, 3)) | (2 * count < ring.size)
        usable = (good & touched).any(axis=(2, 3)) & np.isfinite(median)
        level = median[..., None, None]
        total = np.where(good, (pixels - level) * weights, 0).sum(axis=(2, 3))
        sky = scatter**2
        noise = sky[..., None, None]
        if variance is not None:
            known = variance[part, :, box, box].astype(np.float64)
            noise = np.where(np.isfinite(known), known, noise)
            around = variance.reshape(flat.shape)[part].take(ring[::RING_STEP], axis=-1)
            stated, _, _ = clipped_background(around)
            sky = np.fmax(stated, sky)
        squares = (weights**2 * noise).sum(axis=(2, 3))
        area = weights.sum(axis=(2, 3))
        with np.errstate(divide="ignore", invalid="ignore"):
            squares += area**2 * sky * (np.pi / 2) / count
        flux[part] = np.where(usable, total, np.nan)
        error[part] = np.where(usable, np.sqrt(squares), np.nan)
    return flux, error, bad


def with_photon_noise(
    flux: NDArray[np.float64], error: NDArray[np.float64], electron_flux: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Errors with the photon noise of the objects themselves.

    N electrons have the variance N, so a flux f of electrons of e nanojansky each has f e; a
    negative flux adds none.

    Parameters
    ----------
    flux, error : float64 ndarray, shape (..., n, band)
        Nanojansky.
    electron_flux : float64 ndarray, shape (n, band)
        Nanojansky of one electron; NaN, where the gain is unknown, adds none.
    """
    photons = np.maximum(flux, 0) * np.nan_to_num(electron_flux)
    return np.asarray(np.sqrt(error**2 + photons))


def annulus_for(radius_px: float) -> tuple[float, float]:
    """Inner and outer radius of the background annulus, a function of the aperture alone.

    Examples
    --------
    >>> annulus_for(5.0), annulus_for(40.0)
    ((15.0, 25.0), (48.0, 80.0))
    """
    outer = min(max(ANNULUS[1] * radius_px, radius_px + 6), max(WIDE_PX, 2 * radius_px))
    return min(ANNULUS[0] * radius_px, max(radius_px + 1, 0.6 * outer)), outer


def side_of(annulus_px: tuple[float, float]) -> int:
    """Side in pixels of the smallest cutout of even side that holds an annulus."""
    return 2 * int(np.ceil(annulus_px[1]))


def cutout_for(radii_arcsec: Sequence[float], pixel_scale: float, tile: str) -> int:
    """Side in pixels of the cutouts that hold every aperture with its annulus.

    Parameters
    ----------
    radii_arcsec : sequence of float
        Radii of the apertures.
    pixel_scale : float
        Arcsec a pixel of the tile with the smallest pixels.
    tile : str
        Its name, for the message.

    Raises
    ------
    ConfigError
        If the cutouts would be larger than MAX_CUTOUT.
    """
    side = max(side_of(annulus_for(radius / pixel_scale)) for radius in radii_arcsec)
    if side > MAX_CUTOUT:
        largest = MAX_CUTOUT / 4 * pixel_scale
        raise ConfigError(
            f"products.photometry.aperture: {max(radii_arcsec):g} arcsec and the background around "
            f"them need cutouts of {side} px at the {pixel_scale:.4g} arcsec a pixel of tile "
            f"{tile}; {MAX_CUTOUT} px are the most: choose {largest:.3g} arcsec or less"
        )
    return side
