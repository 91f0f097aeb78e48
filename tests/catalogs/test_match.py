"""Labels matched by LSDB, held against brute force."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import where
from sample_tables import survey

from surveyproc.catalogs import hats, ids
from surveyproc.catalogs.crossmatch import nearest
from surveyproc.catalogs.ingest import ingest_catalog
from surveyproc.catalogs.labels import Labels
from surveyproc.catalogs.match import match_labels
from surveyproc.errors import InputError
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

KEY = layout.catalog("test")
RADIUS = 30.0


def redshifts(values):
    return {"redshift": values}


def scatter(random, n, spread):
    """Positions around RA 0, around the poles, and on the whole sky (degrees)."""
    ra = np.concatenate([random.normal(0, spread, n), random.uniform(0, 360, 3 * n)])
    dec = np.concatenate(
        [
            random.normal(0, spread, n),
            90 - np.abs(random.normal(0, spread, n)),
            np.abs(random.normal(0, spread, n)) - 90,
            np.degrees(np.arcsin(random.uniform(-1, 1, n))),
        ]
    )
    return ra % 360, dec


def ingest(tmp_path, ra, dec, partition_rows=200, **more):
    columns = {"object_id": np.arange(len(ra))[::-1], "ra": ra, "dec": dec, **more}
    pq.write_table(pa.table(columns), tmp_path / "sources.parquet")
    config = survey(tmp_path, tmp_path / "sources.parquet")
    section = config.catalog.model_copy(update={"partition_rows": partition_rows})
    config = config.model_copy(update={"catalog": section})
    store = Store(config.root)
    ingest_catalog(Survey(config), where.HERE)
    return store


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """1600 objects in many partitions, of several orders."""
    ra, dec = scatter(np.random.default_rng(1), 400, 0.3)
    size = np.arange(len(ra)).astype(np.float32)
    return ingest(tmp_path_factory.mktemp("sky"), ra, dec, size=size, redshift=-size), ra, dec


def test_the_nearest_label_of_every_object(sky):
    store, ra, dec = sky
    random = np.random.default_rng(2)
    near = random.permutation(len(ra))[:900]
    # Some labels beside objects, some anywhere, also where there is no object.
    more_ra, more_dec = scatter(random, 300, 0.3)
    label_ra = np.concatenate([ra[near], more_ra]) % 360
    label_dec = np.concatenate(
        [np.clip(dec[near] + random.normal(0, RADIUS / 3600, 900), -90, 90), more_dec]
    )
    labels = Labels(label_ra, label_dec, redshifts(random.random(len(label_ra))), RADIUS)
    found = match_labels(store, KEY, labels, ["size", "absent", "redshift"], where.HERE)
    names = ["object_id", "ra", "dec", "_healpix_29", "target_redshift", "size", "redshift"]
    assert found.column_names == names
    index, distance = nearest(ra, dec, label_ra, label_dec, RADIUS)
    owner = {}
    for row in np.argsort(distance, kind="stable"):
        if index[row] >= 0:
            owner.setdefault(index[row], row)
    rows = np.sort(list(owner.values()))
    assert len(rows) > 500
    expected = dict(
        zip(rows.tolist(), labels.targets["redshift"][index[rows]].tolist(), strict=True)
    )
    row = (len(ra) - 1 - found["object_id"].to_numpy()).tolist()
    assert dict(zip(row, found["target_redshift"].to_pylist(), strict=True)) == expected
    np.testing.assert_array_equal(found["size"].to_numpy(), row)
    np.testing.assert_allclose(found["ra"].to_numpy(), ra[row])
    order = list(zip(found["_healpix_29"].to_pylist(), found["object_id"].to_pylist(), strict=True))
    assert order == sorted(order)


@pytest.mark.ray
def test_ray_matches_the_same(sky, ray_session):
    store, ra, dec = sky
    labels = Labels(ra[:40], dec[:40], redshifts(np.arange(40.0)), RADIUS)
    here, there = (
        match_labels(store, KEY, labels, ["size"], places) for places in (where.HERE, ray_session)
    )
    assert there.equals(here)


def test_a_label_on_the_other_side_of_a_partitions_edge(tmp_path):
    # RA 0 and RA 45 at dec 0 are corners of HEALPix pixels of order 0: object and label lie in
    # different ones, and the catalog has no object in the label's.
    ra, dec = np.array([0.0001, 359.9, 45.1]), np.array([0.0, 0.1, 0.0001])
    store = ingest(tmp_path, ra, dec, partition_rows=1)
    labels = Labels(
        np.array([359.9999, 45.1, 200.0]),
        np.array([0.0, -0.0001, 10.0]),
        redshifts(np.arange(3.0)),
        1.0,
    )
    found = match_labels(store, KEY, labels, [], where.HERE)
    assert dict(
        zip(found["object_id"].to_pylist(), found["target_redshift"].to_pylist(), strict=True)
    ) == {2: 0.0, 0: 1.0}


def test_a_label_belongs_to_one_of_two_close_objects(tmp_path):
    store = ingest(tmp_path, np.array([10.0, 10.0 + 0.8 / 3600]), np.zeros(2))
    labels = Labels(np.array([10.0 + 0.5 / 3600]), np.zeros(1), redshifts(np.ones(1)), 1.0)
    assert match_labels(store, KEY, labels, [], where.HERE)["object_id"].to_pylist() == [0]


@pytest.mark.parametrize("ra", [10.5, 200.0])
def test_labels_of_nothing_are_named(tmp_path, ra):
    store = ingest(tmp_path, np.array([10.0, 11.0]), np.zeros(2))
    labels = Labels(np.array([ra]), np.zeros(1), redshifts(np.ones(1)), 1.0)
    with pytest.raises(InputError, match=r"no object of .* 1.0 arcsec of one of 1 labels: check"):
        match_labels(store, KEY, labels, [], where.HERE)


def several(n):
    """Targets of every shape: numbers, lists of them, text with a gap."""
    number = np.arange(n)
    names = np.array([None, *(f"n{one}" for one in number[1:])], object)
    return {"redshift": number / 10, "votes": number[:, None] / [10.0, 20.0], "class": names}


def test_all_targets_of_a_label_come_along(tmp_path):
    store = ingest(tmp_path, np.array([10.0, 11.0, 12.0]), np.zeros(3))
    labels = Labels(np.array([12.0, 10.0, 99.0]), np.zeros(3), several(3), 1.0)
    found = match_labels(store, KEY, labels, [], where.HERE)
    assert found["object_id"].to_pylist() == [0, 2]
    assert found["target_redshift"].to_pylist() == [0.0, 0.1]
    assert found["target_votes"].to_pylist() == [[0.0, 0.0], [0.1, 0.05]]
    assert found["target_class"].to_pylist() == [None, "n1"]


@pytest.fixture(scope="module")
def named_sky(tmp_path_factory):
    """Fifty objects in partitions of five whose own ids are text."""
    ra, dec = 10 + np.arange(50) / 10, np.linspace(-1, 1, 50)
    names = [f"J{number:03d}" for number in range(50)]
    columns = {"name": names, "ra": ra, "dec": dec, "size": np.arange(50.0)}
    folder = tmp_path_factory.mktemp("named")
    pq.write_table(pa.table(columns), folder / "sources.parquet")
    config = survey(folder, folder / "sources.parquet", id="name", partition_rows=5)
    store = Store(config.root)
    ingest_catalog(Survey(config), where.HERE)
    return store, names


def by_id(ids):
    nowhere = np.full(len(ids), np.nan)
    return Labels(nowhere, nowhere, several(len(ids)), 1.0, ids=ids)


def test_labels_of_given_ids(named_sky):
    store, names = named_sky
    chosen = [names[40], names[3], "J999", names[17], names[3]]
    numbers, _ = ids.read(pa.array(chosen))
    found = match_labels(store, KEY, by_id(numbers), ["size", "name"], where.HERE)
    assert found.column_names[4:] == [
        "target_redshift", "target_votes", "target_class", "size", "name",
    ]  # fmt: skip
    rows = {row["name"]: row for row in found.to_pylist()}
    assert rows.keys() == {"J040", "J003", "J017"}
    # Of two labels of one object the first counts.
    assert [rows[name]["target_redshift"] for name in ("J040", "J003", "J017")] == [0.0, 0.1, 0.3]
    assert [rows[name]["size"] for name in ("J040", "J003", "J017")] == [40.0, 3.0, 17.0]
    assert found["_healpix_29"].to_pylist() == sorted(found["_healpix_29"].to_pylist())


def test_an_id_that_two_objects_have_is_that_of_the_first(tmp_path):
    columns = {"object_id": [7, 7, 8], "ra": [11.0, 10.0, 12.0], "dec": [0.0, 0.0, 0.0]}
    pq.write_table(pa.table(columns), tmp_path / "sources.parquet")
    config = survey(tmp_path, tmp_path / "sources.parquet")
    store = Store(config.root)
    ingest_catalog(Survey(config), where.HERE)
    found = match_labels(store, KEY, by_id(np.array([7])), [], where.HERE)
    whole = hats.read_leaf(store, f"{KEY}/{hats.file_keys(store, KEY)[0]}").to_pylist()
    places = [row["_healpix_29"] for row in whole if row["object_id"] == 7]
    assert found["_healpix_29"].to_pylist() == [min(places)]
    assert len(places) == 2


def test_ids_of_nothing_are_named(named_sky):
    with pytest.raises(InputError, match=r"no object of .* has an id of one of 2 labels.*training"):
        match_labels(named_sky[0], KEY, by_id(np.array([1, 2])), [], where.HERE)


@pytest.mark.ray
def test_ray_finds_the_same_ids(named_sky, ray_session):
    store, names = named_sky
    labels = by_id(ids.read(pa.array(names[::3]))[0])
    here, there = (
        match_labels(store, KEY, labels, ["size"], places) for places in (where.HERE, ray_session)
    )
    assert there.equals(here)
