"""The tables beside the images: truth, source catalog and survey.toml."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray

from surveyproc.simulate.bands import Band
from surveyproc.simulate.population import BLEND_RADIUS, Population

Float = NDArray[np.float64]
POSITION_SCATTER = 0.02
"""Standard deviation of a catalog position on each axis, arcsec."""
APERTURE = 1.2
"""Radius, arcsec: wide enough that the bands' different PSFs change colours little."""
NAME = "simulated"
MATCH_RADIUS = 0.5
"""Arcsec; below the least separation of a blend (0.8), far above the scatter of positions."""

_CONFIG = r"""# A survey with known truth, drawn by `surveyproc simulate`.

[survey]
name = "{name}"
root = {root}

[images]
tiles = ["tiles/*.fits"]
bands = [{bands}]
file_pattern = '(?P<tile>[^_/]+)_(?P<band>[^_./]+)(?:\.(?P<kind>weight))?\.fits$'

[catalog]
source = "sources.fits"
partition_rows = {partition_rows}

[[products]]
name = "photometry"
aperture = {aperture}
{photoz}
[truth]
source = "truth.parquet"
redshift = "z"
select = "test"
radius = {radius}
"""
_PHOTOZ = """
[[products]]
name = "photoz"
model = "gaznet-c{bands}"

[products.training]
source = "truth.parquet"
redshift = "z"
select = "spec"
radius = {radius}
"""


def truth_table(people: Population, ra: Float, dec: Float, bands: Sequence[Band]) -> pa.Table:
    """What was drawn, one row an object; unit and description are in each field's metadata.

    Parameters
    ----------
    people : Population
        The objects, n of them.
    ra, dec : ndarray of float64, shape (n,)
        True positions, degrees.
    bands : sequence of Band
        The bands of `people.mag`, in that order.
    """
    columns: list[tuple[str, pa.Array, str, str]] = [
        ("object_id", pa.array(object_ids(len(ra))), "", "Identifier, as in sources.fits."),
        ("ra", pa.array(ra), "deg", "True right ascension, ICRS."),
        ("dec", pa.array(dec), "deg", "True declination, ICRS."),
        ("z", _or_null(people.z), "", "True redshift; null for stars."),
        (
            "type",
            pa.array(people.type_names()),
            "",
            "Nearest spectral type (E, Sbc, Scd, Im: Coleman, Wu & Weedman 1980) or star.",
        ),
        (
            "sed_type",
            _or_null(people.kind),
            "",
            "Continuous spectral type: 0 E, 1 Sbc, 2 Scd, 3 Im, mixtures between; null for stars.",
        ),
        ("is_star", pa.array(people.star), "", "Whether the object is a star."),
    ]
    columns += [
        (
            f"mag_{band.name}",
            pa.array(people.mag[:, i]),
            "mag",
            f"True total AB magnitude, {band.name}.",
        )
        for i, band in enumerate(bands)
    ]
    spec = (
        "Has a spectroscopic redshift: galaxies by chance, more often if bright in r, colour-blind."
    )
    columns += [
        (
            "half_light_radius",
            _or_null(people.radius),
            "arcsec",
            "Half-light radius along the major axis, before the PSF; null for stars.",
        ),
        ("sersic_n", _or_null(people.sersic), "", "Sersic index; null for stars."),
        ("axis_ratio", _or_null(people.axis_ratio), "", "Minor over major axis; null for stars."),
        ("position_angle", _or_null(people.angle), "deg", "From north to east; null for stars."),
        (
            "blended",
            pa.array(people.blended),
            "",
            f"Whether another object lies within {BLEND_RADIUS:g} arcsec.",
        ),
        ("spec", pa.array(people.spec), "", spec),
        ("test", pa.array(~people.spec & ~people.star), "", "Galaxy that is not in spec."),
    ]
    fields = [
        pa.field(name, array.type, metadata={"unit": unit, "description": text})
        for name, array, unit, text in columns
    ]
    return pa.Table.from_arrays([array for _, array, _, _ in columns], schema=pa.schema(fields))


def source_table(ra: Float, dec: Float, rng: np.random.Generator) -> fits.BinTableHDU:
    """What a detection catalog holds: identifier and scattered position, nothing of the truth."""
    scatter = rng.normal(0.0, POSITION_SCATTER / 3600, (2, len(ra)))
    seen_ra = (ra + scatter[0] / np.cos(np.radians(dec))) % 360.0
    columns = [
        fits.Column("object_id", "K", array=object_ids(len(ra))),
        fits.Column("ra", "D", unit="deg", array=seen_ra),
        fits.Column("dec", "D", unit="deg", array=dec + scatter[1]),
    ]
    return fits.BinTableHDU.from_columns(columns, name="SOURCES")


def object_ids(objects: int) -> NDArray[np.int64]:
    """Identifiers: 1 to n. The objects are in random order, so that they tell nothing."""
    return np.arange(1, objects + 1, dtype=np.int64)


def config_text(objects: int, bands: Sequence[Band], root: str) -> str:
    """survey.toml; one band has no colour, so no redshift is asked for then."""
    photoz = _PHOTOZ.format(bands=len(bands), radius=MATCH_RADIUS) if len(bands) > 1 else ""
    return _CONFIG.format(
        name=NAME,
        # TOML knows no pairs of surrogates.
        root=json.dumps(root, ensure_ascii=False),
        bands=", ".join(f'"{band.name}"' for band in bands),
        # Six times fewer than the objects: even a small survey has several partitions.
        partition_rows=max(1, objects // 6),
        aperture=APERTURE,
        photoz=photoz,
        radius=MATCH_RADIUS,
    )


def _or_null(values: Float) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))
