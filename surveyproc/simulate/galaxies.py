"""Drawn parents of blends: galaxies of four types at the resolution of a space telescope.

The sample looks like that of Boucaud et al. 2019, table 1: bulges, discs, bulges in discs and
irregulars in their shares, brighter than 23.5, seen by HST in F160W with 0.06" pixels. The numbers
below are round ones of our own that give such a sample, no fit to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import galsim
import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import ConfigError
from surveyproc.schemas import AB_ZEROPOINT_NJY
from surveyproc.simulate.draw import galaxy, psf
from surveyproc.simulate.parents import Parents

Float = NDArray[np.float64]

KINDS = {"bulge": 352, "disc": 433, "bulge+disc": 702, "irregular": 432}
"""Galaxies of each type in the paper's sample."""
MAGNITUDES, SLOPE = (19.0, 23.5), 0.3
"""AB limits, and the slope of the counts, log10 N = SLOPE m."""
RADIUS, RADIUS_SPREAD, RADIUS_LIMITS = 6.0, 0.2, (2.0, 16.0)
"""Half-light radius along the major axis at magnitude 22, pixels; its scatter, dex; limits."""
RADIUS_SLOPE = -0.08
"""Change of its logarithm a magnitude."""
MASK_SIGMA = 1.5
"""Pixels of a mask are at least so many standard deviations of the noise bright."""
INDEX_STEP = 0.5
"""Sersic indices are rounded to this: GalSim keeps a profile's table."""


@dataclass(frozen=True)
class Sky:
    """How a band is seen.

    Attributes
    ----------
    fwhm : float
        Of the Moffat PSF, pixels.
    sigma : float
        Standard deviation of the noise, nJy a pixel. With the default, `sep` run as the paper did
        loses as much of a galaxy as there (0.27 mag; the paper's two zero points differ by 0.29).
    """

    fwhm: float = 3.0
    sigma: float = 1.0


def drawn(
    n: int,
    *,
    side: int = 128,
    skies: Sequence[Sky] = (Sky(),),
    bands: Sequence[str] = ("F160W",),
    fwhms: Sequence[float] = (),
    seed: int = 0,
) -> Parents:
    """Draw n galaxies without noise.

    Parameters
    ----------
    n : int
        How many.
    side : int
        Pixels on a side of the stamps.
    skies : sequence of Sky
        One a band. The first band is that of the selection, and its noise that of the masks.
    bands : sequence of str
        Names of the bands, from blue to red. Bulges are redder than discs, discs than knots.
    fwhms : sequence of float
        PSFs, pixels, in all bands instead of those of `skies`; each is that of an equal share of
        the galaxies.
    seed : int
        The same seed gives the same galaxies.

    Returns
    -------
    Parents
        `radius` is the half-light radius of the image in the band of the selection, in circles,
        the PSF in it. The centres lie within half a pixel of index side // 2.

    Raises
    ------
    ConfigError
        If bands and skies are not as many, or a band has no PSF.
    """
    if len(bands) != len(skies) or not bands:
        raise ConfigError(f"drawn galaxies: {len(bands)} bands, and {len(skies)} skies of them")
    for name, sky in zip(bands, skies, strict=True):
        bad = [one for one in fwhms or (sky.fwhm,) if not 0 < one < np.inf]
        if bad:
            raise ConfigError(
                f"drawn galaxies: band {name} has no PSF: a width of {bad[0]:g} pixels is none; "
                "give its FWHM, or leave the band out"
            )
    random = np.random.default_rng(seed)
    names = np.array(list(KINDS))
    shares = np.array(list(KINDS.values())) / sum(KINDS.values())
    kind = random.choice(names, n, p=shares)
    low, high = (10 ** (SLOPE * limit) for limit in MAGNITUDES)
    magnitude = np.log10(random.uniform(low, high, n)) / SLOPE
    flux = 10 ** ((AB_ZEROPOINT_NJY - magnitude) / 2.5)
    typical = np.log10(RADIUS) + RADIUS_SLOPE * (magnitude - 22.0)
    size = 10 ** (typical + random.normal(0.0, RADIUS_SPREAD, n))
    size = np.clip(size, *RADIUS_LIMITS)
    images = np.empty((n, len(bands), side, side), np.float32)
    total = np.empty((n, len(bands)))
    points = np.full(n, np.nan) if not fwhms else np.asarray(fwhms)[np.arange(n) % len(fwhms)]
    for k in range(n):
        own = np.random.default_rng([seed, k])
        parts = _components(str(kind[k]), float(size[k]), own)
        offset = galsim.PositionD(*(side // 2 + own.uniform(-0.5, 0.5, 2)))
        tilt = own.normal(0.0, 0.15)
        for band, sky in enumerate(skies):
            # Colours relative to the first band: a tilt of each component's spectrum.
            weights = np.array(
                [part.light * 10 ** (0.4 * band * (part.red + tilt)) for part in parts]
            )
            weights *= flux[k]
            total[k, band] = weights.sum()
            profile = galsim.Sum(
                [part.shape * weight for part, weight in zip(parts, weights, strict=True)]
            )
            seen = galsim.Convolve(profile, psf(float(points[k]) if fwhms else sky.fwhm))
            images[k, band] = _image(seen, side, offset)
    return Parents(
        images=images,
        flux=total,
        mask=images[:, 0] > MASK_SIGMA * skies[0].sigma,
        radius=half_light(images[:, 0], total[:, 0]),
        kind=kind,
        bands=tuple(bands),
        select=0,
        psf=points,
    )


def half_light(images: NDArray[np.float32], flux: Float) -> Float:
    """Radii of circles about the central pixel, in pixels, that hold half the flux, shape (n,)."""
    side = images.shape[-1]
    y, x = np.indices((side, side)) - side // 2
    distance = np.hypot(x, y).ravel()
    order = np.argsort(distance, kind="stable")
    grown = images.reshape(len(images), -1)[:, order].cumsum(axis=1, dtype=np.float64)
    reached = (grown >= 0.5 * flux[:, None]).argmax(axis=1)
    # Half a pixel at least: one pixel alone may hold half the light.
    found: Float = np.maximum(distance[order][reached], 0.5)
    return found


@dataclass(frozen=True)
class _Component:
    """Part of a galaxy: its profile of unit flux, share of the light, and colour a band."""

    shape: galsim.GSObject
    light: float
    red: float


def _components(kind: str, size: float, random: np.random.Generator) -> list[_Component]:
    """What a galaxy is made of; `light` sums to one."""
    angle = float(random.uniform(0.0, 180.0))
    cosine = float(random.random())
    thin = float(np.sqrt((1 - 0.2**2) * cosine**2 + 0.2**2))
    round_ = 0.5 + 0.5 * cosine
    if kind == "bulge":
        return [_Component(galaxy(size, _index(4.0, 0.7, random), round_, angle), 1.0, 0.3)]
    disc = galaxy(size, _index(1.0, 0.2, random), thin, angle)
    if kind == "disc":
        return [_Component(disc, 1.0, 0.1)]
    if kind == "bulge+disc":
        share = float(random.uniform(0.2, 0.8))
        inner = galaxy(size * random.uniform(0.2, 0.7), _index(3.5, 0.7, random), round_, angle)
        return [_Component(inner, share, 0.3), _Component(disc, 1 - share, 0.1)]
    knots = int(random.integers(3, 9))
    share = float(random.uniform(0.2, 0.6))
    lights = share * random.dirichlet(np.ones(knots))
    found = [_Component(disc, 1 - share, 0.1)]
    for light in lights:
        radius, turn = size * random.uniform(0.2, 1.5), random.uniform(0.0, 2 * np.pi)
        knot = galsim.Gaussian(half_light_radius=max(0.5, size * random.uniform(0.05, 0.25)))
        shifted = knot.shift(radius * np.cos(turn), radius * np.sin(turn))
        found.append(_Component(shifted, float(light), -0.1))
    return found


def _index(mean: float, spread: float, random: np.random.Generator) -> float:
    drawn = np.round(random.normal(mean, spread) / INDEX_STEP) * INDEX_STEP
    return float(np.clip(drawn, 0.5, 5.0))


def _image(profile: galsim.GSObject, side: int, centre: galsim.PositionD) -> NDArray[np.float32]:
    """The profile on side x side pixels of one arcsec, whose first is centred on (0, 0)."""
    image = galsim.ImageF(side, side, xmin=0, ymin=0, scale=1.0)
    profile.drawImage(image=image, center=centre)
    found: NDArray[np.float32] = image.array
    return found
