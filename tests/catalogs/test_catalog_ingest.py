from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import fitsio
import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.io.validation import is_valid_catalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_tables import KEY, all_rows, rejected, run, sky_table
from sums import sums

from surveyproc import schemas, sky
from surveyproc.catalogs import hats
from surveyproc.catalogs.ingest import read_catalog
from surveyproc.config.sections import RunSection
from surveyproc.errors import InputError, StoreError
from surveyproc.places import Places
from surveyproc.store.storage import Store

ONE = Places(RunSection(place="here", workers=1))
"""This process, one thread."""


@pytest.fixture
def fits(tmp_path):
    path = tmp_path / "source.fits"
    sky_table(3000).write(path)
    return path


def test_real_field_straddling_ra_zero(tmp_path, survey_data):
    source = survey_data / "kids_viking_field" / "sources.fits"
    store, summary = run(tmp_path, source, partition_rows=200)
    assert (summary.rows_in, summary.rows_out, summary.rejected) == (894, 894, 0)
    assert summary.url == store.url_of(KEY)
    assert is_valid_catalog(summary.url, strict=True)
    opened = lsdb.open_catalog(summary.url).compute()
    expected = fitsio.read(source)
    assert sorted(opened["object_id"]) == sorted(expected["object_id"])
    assert opened["ra"].min() < 1
    assert opened["ra"].max() > 359
    assert (
        opened.sort_values("object_id")["mag_r"].to_numpy()
        == np.sort(expected, order="object_id")["mag_r"]
    ).mean() > 0.99


def test_sky_wide_catalog_and_its_report(tmp_path, survey_data):
    source = survey_data / "sdss_dr17" / "star_galaxy_qso_half.parquet"
    table = pq.read_table(source)
    table = table.append_column("number", pa.array(range(table.num_rows)))
    pq.write_table(table, tmp_path / "numbered.parquet")
    store, summary = run(
        tmp_path,
        tmp_path / "numbered.parquet",
        id="number",
        ra="alpha",
        dec="delta",
        partition_rows=300,
    )
    assert summary.rows_out == table.num_rows
    assert is_valid_catalog(summary.url, strict=True)
    assert all(part.rows <= 300 for part in read_catalog(store, "test").partitions)


@pytest.mark.parametrize("suffix", ["fits", "vot", "ecsv", "csv", "parquet"])
def test_every_format_becomes_the_same_catalog(tmp_path, fits, suffix):
    from surveyproc.catalogs.readers import open_table

    expected, _ = run(tmp_path / "a", fits, partition_rows=500)
    source = tmp_path / f"other.{suffix}"
    table = sky_table(3000)
    if suffix == "parquet":
        with open_table(str(fits)) as reader:
            pq.write_table(pa.Table.from_batches(reader.batches(999)), source)
    else:
        table.write(source, **({"format": "votable"} if suffix == "vot" else {}))
    store, summary = run(tmp_path / "b", source, partition_rows=500)
    assert summary.rows_out == 3000
    one, other = all_rows(expected), all_rows(store)
    assert one.column_names == other.column_names
    for name in one.column_names:
        if suffix == "csv" and name == "mag":
            continue
        assert one[name].to_pylist() == other[name].to_pylist(), name
    if suffix != "csv":
        units = {column.name: column.unit for column in read_catalog(store, "test").columns}
        assert units["mag"] == "mag"
        leaf = f"{KEY}/{hats.leaf_keys(store, KEY)[0]}"
        assert (
            b'unit="mag"' in hats.leaf_schema(store, leaf).metadata[b"IVOA.VOTable-Parquet.content"]
        )


def test_hats_catalog_as_source(tmp_path, fits):
    first, summary = run(tmp_path / "a", fits, partition_rows=500)
    store, again = run(tmp_path / "b", summary.url, partition_rows=700)
    assert again.rows_out == summary.rows_out == 3000
    assert all_rows(store).column_names == all_rows(first).column_names
    assert sorted(all_rows(store)["object_id"].to_pylist()) == sorted(
        all_rows(first)["object_id"].to_pylist()
    )


positions = st.tuples(
    st.one_of(
        st.floats(-180, 360),
        st.sampled_from([0.0, -0.0, 360.0, -180.0, 359.99999999999994, -1e-300, 5e-324]),
        st.sampled_from([np.nan, np.inf, -np.inf, 360.1, -180.1, 1e300]),
        st.floats(359.9999, 360),
    ),
    st.one_of(
        st.floats(-90, 90),
        st.sampled_from([90.0, -90.0, 89.9999999, np.nan, np.inf, 90.00001, -91.0]),
        st.floats(-1e-4, 1e-4),
    ),
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 3)),
)


@given(st.lists(positions, min_size=1, max_size=60), st.integers(1, 20), st.integers(1, 25))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_row_is_stored_or_rejected_exactly_once(rows, limit, batch):
    ra, dec, ids = (np.array(part) for part in zip(*rows, strict=True))
    ids = ids.astype(np.int64)
    good = np.isfinite(ra) & np.isfinite(dec)
    with np.errstate(invalid="ignore"):
        good &= (ra >= -180) & (ra <= 360) & (abs(dec) <= 90)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.parquet"
        number = np.arange(len(ra))
        pq.write_table(pa.table({"object_id": ids, "ra": ra, "dec": dec, "n": number}), path)
        if not good.any():
            with pytest.raises(InputError, match="none of its"):
                run(Path(folder), path)
            return
        store, summary = run(Path(folder), path, partition_rows=limit, batch=batch, spill_bytes=200)
        stored, bad = all_rows(store), rejected(store)
        assert sorted(stored["n"].to_pylist()) == number[good].tolist()
        assert [row["source_row"] for row in bad] == number[~good].tolist()
        assert [row["n"] for row in bad] == number[~good].tolist()
        assert all(row["reason"] for row in bad)
        assert summary.rows_in == summary.rows_out + summary.rejected
        index = stored["_healpix_29"].to_numpy()
        assert (np.diff(index) >= 0).all()
        out_ra, out_dec = stored["ra"].to_numpy(), stored["dec"].to_numpy()
        assert ((out_ra >= 0) & (out_ra < 360)).all()
        assert (sky.healpix29(out_ra, out_dec) == index).all()
        order = stored["n"].to_numpy()
        assert np.allclose((out_ra - ra[order] + 180) % 360, 180, atol=1e-9)
        assert (stored["object_id"].to_numpy() == ids[order]).all()
        counts = Counter(ids.tolist())
        flagged = stored["catalog_flag"].to_numpy() == schemas.flag("duplicate_id")
        assert flagged.tolist() == [counts[i] > 1 for i in ids[order].tolist()]
        assert summary.duplicates == flagged.sum()
        assert is_valid_catalog(summary.url, strict=True)
        check_partitions(store, limit)


def check_partitions(store: Store, limit: int) -> None:
    parts = read_catalog(store, "test").partitions
    assert [hats.leaf_key(part.order, part.pixel) for part in parts] == hats.leaf_keys(store, KEY)
    for part in parts:
        assert part.rows <= limit or part.order == 12
        table = hats.read_leaf(store, f"{KEY}/{hats.leaf_key(part.order, part.pixel)}")
        assert table.num_rows == part.rows
        centre = sky.unit_vectors(np.array([part.ra]), np.array([part.dec]))
        vectors = sky.unit_vectors(table["ra"].to_numpy(), table["dec"].to_numpy())
        chord = np.linalg.norm(vectors - centre, axis=1)
        angle = np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1)))
        assert (angle <= part.radius + 1e-9).all()


def test_bytes_do_not_depend_on_batches_spills_or_threads(tmp_path, fits):
    run(tmp_path / "a", fits, partition_rows=400)
    expected = sums(tmp_path / "a" / KEY)
    run(tmp_path / "b", fits, partition_rows=400, batch=77, spill_bytes=5_000, places=ONE)
    assert sums(tmp_path / "b" / KEY) == expected
    assert not (tmp_path / "b" / KEY / ".spill").exists()


@pytest.mark.ray
def test_bytes_do_not_depend_on_ray(tmp_path, fits, ray_session):
    run(tmp_path / "a", fits, partition_rows=400)
    _, summary = run(tmp_path / "b", fits, partition_rows=400, places=ray_session)
    assert summary.rows_out == 3000
    assert sums(tmp_path / "b" / KEY) == sums(tmp_path / "a" / KEY)


def test_duplicates_in_many_buckets(tmp_path, fits, monkeypatch):
    from surveyproc.catalogs import ingest

    monkeypatch.setattr(ingest, "IDS_PER_BUCKET", 100)
    table = sky_table(3000)
    table["object_id"] = np.arange(3000) % 2900
    table["object_id"][50] = 2**62
    table.write(tmp_path / "twice.fits")
    store, summary = run(tmp_path, tmp_path / "twice.fits", partition_rows=500, spill_bytes=9000)
    assert summary.duplicates == 198
    stored = all_rows(store)
    counts = Counter(stored["object_id"].to_pylist())
    flags = stored["catalog_flag"].to_pylist()
    for number, value in zip(stored["object_id"].to_pylist(), flags, strict=True):
        assert (value != 0) == (counts[number] > 1)


def test_rejected_rows_with_null_ids_and_clashing_names(tmp_path):
    table = pa.table(
        {
            "object_id": pa.array([1, None, 3, None], pa.int64()),
            "ra": pa.array([10.0, 11.0, None, 12.0]),
            "dec": [0.0, 1.0, 2.0, 3.0],
            "reason": ["a", "b", "c", "d"],
        }
    )
    pq.write_table(table, tmp_path / "s.parquet")
    store, summary = run(tmp_path, tmp_path / "s.parquet")
    assert (summary.rows_in, summary.rows_out, summary.rejected) == (4, 1, 3)
    assert [(row["reason"], row["reason_"], row["source_row"]) for row in rejected(store)] == [
        ("b", "id is null", 1),
        ("c", "position is null or NaN", 2),
        ("d", "id is null", 3),
    ]
    assert is_valid_catalog(summary.url, strict=True)
    assert len(lsdb.open_catalog(summary.url).compute()) == 1


def test_many_rejected_rows_do_not_depend_on_batches(tmp_path, monkeypatch):
    from surveyproc.catalogs import rejected as module

    monkeypatch.setattr(module, "ROW_GROUP_ROWS", 100)
    table = sky_table(1000)
    table["dec"][::2] = 99.0
    table.write(tmp_path / "s.fits")
    for name, batch in (("a", 64), ("b", 1000)):
        _, summary = run(tmp_path / name, tmp_path / "s.fits", batch=batch)
        assert summary.rejected == 500
    assert sums(tmp_path / "a") == sums(tmp_path / "b")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"object_id": [], "ra": [], "dec": []}, {}, "has no rows"),
        ({"object_id": [1], "RAJ2000": [1.0], "dec": [1.0]}, {}, r"'ra' \(catalog.ra\).*RAJ2000"),
        ({"object_id": [True], "ra": [1.0], "dec": [1.0]}, {}, "'object_id'.*numbers or text"),
        ({"object_id": [1.5], "ra": [1.0], "dec": [1.0]}, {}, "'object_id'.*holds 1.5,"),
        ({"ID": [1], "ra": [1.0], "dec": [1.0]}, {"id": "id"}, r"'id' \(catalog.id\).*'ID'"),
        ({"object_id": [1], "ra": ["00:10"], "dec": [1.0]}, {}, "'ra'.*must be numbers"),
        (
            {"n": [1], "ra": [1.0], "dec": [1.0], "object_id": [3], "source_object_id": [4]},
            {"id": "n"},
            "'object_id' has a name that surveyproc writes.*'source_object_id' already",
        ),
    ],
)
def test_bad_catalogs_are_named(tmp_path, columns, options, message):
    table = pa.table(columns)
    if not table.num_rows:
        table = table.cast(
            pa.schema([("object_id", "int64"), ("ra", "float64"), ("dec", "float64")])
        )
    pq.write_table(table, tmp_path / "s.parquet")
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path, tmp_path / "s.parquet", **options)
    assert "s.parquet" in str(caught.value)


def test_positions_in_other_units_become_degrees_and_that_is_said(tmp_path):
    table = sky_table(5)
    table.write(tmp_path / "degrees.fits")
    table["ra"], table["dec"] = table["ra"] / 15, np.radians(table["dec"])
    table["ra"].unit, table["dec"].unit = "h", "rad"
    table.write(tmp_path / "others.fits")
    stores, summaries = zip(
        *(run(tmp_path / name, tmp_path / f"{name}.fits") for name in ("degrees", "others")),
        strict=True,
    )
    ours, theirs = (all_rows(store).sort_by("object_id") for store in stores)
    for name in ("ra", "dec"):
        np.testing.assert_allclose(ours[name].to_numpy(), theirs[name].to_numpy(), rtol=1e-14)
    assert summaries[0].notes == []
    assert summaries[1].notes == [
        "others.fits: column 'ra' is in 'h' and is converted to degrees",
        "others.fits: column 'dec' is in 'rad' and is converted to degrees",
    ]


@pytest.mark.parametrize(("column", "unit"), [("ra", "pix"), ("dec", "h"), ("ra", "h:m:s")])
def test_positions_in_what_is_no_angle_are_refused_by_name(tmp_path, column, unit):
    metadata = {column: {"unit": unit}}
    fields = [pa.field(name, pa.float64(), metadata=metadata.get(name)) for name in ("ra", "dec")]
    table = pa.table([[1.0], [2.0]], schema=pa.schema(fields))
    pq.write_table(table.append_column("object_id", [[1]]), tmp_path / "s.parquet")
    with pytest.raises(InputError, match=rf"s\.parquet: column '{column}' is in '{unit}'"):
        run(tmp_path, tmp_path / "s.parquet")


def test_positions_may_be_numbers_of_any_type(tmp_path):
    table = pa.table(
        {
            "object_id": pa.array([1, 2], pa.int16()),
            "ra": pa.array([-90, 360], pa.int32()),
            "dec": pa.array([1.5, 2.5], pa.float32()),
        }
    )
    pq.write_table(table, tmp_path / "s.parquet")
    store, summary = run(tmp_path, tmp_path / "s.parquet")
    stored = all_rows(store).sort_by("object_id")
    assert [note.split(":")[1] for note in summary.notes] == [" column 'dec' is float"]
    assert stored["ra"].to_pylist() == [270.0, 0.0]
    assert stored.schema.field("object_id").type == pa.int64()


def test_catalog_must_be_ingested_first(tmp_path):
    with pytest.raises(InputError, match="run `surveyproc ingest` first"):
        read_catalog(Store(str(tmp_path)), "test")


def test_threads_fail_loudly(tmp_path, fits):
    # A file where a folder of leaves has to be.
    (tmp_path / "s" / KEY / "dataset").mkdir(parents=True)
    for order in range(12):
        (tmp_path / "s" / KEY / f"dataset/Norder={order}").write_bytes(b"")
    with pytest.raises(StoreError, match="Norder="):
        run(tmp_path / "s", fits, partition_rows=300)
