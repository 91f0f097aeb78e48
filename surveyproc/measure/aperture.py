"""Aperture photometry on cutouts: the kernel, and the product around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import ConfigError
from surveyproc.product import Batch, Inputs
from surveyproc.schemas import Column, flag, load
from surveyproc.storage import fingerprint

# Raise it when the same cutouts give other numbers.
FORMAT = 1
# The background annulus, in aperture radii, where the cutout has room for it.
ANNULUS = (3.0, 5.0)
CLIP_SIGMA, CLIP_ROUNDS = 3.0, 5
# A background from fewer pixels than this is none.
MIN_BACKGROUND_PIXELS = 12
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
        Some pixel of the aperture is not finite. It counts as background, that is, adds no flux.

    Raises
    ------
    ValueError
        If the aperture does not lie within the cutout.

    Notes
    -----
    With w the overlap of a pixel with the circle, A = sum w, m annulus pixels with scatter s, the
    variance is sum w^2 v + A^2 (pi / 2) s^2 / m: pixels are independent, and pi / 2 is what a
    median loses to a mean. Without `variance` v = s^2, which leaves out the object's own photon
    noise, as the gain is not known. Noise shared by neighbouring pixels (resampled images) is not
    in it.
    """
    n, bands, size, _ = images.shape
    middle, half = size // 2, int(np.ceil(radius_px))
    if middle - half < 0 or middle + half + 1 > size:
        raise ValueError(f"an aperture of {radius_px} px does not fit a cutout of {size} px")
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
        bad[part] = (~good & touched).any(axis=(2, 3))
        usable = (good & touched).any(axis=(2, 3)) & np.isfinite(median)
        level = median[..., None, None]
        total = np.where(good, (pixels - level) * weights, 0).sum(axis=(2, 3))
        noise = (scatter**2)[..., None, None]
        if variance is not None:
            known = variance[part, :, box, box].astype(np.float64)
            noise = np.where(np.isfinite(known), known, noise)
        squares = (weights**2 * noise).sum(axis=(2, 3))
        area = weights.sum(axis=(2, 3))
        with np.errstate(divide="ignore", invalid="ignore"):
            squares += (area * scatter) ** 2 * (np.pi / 2) / count
        flux[part] = np.where(usable, total, np.nan)
        error[part] = np.where(usable, np.sqrt(squares), np.nan)
    return flux, error, bad


def annulus_for(radius_px: float, size: int) -> tuple[float, float]:
    """Inner and outer radius of the background annulus, as far as the cutout has room.

    Raises
    ------
    ConfigError
        If no annulus of two pixels fits around the aperture.
    """
    room = (size - 1) // 2 + 0.5
    outer = min(max(ANNULUS[1] * radius_px, radius_px + 6), room)
    inner = min(ANNULUS[0] * radius_px, max(radius_px + 1, 0.6 * outer))
    if outer - inner < 2:
        raise ConfigError(
            f"products.photometry.aperture: a radius of {radius_px:.1f} px and its background do "
            f"not fit a cutout of {size} px; choose a smaller aperture"
        )
    return inner, outer


class AperturePhotometry:
    """The product `photometry`: flux and error in every band, position and tile.

    Parameters
    ----------
    bands : sequence of str
        The survey's bands.
    radius_arcsec : float
        Radius of the aperture.
    cutout : int
        Side of the cutouts in pixels.

    Examples
    --------
    >>> AperturePhotometry(["g", "r"], 1.0).inputs
    Inputs(bands=('g', 'r'), cutout=64, columns=())
    """

    name = "photometry"

    def __init__(self, bands: Sequence[str], radius_arcsec: float, cutout: int = 64) -> None:
        self.bands, self.radius_arcsec, self.cutout = tuple(bands), radius_arcsec, cutout

    @property
    def inputs(self) -> Inputs:
        """All bands; no catalog columns."""
        return Inputs(bands=self.bands, cutout=self.cutout)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of schemas/photometry.toml."""
        return load("photometry", bands=self.bands)

    @property
    def version(self) -> str:
        """Hash of the settings and of this code's FORMAT."""
        return fingerprint([FORMAT, self.bands, self.radius_arcsec, self.cutout, ANNULUS])

    def prepare(self) -> None:
        """Nothing to load."""

    def compute(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """Measure a batch; tiles of different pixel scales may be in it.

        Flags: what the batch brought, bad_pixels (in any band's aperture or background), and
        missing_band where a band has no pixel at all in the cutout.

        Raises
        ------
        ConfigError
            If aperture and background do not fit the cutout at some tile's pixel scale.
        """
        n, bands = len(batch.flags), len(self.bands)
        flux, error = np.full((n, bands), np.nan), np.full((n, bands), np.nan)
        flags = batch.flags.astype(np.int32, copy=True)
        positions = np.full((n, 2), np.nan) if batch.positions is None else batch.positions
        tiles = np.full(n, None, object) if batch.tiles is None else batch.tiles
        unusable = flags & flag("no_image", "corrupt_data") != 0
        if batch.images is not None and batch.offsets is not None and batch.pixel_scale is not None:
            scales = batch.pixel_scale
            for scale in np.unique(scales[np.isfinite(scales) & ~unusable]):
                mine = np.flatnonzero((scales == scale) & ~unusable)
                # One scale for all is the rule: then a view will do.
                these: Any = slice(None) if mine.size == n else mine
                radius = self.radius_arcsec / float(scale)
                images = batch.images[these]
                flux[these], error[these], bad = aperture_photometry(
                    images,
                    None if batch.variance is None else batch.variance[these],
                    batch.offsets[these],
                    radius,
                    annulus_for(radius, self.cutout),
                )
                flags[these] |= _flags(images, bad, flux[these])
        columns: dict[str, NDArray[Any]] = {}
        for values, prefix in ((flux, "flux"), (error, "flux_err")):
            for place, band in enumerate(self.bands):
                columns[f"{prefix}_{band}"] = values[:, place].astype(np.float32)
        columns["photometry_x"] = positions[:, 0].astype(np.float32)
        columns["photometry_y"] = positions[:, 1].astype(np.float32)
        columns["photometry_tile"] = tiles
        columns["photometry_flag"] = flags
        return columns


def _flags(
    images: NDArray[np.float32], bad: NDArray[np.bool_], flux: NDArray[np.float64]
) -> NDArray[np.int32]:
    """bad_pixels and missing_band of each object."""
    absent = np.zeros(bad.shape, bool)
    # Only a band without a flux can be empty; looking at all pixels of all would cost more.
    for i, band in zip(*np.nonzero(~np.isfinite(flux)), strict=True):
        absent[i, band] = not np.isfinite(images[i, band]).any()
    found = np.where(absent.any(axis=1), flag("missing_band"), 0)
    spoilt = (bad | ~np.isfinite(flux)) & ~absent
    return np.asarray(found | np.where(spoilt.any(axis=1), flag("bad_pixels"), 0), np.int32)
