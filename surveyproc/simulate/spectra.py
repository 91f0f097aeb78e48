"""AB magnitudes of spectra through bandpasses, from the files that ship with GalSim."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import galsim
import numpy as np
from numpy.typing import NDArray

from surveyproc.simulate.bands import Band

Float = NDArray[np.float64]
GALAXY_TYPES = ("E", "Sbc", "Scd", "Im")
Z_MAX = 1.5
"""Largest redshift. Lyman alpha then lies at 304 nm, blueward of u, so that absorption by the
intergalactic medium, which we do not model, touches no band."""
_REST_R = Band("r", "LSST_r.dat", 0.0, 0.0, 0.0, 0)
_RED_END = 24_500.0


@cache
def _sed(kind: str) -> tuple[Float, Float]:
    """Wavelengths (Angstrom) and F_lambda (arbitrary unit) of one Coleman, Wu & Weedman type."""
    path = Path(galsim.meta_data.share_dir) / "SEDs" / f"CWW_{kind}_ext.sed"
    wave, flux = np.loadtxt(path).T
    # The files end at 2.2 micron and K reaches 2.4, so nearby galaxies need the power law between
    # 1.6 micron and the end to go on.
    start = np.interp(16_000.0, wave, flux)
    slope = np.log(flux[-1] / start) / np.log(wave[-1] / 16_000.0)
    tail = np.linspace(wave[-1], _RED_END, 50)[1:]
    return np.append(wave, tail), np.append(flux, flux[-1] * (tail / wave[-1]) ** slope)


@cache
def _throughput(curve: str) -> tuple[Float, Float]:
    """Wavelengths (Angstrom, every 5) and throughput (any unit) of a band."""
    share = Path(galsim.meta_data.share_dir)
    if curve.endswith(".dat"):
        wave, through = np.loadtxt(share / "bandpasses" / curve).T
        wave = wave * 10.0  # nm
    else:
        path = share / "roman" / "Roman_effarea_20210614.txt"
        column = path.read_text().splitlines()[0].split().index(curve)
        wave, through = np.loadtxt(path, skiprows=1, usecols=(0, column)).T
        wave = wave * 1e4  # micron
    used = wave[through > 1e-3 * through.max()]
    grid = np.arange(used[0], used[-1] + 5.0, 5.0)
    return grid, np.interp(grid, wave, through)


def ab_flux(wave: Float, flux: Float, band: Band, redshifts: Float) -> Float:
    """Flux of a redshifted spectrum through a band, in units of a 0 AB magnitude source.

    Parameters
    ----------
    wave, flux : ndarray of float64, shape (k,)
        Rest wavelength in Angstrom, increasing, and F_lambda in erg/s/cm2/Angstrom.
    band : Band
        The filter.
    redshifts : ndarray of float64, shape (n,)
        Redshifts at which the same luminosity, seen from the same luminosity distance, is put.

    Returns
    -------
    ndarray of float64, shape (n,)
        <F_nu> / 3631 Jy for a photon counter:
        F_nu = int lambda F_lambda T dlambda / (c int T dlambda / lambda), with
        F_lambda(lambda) = F_lambda,rest(lambda / (1 + z)) / (1 + z)
        (Hogg et al. 2002, arXiv:astro-ph/0210394, eqs. 2 to 8).
    """
    grid, through = _throughput(band.curve)
    stretch = 1.0 + np.asarray(redshifts, dtype=np.float64)[:, None]
    seen = np.interp(grid[None, :] / stretch, wave, flux) / stretch
    light = 2.99792458e18  # Angstrom / s
    nu = (seen * grid * through).sum(axis=1) / (light * (through / grid).sum())
    result: Float = nu / 3.631e-20
    return result


def galaxy_offsets(bands: Sequence[Band], types: Float, redshifts: Float) -> Float:
    """Apparent minus absolute rest-frame r magnitude minus distance modulus, i.e. K corrections.

    Parameters
    ----------
    bands : sequence of Band
        The b filters.
    types : ndarray of float64, shape (n,)
        Continuous spectral type: 0 E, 1 Sbc, 2 Scd, 3 Im. Between two of them lies the mixture of
        the two spectra (of equal rest-frame r luminosity) with the fraction as weight.
    redshifts : ndarray of float64, shape (n,)
        Redshifts, 0 to `Z_MAX`.

    Returns
    -------
    ndarray of float64, shape (n, b)
        m_b - M_r - DM, AB magnitudes.
    """
    low = np.clip(np.floor(types).astype(np.int64), 0, len(GALAXY_TYPES) - 2)
    weight = types - low
    columns = []
    for band in bands:
        grid, table = _flux_table(band.curve)
        by_type = np.stack([np.interp(redshifts, grid, row) for row in table])
        rows = np.arange(len(types))
        mixed = (1 - weight) * by_type[low, rows] + weight * by_type[low + 1, rows]
        columns.append(-2.5 * np.log10(mixed))
    return np.stack(columns, axis=1)


@cache
def _flux_table(curve: str) -> tuple[Float, Float]:
    """Redshift grid (g,) and flux over rest-frame r flux, (type, g)."""
    band = Band(curve, curve, 0.0, 0.0, 0.0, 0)
    grid = np.linspace(0.0, Z_MAX, 301)
    rows = []
    for kind in GALAXY_TYPES:
        wave, flux = _sed(kind)
        rest = ab_flux(wave, flux, _REST_R, np.zeros(1))[0]
        rows.append(ab_flux(wave, flux, band, grid) / rest)
    return grid, np.stack(rows)


def blackbody_offsets(bands: Sequence[Band], temperatures: Float) -> Float:
    """Magnitudes of black bodies relative to their r magnitude.

    Parameters
    ----------
    bands : sequence of Band
        The b filters.
    temperatures : ndarray of float64, shape (n,)
        Temperatures, 3,000 to 10,000 K.

    Returns
    -------
    ndarray of float64, shape (n, b)
        m_b - m_r, AB magnitudes, from Planck's law, interpolated in 1/T.
    """
    inverse = np.linspace(1 / 10_000, 1 / 3_000, 60)
    wave = np.linspace(2_500.0, _RED_END, 2_000)
    spectra = [1 / (wave**5 * np.expm1(1.438777e8 * x / wave)) for x in inverse]
    here = np.zeros(1)
    columns = []
    for band in bands:
        ratio = [
            ab_flux(wave, s, band, here)[0] / ab_flux(wave, s, _REST_R, here)[0] for s in spectra
        ]
        columns.append(-2.5 * np.log10(np.interp(1 / temperatures, inverse, ratio)))
    return np.stack(columns, axis=1)
