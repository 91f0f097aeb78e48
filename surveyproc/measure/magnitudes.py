"""Magnitudes and fluxes of any table as flux densities in nanojansky: numpy and units only."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc.errors import ConfigError
from surveyproc.schemas import AB_ZEROPOINT_NJY

Float = NDArray[np.float64]

MAGNITUDE_LIMITS = (0.0, 40.0)
"""Magnitudes at or below the first or above the second are codes for missing (-99, 99, 99.99)."""

POGSON = 2.5 / np.log(10.0)


def flux_from_magnitude(magnitude: ArrayLike) -> Float:
    """Flux density in nJy of an AB magnitude: 10^((31.4 - m) / 2.5); NaN stays NaN."""
    flux: Float = 10.0 ** ((AB_ZEROPOINT_NJY - np.asarray(magnitude, dtype=np.float64)) / 2.5)
    return flux


def without_codes(values: NDArray[Any], codes: Sequence[float]) -> Float:
    """The values as float64, NaN where they are one of `codes` (-9999, say), as their type has it.

    Examples
    --------
    >>> without_codes(np.array([99.99, 21.5], "f4"), [99.99])
    array([ nan, 21.5])
    """
    found = np.array(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        held = np.array(codes, dtype=np.float64)
        if values.dtype.kind == "f":
            held = held.astype(values.dtype).astype(np.float64)
    found[np.isin(found, held)] = np.nan
    return found


def fluxes_of_magnitudes(
    magnitude: NDArray[Any],
    error: NDArray[Any] | None = None,
    *,
    ab_offset: float = 0.0,
    softening: float | None = None,
) -> tuple[Float, Float]:
    """Flux densities and their errors of magnitudes, logarithmic or asinh.

    Parameters
    ----------
    magnitude : ndarray, any shape
        Not finite, <= 0 or > 40 is missing.
    error : ndarray of the same shape, or None
        Not finite or <= 0 is unknown.
    ab_offset : float
        AB magnitude minus these: 0 for AB.
    softening : float, optional
        b of asinh magnitudes (Lupton, Gunn & Szalay 1999, AJ 118, 1406) as SDSS writes them,
        m = -2.5 / ln 10 * (asinh(f / f0 / 2b) + ln b). f0 is the flux of magnitude 0.

    Returns
    -------
    flux, flux_err : float64 ndarray
        Nanojansky; NaN where missing or unknown.

    Examples
    --------
    >>> flux, error = fluxes_of_magnitudes(np.array([31.4, 99.0]), np.array([0.1, 99.0]))
    >>> flux, error.round(4)
    (array([ 1., nan]), array([0.0921,    nan]))
    """
    low, high = MAGNITUDE_LIMITS
    with np.errstate(invalid="ignore"):
        known = np.where((magnitude > low) & (magnitude <= high), magnitude, np.nan)
        unsure = (
            np.full(known.shape, np.nan) if error is None else np.where(error > 0, error, np.nan)
        )
    unsure[~np.isfinite(unsure)] = np.nan
    if softening is None:
        flux = flux_from_magnitude(known + ab_offset)
        return flux, flux * np.log(10.0) / 2.5 * unsure
    softened = 2.0 * softening * flux_from_magnitude(ab_offset)
    flux = softened * np.sinh(-known / POGSON - np.log(softening))
    return flux, np.hypot(flux, softened) * unsure / POGSON


def fluxes_of_fluxes(
    flux: NDArray[Any], error: NDArray[Any] | None, unit: float
) -> tuple[Float, Float]:
    """Flux densities and their errors in nJy of those in another unit, `unit` nJy each.

    Infinite fluxes stay, which the photometry's flag tells; errors that are not finite or <= 0 are
    unknown: NaN.
    """
    known = np.asarray(flux, np.float64) * unit
    if error is None:
        return known, np.full(known.shape, np.nan)
    with np.errstate(invalid="ignore"):
        unsure = np.where(np.isfinite(error) & (error > 0), error, np.nan) * unit
    return known, unsure


def nanojansky(unit: str) -> float:
    """How many nJy a unit of flux density is: `uJy`, `nanomaggy`, `1e-12 mgy`; maggies are AB.

    Raises
    ------
    ConfigError
        If astropy does not know the unit, or it is none of flux density a frequency.

    Examples
    --------
    >>> nanojansky("nJy"), round(nanojansky("uJy")), round(nanojansky("nanomaggy"), 2)
    (1.0, 1000, 3630.78)
    """
    from astropy import units

    try:
        with warnings.catch_warnings():
            # What is legal though discouraged in a FITS header is clear enough.
            warnings.simplefilter("ignore", units.UnitsWarning)
            parsed = units.Unit(unit)
        zero = units.zero_point_flux(1.0 * units.ABflux)
        return float(parsed.to(units.nJy, equivalencies=zero))
    except ValueError as error:  # UnitConversionError is one
        raise ConfigError(
            f"{unit!r} is no unit of flux density a frequency that astropy knows: write nJy, uJy, "
            "nanomaggy or the like, or 10**-12 mgy for counts of zero point 30"
        ) from error
