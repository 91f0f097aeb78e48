"""The classical answer to blended pairs: detection, cold and then hot (Boucaud et al. 2019).

Section 3.3 and table 3 of the paper, and the public script for what it does not say. The script
ranks the sources besides the central one by flux and then takes the place in that rank for a place
in the whole list; here the brightest is meant, and taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import sep
from numpy.typing import ArrayLike, NDArray

from surveyproc.errors import InputError

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Detection:
    """How sources are detected and told apart.

    Attributes
    ----------
    threshold : float
        In global standard deviations of the background.
    pixels : int
        Least pixels above it.
    contrast : float
        Least share of the flux of a source that is one by itself.
    levels : int
        Thresholds between which sources are told apart.
    """

    threshold: float
    pixels: int
    contrast: float
    levels: int = 64


COLD, HOT = Detection(5.0, 10, 0.01), Detection(4.0, 6, 1e-4)
"""Table 3."""
NEAR = 0.5
"""Half-light radii from the centre within which a lone source is the central galaxy."""


def detect(image: ArrayLike, how: Detection, mask: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """Sources of an image, with the fields of `sep.extract`: `x`, `y` in pixels, `flux` and others.

    The threshold counts in the global rms of the background; the background itself is not
    subtracted. Fluxes are isophotal: the sum of the pixels above the threshold.

    Parameters
    ----------
    image : array_like of float, shape (y, x)
        Background subtracted.
    how : Detection
        `COLD` or `HOT`.
    mask : bool ndarray, shape (y, x), optional
        Pixels that are of no use.

    Raises
    ------
    InputError
        If the image holds pixels that are not finite and not masked.
    """
    pixels = np.array(image, np.float64)
    if mask is not None:
        pixels[mask] = 0.0
    if not np.isfinite(pixels).all():
        raise InputError("sources are detected in finite pixels alone, and this image has others")
    rms = float(sep.Background(pixels, mask=mask).globalrms)
    return np.asarray(
        sep.extract(
            pixels,
            how.threshold * rms,
            mask=mask,
            minarea=how.pixels,
            deblend_cont=how.contrast,
            deblend_nthresh=how.levels,
        )
    )


def classical_fluxes(
    image: ArrayLike, radius: float, companion: tuple[float, float]
) -> tuple[Float, int]:
    """Fluxes of the central galaxy of a pair and of its companion, and how many sources there are.

    Cold first, and hot where that finds fewer than two. Two sources: each galaxy has the one that
    is nearer to it. One: the central galaxy's if it is within half its radius of the centre, else
    the companion's. More: the two brightest.

    Parameters
    ----------
    image : array_like of float, shape (y, x)
        The central galaxy at index side // 2.
    radius : float
        The central galaxy's half-light radius, pixels.
    companion : tuple of float
        (y, x) of the companion from the centre, pixels.

    Returns
    -------
    flux : float64 ndarray, shape (2,)
        In the image's unit; NaN for a galaxy that was not found.
    found : int
        Number of sources.
    """
    sources = detect(image, COLD)
    if len(sources) < 2:
        sources = detect(image, HOT)
    found = len(sources)
    flux = np.full(2, np.nan)
    if not found:
        return flux, 0
    middle = np.shape(image)[-1] // 2
    if found > 2:
        sources = sources[np.argsort(-sources["flux"], kind="stable")[:2]]
    to_centre = np.hypot(sources["y"] - middle, sources["x"] - middle)
    if found == 1:
        flux[0 if to_centre[0] < NEAR * radius else 1] = sources["flux"][0]
        return flux, found
    dy, dx = companion
    to_companion = np.hypot(sources["y"] - middle - dy, sources["x"] - middle - dx)
    straight = to_centre[0] + to_companion[1] <= to_centre[1] + to_companion[0]
    flux[:] = sources["flux"] if straight else sources["flux"][::-1]
    return flux, found
