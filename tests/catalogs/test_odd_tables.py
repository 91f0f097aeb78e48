"""Tables as archives and pipelines write them: one property of each kind, on the reader."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from sample_tables import all_rows, run

from surveyproc.catalogs.formats.cells import ascii_numbers, logicals
from surveyproc.catalogs.formats.choice import own_names
from surveyproc.catalogs.formats.here import MOST_COLUMNS
from surveyproc.catalogs.readers import open_table, read_numbers
from surveyproc.catalogs.units import degrees_per
from surveyproc.errors import InputError


def rows_of(path, **which) -> dict[str, list]:
    with open_table(str(path), **which) as reader:
        return pa.Table.from_batches(reader.batches(2), reader.schema).to_pydict()


def two_tables(path):
    first = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])], name="ONE")
    columns = [fits.Column(name, "D", array=[2.0]) for name in ("ra", "dec")]
    second = fits.BinTableHDU.from_columns(columns, name="TWO")
    image = fits.CompImageHDU(np.zeros((8, 8), "f4"), name="ra")
    fits.HDUList([fits.PrimaryHDU(), image, first, second]).writeto(path)


@pytest.mark.parametrize("table", [3, "TWO", "two", None])
def test_the_hdu_that_is_named_or_has_the_columns(tmp_path, table):
    two_tables(tmp_path / "t.fits")
    assert rows_of(tmp_path / "t.fits", table=table, columns=["ra"]) == {"ra": [2.0], "dec": [2.0]}
    found = read_numbers(str(tmp_path / "t.fits"), ["dec"], table)
    assert found["dec"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (None, [], r"2 tables; the key `table`.*\n  2: ONE: a\n  3: TWO: ra, dec"),
        (None, ["z"], "no table with the columns z"),
        (1, ["ra"], "no table is called 1"),
        ("THREE", ["ra"], "no table is called 'THREE'"),
    ],
)
def test_tables_are_listed_where_it_is_not_clear_which(tmp_path, table, columns, message):
    two_tables(tmp_path / "t.fits")
    with pytest.raises(InputError, match=message):
        open_table(str(tmp_path / "t.fits"), table, columns)


def votable(*tables: str, before: str = "", after: str = "") -> bytes:
    body = "".join(tables)
    return f"<VOTABLE><RESOURCE>{before}{body}{after}</RESOURCE></VOTABLE>".encode()


FIELD = '<FIELD name="{}" datatype="int"/>'


def vo_table(name: str, column: str, *values: int) -> str:
    rows = "".join(f"<TR><TD>{value}</TD></TR>" for value in values)
    data = f"<DATA><TABLEDATA>{rows}</TABLEDATA></DATA>"
    return f'<!-- <TABLEDATA> --><TABLE ID="{name}">{FIELD.format(column)}{data}</TABLE>'


@pytest.mark.parametrize("which", [{"table": "b"}, {"table": 1}, {"columns": ["y"]}])
def test_the_table_of_a_votable_that_is_named_or_has_the_columns(tmp_path, which):
    tables = (vo_table("a", "x", 1), vo_table("b", "y", 2, 3, 4), vo_table("c", "x", 5))
    (tmp_path / "t.vot").write_bytes(votable(*tables))
    assert rows_of(tmp_path / "t.vot", **which) == {"y": [2, 3, 4]}
    with pytest.raises(InputError, match=r"2 tables with the columns x.*\n  0: a: x\n  1: b: y"):
        open_table(str(tmp_path / "t.vot"), columns=["x"])


@pytest.mark.parametrize("behind", [False, True])
def test_what_a_service_says_of_its_answer(tmp_path, behind):
    where = "after" if behind else "before"
    info = '<INFO name="QUERY_STATUS" value="{}">Timed  out</INFO>'
    path = tmp_path / "t.vot"
    path.write_bytes(votable(vo_table("a", "x", 1), **{where: info.format("OVERFLOW")}))
    with open_table(str(path)) as reader:
        assert "t.vot: is a part of what was asked for" in reader.warnings[0]
    path.write_bytes(votable(vo_table("a", "x", 1), **{where: info.format("ERROR")}))
    with pytest.raises(InputError, match="service's error and no catalog: Timed out"):
        open_table(str(path))


def test_a_repeated_name_is_refused_where_it_is_asked_for_and_renamed_elsewhere(tmp_path):
    (tmp_path / "t.csv").write_text("a,a,,b\n1,2,3,4\n")
    assert rows_of(tmp_path / "t.csv") == {"a": [1], "a_2": [2], "col3": [3], "b": [4]}
    with open_table(str(tmp_path / "t.csv")) as reader:
        assert len(reader.warnings) == 2
        assert next(reader.batches(9, ["b", "a_2"])).num_rows == 1
        with pytest.raises(InputError, match=r"t\.csv: several columns are called 'a'"):
            list(reader.batches(9, ["a"]))


def test_own_names_meet_no_other():
    names = own_names(["a", "a", "a_2", "", "col4"]).names
    assert names == ("a", "a_3", "a_2", "col_5", "col4")


@pytest.mark.parametrize(
    "text",
    [
        "ra,dec\n1,2\n3,4\n",
        "\ufeffra, dec\r\n1, 2\r\n3, 4\r\n",
        "# from the archive\n#\nra,dec\n1,2\n# between\n3,4\n",
        "#ra,dec\n1,2\n3,4\n",
        "# an old list\n# ra dec\n 1  2\n 3\t4\n",
        "ra\tdec\n1\t2\n3\t4\n",
        "ra;dec\n1;2\n3;4\n",
        "ra|dec\n1|2\n3|4",
        "  ra   dec\n1.  2.\n 3.  4.\n",
    ],
)
def test_tables_of_text(tmp_path, text):
    (tmp_path / "t.txt").write_bytes(text.encode())
    assert rows_of(tmp_path / "t.txt") == {"ra": [1, 3], "dec": [2, 4]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,4\n", "no line of column names"),
        ("ra,x;dec\n1,2;3\n", "may be separated by ',' or by ';'"),
        ("ra,dec\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_tables_of_text_that_would_be_a_guess(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        open_table(str(tmp_path / "t.csv"))


def test_a_name_that_begins_with_a_hash_is_no_comment(tmp_path):
    (tmp_path / "t.csv").write_text("name,z\nM31,0\n#7,1\n")
    assert rows_of(tmp_path / "t.csv") == {"name": ["M31", "#7"], "z": [0, 1]}


def test_folders_of_hive_are_columns_and_those_of_hats_are_not(tmp_path):
    for field, night, first in (("f1", "07", 1), ("f2", "08", 2)):
        folder = tmp_path / "hive" / f"field={field}" / f"n={first}" / f"night={night}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"a": [first]}), folder / "x.parquet")
    assert rows_of(tmp_path / "hive") == {
        "a": [1, 2],
        "field": ["f1", "f2"],
        "n": [1, 2],
        "night": ["07", "08"],
    }
    leaf = tmp_path / "cat" / "dataset" / "Norder=0" / "Dir=0"
    leaf.mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), leaf / "Npix=3.parquet")
    pq.write_table(pa.table({"a": [1]}), leaf.parents[1] / "data_thumbnail.parquet")
    assert rows_of(tmp_path / "cat") == {"a": [1]}


def test_logicals_and_blanks_without_a_value():
    values, none = logicals(np.frombuffer(b"TF\0", np.uint8))
    assert values.tolist() == [True, False, False]
    assert none.tolist() == [False, False, True]
    fields = np.frombuffer(b" 1.5D2   NaN   -9 ", np.uint8).reshape(3, 6)
    numbers, empty = ascii_numbers(fields, "-9", whole=False, decimals=1)
    assert numbers[0] == 150.0
    assert np.isnan(numbers[1])
    assert empty.tolist() == [False, False, True]
    with pytest.raises(ValueError, match="'15' has no decimal point"):
        ascii_numbers(np.frombuffer(b"  15", np.uint8)[None], None, whole=False, decimals=2)


def test_scaled_arrays_of_variable_length(tmp_path):
    array = np.empty(2, object)
    array[:] = [np.array([1, 7, 3], ">i2"), np.array([], ">i2")]
    hdu = fits.BinTableHDU.from_columns([fits.Column("v", "PI()", array=array)])
    hdu.writeto(tmp_path / "t.fits")
    content = (tmp_path / "t.fits").read_bytes()
    cards = b"".join(
        card.ljust(80) for card in (b"TSCAL1  =  0.5", b"TZERO1  =  3", b"TNULL1  =  7", b"END")
    )
    end = content.index(b"END".ljust(80), 2880)
    (tmp_path / "t.fits").write_bytes(content[:end] + cards + content[end + len(cards) :])
    assert rows_of(tmp_path / "t.fits") == {"v": [[3.5, None, 4.5], []]}


def test_a_fifo_or_device_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "a.parquet")
    for name, kind in (("t.csv", "FIFO"), ("zero.csv", "device"), ("folder", "FIFO")):
        with pytest.raises(InputError, match=f"is a {kind}, not a regular file"):
            open_table(str(tmp_path / name))


@pytest.mark.parametrize("name", ["t.fits+1", "t.fits[1]", "t.fits(x)", "$HOME.fits", "!t.fits"])
def test_names_of_files_are_no_expressions(tmp_path, name):
    Table({"a": [1]}).write(tmp_path / "t.fits")
    Table({"a": [2]}).write(tmp_path / "other.fits")
    (tmp_path / "other.fits").rename(tmp_path / name)
    assert rows_of(tmp_path / name) == {"a": [2]}


@pytest.mark.parametrize(
    ("unit", "degrees"),
    [("", 1), ("deg.", 1), ("Angle[rad]", 180 / np.pi), ("HOURS", 15), ("mas", 1 / 3.6e6)],
)
def test_units_of_positions(unit, degrees):
    assert degrees_per(unit, hours=True) == pytest.approx(degrees, rel=1e-15)


def test_positions_of_labels_come_in_degrees(tmp_path):
    table = Table({"ra": [10.0], "dec": [0.5], "z": [1.0]}, units={"ra": "h", "dec": "rad"})
    table.write(tmp_path / "t.fits")
    found = read_numbers(str(tmp_path / "t.fits"), ["ra", "dec", "z"], None, ("ra", "dec"))
    assert (found["ra"][0], found["z"][0]) == (150.0, 1.0)
    assert found["dec"][0] == pytest.approx(np.degrees(0.5), rel=1e-15)


@pytest.mark.parametrize(("unit", "hours"), [("h", False), ("mag", True), ("h:m:s", True)])
def test_units_that_are_no_angle(unit, hours):
    with pytest.raises(ValueError, match=r"it is|hours are"):
        degrees_per(unit, hours=hours)


# astropy's own Parquet files say how long the texts are; it measures those of others.
@pytest.mark.filterwarnings("ignore:No table..len..:astropy.utils.exceptions.AstropyUserWarning")
def test_times_and_large_integers_are_opened_by_astropy_with_all_their_digits(tmp_path):
    source = pa.table(
        {
            "object_id": [1, 2],
            "ra": [1.0, 1.0],
            "dec": [1.0, 1.0],
            "when": pa.array([0, 86_400_000_001], pa.timestamp("us", "UTC")),
            "day": pa.array([0, 1], pa.date32()),
            "took": pa.array([1, 2_000], pa.duration("ms")),
            "huge": pa.array([1, 2**64 - 1], pa.uint64()),
            "fits": pa.array([1, 2**63 - 1], pa.uint64()),
            "Norder": [1, 1],
        }
    )
    pq.write_table(source, tmp_path / "s.parquet")
    store, done = run(tmp_path, tmp_path / "s.parquet")
    assert [note.split(" ")[2] for note in done.notes] == ["'Norder'", "'huge'"]
    (leaf,) = (tmp_path / "catalogs/test/dataset").glob("Norder=*/Dir=*/*.parquet")
    opened = Table.read(leaf, format="parquet.votable")
    ours = all_rows(store)
    expected = {
        "when": ["1970-01-01T00:00:00.000000", "1970-01-02T00:00:00.000001"],
        "day": ["1970-01-01", "1970-01-02"],
        "took": [0.001, 2.0],
        "huge": ["1", "18446744073709551615"],
        "fits": [1, 2**63 - 1],
    }
    for name, values in expected.items():
        assert opened[name].tolist() == values
        assert ours[name].to_pylist() == values
    assert str(opened["took"].unit) == "s"


def test_a_line_of_names_that_has_no_end_for_another_delimiter_is_cut_at_commas(tmp_path):
    names = ",".join(f"a_column_with_a_long_name_{number}" for number in range(6000))
    (tmp_path / "t.csv").write_text(f"ra,{names}\n" + "1" + ",0" * 6000 + "\n")
    with open_table(str(tmp_path / "t.csv")) as reader:
        assert len(reader.names) == 6001


def test_a_table_of_too_many_columns_is_refused(tmp_path):
    names = ",".join(f"c{number}" for number in range(MOST_COLUMNS + 1))
    (tmp_path / "t.csv").write_text(f"{names}\n" + "0," * MOST_COLUMNS + "0\n")
    with pytest.raises(InputError, match=f"has {MOST_COLUMNS + 1} columns"):
        open_table(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    "column",
    [["a" * (1 << 20)] * 600, pa.array([[0.0] * 100_000] * 600, pa.list_(pa.float64()))],
    ids=["text", "lists"],
)
def test_a_small_file_of_wide_rows_is_refused_before_it_is_unpacked(tmp_path, column):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"ra": [1.0] * 600, "wide": column}), path, compression="zstd")
    assert path.stat().st_size < 1_000_000
    before = pa.total_allocated_bytes()
    with open_table(str(path)) as reader:
        assert [batch.num_rows for batch in reader.batches(65_536, ["ra"])] == [600]
        with pytest.raises(InputError, match="64 kB on average"):
            list(reader.batches(65_536))
    assert pa.total_allocated_bytes() - before < 100e6


def test_text_that_repeats_is_read_as_it_is(tmp_path):
    path = tmp_path / "t.parquet"
    texts = ["star", None, "galaxy"] * 5000
    pq.write_table(pa.table({"type": texts, "other": texts}), path, use_dictionary=["type"])
    with open_table(str(path)) as reader:
        whole = pa.Table.from_batches(reader.batches(1000))
    assert whole["type"].to_pylist() == whole["other"].to_pylist() == texts
