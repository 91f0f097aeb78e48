from dataclasses import replace

import galsim
import galsim.roman
import numpy as np
import pytest

from surveyproc.errors import ConfigError
from surveyproc.simulate.bands import BANDS, DEFAULT_BANDS, choose
from surveyproc.simulate.spectra import (
    GALAXY_TYPES,
    Z_MAX,
    ab_flux,
    blackbody_offsets,
    galaxy_offsets,
)

ALL = choose(DEFAULT_BANDS)


@pytest.mark.parametrize("kind", range(len(GALAXY_TYPES)))
@pytest.mark.parametrize("z", [0.1, 0.5, 1.2])
def test_colours_equal_those_galsim_computes(kind: int, z: float) -> None:
    bands = choose(["u", "g", "r", "i", "z", "y"])
    ours = galaxy_offsets(bands, np.array([float(kind)]), np.array([z]))[0]
    sed = galsim.SED(f"CWW_{GALAXY_TYPES[kind]}_ext.sed", "Ang", "flambda").atRedshift(z)
    theirs = np.array(
        [
            sed.calculateMagnitude(galsim.Bandpass(band.curve, "nm").withZeropoint("AB"))
            for band in bands
        ]
    )
    np.testing.assert_allclose(np.diff(ours), np.diff(theirs), atol=0.01)


def test_near_infrared_colours_equal_those_galsim_computes() -> None:
    passes = galsim.roman.getBandpasses(AB_zeropoint=True)
    bands = choose(["J", "H", "K"])
    ours = galaxy_offsets(bands, np.array([1.0]), np.array([0.6]))[0]
    sed = galsim.SED("CWW_Sbc_ext.sed", "Ang", "flambda").atRedshift(0.6)
    theirs = np.array([sed.calculateMagnitude(passes[band.curve]) for band in bands])
    np.testing.assert_allclose(np.diff(ours), np.diff(theirs), atol=0.02)


def test_k_correction_of_a_flat_spectrum_is_the_bandwidth_term() -> None:
    # F_nu constant: K = -2.5 log10(1 + z) (Hogg et al. 2002), in every band.
    wave = np.linspace(500.0, 30_000.0, 5_000)
    z = np.array([0.0, 0.5, 1.0])
    for band in ALL:
        flux = ab_flux(wave, 0.0363078 * 2.99792458 / wave**2, band, z)
        np.testing.assert_allclose(flux, flux[0] * (1 + z), rtol=2e-3)
    # F_nu = 3631 Jy is magnitude 0 by definition.
    zero = ab_flux(wave, 3.631e-20 * 2.99792458e18 / wave**2, BANDS["K"], z[:1])
    assert zero[0] == pytest.approx(1.0, rel=1e-3)


def test_redder_types_are_redder_at_every_redshift() -> None:
    for z in (0.05, 0.4, 0.8):
        mags = galaxy_offsets(ALL, np.arange(4.0), np.full(4, z))
        assert (np.diff(mags[:, 1] - mags[:, 4]) < 0).all()  # g - z falls from E to Im


def test_types_between_two_templates_lie_between_them_and_reach_them() -> None:
    kinds = np.array([1.0, 1.25, 1.5, 2.0])
    colour = galaxy_offsets(ALL, kinds, np.full(4, 0.3))
    assert (np.diff(colour[:, 1] - colour[:, 2]) < 0).all()
    edge = galaxy_offsets(ALL, np.array([2.0 - 1e-9, 3.0]), np.array([0.3, Z_MAX]))
    np.testing.assert_allclose(edge[0], colour[3], atol=1e-6)
    assert np.isfinite(edge).all()


def test_cool_stars_are_red() -> None:
    cool, hot = blackbody_offsets(ALL, np.array([3_500.0, 7_000.0]))
    assert cool[1] - cool[3] > hot[1] - hot[3] + 0.5
    assert cool[2] == pytest.approx(0.0, abs=1e-9)


def test_sky_noise_gives_the_stated_depth() -> None:
    # With its own profile as weight, a Gaussian PSF of that FWHM has n_eff = 4 pi s^2 pixels.
    band = BANDS["i"]
    s = band.fwhm / 0.25 / (2 * np.sqrt(2 * np.log(2)))
    faint = 10 ** (-0.4 * (band.depth - band.zeropoint))
    assert faint / (band.sky_sigma * np.sqrt(4 * np.pi) * s) == pytest.approx(5.0, rel=1e-3)
    assert replace(band, depth=band.depth + 2.5).sky_sigma == pytest.approx(band.sky_sigma / 10)


@pytest.mark.parametrize("names", [["g", "q"], []])
def test_unknown_bands_are_named(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"'q'|no band is named"):
        choose(names)
