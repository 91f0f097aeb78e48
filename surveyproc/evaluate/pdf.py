"""Metrics of redshift PDFs that are given as quantiles, as the catalogs store them.

What lies between the quantiles is a convention, here the same for every metric: the cumulative
distribution F is linear between them (the density constant), and beyond the outermost ones decays
exponentially, with the density of the adjoining segment where the tail begins. Each tail holds the
probability that the levels leave to it. Integrals over F and its square then have closed forms, so
no grid in z is needed, on which narrow PDFs would be lost.

Limits. For a normal PDF with the levels that we store (0.025, 0.05, 0.10, ..., 0.95, 0.975), F is
off by at most 0.0033 (between 0.05 and 0.10), so tests of uniformity notice the convention itself
in samples of some ten thousand objects and more. Two peaks closer than the levels resolve are
merged. The lower tail does not know that z >= 0.

A PDF with a missing value or with decreasing quantiles is no PDF: it gives NaN, and summaries
count it as `n_missing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from surveyproc.errors import InputError
from surveyproc.evaluate.bootstrap import Float

CHUNK = 65_536
"""PDFs worked on at once: bounds memory to about 100 MB."""

_TINY = np.finfo(np.float64).tiny
_EPSILON = np.finfo(np.float64).epsneg

Levels = Sequence[float] | Float


def pit(quantiles: ArrayLike, levels: Levels, z_true: ArrayLike) -> Float:
    """Probability integral transforms F(z_true); uniform on [0, 1] if the PDFs are calibrated.

    Parameters
    ----------
    quantiles : array_like of float, shape (n, m)
        Redshifts below which `levels` of the probability lie, not decreasing along a row.
    levels : sequence of float, shape (m,), m >= 2
        Increasing probabilities, all in ]0, 1[.
    z_true : array_like of float, shape (n,)
        True redshifts.

    Returns
    -------
    float64 ndarray, shape (n,)
        NaN where the PDF or the true redshift is missing.

    Raises
    ------
    InputError
        If shapes do not fit or `levels` is not as said.
    """
    return _by_chunk(_pit, quantiles, levels, z_true)


def crps(quantiles: ArrayLike, levels: Levels, z_true: ArrayLike) -> Float:
    """Continuous ranked probability scores, integral of (F(z) - [z >= z_true])^2 dz.

    Gneiting & Raftery 2007 (JASA 102, 359), equation 20, with the sign that makes small values
    good; exact for the F of this module. In units of redshift; for a point estimate it would be
    |z - z_true|. Parameters, result and errors as for `pit`.
    """
    return _by_chunk(_crps, quantiles, levels, z_true)


def cde_loss(quantiles: ArrayLike, levels: Levels, z_true: ArrayLike) -> Float:
    """Conditional density estimate loss of each PDF: integral of f(z)^2 dz - 2 f(z_true).

    Its mean estimates, up to a constant of the sample, the squared distance between f and the true
    conditional density (Izbicki & Lee 2017, Electron. J. Stat. 11, 2800; Schmidt et al. 2020,
    MNRAS 499, 1587). Exact for the piecewise constant f of this module, whose steps lie at the
    quantiles; for normal PDFs at our levels the mean loss is 0.3 % smaller in size
    than that of the PDFs themselves. Units of 1 / redshift. Parameters, result and errors as for
    `pit`; NaN also where two quantiles coincide, whose density is infinite.
    """
    return _by_chunk(_cde_loss, quantiles, levels, z_true)


def coverage(pit_values: ArrayLike, level: float) -> float:
    """Share of true redshifts inside the central interval of probability `level`.

    Parameters
    ----------
    pit_values : array_like of float, shape (n,)
        From `pit`; NaN are left out.
    level : float
        0.68 for the interval between the 16 % and 84 % quantiles. Intervals wider than the
        outermost levels, 0.95 for those that we store, rest on the tails that are assumed.
    """
    values = _finite(pit_values)
    return float(np.mean(np.abs(values - 0.5) <= level / 2)) if values.size else float("nan")


def uniformity(pit_values: ArrayLike) -> dict[str, float]:
    """Tests of the PIT against the uniform distribution on [0, 1] (Schmidt et al. 2020).

    Parameters
    ----------
    pit_values : array_like of float, shape (n,)
        From `pit`; NaN are left out.

    Returns
    -------
    dict
        Statistic and p-value of Kolmogorov-Smirnov (`ks`, `ks_p`), Cramer-von Mises (`cvm`,
        `cvm_p`) and Anderson-Darling (`ad`, `ad_p`); NaN for fewer than two objects. The third
        p-value is that of the limit of many objects, good to 0.01 from n = 10 on; its statistic
        takes PIT of exactly 0 and 1 as one rounding error inside.
    """
    values = _finite(pit_values)
    if values.size < 2:
        return dict.fromkeys(("ks", "ks_p", "cvm", "cvm_p", "ad", "ad_p"), float("nan"))
    ks, cvm = stats.kstest(values, "uniform"), stats.cramervonmises(values, "uniform")
    ad = _anderson_darling(values)
    return {
        "ks": float(ks.statistic),
        "ks_p": float(ks.pvalue),
        "cvm": float(cvm.statistic),
        "cvm_p": float(cvm.pvalue),
        "ad": ad,
        "ad_p": _anderson_darling_p(ad),
    }


def pdf_metrics(quantiles: ArrayLike, levels: Levels, z_true: ArrayLike) -> dict[str, float]:
    """All PDF metrics of one sample.

    Parameters
    ----------
    quantiles, levels, z_true
        As for `pit`. Rows without a finite true redshift are not part of the sample.

    Returns
    -------
    dict
        `n` (objects with a PDF), `n_missing` (objects without), `crps` and `cde_loss` (means),
        `n_coincident` (objects that the mean loss leaves out, as two quantiles coincide),
        `coverage_68`, `coverage_95`, and the keys of `uniformity`.

    Raises
    ------
    InputError
        As for `pit`.
    """
    known = np.isfinite(np.asarray(z_true, np.float64))
    sample = (np.asarray(quantiles)[known], levels, np.asarray(z_true)[known])
    transforms, loss = pit(*sample), _finite(cde_loss(*sample))
    n = int(np.isfinite(transforms).sum())
    return {
        "n": n,
        "n_missing": len(transforms) - n,
        "n_coincident": n - loss.size,
        "crps": float(np.mean(_finite(crps(*sample)))) if n else float("nan"),
        "cde_loss": float(np.mean(loss)) if loss.size else float("nan"),
        "coverage_68": coverage(transforms, 0.68),
        "coverage_95": coverage(transforms, 0.95),
        **uniformity(transforms),
    }


def to_qp(quantiles: ArrayLike, levels: Levels) -> Any:
    """The PDFs as an ensemble of the qp package (`pip install qp-prob`).

    Its "quant" form keeps the quantiles as they are; between and beyond them qp has conventions of
    its own (F quadratic between, linear beyond the outermost quantiles).

    Parameters
    ----------
    quantiles : array_like of float, shape (n, m)
        Redshifts, not decreasing along a row.
    levels : sequence of float, shape (m,)
        Their probabilities, in ]0, 1[.

    Returns
    -------
    qp.Ensemble
        n PDFs, in the order of the rows.

    Raises
    ------
    InputError
        If shapes do not fit, `levels` is not as said, or a row is no PDF: qp takes none such.
    """
    import qp

    values, probabilities = _checked(quantiles, levels)
    if unusable := int((~_usable(values)).sum()):
        raise InputError(
            f"{unusable} of {len(values)} PDFs have missing or decreasing quantiles: "
            "take them out before making a qp ensemble"
        )
    return qp.Ensemble(qp.quant, data={"quants": probabilities, "locs": values})


def _checked(quantiles: ArrayLike, levels: Levels) -> tuple[Float, Float]:
    values, probabilities = np.asarray(quantiles, np.float64), np.asarray(levels, np.float64)
    if values.ndim != 2 or probabilities.shape != values.shape[1:] or values.shape[1] < 2:
        raise InputError(
            f"quantiles have shape {values.shape}, their levels {probabilities.shape}: expected "
            "(n, m) and (m,), m at least 2"
        )
    ordered = (np.diff(probabilities) > 0).all()
    if not (ordered and probabilities[0] > 0 and probabilities[-1] < 1):
        raise InputError("levels of quantiles must increase and lie between 0 and 1")
    return values, probabilities


def _usable(quantiles: Float) -> Any:
    return np.isfinite(quantiles).all(axis=1) & (np.diff(quantiles, axis=1) >= 0).all(axis=1)


def _by_chunk(
    kernel: Callable[[Float, Float, Float], Float],
    quantiles: ArrayLike,
    levels: Levels,
    z_true: ArrayLike,
) -> Float:
    """`kernel` on the usable rows, NaN on the others."""
    true = np.asarray(z_true, np.float64)
    stored = np.asarray(quantiles)
    _, probabilities = _checked(stored[:0], levels)
    if true.shape != stored.shape[:1]:
        raise InputError(f"true redshifts have shape {true.shape}, quantiles {stored.shape}")
    out = np.full(len(true), np.nan)
    for start in range(0, len(true), CHUNK):
        values = stored[start : start + CHUNK].astype(np.float64)
        z = true[start : start + CHUNK]
        rows = np.flatnonzero(_usable(values) & np.isfinite(z))
        out[start + rows] = kernel(values[rows], probabilities, z[rows])
    return out


def _tails(q: Float, p: Float, z: Float) -> tuple[Float, Float, Float]:
    """Of both tails, (2, n): decay length, its probability's decay at z, z's distance beyond q."""
    edges = np.stack([q[:, 0] - z, z - q[:, -1]])
    beyond = np.maximum(edges, 0.0)
    scale = np.stack(
        [
            p[0] * (q[:, 1] - q[:, 0]) / (p[1] - p[0]),
            (1.0 - p[-1]) * (q[:, -1] - q[:, -2]) / (p[-1] - p[-2]),
        ]
    )
    with np.errstate(over="ignore"):
        decay = np.exp(-beyond / np.maximum(scale, _TINY))
    return scale, decay, beyond


def _segment(q: Float, z: Float) -> Any:
    """Index of the segment that z is in, the outermost ones for z beyond; shape (n,)."""
    return np.clip((q <= z[:, None]).sum(axis=1), 1, q.shape[1] - 1) - 1


def _pit(q: Float, p: Float, z: Float) -> Float:
    _, decay, _ = _tails(q, p, z)
    rows, k = np.arange(len(z)), _segment(q, z)
    # The width is zero only where z lies in a tail.
    width = q[rows, k + 1] - q[rows, k]
    way = np.clip(z - q[rows, k], 0.0, width) / np.maximum(width, _TINY)
    found = np.where(z < q[:, 0], p[0] * decay[0], p[k] + (p[k + 1] - p[k]) * way)
    return np.asarray(np.where(z >= q[:, -1], 1.0 - (1.0 - p[-1]) * decay[1], found))


def _crps(q: Float, p: Float, z: Float) -> Float:
    low, high = q[:, :-1], q[:, 1:]
    cut = np.clip(z[:, None], low, high)
    at_cut = p[:-1] + (p[1:] - p[:-1]) * (cut - low) / np.maximum(high - low, _TINY)
    below = (cut - low) * _square(p[:-1], at_cut)
    above = (high - cut) * _square(1.0 - at_cut, 1.0 - p[1:])
    scale, decay, beyond = _tails(q, p, z)
    mass = np.array([[p[0]], [1.0 - p[-1]]])
    # A tail of probability w e^(-t/s) gives w^2 s / 2 on the far side of z, and (1 - w e^(-t/s))^2
    # integrated from its beginning to z.
    tails = beyond - 2.0 * mass * scale * (1.0 - decay) + 0.5 * mass**2 * scale
    return np.asarray((below + above).sum(axis=1) + tails.sum(axis=0))


def _square(first: Float, last: Float) -> Float:
    """Mean square of what runs linearly from `first` to `last`."""
    return (first**2 + first * last + last**2) / 3.0


def _cde_loss(q: Float, p: Float, z: Float) -> Float:
    width, share = np.diff(q, axis=1), np.diff(p)
    width = np.where((width > 0).all(axis=1, keepdims=True), width, np.nan)
    density = share / width
    _, decay, _ = _tails(q, p, z)
    # A tail of probability w and density d at its beginning: integral d^2 e^(-2dt/w) = w d / 2.
    squared = (share * density).sum(axis=1)
    squared += 0.5 * (p[0] * density[:, 0] + (1.0 - p[-1]) * density[:, -1])
    at_truth = density[np.arange(len(z)), _segment(q, z)] * decay[0] * decay[1]
    return np.asarray(squared - 2.0 * at_truth)


def _anderson_darling(values: Float) -> float:
    """A^2 = -n - sum_i (2i - 1) (ln u_i + ln(1 - u_(n+1-i))) / n of sorted u, i from 1."""
    u = np.clip(np.sort(values), _TINY, 1.0 - _EPSILON)
    odd = 2.0 * np.arange(1, len(u) + 1) - 1.0
    return float(-len(u) - np.mean(odd * (np.log(u) + np.log1p(-u[::-1]))))


def _anderson_darling_p(statistic: float) -> float:
    """Upper tail of A^2 for n to infinity; scipy.stats has it for fitted families only.

    A^2 is then the sum of chi^2_1 variables times 1 / (j (j + 1)), j from 1 (Anderson & Darling
    1952, Ann. Math. Stat. 23, 193). By Smirnov's inversion formula its tail at x is
    1/pi sum_k (-1)^(k+1) int e^(-xu/2) / (u sqrt|D(u)|) du, u between the zeros 2k - 1 and 2k of
    D(u) = prod_j (1 - u / (j (j + 1))) = -cos(pi sqrt(1 + 4u) / 2) / (pi u).
    """
    j = 2.0 * np.arange(20)[:, None] + 1.0
    low, high = j * (j + 1.0), (j + 1.0) * (j + 2.0)
    # Gauss-Chebyshev quadrature takes the inverse square roots at both ends exactly.
    angle = np.pi * (np.arange(64) + 0.5) / 64
    u = 0.5 * (low + high) + 0.5 * (high - low) * np.cos(angle)
    product = np.abs(np.cos(0.5 * np.pi * np.sqrt(1.0 + 4.0 * u))) / (np.pi * u)
    smooth = np.exp(-0.5 * statistic * u) / u * np.sqrt((u - low) * (high - u) / product)
    signs = np.resize([1.0, -1.0], len(j))
    return float(np.clip(signs @ smooth.mean(axis=1), 0.0, 1.0))


def _finite(values: ArrayLike) -> Float:
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]
