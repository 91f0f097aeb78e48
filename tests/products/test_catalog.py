"""Magnitudes and fluxes of a table, and the product that reads them from the catalog."""

import numpy as np
import pytest
from astropy import units
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc import schemas
from surveyproc.config.inputs import CatalogSection
from surveyproc.errors import ConfigError
from surveyproc.measure.magnitudes import (
    fluxes_of_fluxes,
    fluxes_of_magnitudes,
    nanojansky,
    without_codes,
)
from surveyproc.products.base import Batch, Product
from surveyproc.products.catalog_photometry import CatalogPhotometry
from surveyproc.schemas import Column
from surveyproc.testing import check_product

NAN = np.nan


@settings(deadline=None)
@given(st.floats(0.1, 40), st.floats(-2, 2), st.floats(1e-4, 0.5))
def test_magnitudes_as_astropy_has_them(magnitude, offset, error):
    flux, flux_err = fluxes_of_magnitudes(
        np.array([magnitude]), np.array([error]), ab_offset=offset
    )
    expected = ((magnitude + offset) * units.ABmag).to_value(units.nJy)
    assert flux[0] == pytest.approx(expected, rel=1e-9)
    step = 1e-6
    slope = ((magnitude + offset - step) * units.ABmag).to_value(units.nJy) - expected
    assert flux_err[0] == pytest.approx(slope / step * error, rel=1e-4)


@settings(deadline=None)
@given(st.floats(-20, 1e6), st.sampled_from([1.4e-10, 0.9e-10, 7.4e-10]), st.floats(0.001, 1))
def test_asinh_magnitudes_give_back_the_flux(nanomaggies, b, error):
    """The formula of SDSS (www.sdss4.org/dr17/algorithms/magnitudes), inverted."""
    pogson = 2.5 / np.log(10)
    magnitude = -pogson * (np.arcsinh(nanomaggies * 1e-9 / (2 * b)) + np.log(b))
    flux, flux_err = fluxes_of_magnitudes(np.array([magnitude]), np.array([error]), softening=b)
    assert flux[0] == pytest.approx(nanomaggies * 3630.7805, rel=1e-6, abs=1e-3)
    width = pogson * 1e-9 / (2 * b) / np.hypot(1, nanomaggies * 1e-9 / (2 * b))
    assert flux_err[0] == pytest.approx(error / width * 3630.7805, rel=1e-6)


def test_asinh_and_logarithmic_magnitudes_agree_where_bright():
    magnitude, error = np.array([15.0]), np.array([0.01])
    one = fluxes_of_magnitudes(magnitude, error, softening=1.2e-10)
    other = fluxes_of_magnitudes(magnitude, error)
    assert np.allclose(one, other, rtol=1e-6)


def test_what_is_missing_or_unknown():
    magnitude = np.array([-99, 0, 99.99, NAN, np.inf, 20, 20, 20])
    error = np.array([0.1, 0.1, 0.1, 0.1, 0.1, -1, NAN, np.inf])
    flux, flux_err = fluxes_of_magnitudes(magnitude, error)
    assert np.isfinite(flux).tolist() == [False] * 5 + [True] * 3
    assert np.isnan(flux_err).all()
    flux, flux_err = fluxes_of_fluxes(np.array([1.0, -3.0, np.inf]), np.array([0, 2, 2]), 1e3)
    assert flux.tolist() == [1e3, -3e3, np.inf]
    assert np.isnan(flux_err).tolist() == [True, False, False]


@settings(deadline=None)
@given(st.floats(-1e4, 1e4, width=32), st.sampled_from(["f4", "f8"]))
def test_codes_are_found_as_the_column_holds_them(code, dtype):
    values = np.array([code, 1e5], dtype)
    assert np.isnan(without_codes(values, [code])).tolist() == [True, False]


def test_codes_in_single_precision_and_integers():
    assert np.isnan(without_codes(np.array([99.99], "f4"), [99.99])).all()
    assert without_codes(np.array([-9999, 3], "i2"), [-9999]).tolist()[1] == 3.0


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("nJy", 1.0),
        ("uJy", 1e3),
        ("µJy", 1e3),
        ("Jansky", 1e9),
        ("nanomaggy", 3630.7805),
        ("10**-12 mgy", 10 ** (0.4 * (31.4 - 30))),
        ("erg/s/cm2/Hz", 1e32),
    ],
)
def test_units_of_flux(unit, value):
    assert nanojansky(unit) == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize("unit", ["ct", "mag", "erg/s/cm2/AA", "microJy", "Jy/beam"])
def test_other_units_are_refused(unit):
    with pytest.raises(ConfigError, match=f"'{unit}' is no unit of flux density"):
        nanojansky(unit)


COLUMNS = [
    Column("mag", "float32"),
    Column("mag_err", "float32"),
    Column("count", "int32"),
    Column("f", "float64", unit="uJy"),
    Column("name", "string"),
    Column("both", "float32", length=2),
]


def product(**keys) -> Product:
    section = CatalogSection.model_validate({"source": "none", **keys})
    return CatalogPhotometry(section, COLUMNS)


def test_the_product_keeps_its_promises():
    magnitudes = {"g": {"column": "mag", "error": "mag_err"}}
    numbers = np.random.default_rng(0).uniform(18, 24, (3, 5))
    columns = dict(zip(("mag", "mag_err", "f"), numbers, strict=True))
    batch = Batch(columns=columns, flags=np.zeros(5, np.int32))
    check_product(product(magnitudes=magnitudes, fluxes={"r": "f"}), batch)


def test_fluxes_errors_and_flags():
    one = product(
        magnitudes={"g": {"column": "mag", "error": "mag_err"}},
        fluxes={"r": "f", "N": {"column": "count", "unit": "nJy"}},
        missing=[-1, 25],
    )
    assert one.inputs.columns == ("mag", "mag_err", "f", "count")
    names = [column.name for column in one.columns]
    assert names == ["flux_g", "flux_r", "flux_N", "flux_err_g", "catalog_photometry_flag"]
    found = one.compute(
        Batch(
            columns={
                "mag": np.array([31.4, 25, 99, NAN], "f4"),
                "mag_err": np.array([0.1, 0.1, 0.1, 0.1], "f4"),
                "f": np.array([1.0, 2.0, np.inf, NAN]),
                "count": np.array([5.0, -1, -1, NAN]),
            },
            flags=np.zeros(4, np.int32),
        )
    )
    assert np.allclose(found["flux_g"], [1, NAN, NAN, NAN], equal_nan=True)
    assert np.allclose(found["flux_r"], [1000, 2000, NAN, NAN], equal_nan=True)
    assert np.allclose(found["flux_N"], [5, NAN, NAN, NAN], equal_nan=True)
    assert np.allclose(found["flux_err_g"], [0.0921034, NAN, NAN, NAN], equal_nan=True)
    gone, infinite, nothing = (
        schemas.flag(name) for name in ("missing_band", "non_finite_input", "no_image")
    )
    assert found["catalog_photometry_flag"].tolist() == [
        0,
        gone,
        gone | infinite | nothing,
        gone | nothing,
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"magnitudes": {"g": "mga"}}, r"catalog.magnitudes.g: .*no column 'mga'.*'mag'"),
        ({"magnitudes": {"g": "name"}}, "catalog.magnitudes.g: column 'name' holds string"),
        ({"fluxes": {"g": "both"}}, "catalog.fluxes.g: column 'both' holds lists of float32"),
        ({"fluxes": {"g": "count"}}, "catalog.fluxes.g: column 'count' says no unit"),
        ({"fluxes": {"g": {"column": "f", "unit": "ct"}}}, "catalog.fluxes.g: 'ct' is no unit"),
        ({"fluxes": {"g": {"column": "f", "error": "e"}}}, "catalog.fluxes.g: .*no column 'e'"),
    ],
)
def test_columns_that_cannot_be_used_are_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        product(**keys)


def test_another_setting_is_another_version():
    kinds = [
        {"column": "mag"},
        {"column": "mag", "ab_offset": 0.9},
        {"column": "mag", "softening": 1e-10},
    ]
    versions = {product(magnitudes={"g": kind}).version for kind in kinds}
    versions.add(product(magnitudes={"g": kinds[0]}, missing=[99]).version)
    assert len(versions) == 4
