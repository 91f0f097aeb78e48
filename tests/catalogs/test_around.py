"""The nearest other objects, against astropy, across partitions, and what they make stale."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv

from surveyproc import sky, verbs
from surveyproc.catalogs import hats
from surveyproc.catalogs.around import Surroundings, displaced, near, nearest_others
from surveyproc.catalogs.ingest import read_catalog
from surveyproc.config import load
from surveyproc.errors import StoreError
from surveyproc.survey import Survey


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), dec=st.sampled_from([0.0, 60.0, -89.9999, 90.0]))
def test_they_are_those_of_astropy(seed, dec):
    random = np.random.default_rng(seed)
    ra = random.uniform(-20, 20, 60) / 3600 / max(np.cos(np.radians(dec)), 1e-4) % 360
    place = dec + random.uniform(-20, 20, 60) / 3600
    # Beyond a pole and down again: two objects at the pole itself would be equally far from others.
    place = np.copysign(90 - np.abs(90 - np.abs(place)), place)
    place[0] = dec
    ids = random.permutation(60)
    ids[1] = ids[0]  # a row that is there twice is no neighbour of itself
    vectors = sky.unit_vectors(ra, place)
    found = nearest_others(ids[:40], vectors[:40], ids, vectors, radius=8.0, most=3)
    where = SkyCoord(ra * units.deg, place * units.deg)
    for row in range(40):
        apart = where[row].separation(where).arcsec
        order = [k for k in np.argsort(apart) if ids[k] != ids[row] and apart[k] <= 8.0][:3]
        assert found.ids[row].tolist() == [*ids[order], *[0] * (3 - len(order))]
        east, north = (one.arcsec for one in where[row].spherical_offsets_to(where[order]))
        if abs(place[row]) < 90:
            expected = np.stack([east, north], axis=1)
            np.testing.assert_allclose(found.offsets[row, : len(order)], expected, atol=1e-6)
        assert np.isnan(found.offsets[row, len(order) :]).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), dec=st.sampled_from([0.0, 60.0, -89.999]))
def test_displaced_undoes_the_offsets(seed, dec):
    random = np.random.default_rng(seed)
    ra, place = np.array([359.999, 0.0, 120.0]), np.full(3, dec)
    offsets = random.uniform(-30, 30, (3, 2))
    there = displaced(ra, place, offsets)
    for k in range(3):
        found = nearest_others(
            np.array([0]), sky.unit_vectors(ra[k : k + 1], place[k : k + 1]),
            np.array([1]), sky.unit_vectors(there[0][k : k + 1], there[1][k : k + 1]),
            radius=60.0, most=1,
        )  # fmt: skip
        np.testing.assert_allclose(found.offsets[0, 0], offsets[k], atol=1e-6)


def test_nobody_is_near():
    nothing = nearest_others(
        np.arange(2), np.eye(3)[:2], np.empty(0, int), np.empty((0, 3)), radius=1.0, most=2
    )
    assert nothing.ids.tolist() == [[0, 0], [0, 0]]
    assert np.isnan(nothing.offsets).all()


@pytest.fixture
def ingested(tmp_path):
    """60 pairs of objects 5 arcsec apart, in partitions of an arcminute."""
    random = np.random.default_rng(5)
    place = np.stack(np.unravel_index(np.arange(60), (10, 6))) * 0.01
    ra, dec = place + random.uniform(0, 0.005, (2, 60)) + np.array([[10.0], [-0.05]])
    table = {
        "object_id": np.arange(1, 121),
        "ra": np.concatenate([ra, ra]),
        "dec": np.concatenate([dec, dec + 5 / 3600]),
    }
    csv.write_csv(pa.table(table), tmp_path / "catalog.csv")
    (tmp_path / "survey.toml").write_text(f"""
    [survey]
    name = "pairs"
    root = "{tmp_path / "store"}"
    [images]
    bands = ["r"]
    [catalog]
    source = "catalog.csv"
    partition_rows = 5
    """)
    survey = Survey(load(tmp_path / "survey.toml", ["run.place=here"]))
    verbs.ingest(survey)
    return survey, table


def test_neighbours_across_partitions_are_found(ingested):
    survey, table = ingested
    catalog = read_catalog(survey.store, survey.name)
    assert len(catalog.partitions) > 8
    split = [
        {one["object_id"] % 60 for one in _rows(survey, catalog, part)}
        for part in catalog.partitions
    ]
    assert sum(map(len, split)) > 60  # some pairs lie on either side of an edge
    around = Surroundings(survey.store, catalog, 5.1, 1)
    for start in (0, 50, 119):
        rows = pa.table({name: values[start : start + 9] for name, values in table.items()})
        found = around.of(rows)
        own = rows["object_id"].to_numpy()
        expected = np.where(own > 60, own - 60, own + 60)
        assert found.ids[:, 0].tolist() == expected.tolist()
        np.testing.assert_allclose(found.offsets[:, 0, 1], np.where(own > 60, -5, 5), atol=1e-5)
    assert around.of(rows.slice(0, 0)).ids.shape == (0, 1)


def test_partitions_within_the_radius_are_near(ingested):
    survey, _ = ingested
    catalog = read_catalog(survey.store, survey.name)
    assert all(part in near(part, catalog, 0.0) for part in catalog.partitions)
    assert near(catalog.partitions[0], catalog, 3600.0) == list(catalog.partitions)
    assert len(near(catalog.partitions[0], catalog, 1.0)) < len(catalog.partitions)


def test_a_leaf_that_is_another_is_named(ingested):
    survey, table = ingested
    catalog = read_catalog(survey.store, survey.name)
    for one in catalog.partitions:
        key = f"{catalog.key}/{hats.leaf_key(one.order, one.pixel)}"
        survey.store.put(key, survey.store.read(key) + b" ")
    with pytest.raises(StoreError, match="is not the leaf that was ingested"):
        Surroundings(survey.store, catalog, 1.0, 1).of(pa.table(table))


def _rows(survey, catalog, part):
    data = survey.store.read(f"{catalog.key}/{hats.leaf_key(part.order, part.pixel)}")
    return pq.read_table(pa.BufferReader(data)).to_pylist()
