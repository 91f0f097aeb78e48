"""The true objects: where they are, how far, of which kind, how bright and how large.

Redshifts follow a stated n(z); given the redshift, spectral type and luminosity follow Schechter
functions, one a type, cut to the survey's magnitude limits. Sizes and shapes follow both. The
numbers are round ones that give a plausible sky, not a fit to a survey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.cosmology import FlatLambdaCDM
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from surveyproc.errors import ConfigError
from surveyproc.simulate.bands import BANDS, Band
from surveyproc.simulate.spectra import GALAXY_TYPES, Z_MAX, blackbody_offsets, galaxy_offsets

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

R_LIMITS = (18.0, 24.0)
"""True r magnitudes of all objects, stars too."""
Z_MIN, Z_SCALE = 0.02, 0.42
STAR_SHARE = 0.04
BLEND_SHARE = 0.03
"""Share of all objects that are a companion put beside another object, from `BLEND_NEAREST` to
`BLEND_RADIUS` arcsec away."""
BLEND_NEAREST, BLEND_RADIUS = 0.8, 2.0
ISOLATION = 3.0
"""Least distance, arcsec, of two objects that are not a deliberate pair."""
SERSIC_STEP = 0.5
"""Sersic indices are rounded to this, so that GalSim builds seven profiles instead of thousands."""
EVOLUTION = 1.0
"""Brightening of every galaxy, magnitudes a unit of redshift."""

# By spectral type: M*_r (AB, z = 0, h = 0.7), faint-end slope alpha, density phi* at z = 0 (any
# unit), and the power of (1 + z) with which phi* grows: red and bright, to blue and many.
_M_STAR = np.array([-21.3, -21.3, -20.9, -20.2])
_ALPHA = np.array([-0.5, -0.9, -1.2, -1.4])
_PHI = np.array([3.0, 2.0, 1.5, 1.0])
_GROWTH = np.array([-0.5, 0.0, 0.5, 1.0])
_COSMOLOGY = FlatLambdaCDM(H0=70.0, Om0=0.3)


@dataclass(frozen=True)
class Pairs:
    """How crowded the sky is.

    Attributes
    ----------
    share : float
        Of all objects, those that are a companion of another one: 0 to 0.4.
    nearest : float
        Least distance of a companion, arcsec, 0.1 to 2: below the PSF's width no catalog tells the
        two apart. Distances are uniform from here to `BLEND_RADIUS`.

    Raises
    ------
    ConfigError
        If a number is not in its range.
    """

    share: float = BLEND_SHARE
    nearest: float = BLEND_NEAREST

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 0.4 and 0.1 <= self.nearest < BLEND_RADIUS):
            raise ConfigError(
                f"simulate: pairs: a share of {self.share:g} is not in 0 to 0.4, or a least "
                f"distance of {self.nearest:g} arcsec not in 0.1 to {BLEND_RADIUS:g}"
            )


@dataclass(frozen=True)
class Population:
    """The true objects, one row each.

    Attributes
    ----------
    east, north : ndarray of float64, shape (n,)
        Offsets from the field's centre in its tangent plane, arcsec.
    z : ndarray of float64, shape (n,)
        Redshift; NaN for stars.
    kind : ndarray of float64, shape (n,)
        Continuous spectral type, 0 (E) to 3 (Im); NaN for stars.
    star, blended, spec : ndarray of bool, shape (n,)
        Star; another object within `BLEND_RADIUS`; has a spectroscopic redshift (galaxies only).
    mag : ndarray of float64, shape (n, b)
        Total AB magnitudes in the bands asked for.
    r_mag : ndarray of float64, shape (n,)
        Total AB magnitude in r, on which all selections act.
    radius : ndarray of float64, shape (n,)
        Half-light radius along the major axis, arcsec; NaN for stars.
    sersic : ndarray of float64, shape (n,)
        Sersic index; NaN for stars.
    axis_ratio, angle : ndarray of float64, shape (n,)
        Minor over major axis; position angle, degrees east of north. NaN for stars.
    """

    east: Float
    north: Float
    z: Float
    kind: Float
    star: Bool
    blended: Bool
    spec: Bool
    mag: Float
    r_mag: Float
    radius: Float
    sersic: Float
    axis_ratio: Float
    angle: Float

    def type_names(self) -> list[str]:
        """The nearest Coleman, Wu & Weedman type of each object, or "star"."""
        return [
            "star" if star else GALAXY_TYPES[round(kind)]
            for star, kind in zip(self.star, self.kind, strict=True)
        ]


def populate(
    objects: int,
    side: float,
    bands: Sequence[Band],
    rng: np.random.Generator,
    pairs: Pairs | None = None,
) -> Population:
    """Draw the objects of a square field.

    Parameters
    ----------
    objects : int
        How many, stars included.
    side : float
        Side of the field, arcsec.
    bands : sequence of Band
        Bands whose magnitudes are wanted. The objects do not depend on them.
    rng : numpy.random.Generator
        The only source of chance.
    pairs : Pairs, optional
        How many objects have a companion, and how near.
    """
    east, north, blended = _positions(objects, side, rng, pairs or Pairs())
    star = rng.random(objects) < STAR_SHARE
    z, kind, r_mag, absolute = _galaxies(objects, rng)
    star_r, temperature = _stars(objects, rng)
    r_mag = np.where(star, star_r, r_mag)
    r_band = (BANDS["r"],)
    colour = galaxy_offsets(bands, kind, z) - galaxy_offsets(r_band, kind, z)
    colour[star] = blackbody_offsets(bands, temperature[star])
    radius, sersic, axis_ratio = _shapes(z, kind, absolute, rng)
    angle = rng.uniform(0.0, 180.0, objects)
    spec = (rng.random(objects) < spec_success(r_mag)) & ~star
    for column in (z, kind, radius, sersic, axis_ratio, angle):
        column[star] = np.nan
    return Population(
        east=east,
        north=north,
        z=z,
        kind=kind,
        star=star,
        blended=blended,
        spec=spec,
        mag=r_mag[:, None] + colour,
        r_mag=r_mag,
        radius=radius,
        sersic=sersic,
        axis_ratio=axis_ratio,
        angle=angle,
    )


def redshift_density(z: Float) -> Float:
    """Density of galaxy redshifts, not normalised, zero outside `Z_MIN` to `Z_MAX`.

    p(z) = z^2 exp(-(z / Z_SCALE)^1.5) (Smail, Ellis & Fitchett 1994, MNRAS 270, 245; this common
    form: Baugh & Efstathiou 1993, MNRAS 265, 145).
    """
    density: Float = z**2 * np.exp(-((z / Z_SCALE) ** 1.5))
    return np.where((z >= Z_MIN) & (z <= Z_MAX), density, 0.0)


def spec_success(r_mag: Float) -> Float:
    """Chance that a galaxy of this r magnitude has a spectroscopic redshift.

    0.75 where bright, 0.35 where faint, logistic around r = 22.5 with a scale of 0.4. It depends on
    nothing else (not on colour, type or redshift) and is nowhere zero: the spectroscopic sample is
    brighter than the rest, yet covers it.
    """
    chance: Float = 0.35 + 0.40 / (1.0 + np.exp((r_mag - 22.5) / 0.4))
    return chance


def distance_modulus(z: Float) -> Float:
    """m - M, magnitudes, in flat Lambda-CDM with H0 = 70 km/s/Mpc and Omega_m = 0.3."""
    grid = np.geomspace(Z_MIN, Z_MAX, 400)
    modulus: Float = np.interp(np.log(z), np.log(grid), _COSMOLOGY.distmod(grid).value)
    return modulus


def _positions(
    objects: int, side: float, rng: np.random.Generator, chosen: Pairs
) -> tuple[Float, Float, Bool]:
    """Uniform positions, none too close to another except the deliberate pairs; in random order."""
    pairs = round(chosen.share * objects)
    alone = objects - pairs
    place = rng.uniform(-side / 2, side / 2, (alone, 2))
    partner = rng.choice(alone, pairs, replace=False)

    def offsets(count: int) -> Float:
        distance = rng.uniform(chosen.nearest, BLEND_RADIUS, count)
        angle = rng.uniform(0, 2 * np.pi, count)
        return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)

    offset = offsets(pairs)
    for _ in range(1000):
        everything = np.concatenate([place, place[partner] + offset])
        near = cKDTree(everything).query_pairs(ISOLATION, output_type="ndarray")
        own = np.full(objects, -1)
        own[alone:] = partner
        # Pairs come as (lower, higher), and a companion comes after all primaries.
        later = np.unique(near[own[near[:, 1]] != near[:, 0], 1])
        if len(later) == 0:
            break
        first, second = later[later < alone], later[later >= alone] - alone
        place[first] = rng.uniform(-side / 2, side / 2, (len(first), 2))
        offset[second] = offsets(len(second))
    blended = np.zeros(objects, dtype=bool)
    blended[alone:] = True
    blended[partner] = True
    order = rng.permutation(objects)
    return everything[order, 0], everything[order, 1], blended[order]


def _galaxies(objects: int, rng: np.random.Generator) -> tuple[Float, Float, Float, Float]:
    """Redshift, continuous type, r magnitude, and absolute r magnitude freed of evolution."""
    grid = np.linspace(Z_MIN, Z_MAX, 2000)
    cumulative = np.cumsum(redshift_density(grid))
    z = np.interp(rng.uniform(cumulative[0], cumulative[-1], objects), cumulative, grid)
    shift = distance_modulus(z) - EVOLUTION * z
    share = np.stack(
        [
            _PHI[t]
            * (1 + z) ** _GROWTH[t]
            * np.subtract(*_brighter(t, *_limits(np.full(objects, float(t)), z, shift)))
            for t in range(len(GALAXY_TYPES))
        ],
        axis=1,
    )
    chosen = (rng.random((objects, 1)) * share.sum(axis=1, keepdims=True)) > share.cumsum(axis=1)
    whole = chosen.sum(axis=1).clip(0, len(GALAXY_TYPES) - 1)
    # Spectra between the four templates: without them colours would fall on four lines.
    kind = np.clip(whole + rng.uniform(-0.5, 0.5, objects), 0.0, len(GALAXY_TYPES) - 1.0)
    bright, faint = _limits(kind, z, shift)
    draw = rng.random(objects)
    absolute = np.empty(objects)
    for t in range(len(GALAXY_TYPES)):
        rows = whole == t
        number = np.stack(_brighter(t, bright[rows], faint[rows]))
        wanted = number[1] + draw[rows] * (number[0] - number[1])
        absolute[rows] = _M_STAR[t] + np.interp(wanted, _SCHECHTER[t], _RELATIVE)
    absolute = np.clip(absolute, bright, faint)
    r_mag = absolute + shift + galaxy_offsets((BANDS["r"],), kind, z)[:, 0]
    return z, kind, r_mag, absolute


def _limits(kind: Float, z: Float, shift: Float) -> tuple[Float, Float]:
    """Absolute magnitudes, without evolution, of the survey's bright and faint limit."""
    offset = shift + galaxy_offsets((BANDS["r"],), kind, z)[:, 0]
    return R_LIMITS[0] - offset, R_LIMITS[1] - offset


def _schechter() -> tuple[Float, Float]:
    """M - M* grid, and the number of galaxies brighter than it, (type, grid).

    phi(M) dM ~ x^(alpha + 1) exp(-x) dM with x = 10^(-0.4 (M - M*)) (Schechter 1976, ApJ 203, 297).
    """
    relative = np.linspace(-4.0, 12.0, 3201)
    x = 10 ** (-0.4 * relative)
    return relative, np.cumsum(x ** (_ALPHA[:, None] + 1) * np.exp(-x), axis=1)


_RELATIVE, _SCHECHTER = _schechter()


def _brighter(t: int, bright: Float, faint: Float) -> tuple[Float, Float]:
    """Numbers of galaxies of type t brighter than the faint and than the bright magnitude."""
    return (
        np.interp(faint - _M_STAR[t], _RELATIVE, _SCHECHTER[t]),
        np.interp(bright - _M_STAR[t], _RELATIVE, _SCHECHTER[t]),
    )


def _stars(objects: int, rng: np.random.Generator) -> tuple[Float, Float]:
    """r magnitudes with counts ~ 10^(0.15 r), and temperatures (K) of stars as black bodies.

    Temperatures are uniform in 1/T from 3,200 to 7,500 K: mostly cool dwarfs.
    """
    low, high = (10 ** (0.15 * limit) for limit in R_LIMITS)
    return (
        np.log10(rng.uniform(low, high, objects)) / 0.15,
        1 / rng.uniform(1 / 7_500, 1 / 3_200, objects),
    )


def _shapes(
    z: Float, kind: Float, absolute: Float, rng: np.random.Generator
) -> tuple[Float, Float, Float]:
    """Major-axis half-light radius (arcsec), Sersic index and axis ratio.

    Sizes follow van der Wel et al. 2014 (ApJ 788, 28): at 5e10 solar masses 5.6 kpc (1 + z)^-1.48
    early, 8.9 kpc (1 + z)^-0.75 late, growing with mass to the power 0.75 and 0.22, with a scatter
    of 0.15 dex. We put luminosity for mass, with M_r = -21.5 as 5e10 solar masses, flatten
    the early relation below it (their quiescent dwarfs), and bound radii to 0.1 to 2 arcsec so that
    stamps stay small. Thin discs are seen from all sides, q^2 = (1 - q0^2) cos^2 i + q0^2 with
    q0 = 0.2 (Hubble 1926, ApJ 64, 321); early types have q uniform in 0.5 to 1.
    """
    objects = len(z)
    early = kind < 0.5
    light = -0.4 * (absolute + 21.5)
    slope = np.where(early, np.where(light > 0, 0.75, 0.3), 0.22)
    norm = np.where(early, 5.6 * (1 + z) ** -1.48, 8.9 * (1 + z) ** -0.75)
    kpc = norm * 10 ** (slope * light + rng.normal(0.0, 0.15, objects))
    kpc_per_arcsec = 10 ** (distance_modulus(z) / 5 + 1) / 1e3 / (1 + z) ** 2 * np.radians(1 / 3600)
    radius = np.clip(kpc / kpc_per_arcsec, 0.1, 2.0)
    # Bulges fade along the sequence of types; the brighter the galaxy, the more of one it has.
    index = np.interp(kind, [0, 1, 2, 3], [3.5, 2.2, 1.3, 1.0]) * 10 ** (
        0.15 * light.clip(-2, 1) + rng.normal(0.0, 0.08, objects)
    )
    index = np.clip(np.round(index / SERSIC_STEP) * SERSIC_STEP, 1.0, 4.0)
    cosine = rng.random(objects)
    disc = np.sqrt((1 - 0.2**2) * cosine**2 + 0.2**2)
    return radius, index, np.where(early, 0.5 + 0.5 * cosine, disc)
