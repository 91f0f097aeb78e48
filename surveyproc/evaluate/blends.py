"""Metrics of the photometry of blended galaxies, of their masks and of their errors.

As Boucaud et al. 2019, section 4: dm = m_blend - m_isolated. Their figures call a percentage error
on the flux what their scripts compute on the magnitude; here both have names of their own. Arrays
in, numbers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc.errors import InputError
from surveyproc.schemas import AB_ZEROPOINT_NJY

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

OUTLIER = 0.75
"""|dm| of a catastrophic error: a factor of two in flux."""
CENTRAL = 0.6827
"""Share of a normal distribution within one standard deviation."""
KINDS = ("blend", "single")
"""Classes of what the catalog takes for one object."""
LEAST_IN_BIN = 50
"""Galaxies that the scale of a bin of errors is fitted to, at least."""
FLUX_BINS, APART_BINS = 8, 24
"""Bins of the scale of errors, at most."""


def galaxy_names(galaxies: int) -> tuple[str, ...]:
    """What the galaxies of a blend are called, the one in the centre of the stamp first.

    Examples
    --------
    >>> galaxy_names(3)
    ('central', 'companion', 'companion_2')
    """
    more = (f"companion_{number}" for number in range(2, galaxies))
    return ("central", "companion", *more)[:galaxies]


def flux_names(galaxies: int, bands: Sequence[str]) -> tuple[str, ...]:
    """What their fluxes are called, galaxy by galaxy, in the order of the bands.

    Examples
    --------
    >>> flux_names(2, "gr")
    ('central_g', 'central_r', 'companion_g', 'companion_r')
    """
    return tuple(f"{name}_{band}" for name in galaxy_names(galaxies) for band in bands)


def magnitude_errors(flux: ArrayLike, true: ArrayLike) -> Float:
    """dm = -2.5 log10(flux / true); NaN without a flux, infinite where it is not positive.

    Parameters
    ----------
    flux, true : array_like of float, shape (n,)
        In one unit; true fluxes are positive, or not finite where unknown.

    Raises
    ------
    InputError
        If the shapes differ, or a true flux is zero or negative.

    Examples
    --------
    >>> magnitude_errors([50.0, 0.0], [100.0, 100.0]).round(3).tolist()
    [0.753, inf]
    """
    f, t = np.asarray(flux, np.float64), np.asarray(true, np.float64)
    if f.shape != t.shape:
        raise InputError(f"fluxes, true fluxes: shapes {f.shape}, {t.shape}")
    if (t <= 0).any():
        raise InputError(
            f"{int((t <= 0).sum())} of {t.size} true fluxes are zero or negative and have no "
            "magnitude: leave them out"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(np.isfinite(t), f / t, np.nan)
        return np.where(ratio <= 0, np.inf, -2.5 * np.log10(ratio))


def blend_metrics(
    flux: ArrayLike, true: ArrayLike, error: ArrayLike | None = None
) -> dict[str, Any]:
    """What fluxes of blended galaxies are worth.

    Parameters
    ----------
    flux, true : array_like of float, shape (n,)
        nJy; not finite where nothing was found, or nothing is known.
    error : array_like of float, shape (n,), optional
        Standard deviations, for the coverage.

    Returns
    -------
    dict
        `n` galaxies with a flux, `n_missing` without; `mean`, `median` and `std` (of the
        population) of dm over positive fluxes; `outliers`, the share with |dm| > 0.75, a flux that
        is not positive among them; `mape_flux`, the mean of 100 |flux - true| / true, and
        `mape_magnitude`, of 100 |dm| / m, percent; with errors `coverage`, the share with
        |flux - true| <= error. NaN where there is nothing to count.

    Raises
    ------
    InputError
        As `magnitude_errors`.

    Examples
    --------
    >>> found = blend_metrics([100.0, 50.0, np.nan], [100.0, 100.0, 100.0])
    >>> found["n"], found["n_missing"], found["mape_flux"], found["outliers"]
    (2, 1, 25.0, 0.5)
    """
    f, t = np.asarray(flux, np.float64), np.asarray(true, np.float64)
    dm = magnitude_errors(f, t)
    wanted = np.isfinite(t)
    known = wanted & np.isfinite(f)
    seen = known & np.isfinite(dm)
    magnitude = AB_ZEROPOINT_NJY - 2.5 * np.log10(t[seen])
    found = {
        "n": int(known.sum()),
        "n_missing": int((wanted & ~known).sum()),
        "mean": _mean(dm[seen]),
        "median": float(np.median(dm[seen])) if seen.any() else np.nan,
        "std": float(dm[seen].std()) if seen.any() else np.nan,
        "outliers": _mean(np.abs(dm[known]) > OUTLIER),
        "mape_flux": _mean(100 * np.abs(f[known] / t[known] - 1)),
        "mape_magnitude": _mean(100 * np.abs(dm[seen]) / magnitude),
    }
    if error is not None:
        found["coverage"] = coverage(f, error, t)
    return found


def coverage(flux: ArrayLike, error: ArrayLike, true: ArrayLike) -> float:
    """Share of known fluxes within one error of the truth: 0.68 if the errors are right."""
    f, s, t = (np.asarray(one, np.float64) for one in (flux, error, true))
    known = np.isfinite(f) & np.isfinite(s) & np.isfinite(t)
    return _mean(np.abs(f - t)[known] <= s[known])


def binned_blends(
    flux: Float, true: Float, by: ArrayLike, edges: Sequence[float], error: Float | None = None
) -> list[dict[str, Any]]:
    """`blend_metrics` in bins of a quantity: magnitude difference, or separation in radii.

    Parameters
    ----------
    flux, true, error :
        As for `blend_metrics`.
    by : array_like of float, shape (n,)
        The quantity.
    edges : sequence of float, ascending
        Of the bins: low <= value < high, the last with its upper edge.

    Returns
    -------
    list of dict
        One a bin, with `low` and `high`.
    """
    values = np.asarray(by, np.float64)
    rows = []
    for low, high in pairwise(edges):
        inside = (values >= low) & ((values < high) | ((high == edges[-1]) & (values == high)))
        own = None if error is None else error[inside]
        rows.append({"low": low, "high": high, **blend_metrics(flux[inside], true[inside], own)})
    return rows


def blends_by_kind(
    flux: Float, true: Float, kind: NDArray[Any], error: Float | None = None
) -> dict[str, dict[str, Any]]:
    """`blend_metrics` of every type of galaxy."""
    return {
        str(name): blend_metrics(
            flux[kind == name], true[kind == name], None if error is None else error[kind == name]
        )
        for name in np.unique(kind)
    }


def mask_overlaps(found: Float, true: NDArray[Any], threshold: float = 0.5) -> Float:
    """IoU = |A and B| / |A or B| of masks, shape (n, k, y, x) -> (n, k); NaN if both are empty.

    Parameters
    ----------
    found : ndarray of float
        Probabilities; at or above the threshold a pixel belongs to the mask.
    true : ndarray
        Members are above one half.

    Examples
    --------
    >>> mask_overlaps(np.array([[[[0.9, 0.9, 0.1]]]]), np.array([[[[1, 0, 0]]]])).tolist()
    [[0.5]]
    """
    one, other = found >= threshold, np.asarray(true) > 0.5
    both = (one & other).sum(axis=(2, 3))
    either = (one | other).sum(axis=(2, 3))
    with np.errstate(invalid="ignore"):
        return np.where(either > 0, both / either, np.nan)


def shared_pixels(masks: NDArray[Any], threshold: float = 0.5) -> NDArray[np.int64]:
    """Pixels that two or more of an object's masks claim, shape (n, k, y, x) -> (n,)."""
    claims = (np.asarray(masks) >= threshold).sum(axis=1)
    return np.asarray((claims > 1).sum(axis=(1, 2)))


def overlap_bias(found: ArrayLike, true: ArrayLike) -> float:
    """dn = <n_true - n_found> / <n_true> of the pixels that masks share (`shared_pixels`).

    Examples
    --------
    >>> overlap_bias([8, 6], [10, 10])
    0.3
    """
    n, wanted = np.asarray(found, np.float64), np.asarray(true, np.float64)
    total = wanted.mean() if wanted.size else 0.0
    return float((wanted - n).mean() / total) if total else np.nan


def completeness(probability: ArrayLike, blended: ArrayLike, rejected: float) -> float:
    """Share of the blends found by the threshold that rejects a share of what is no blend.

    Parameters
    ----------
    probability : array_like of float, shape (n,)
        That an object is a blend.
    blended : array_like of bool, shape (n,)
        Whether it is one.
    rejected : float
        Share of the other objects that are lost, 0 to 1.

    Examples
    --------
    >>> completeness([0.1, 0.2, 0.9, 0.8, 0.15], [False, False, False, True, True], 0.4)
    0.5
    """
    p, is_blend = np.asarray(probability, np.float64), np.asarray(blended, bool)
    if p.shape != is_blend.shape:
        raise InputError(f"probabilities, truth: shapes {p.shape}, {is_blend.shape}")
    alone = p[~is_blend]
    if not len(alone) or not is_blend.any():
        return np.nan
    return _mean(p[is_blend] > np.quantile(alone, 1 - rejected))


REJECTED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of objects that are no blends, at whose loss `found_blends` counts."""


def found_blends(
    probability: ArrayLike,
    blended: ArrayLike,
    separation: ArrayLike | None = None,
    edges: Sequence[float] = (),
) -> dict[str, Any]:
    """Completeness of blends against the share of other objects that is rejected with them.

    Parameters
    ----------
    probability, blended :
        As for `completeness`; objects without a probability are left out.
    separation : array_like of float, shape (n,), optional
        Of the blends: in pixels, widths of the PSF, or radii.
    edges : sequence of float, ascending
        Of bins of it: low <= separation < high.

    Returns
    -------
    dict
        `n` objects, `blends` among them, `rejected` shares, `completeness` at each; and with a
        separation `by_separation`, a dict a bin with `low`, `high`, `n` blends and `completeness`
        at the same thresholds, which are those of all other objects. NaN where there is none.
    """
    p, is_blend = np.asarray(probability, np.float64), np.asarray(blended, bool)
    known = np.isfinite(p)

    def curve(chosen: Bool) -> list[float]:
        some = known & (chosen | ~is_blend)
        return [completeness(p[some], is_blend[some], share) for share in REJECTED]

    found: dict[str, Any] = {
        "n": int(known.sum()),
        "blends": int((known & is_blend).sum()),
        "rejected": list(REJECTED),
        "completeness": curve(is_blend),
    }
    if separation is not None:
        apart = np.asarray(separation, np.float64)
        found["by_separation"] = []
        for low, high in pairwise(edges):
            inside = is_blend & (apart >= low) & (apart < high)
            row = {"low": low, "high": high, "n": int((known & inside).sum())}
            found["by_separation"].append(row | {"completeness": curve(inside)})
    return found


def error_scale(
    flux: Float, error: Float, true: Float, apart: Float | None = None
) -> dict[str, list[float]]:
    """Factors that make errors hold the truth as often as they say: by distance, then brightness.

    In each of some equally filled bins the factor is the 0.6827 quantile of |flux - true| / error:
    with it as many fluxes lie within one error of the truth (split conformal prediction; Lei et al.
    2018, JASA 113, 1094). There are as many bins as there are galaxies for, not blends: factors of
    28 galaxies made errors worse (`benchmarks/NOTES.md`).

    Parameters
    ----------
    flux, error, true : float64 ndarray, shape (n,)
        Of objects that nothing was trained with.
    apart : float64 ndarray, shape (n,), optional
        How far another galaxy is, pixels; objects of which it is not known (-1) do not count.

    Returns
    -------
    dict
        `log_flux`, the bins' median decimal logarithms of the flux, and `scale`, their factors, to
        be interpolated between (`scaled_errors`); with distances `apart` and `apart_scale` too, by
        which the errors are scaled first. Without enough objects there is one factor of 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        good = np.isfinite(true) & np.isfinite(error) & (error > 0) & (flux > 0)
        if apart is not None:
            good &= apart >= 0
        x, ratio = np.log10(flux[good]), np.abs(flux - true)[good] / error[good]
    galaxies = len(np.unique(true[good]))
    scale: dict[str, list[float]] = {}
    if apart is not None:
        near = apart[good]
        places, factors = _in_bins(near, ratio, galaxies, APART_BINS)
        scale = {"apart": places, "apart_scale": factors}
        ratio = ratio / np.interp(near, places, factors)
    places, factors = _in_bins(x, ratio, galaxies, FLUX_BINS)
    return {**scale, "log_flux": places, "scale": factors}


def _in_bins(x: Float, ratio: Float, galaxies: int, most: int) -> tuple[list[float], list[float]]:
    """Medians of x in equally filled bins, and the quantiles of the ratios there."""
    count = min(most, galaxies // LEAST_IN_BIN)
    if not count:
        return [0.0], [1.0]
    parts = np.array_split(np.argsort(x, kind="stable"), count)
    return (
        [float(np.median(x[part])) for part in parts],
        [float(np.quantile(ratio[part], CENTRAL)) for part in parts],
    )


def scaled_errors(
    flux: NDArray[Any],
    error: NDArray[Any],
    scale: dict[str, Any],
    apart: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Errors times the factors of `error_scale`, interpolated between the bins.

    Where the distance is not known (-1) that has no factor.
    """
    place = np.log10(np.maximum(flux, np.finfo(np.float32).tiny))
    factor = np.interp(place, scale["log_flux"], scale["scale"])
    if apart is not None and "apart" in scale:
        near = np.interp(apart, scale["apart"], scale["apart_scale"])
        factor = factor * np.where(apart >= 0, near, 1.0)
    return np.asarray(error * factor, error.dtype)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else np.nan
