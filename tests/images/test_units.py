import math

import pytest

from surveyproc.images.units import noise_kind, zeropoint_of

SQUARE_ARCSEC = math.radians(1 / 3600) ** 2


@pytest.mark.parametrize(
    ("bunit", "expected"),
    [
        ("nJy", 31.4),
        ("uJy", 23.9),
        ("microJy", 23.9),
        ("micro-Janskys", 23.9),
        ("mJy", 16.4),
        ("Jy", 8.9),
        ("Jy/pix", 8.9),
        ("uJy / pixel", 23.9),
        ("10**-6 Jy", 23.9),
        ("nanomaggy", 22.5),
        ("nanomaggies", 22.5),
        ("maggies", 0.0),
        # 1 MJy/sr is 23.504 uJy a square arcsec.
        ("MJy/sr", 31.4 - 2.5 * math.log10(1e15 * SQUARE_ARCSEC)),
        ("mJy/arcsec2", 16.4),
    ],
)
def test_units_of_flux_have_a_zero_point(bunit, expected):
    assert zeropoint_of(bunit, lambda: SQUARE_ARCSEC) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "bunit", ["", "ADU", "adu", "counts", "electron/s", "ELECTRONS/S", "DN/s", "cps", "UNITLESS",
              "image", "erg/s/cm2/Angstrom"]
)  # fmt: skip
def test_units_of_counts_have_none(bunit):
    assert zeropoint_of(bunit, lambda: pytest.fail("the pixel's area was asked for")) is None


@pytest.mark.parametrize(
    "bunit", ["Jy/beam", "MJY/SR", "mag", "mag/arcsec2", "asinh", "log10(uJy)"]
)
def test_flux_that_is_not_understood_is_never_taken_for_counts(bunit):
    with pytest.raises(ValueError, match="linear unit"):
        zeropoint_of(bunit, lambda: SQUARE_ARCSEC)


@pytest.mark.parametrize(
    ("bunit", "expected"),
    [
        ("variance", "variance"),
        ("Variance of counts", "variance"),
        ("nJy2", "variance"),
        ("(MJy/sr)^2", "variance"),
        ("MJy2/sr2", "variance"),
        ("electron2/s2", "variance"),
        ("rms", "rms"),
        ("Inverse variance", "weight"),
        ("1/nanomaggy^2", "weight"),
        ("nJy**-2", "weight"),
        ("weight", "weight"),
        # Copied from the image, as often as not.
        ("adu", ""),
        ("nJy", ""),
        ("MJy/sr", ""),
        ("electron/s", ""),
        ("UNITLESS", ""),
        ("", ""),
    ],
)
def test_what_a_plane_of_errors_says_of_itself(bunit, expected):
    assert noise_kind(bunit) == expected
