from __future__ import annotations

import hashlib
import warnings

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.table import Table
from cdshealpix.nested import healpix_to_lonlat
from hats.io.paths import pixel_catalog_file
from hats.io.validation import is_valid_catalog
from hats.pixel_math.healpix_pixel import HealpixPixel
from hypothesis import given
from hypothesis import strategies as st

from surveyproc import schemas, sky
from surveyproc.catalogs import hats
from surveyproc.errors import StoreError
from surveyproc.schemas import Column
from surveyproc.store.storage import Store

COLUMNS = (
    *schemas.load("object"),
    Column("flux", "float32", unit="nJy", ucd="phot.flux.density", description="Flux & <more>"),
    Column("z_quantiles", "float32", length=3, default=False),
    Column("tile", "string"),
    Column("odd-name", "int16"),
    Column("has space", "bool"),
    Column("big", "uint64"),
)


def rows_in(order: int, pixel: int, count: int) -> pa.Table:
    """Rows whose position lies in a pixel, sorted."""
    shift = 2 * (15 - order)
    fine = (pixel << shift) + np.linspace(0, (1 << shift) - 1, count).astype(np.int64)
    lon, lat = healpix_to_lonlat(fine, 15)
    ra, dec = lon.deg, lat.deg
    index = sky.healpix29(ra, dec)
    keep = np.argsort(index)
    n = np.arange(count)
    return pa.table(
        {
            "object_id": n + 7,
            "ra": ra[keep],
            "dec": dec[keep],
            "_healpix_29": index[keep],
            "catalog_flag": np.zeros(count, np.int32),
            "flux": pa.array(n * 1.5, mask=n % 3 == 1),
            "z_quantiles": pa.array([None if i == 1 else [0.1, 0.2, 0.3] for i in n]),
            "tile": pa.array(["A" if i % 2 else "" for i in n]),
            "odd-name": n,
            "has space": n % 2 == 0,
            "big": pa.array([2**64 - 1] * count, pa.uint64()),
        }
    )


PIXELS = [(1, 3), (0, 5), (2, 100), (1, 44)]


@pytest.fixture
def catalog(tmp_path):
    store = Store(str(tmp_path))
    leaves = [
        hats.write_leaf(store, f"c/{hats.leaf_key(*p)}", rows_in(*p, 5 + n), COLUMNS)
        for n, p in enumerate(PIXELS)
    ]
    hats.finish_catalog(
        store, "c", leaves, name="demo", columns=COLUMNS, properties={"who": "a\\b\nc"}
    )
    return store, leaves


@given(st.integers(0, 12), st.data())
def test_leaf_key_is_where_hats_looks(order, data):
    pixel = data.draw(st.integers(0, 12 * 4**order - 1))
    key = hats.leaf_key(order, pixel)
    assert str(pixel_catalog_file("/x", HealpixPixel(order, pixel))) == f"/x/{key}"
    assert hats.pixel_of(f"any/where/{key}") == (order, pixel)


@pytest.mark.parametrize("key", ["c/a.parquet", "c/dataset/Norder=1/Dir=10000/Npix=3.parquet"])
def test_other_keys_are_refused(key):
    with pytest.raises(ValueError, match="not the key of a HATS leaf"):
        hats.pixel_of(key)


def test_catalog_is_valid_and_opens(catalog):
    store, leaves = catalog
    path = store.url_of("c")
    assert is_valid_catalog(path, strict=True)
    opened = lsdb.open_catalog(path)
    assert "z_quantiles" not in opened.columns
    assert "has space" not in opened.columns
    assert {"object_id", "flux", "tile", "odd-name"} <= set(opened.columns)
    assert len(opened.compute()) == sum(leaf.rows for leaf in leaves) == 26
    everything = lsdb.open_catalog(path, columns="all").compute()
    assert {"z_quantiles", "has space", "big"} <= set(everything.columns)
    info = opened.hc_structure.catalog_info
    assert info.catalog_name == "demo"
    assert info.total_rows == 26
    assert info.who == "a\\b c"
    assert (info.ra_column, info.dec_column, info.healpix_column) == ("ra", "dec", "_healpix_29")


def test_coverage_map_holds_the_objects(catalog):
    store, _ = catalog
    opened = lsdb.open_catalog(store.url_of("c"))
    moc = opened.hc_structure.moc
    assert moc.max_order == hats.MAP_ORDER
    table = opened.compute()

    assert moc.contains_lonlat(
        table["ra"].to_numpy() * units.deg, table["dec"].to_numpy() * units.deg
    ).all()
    found = opened.cone_search(float(table["ra"].iloc[0]), float(table["dec"].iloc[0]), 2.0)
    assert len(found.compute()) >= 1


def test_leaf_gives_units_to_astropy(catalog):
    store, _ = catalog
    path = store.path(f"c/{hats.leaf_key(1, 44)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = Table.read(path, format="parquet.votable")
    assert str(table["flux"].unit) == "nJy"
    assert table["flux"].description == "Flux & <more>"
    assert table["ra"].meta["ucd"] == "pos.eq.ra;meta.main"
    assert len(table) == 8
    assert sorted(set(table["tile"])) == ["", "A"]
    assert list(table.colnames)[:9] == [column.name for column in COLUMNS][:9]


def test_metadata_equals_the_leaves(catalog):
    store, leaves = catalog
    total = pq.read_metadata(store.path("c/dataset/_metadata"))
    assert total.num_rows == 26
    paths = [total.row_group(n).column(0).file_path for n in range(total.num_row_groups)]
    assert [f"dataset/{path}" for path in paths] == hats.leaf_keys(store, "c")
    common = pq.read_schema(store.path("c/dataset/_common_metadata"))
    for leaf in leaves:
        key = f"c/{hats.leaf_key(leaf.order, leaf.pixel)}"
        assert hats.leaf_schema(store, key).equals(common)
        data = store.read(key)
        assert (leaf.nbytes, leaf.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_same_table_same_bytes(tmp_path):
    store = Store(str(tmp_path))
    table = rows_in(1, 3, 50)
    chunks = pa.concat_tables([table.slice(0, 20), table.slice(20)])
    first = hats.write_leaf(store, f"a/{hats.leaf_key(1, 3)}", table, COLUMNS)
    second = hats.write_leaf(store, f"b/{hats.leaf_key(1, 3)}", chunks, COLUMNS)
    assert first == second


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(hats, "ROW_GROUP_ROWS", 10)
    store = Store(str(tmp_path))
    key = f"a/{hats.leaf_key(1, 3)}"
    hats.write_leaf(store, key, rows_in(1, 3, 35), COLUMNS)
    assert pq.read_metadata(store.path(key)).num_row_groups == 4


def test_bad_tables_are_refused(tmp_path):
    store = Store(str(tmp_path))
    table = rows_in(1, 3, 5)
    with pytest.raises(ValueError, match="not sorted"):
        hats.write_leaf(store, hats.leaf_key(1, 3), table.take([1, 0, 2, 3, 4]), COLUMNS)
    with pytest.raises(ValueError, match="outside the pixel"):
        hats.write_leaf(store, hats.leaf_key(1, 4), table, COLUMNS)
    with pytest.raises(ValueError, match="without rows"):
        hats.write_leaf(store, hats.leaf_key(1, 3), table.slice(0, 0), COLUMNS)
    with pytest.raises(ValueError, match="without leaves"):
        hats.finish_catalog(store, "c", [], name="x", columns=COLUMNS, properties={})
    assert not store.exists("dataset")


def test_read_leaf_errors_name_the_file(catalog):
    store, _ = catalog
    key = f"c/{hats.leaf_key(1, 3)}"
    assert hats.read_leaf(store, key, ["dec", "ra"]).column_names == ["dec", "ra"]
    with pytest.raises(StoreError, match="has no column nope"):
        hats.read_leaf(store, key, ["ra", "nope"])
    with pytest.raises(StoreError, match="cannot read"):
        hats.read_leaf(store, f"c/{hats.leaf_key(1, 7)}", ["ra"])
    store.put(key, store.read(key)[:100])
    with pytest.raises(StoreError, match="Npix=3"):
        hats.read_leaf(store, key)


def test_unknown_points_cover_the_whole_pixel(tmp_path):
    import dataclasses

    store = Store(str(tmp_path))
    leaf = hats.write_leaf(store, f"c/{hats.leaf_key(2, 3)}", rows_in(2, 3, 5), COLUMNS)
    bare = dataclasses.replace(leaf, points="")
    hats.finish_catalog(store, "c", [bare], name="x", columns=COLUMNS, properties={})
    moc = lsdb.open_catalog(store.url_of("c")).hc_structure.moc
    assert moc.sky_fraction == pytest.approx(1 / 192)
