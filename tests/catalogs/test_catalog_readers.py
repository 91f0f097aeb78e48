from __future__ import annotations

import gzip
import tracemalloc

import fitsio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import QTable, Table
from sample_tables import sky_table

from surveyproc.catalogs.readers import checksum, open_table
from surveyproc.errors import InputError
from surveyproc.store.urls import public_url

ROWS = 53


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    table = sky_table(ROWS)
    table["vector"] = np.arange(ROWS * 3, dtype="f4").reshape(ROWS, 3)
    table.write(folder / "t.fits")
    table.write(folder / "t.fits.gz")
    table.write(folder / "t.ecsv")
    table.write(folder / "comma.ecsv", delimiter=",")
    table.write(folder / "t.vot", format="votable")
    (folder / "t.vot.gz").write_bytes(gzip.compress((folder / "t.vot").read_bytes()))
    table.write(folder / "binary.vot", format="votable", tabledata_format="binary2")
    flat = table.copy()
    del flat["vector"]
    flat.write(folder / "t.csv")
    with open_table(str(folder / "t.ecsv")) as reader:
        pq.write_table(pa.Table.from_batches(reader.batches(99)), folder / "t.parquet")
    (folder / "many").mkdir()
    whole = pq.read_table(folder / "t.parquet")
    pq.write_table(whole.slice(0, 20), folder / "many" / "a.parquet")
    pq.write_table(whole.slice(20), folder / "many" / "b.parquet")
    return folder


def plain(table: pa.Table) -> dict[str, list]:
    return {
        name: [None if value != value else value for value in column]
        for name, column in table.to_pydict().items()
    }


FILES = {
    "t.fits": "fits",
    "t.fits.gz": "fits",
    "t.ecsv": "ecsv",
    "comma.ecsv": "ecsv",
    "t.vot": "votable",
    "t.vot.gz": "votable",
    "binary.vot": "votable",
    "t.csv": "csv",
    "t.parquet": "parquet",
    "many": "parquet",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rows", [7, 1000])
def test_every_format_gives_the_same_rows(written, name, rows):
    with open_table(str(written / "t.fits")) as reader:
        expected = plain(pa.Table.from_batches(reader.batches(1000)))
    with open_table(str(written / name)) as reader:
        assert reader.kind == FILES[name]
        batches = list(reader.batches(rows))
        assert all(batch.num_rows <= rows for batch in batches)
        assert all(batch.schema.equals(reader.schema) for batch in batches)
        found = plain(pa.Table.from_batches(batches))
        part = pa.Table.from_batches(reader.batches(rows, ["dec", "object_id"]))
    assert part.column_names == ["dec", "object_id"]
    assert part["object_id"].to_pylist() == expected["object_id"]
    for column in found:
        if name == "t.csv" and column == "mag":
            np.testing.assert_allclose(
                np.array(found[column], float), np.array(expected[column], float), rtol=1e-6
            )
        else:
            assert found[column] == expected[column], column


@pytest.mark.parametrize("name", [name for name in FILES if name != "t.csv"])
def test_units_ucds_and_descriptions_are_kept(written, name):
    with open_table(str(written / name)) as reader:
        metadata = reader.schema.field("mag").metadata
        assert metadata[b"unit"] == b"mag"
        assert reader.schema.field("ra").metadata[b"unit"] == b"deg"
        assert reader.schema.field("vector").type == pa.list_(pa.float32(), 3)
    if "fits" not in name:
        assert metadata[b"ucd"] == b"phot.mag;em.opt.R"
        assert metadata[b"description"] == b"A magnitude & more"


def test_fits_ucd_and_description_keywords(tmp_path):
    path = tmp_path / "ucd.fits"
    fitsio.write(path, np.ones(3, [("z", "f4")]), header={"TUCD1": "src.redshift", "TCOMM1": "z!"})
    with open_table(str(path)) as reader:
        assert reader.schema.field("z").metadata == {b"ucd": b"src.redshift", b"description": b"z!"}


def test_fits_unsigned_scaled_and_variable_columns(tmp_path):
    path = tmp_path / "odd.fits"
    data = np.zeros(3, [("u", "u8"), ("w", "u2"), ("var", "O"), ("text", "S5")])
    data["u"] = [0, 2**63 + 5, 1]
    data["w"] = [0, 65535, 7]
    data["var"] = [np.arange(k, dtype="i4") for k in (1, 0, 3)]
    data["text"] = [b"a", b"", b"long5"]
    fitsio.write(path, data)
    with open_table(str(path)) as reader:
        table = pa.Table.from_batches(reader.batches(2)).to_pydict()
    assert table["u"] == [0, 2**63 + 5, 1]
    assert table["w"] == [0, 65535, 7]
    assert table["var"] == [[0], [], [0, 1, 2]]
    assert table["text"] == ["a", "", "long5"]


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("many",)])
def test_truncated_files_are_named(written, tmp_path, name):
    data = (written / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: int(len(data) * 0.8) - 11])
    with pytest.raises(InputError, match=name.replace(".", r"\.")), open_table(str(cut)) as reader:
        for _ in reader.batches(9):
            pass


def test_truncated_fits_says_how_much_is_missing(tmp_path):
    path = tmp_path / "cut.fits"
    fitsio.write(path, np.zeros(9000, [("a", "f8")]))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"20000 bytes where the header promises 77760"):
        open_table(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.fits", b"", "is empty"),
        ("noise.bin", b"\0\1\2" * 50, "not a table"),
        ("fake.fits", b"hello", "not a table"),
        ("page.xml", b"<?xml version='1.0'?><html></html>", "holds no table"),
        ("short.csv", b"a,b\n1,2\n3\n", "truncated or damaged"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught, open_table(str(tmp_path / name)) as r:
        list(r.batches(10))
    assert name in str(caught.value)


def test_absent_file():
    with pytest.raises(InputError, match=r"/no/where\.fits: does not exist"):
        open_table("/no/where.fits")


def test_drift_between_parquet_files(tmp_path):
    pq.write_table(pa.table({"a": [1], "mag": [1.0]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1], "mag": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet: column 'mag' begins as double.* string"):
        list(open_table(str(tmp_path)).batches(10))


def test_column_missing_from_a_later_file(tmp_path):
    pq.write_table(pa.table({"a": [1], "mag": [1.0]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet: column 'mag'.*absent"):
        list(open_table(str(tmp_path)).batches(10))


def test_drift_within_csv(tmp_path):
    path = tmp_path / "drift.csv"
    path.write_text("a,mag\n" + "12345678,1234567\n" * 300_000 + "1,bright\n")
    with pytest.raises(InputError, match=r"drift\.csv: column 'mag' begins as int64.*'bright'"):
        for _ in open_table(str(path)).batches(100_000):
            pass


def test_ecsv_of_quantities_and_arrays(tmp_path):
    from astropy import units

    path = tmp_path / "q.ecsv"
    table = QTable({"flux": [1.0, 2.0] * units.nJy, "text": ["a b", 'say "hi"']})
    table["ragged"] = np.array([np.array([1, 2]), np.array([3])], dtype=object)
    table["anything"] = np.array([{"a": 1}, [3]], dtype=object)
    table.write(path)
    with open_table(str(path)) as reader:
        found = pa.Table.from_batches(reader.batches(5))
        assert reader.schema.field("flux").metadata[b"unit"] == b"nJy"
    assert found["flux"].to_pylist() == [1.0, 2.0]
    assert found["text"].to_pylist() == ["a b", 'say "hi"']
    assert found["ragged"].to_pylist() == [[1, 2], [3]]
    assert found["anything"].to_pylist() == ['{"a":1}', "[3]"]


@pytest.mark.parametrize("kind", ["fits", "vot", "csv", "ecsv", "parquet"])
def test_tables_without_rows(tmp_path, kind):
    path = tmp_path / f"none.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"a": pa.array([], pa.int64())}), path)
    else:
        table = Table({"a": np.zeros(0, "i8")})
        table.write(path, **({"format": "votable"} if kind == "vot" else {}))
    with open_table(str(path)) as reader:
        assert reader.names == ["a"]
        assert sum(batch.num_rows for batch in reader.batches(5)) == 0


def peak(path) -> int:
    with open_table(str(path)) as reader:
        for _ in reader.batches(2000):
            pass
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        most = 0
        for batch in reader.batches(2000):
            most = max(most, pa.total_allocated_bytes() - before)
            del batch
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return used + most


@pytest.mark.parametrize("kind", ["fits", "parquet", "vot"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    used = []
    # From sizes on at which one block of every format is full.
    sizes = {"fits": (8_000, 80_000), "parquet": (150_000, 600_000), "vot": (14_000, 42_000)}
    for rows in sizes[kind]:
        data = np.zeros(rows, [("a", "f8"), ("b", "f8"), ("c", "i8")])
        data["a"] = np.random.default_rng(0).random(rows)
        path = tmp_path / f"{rows}.{kind}"
        if kind == "fits":
            fitsio.write(path, data)
        elif kind == "vot":
            Table(data).write(path, format="votable")
        else:
            table = pa.table({name: data[name] for name in data.dtype.names})
            pq.write_table(table, path, row_group_size=rows)
        used.append(peak(path))
    assert used[1] < 1.5 * used[0] + 300_000


def test_checksum_follows_content_and_names(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    first = checksum(str(tmp_path))
    assert checksum(str(tmp_path)) == first
    (tmp_path / "1.parquet").rename(tmp_path / "2.parquet")
    assert checksum(str(tmp_path)) != first


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("s3://key:secr@et@bucket/a@b.fits", "s3://bucket/a@b.fits"),
        ("https://h/a.csv?X-Amz-Signature=ab/cd@ef#g", "https://h/a.csv"),
        ("https://me@h?token=1", "https://h"),
        ("/data/a?b#c@d.fits", "/data/a?b#c@d.fits"),
        ("s3://bucket/tile#1?2.fits", "s3://bucket/tile#1?2.fits"),
        ("abfs://container@account.host/a:b@c", "abfs://container@account.host/a:b@c"),
    ],
)
def test_public_urls_hold_no_secret(url, public):
    assert public_url(url) == public


def test_csv_behind_a_signed_url(web, tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,2\n")
    with open_table(f"{web(tmp_path)}/t.csv?signature=x") as table:
        assert table.names == ["a", "b"]
