"""Network inputs from fluxes: asinh magnitudes, colours, presence masks, errors. Numpy only.

Li et al. 2022 (section 2.2.2) feed GaZNet-C9 with nine magnitudes and eight adjacent colours, 17
inputs. Theirs are logarithmic magnitudes of objects measured in every band. Ours are asinh
magnitudes (Lupton, Gunn & Szalay 1999, AJ 118, 1406), which stay finite at zero and negative flux,
and a mask input for each band (ours, not the paper's) says whether the band was there at all.
Networks that ask for it see the errors as well: logarithms of the fluxes' errors (ours). Beside a
magnitude they tell what its error does, and more plainly how deep the image is and, because a
larger aperture holds more noise, how large the object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc.errors import InputError
from surveyproc.measure.magnitudes import POGSON
from surveyproc.schemas import AB_ZEROPOINT_NJY

Float = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureScaling:
    """Everything that turns fluxes into inputs; fixed on the training set, kept with the weights.

    Attributes
    ----------
    bands : tuple of str
        The n bands, in order of wavelength (colours are of neighbours).
    softening : float64 ndarray, shape (n,)
        Softening b of the asinh magnitudes, nJy.
    mean, std : float64 ndarray, shape (2n - 1,)
        Statistics of magnitudes, then colours, over the training set.
    low, high : float64 ndarray, shape (2n - 1,)
        Smallest and largest magnitudes and colours of the training set.
    error_mean, error_std : float64 ndarray, shape (n,), or None
        Statistics of the logarithms of the fluxes' errors in nJy; None if they are no inputs.
    """

    bands: tuple[str, ...]
    softening: Float
    mean: Float
    std: Float
    low: Float
    high: Float
    error_mean: Float | None = None
    error_std: Float | None = None

    @property
    def inputs(self) -> int:
        """Length of an object's row of inputs."""
        return input_count(len(self.bands), errors=self.error_mean is not None)

    def to_json(self) -> dict[str, Any]:
        """As a JSON-able dict."""
        keys = _ARRAYS if self.error_mean is None else (*_ARRAYS, *_ERROR_ARRAYS)
        return {"bands": list(self.bands), **{key: getattr(self, key).tolist() for key in keys}}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FeatureScaling:
        """From what `to_json` gave.

        Raises
        ------
        InputError
            If a key is missing, has the wrong length or holds a non-finite value.
        """
        try:
            bands = tuple(str(band) for band in document["bands"])
            keys = _ARRAYS + (_ERROR_ARRAYS if _ERROR_ARRAYS[0] in document else ())
            arrays = {key: np.asarray(document[key], dtype=np.float64) for key in keys}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"normalisation: {error!r}") from error
        for key, array in arrays.items():
            length = 2 * len(bands) - 1 if key in _ARRAYS[1:] else len(bands)
            if array.shape != (length,) or not np.isfinite(array).all():
                raise InputError(f"normalisation.{key}: {length} finite numbers are needed")
        return cls(bands, **arrays)


_ARRAYS = ("softening", "mean", "std", "low", "high")
_ERROR_ARRAYS = ("error_mean", "error_std")


def input_count(n_bands: int, *, errors: bool = False) -> int:
    """Inputs of n bands: n magnitudes, n - 1 colours, n masks (26 for nine bands), n errors."""
    return 4 * n_bands - 1 if errors else 3 * n_bands - 1


def log_errors(flux: Float, flux_err: Float) -> Float:
    """Natural logarithms of flux errors in nJy; NaN where they or the fluxes are unknown."""
    known = np.isfinite(flux) & np.isfinite(flux_err) & (flux_err > 0)
    found: Float = np.log(np.where(known, flux_err, np.nan))
    return found


def magnitude_from_flux(flux: ArrayLike) -> Float:
    """AB magnitude of a flux density in nJy, 31.4 - 2.5 log10 f; NaN where it is not positive."""
    values = np.asarray(flux, dtype=np.float64)
    positive = np.where(values > 0, values, np.nan)
    magnitude: Float = AB_ZEROPOINT_NJY - 2.5 * np.log10(positive)
    return magnitude


def asinh_magnitudes(flux: Float, softening: Float) -> Float:
    """Asinh magnitudes, AB zero point (Lupton, Gunn & Szalay 1999, equation 3).

    m = 31.4 - 2.5 / ln 10 * (asinh(f / 2b) + ln b), with flux f and softening b in nJy. It equals
    31.4 - 2.5 log10 f where f >> b and is linear in f near zero.

    Parameters
    ----------
    flux : float ndarray, shape (m, n)
        Flux densities in nJy; NaN where missing.
    softening : float ndarray, shape (n,)
        Softening of each band in nJy, > 0.

    Returns
    -------
    float ndarray, shape (m, n)
        Magnitudes; NaN where the flux is.
    """
    magnitudes: Float = AB_ZEROPOINT_NJY - POGSON * (
        np.arcsinh(flux / (2.0 * softening)) + np.log(softening)
    )
    return magnitudes


def magnitudes_and_colours(flux: Float, softening: Float) -> Float:
    """n asinh magnitudes, then n - 1 colours m_i - m_(i+1); shape (m, 2n - 1), NaN = missing."""
    magnitudes = asinh_magnitudes(flux, softening)
    return np.concatenate([magnitudes, magnitudes[:, :-1] - magnitudes[:, 1:]], axis=1)


def fit_scaling(
    flux: Float, flux_err: Float | None, bands: Sequence[str], *, errors: bool = False
) -> FeatureScaling:
    """Softening and statistics of a training set.

    The softening is the median flux error of the band (Lupton et al. find 1.04 sigma best); where
    no error is known, a hundredth of the median flux.

    Parameters
    ----------
    flux : float ndarray, shape (m, n)
        Training fluxes in nJy, NaN = missing.
    flux_err : float ndarray, shape (m, n), or None
        Their errors in nJy, NaN = unknown.
    bands : sequence of str
        Names of the n bands.
    errors : bool
        Whether the errors are inputs.

    Raises
    ------
    InputError
        If a band has no finite flux at all, errors are wanted and a band has none, or the shapes
        do not fit.
    """
    flux = np.asarray(flux, dtype=np.float64)
    n = len(bands)
    if flux.ndim != 2 or flux.shape[1] != n or n < 2:
        raise InputError(f"fluxes have shape {flux.shape} for {n} bands; at least two are needed")
    known_err = np.full_like(flux, np.nan) if flux_err is None else np.asarray(flux_err, np.float64)
    softening = np.empty(n)
    for k, band in enumerate(bands):
        known = flux[np.isfinite(flux[:, k]), k]
        if not known.size:
            raise InputError(f"training set: band {band!r} has no finite flux")
        usable = known_err[np.isfinite(known_err[:, k]) & (known_err[:, k] > 0), k]
        guess = np.median(usable) if usable.size else 0.01 * np.median(np.abs(known))
        softening[k] = guess if guess > 0 else 1.0
    raw = magnitudes_and_colours(np.where(np.isfinite(flux), flux, np.nan), softening)
    # A colour of two bands that never come together has no statistics: it is always missing.
    never = ~np.isfinite(raw).any(axis=0)
    raw[:, never] = 0.0
    std = np.nanstd(raw, axis=0)
    error_statistics: dict[str, Float] = {}
    if errors:
        logarithms = log_errors(flux, known_err)
        without = ~np.isfinite(logarithms).any(axis=0)
        if without.any():
            raise InputError(
                f"training set: band {bands[int(without.argmax())]!r} has no flux error, which "
                "this network reads; name the columns in training.magnitude_errors"
            )
        # Equal errors of all objects say nothing: their digits must not become inputs, nor an image
        # of another depth a value far from all that was seen.
        spread = np.maximum(np.nanstd(logarithms, axis=0), 0.15)
        error_statistics = {
            "error_mean": np.nanmean(logarithms, axis=0),
            "error_std": spread,
        }
    return FeatureScaling(
        bands=tuple(bands),
        softening=softening,
        mean=np.nanmean(raw, axis=0),
        std=np.where(std > 0, std, 1.0),
        low=np.nanmin(raw, axis=0),
        high=np.nanmax(raw, axis=0),
        **error_statistics,
    )


def network_inputs(
    flux: Float, scaling: FeatureScaling, flux_err: Float | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Standardised inputs of a network, and which objects lie outside the training range.

    Values outside the training set's range are moved to its edge: a network says nothing reliable
    beyond what it saw, and an unbounded input could give an unbounded redshift. Such objects are
    reported, not hidden.

    Parameters
    ----------
    flux : float ndarray, shape (m, n)
        Fluxes in nJy in the order of `scaling.bands`; not finite = missing.
    scaling : FeatureScaling
        From the training set.
    flux_err : float ndarray, shape (m, n), optional
        Their errors in nJy, for a scaling with errors; not finite or <= 0 = unknown.

    Returns
    -------
    inputs : float32 ndarray, shape (m, 3n - 1) or (m, 4n - 1)
        Magnitudes and colours, standardised, 0 where missing; then 1.0 for each band present; then
        the logarithms of the errors, standardised, 0 where unknown, if the scaling has them.
    outside : bool ndarray, shape (m,)
        True where a magnitude or colour lies outside the training set's range.

    Examples
    --------
    >>> flux = np.array([[100.0, 200.0], [300.0, np.nan], [50.0, 70.0]])
    >>> inputs, outside = network_inputs(flux, fit_scaling(flux, None, ["g", "r"]))
    >>> inputs.shape, bool(outside.any()), inputs[1, 3:].tolist()
    ((3, 5), False, [1.0, 0.0])
    """
    flux = np.asarray(flux, dtype=np.float64)
    present = np.isfinite(flux)
    raw = magnitudes_and_colours(np.where(present, flux, np.nan), scaling.softening)
    # float32 catalogs of the training rows themselves must not count as outside.
    slack = 1e-3
    with np.errstate(invalid="ignore"):
        beyond = (raw < scaling.low - slack) | (raw > scaling.high + slack)
    standard = (np.clip(raw, scaling.low, scaling.high) - scaling.mean) / scaling.std
    standard = np.where(np.isfinite(standard), standard, 0.0)
    parts = [standard, present]
    if scaling.error_mean is not None and scaling.error_std is not None:
        unknown = np.full_like(flux, np.nan) if flux_err is None else flux_err
        logarithms = log_errors(flux, unknown)
        errors = (logarithms - scaling.error_mean) / scaling.error_std
        # As far from the training set as magnitudes are let go: five standard deviations.
        parts.append(np.clip(np.where(np.isfinite(errors), errors, 0.0), -5.0, 5.0))
    return np.concatenate(parts, axis=1).astype(np.float32), np.any(beyond, axis=1)
