"""Random legal tables, as astropy writes and reads them, against what our readers make of them."""

from __future__ import annotations

import io
import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surveyproc.catalogs.readers import open_table

quick = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

NAMES = st.lists(
    st.sampled_from(["ra", "RA", "Ra", "dec", "mag aper (3px)", "mag.g", "_x", "1st", "a/b", "e"]),
    min_size=1,
    max_size=5,
    unique=True,
)
TEXTS = st.text("abc xyz", max_size=6).map(str.strip)


def ours(content: bytes, suffix: str) -> dict[str, list]:
    """Columns as our reader gives them, two rows at a time; NaN is None."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{suffix}"
        path.write_bytes(content)
        with open_table(str(path)) as reader:
            table = pa.Table.from_batches(reader.batches(2), reader.schema)
    return {
        name: [plain(value) for value in table[name].to_pylist()] for name in table.schema.names
    }


def plain(value):
    """A value of numpy or Python as a Python value; text without blanks at its end."""
    if isinstance(value, np.ma.core.MaskedConstant):
        return None
    if isinstance(value, np.ndarray):
        value = np.ma.MaskedArray(value).ravel().tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        return value.rstrip()
    return None if isinstance(value, float) and math.isnan(value) else value


NUMBERS = {"B": "u1", "I": "i2", "J": "i4", "K": "i8", "E": "f4", "D": "f8"}


@st.composite
def binary_columns(draw, name: str, rows: int):
    """A column for astropy to write, cards to add, and the stored values that are none."""
    letter = draw(st.sampled_from("LXABIJKEDP"))
    cards, blank = {}, None
    if letter == "L":
        values = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
        return fits.Column(name, "L", array=np.array(values, bool)), cards, blank
    if letter == "X":
        count = draw(st.integers(2, 19))
        values = np.array(
            draw(st.lists(st.booleans(), min_size=rows * count, max_size=rows * count))
        )
        return fits.Column(name, f"{count}X", array=values.reshape(rows, count)), cards, blank
    if letter == "A":
        values = draw(st.lists(TEXTS, min_size=rows, max_size=rows))
        return (
            fits.Column(name, f"{draw(st.integers(6, 9))}A", array=np.array(values, "U9")),
            {},
            None,
        )
    inner = draw(st.sampled_from("BIJKED")) if letter == "P" else letter
    dtype = np.dtype(NUMBERS[inner])
    if dtype.kind == "f":
        element = st.floats(width=8 * dtype.itemsize, allow_infinity=True, allow_nan=True)
    else:
        limits = np.iinfo(dtype)
        element = st.one_of(st.integers(int(limits.min), int(limits.max)), st.just(7))
        other = {"B": -128, "I": 2**15, "J": 2**31, "K": 2**63}[inner]
        scaling = draw(
            st.sampled_from([None, (1, other), (0.001, 0), (0.5, 0.3), (1, 10), (2, 0), (-1, 0)])
        )
        # astropy cuts scaled arrays of variable length to integers, and fails on 64-bit integers
        # with another zero point than that of unsigned ones.
        known = letter != "P" and (inner != "K" or scaling is None or scaling[1] in (0, other))
        if scaling is not None and known:
            cards["TSCAL"], cards["TZERO"] = scaling
        if draw(st.booleans()):
            cards["TNULL"] = blank = 7
    if letter == "P":
        parts = [
            np.array(draw(st.lists(element, max_size=3)), dtype.newbyteorder(">"))
            for _ in range(rows)
        ]
        array = np.empty(rows, object)
        array[:] = parts
        return (
            fits.Column(name, f"{draw(st.sampled_from('PQ'))}{inner}()", array=array),
            cards,
            blank,
        )
    count = draw(st.sampled_from([1, 1, 1, 2, 6]))
    size = rows * count
    values = np.array(draw(st.lists(element, min_size=size, max_size=size)), dtype)
    if count == 1:
        return fits.Column(name, inner, array=values), cards, blank
    dim = {"dim": "(3,2)"} if count == 6 and draw(st.booleans()) else {}
    return (
        fits.Column(name, f"{count}{inner}", array=values.reshape(rows, count), **dim),
        cards,
        blank,
    )


@st.composite
def binary_tables(draw):
    """The bytes of a FITS file with one binary table, and which stored values are none, by name."""
    rows = draw(st.integers(0, 5))
    made = {name: draw(binary_columns(name, rows)) for name in draw(NAMES)}
    hdu = fits.BinTableHDU.from_columns([column for column, _, _ in made.values()], nrows=rows)
    whole = io.BytesIO()
    hdu.writeto(whole)
    content = whole.getvalue()
    # Scaling is written into the header alone, so that the stored values are those drawn.
    with fits.open(io.BytesIO(content)) as hdus:
        header, place = hdus[1].header.copy(), hdus[1].fileinfo()["datLoc"]
    for number, (_, cards, _) in enumerate(made.values(), start=1):
        header.update({f"{key}{number}": value for key, value in cards.items()})
    primary = fits.PrimaryHDU().header.tostring().encode()
    return primary + header.tostring().encode() + content[place:], {
        name: blank for name, (_, _, blank) in made.items()
    }


@quick
@given(binary_tables())
def test_binary_tables_of_fits(drawn):
    content, blanks = drawn
    found, expected = ours(content, "fits"), by_astropy(content, blanks)
    assert {name: found[name] for name in found if found[name] != expected[name]} == {}
    assert list(found) == list(expected)


def by_astropy(content: bytes, blanks: dict[str, int | None]) -> dict[str, list]:
    """Columns as astropy reads them, without the values that are stored as TNULL."""
    with (
        warnings.catch_warnings(),
        fits.open(io.BytesIO(content), memmap=False) as hdus,
        fits.open(io.BytesIO(content), memmap=False) as again,
    ):
        warnings.simplefilter("ignore")
        # The same numbers as they are stored.
        for key in [key for key in again[1].header if key.startswith(("TSCAL", "TZERO"))]:
            del again[1].header[key]
        expected = {}
        for number, name in enumerate(hdus[1].columns.names):
            values, stored = (
                [plain(value) for value in opened[1].data.field(number)] for opened in (hdus, again)
            )
            if blanks[name] is not None:
                pairs = zip(values, stored, strict=True)
                values = [without(value, raw, blanks[name]) for value, raw in pairs]
            expected[name] = values
    return expected


def without(value, stored, blank):
    """None where the stored value is the one that means none."""
    if isinstance(value, list):
        return [without(v, s, blank) for v, s in zip(value, stored, strict=True)]
    return None if stored == blank else value


@st.composite
def ascii_tables(draw):
    """The bytes of a FITS file with one ASCII table, and where its cells hold nothing."""
    rows = draw(st.integers(1, 4))  # astropy cannot read an ASCII table without rows
    header = fits.Header(
        {"XTENSION": "TABLE", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 0, "NAXIS2": rows}
        | {"PCOUNT": 0, "GCOUNT": 1, "TFIELDS": 0}
    )
    lines, nothing = [""] * rows, {}
    for number, name in enumerate(draw(NAMES), start=1):
        form = draw(st.sampled_from(["I9", "F12.4", "E15.6", "D20.10", "A8"]))
        width = int(form[1:].partition(".")[0])
        null = draw(st.sampled_from([None, "NaN", "-99", "***"])) if form[0] != "A" else None
        header[f"TTYPE{number}"], header[f"TFORM{number}"] = name, form
        header[f"TBCOL{number}"] = len(lines[0]) + 2
        if null is not None:
            header[f"TNULL{number}"] = null
        if form[0] in "IF" and draw(st.booleans()):
            header[f"TSCAL{number}"], header[f"TZERO{number}"] = 0.5, 3.0
        nothing[name] = []
        for row in range(rows):
            if form[0] == "A":
                text = draw(TEXTS)
            elif draw(st.booleans()) and null is not None:
                text = null
            elif form[0] == "I":
                text = str(draw(st.integers(-98, 10**8)))
            else:
                value = draw(st.floats(-90, 1e6))
                text = f"{value:.4f}" if form[0] == "F" else f"{value:.6E}"
                text = text.replace("E", "D") if form[0] == "D" else text
            nothing[name].append(null is not None and text == null)
            lines[row] += " " + (text.ljust(width) if form[0] == "A" else text.rjust(width))
        header["NAXIS1"] += width + 1
        header["TFIELDS"] = number
    data = "".join(lines).encode()
    padded = data.ljust(-(-len(data) // 2880) * 2880)
    primary = fits.PrimaryHDU().header.tostring().encode()
    return primary + header.tostring().encode() + padded, nothing


@quick
@given(ascii_tables())
def test_ascii_tables_of_fits(drawn):
    content, nothing = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(io.BytesIO(content), memmap=False) as hdus:
            expected = {
                name: [
                    None if empty else plain(value)
                    for value, empty in zip(hdus[1].data.field(number), nothing[name], strict=True)
                ]
                for number, name in enumerate(hdus[1].columns.names)
            }
    assert ours(content, "fits") == expected


@st.composite
def tables(draw):
    """A table of astropy with masked values, in all types that every format can hold."""
    rows = draw(st.integers(1, 5))
    table = Table()
    for name in draw(NAMES):
        kind = draw(st.sampled_from(["i2", "i4", "i8", "u1", "f4", "f8", "bool", "U6"]))
        if kind == "U6":
            element = TEXTS
        elif kind == "bool":
            element = st.booleans()
        elif kind[0] == "f":
            element = st.floats(width=8 * int(kind[1]), allow_nan=False, allow_infinity=False)
        else:
            limits = np.iinfo(kind)
            element = st.integers(int(limits.min), int(limits.max))
        values = draw(st.lists(element, min_size=rows, max_size=rows))
        mask = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
        table[name] = MaskedColumn(np.array(values, kind), mask=mask)
    # Rows that are empty throughout are no rows in text.
    table["end"] = MaskedColumn(np.arange(rows), mask=[False] * rows)
    return table


def written(table: Table, **options) -> bytes:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        table.write(Path(folder) / "t", **options)
        return (Path(folder) / "t").read_bytes()


@quick
@given(tables(), st.sampled_from(["tabledata", "binary2"]))
def test_votables(table, serialization):
    content = written(table, format="votable", tabledata_format=serialization)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = Table.read(io.BytesIO(content), format="votable", use_names_over_ids=True)
    assert ours(content, "vot") == columns_of(known)


def columns_of(table: Table) -> dict[str, list]:
    return {name: [plain(value) for value in table[name]] for name in table.colnames}


@quick
@given(tables(), st.sampled_from([",", " "]))
def test_ecsv(table, delimiter):
    content = written(table, format="ascii.ecsv", delimiter=delimiter)
    known = Table.read(content.decode(), format="ascii.ecsv")
    assert ours(content, "ecsv") == columns_of(known)


@quick
@given(tables(), st.sampled_from([",", "\t", ";", "|"]), st.sampled_from(["", "# a comment\n"]))
def test_csv(table, delimiter, comment):
    content = comment.encode() + written(table, format="ascii.csv", delimiter=delimiter)
    found = ours(content, "csv")
    assert list(found) == table.colnames
    for name, values in columns_of(table).items():
        if table[name].dtype.kind in "U":
            # Text knows no difference between nothing and none.
            assert [value or "" for value in found[name]] == [value or "" for value in values]
        elif table[name].dtype.kind == "f":
            pairs = zip(found[name], values, strict=True)
            assert all(a == pytest.approx(b, rel=1e-6) if a and b else a == b for a, b in pairs)
        elif any(value is not None for value in values):
            assert found[name] == values


@quick
@given(tables())
def test_parquet(table):
    arrays = {name: pa.array(columns_of(table)[name]) for name in table.colnames}
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays), sink, row_group_size=3)
    assert ours(sink.getvalue(), "parquet") == columns_of(table)
