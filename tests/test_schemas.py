"""Schemas: every file loads, expands, and declares what a reader needs."""

from pathlib import Path

import pyarrow as pa
import pytest
from astropy import units
from astropy.io.votable.ucd import check_ucd

from surveyproc import schemas
from surveyproc.errors import ConfigError

NAMES = [
    path.stem
    for path in (Path(__file__).parent.parent / "schemas").glob("*.toml")
    if path.stem != "flags"
]


@pytest.mark.parametrize("name", NAMES)
def test_columns_have_valid_units_ucds_and_descriptions(name):
    columns = schemas.load(name, bands=("g", "r"), model="net", labels=("a", "b"))
    assert len({column.name for column in columns}) == len(columns)
    for column in columns:
        assert "{" not in column.name + column.description
        assert column.description.endswith(".")
        assert check_ucd(column.ucd, check_controlled_vocabulary=True), column.ucd
        units.Unit(column.unit, format="vounit")
        assert isinstance(column.arrow_type, pa.DataType)


def test_band_columns_repeat_for_every_band():
    names = [column.name for column in schemas.load("photometry", bands=("g", "Ks"))]
    assert names[:4] == ["flux_g", "flux_Ks", "flux_err_g", "flux_err_Ks"]


def test_flag_bits_are_distinct_and_unknown_flags_refused():
    bits = list(schemas.flags().values())
    assert len(set(bits)) == len(bits)
    assert all(bit & (bit - 1) == 0 for bit in bits)
    assert schemas.flag("no_image", "edge") == 3
    with pytest.raises(ConfigError, match="nope"):
        schemas.flag("nope")
