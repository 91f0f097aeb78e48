"""Training cubes of a simulated survey: rows, pixels and columns, and the same bytes again."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import where

from surveyproc import schemas
from surveyproc.catalogs import match
from surveyproc.catalogs.ingest import ingest_catalog
from surveyproc.config import SurveyConfig, load
from surveyproc.errors import ConfigError, InputError, SurveyError
from surveyproc.images.cube import read_tiles
from surveyproc.images.cutouts import CutoutReader
from surveyproc.products.base import Batch
from surveyproc.products.scaled import scaled_cutouts, window
from surveyproc.sky import healpix29
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train import training_cube
from surveyproc.train.cube import SHARD
from surveyproc.train.labels import measured_training_set
from surveyproc.train.training_cube import build_training_cube

BANDS, SIDE = ("r", "g", "K"), 20


@pytest.fixture(scope="module")
def survey(trained_survey):
    config = load(trained_survey)
    return config, Store(config.root)


@pytest.fixture(scope="module")
def built(survey):
    config, _store = survey
    section = config.product("photoz")
    return build_training_cube(Survey(config), section, where.HERE, bands=BANDS, cutout=SIDE)


def test_labelled_objects_with_their_photometry(survey, built):
    config, _store = survey
    index = built.index
    measured = measured_training_set(Survey(config), config.product("photoz"), where.HERE)
    assert built.n == len(measured) == index.num_rows
    for name in ("ra", "dec"):
        np.testing.assert_array_equal(index[name].to_numpy(), getattr(measured, name))
    redshift = index["target_redshift"].to_numpy()
    np.testing.assert_array_equal(redshift, measured.targets["redshift"])
    for k, band in enumerate(config.images.bands):
        np.testing.assert_array_equal(index[f"flux_{band}"].to_numpy(), measured.flux[:, k])
        np.testing.assert_array_equal(index[f"flux_err_{band}"].to_numpy(), measured.flux_err[:, k])
    assert not index["ebv"].to_numpy().any()
    assert (redshift > 0).all()


def test_cutouts_in_the_order_of_the_index(survey, built):
    _, store = survey
    images = np.concatenate([built.read(number) for number in range(built.shards)])
    index = built.index
    ra, dec = index["ra"].to_numpy(), index["dec"].to_numpy()
    expected = np.full((built.n, len(BANDS), SIDE, SIDE), np.nan, np.float32)
    covered = np.zeros(built.n, bool)
    for part in CutoutReader(store, read_tiles(store), BANDS).batches(ra, dec, SIDE, 50):
        expected[part.index], covered[part.index] = part.images, True
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(index["no_image"].to_numpy(), ~covered)
    bits = index["flags"].to_numpy() & schemas.flag("no_image")
    np.testing.assert_array_equal(bits != 0, ~covered)
    assert (built.bands, built.cutout) == (BANDS, SIDE)
    assert built.pixel_scale == np.nanmedian(index["pixel_scale"].to_numpy())


def test_cutouts_as_wide_as_their_objects(survey_copy, built):
    # Whatever has numbers may be a size.
    told = 'products.photoz.scaled={column = "ra", times = 0.02, largest = 40}'
    config = load(survey_copy, [told])
    section = config.product("photoz")
    size = section.scaled
    made = build_training_cube(Survey(config), section, where.HERE, bands=BANDS, cutout=SIDE)
    assert made.key != built.key
    assert np.isnan(made.pixel_scale)
    index, store = made.index, Store(config.root)
    images = np.concatenate([made.read(number) for number in range(made.shards)])
    ra, dec = index["ra"].to_numpy(), index["dec"].to_numpy()
    seen = SIDE - 2 * section.training.shift
    side = window(size, SIDE, seen)
    expected = np.full_like(images, np.nan)
    for part in CutoutReader(store, read_tiles(store), BANDS).batches(ra, dec, side, 50):
        sizes = Batch(
            columns={"ra": ra[part.index]},
            flags=part.flags,
            images=part.images,
            offsets=part.offsets,
            pixel_scale=part.pixel_scale,
        )
        expected[part.index], _ = scaled_cutouts(sizes, size, SIDE, seen, "photoz")
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-3)
    config = load(survey_copy, [told.replace("ra", "width")])
    section = config.product("photoz")
    with pytest.raises(ConfigError, match=r"scaled\.column: neither .* has 'width'"):
        build_training_cube(Survey(config), section, where.HERE, bands=BANDS, cutout=SIDE)


def test_a_finished_cube_is_not_built_again(survey, built):
    config, store = survey
    section = config.product("photoz")
    files = [path for path in Path(store.path("")).rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = build_training_cube(Survey(config), section, where.HERE, bands=BANDS, cutout=SIDE)
    assert again == built
    assert {path: path.stat().st_mtime_ns for path in files} == before


def content(store, key):
    return {name: store.read(f"{key}/{name}") for name in store.sizes(key)}


def test_killed_and_repeated_it_ends_in_the_same_bytes(survey_copy, built):
    config = load(survey_copy)
    store, section = Store(config.root), config.product("photoz")
    store.remove("training")
    # What was written when the process died: a shard of it cut short, and no record.
    half = content(built.store, built.key)
    del half["cube.json"], half["index.parquet"]
    for name, data in half.items():
        store.put(f"{built.key}/{name}", data[:1000])
    again = build_training_cube(Survey(config), section, where.HERE, bands=BANDS, cutout=SIDE)
    assert again.key == built.key
    assert content(store, again.key) == content(built.store, built.key)


@pytest.mark.ray
def test_ray_builds_the_same_bytes(survey_copy, built, ray_session):
    config = load(survey_copy)
    store, section = Store(config.root), config.product("photoz")
    store.remove("training")
    made = build_training_cube(Survey(config), section, ray_session, bands=BANDS, cutout=SIDE)
    assert content(store, made.key) == content(built.store, built.key)


def test_what_decides_the_content_decides_the_name(survey, built):
    config, _store = survey

    def key(config=config, bands=BANDS, cutout=SIDE):
        return training_cube._content(Survey(config), config.product("photoz"), bands, cutout).key

    def changed(name, **update):
        products = [
            one if one.name != name else one.model_copy(update=update) for one in config.products
        ]
        return config.model_copy(update={"products": products})

    training = config.product("photoz").training
    wider = training.model_copy(update={"radius": 2.0})
    seeded = training.model_copy(update={"seed": 9, "epochs": 99})
    assert key() == key(changed("photoz", training=seeded)) == built.key
    others = [
        key(cutout=SIDE + 1),
        key(bands=("g", "r", "K")),
        key(changed("photometry", aperture=[0.9])),
        key(changed("photoz", training=wider)),
    ]
    assert len({built.key, *others}) == 5


def test_inputs_that_change_under_way_are_noticed(survey_copy, monkeypatch):
    config = load(survey_copy)
    store, section = Store(config.root), config.product("photoz")
    key, original = layout.catalog(config.survey.name), match.match_labels
    store.remove("training")

    def match_and_ingest(*arguments):
        found = original(*arguments)
        record = store.read_json(f"{key}/ingest.json")
        store.put_json(f"{key}/ingest.json", {**record, "content": "other"})
        return found

    monkeypatch.setattr(match, "match_labels", match_and_ingest)
    with pytest.raises(SurveyError, match="changed while the training cube was built"):
        build_training_cube(Survey(config), section, where.HERE, bands=(), cutout=0)
    assert not [name for name in store.sizes("training") if name.endswith("cube.json")]


ROWS = 2 * SHARD + 30


def catalog_survey(tmp_path, reddening=None):
    """A survey without images; objects lie in random order in the sky."""
    number = np.arange(ROWS)
    random = np.random.default_rng(0)
    columns = {
        "object_id": number,
        "ra": 10 + random.permutation(ROWS) / 100,
        "dec": random.uniform(-5, 5, ROWS),
        "flux_g": pa.array([None, *range(1, ROWS)], pa.float32()),
        "dust": pa.array([0.1, None, *number[2:] / 1000], pa.float32()),
        "name": ["x"] * ROWS,
    }
    pq.write_table(pa.table(columns), tmp_path / "sources.parquet")
    labels = {"ra": columns["ra"], "dec": columns["dec"], "z": number / 100 + 0.1}
    pq.write_table(pa.table(labels), tmp_path / "labels.parquet")
    training = {"source": str(tmp_path / "labels.parquet"), "redshift": "z"}
    config = SurveyConfig.model_validate(
        {
            "survey": {"name": "test", "root": str(tmp_path / "store")},
            "images": {"tiles": [], "bands": ["g", "r"]},
            "catalog": {
                "source": str(tmp_path / "sources.parquet"),
                "reddening": reddening,
                "partition_rows": 200,
            },
            "products": [{"name": "photoz", "model": "x", "training": training}],
        }
    )
    store = Store(config.root)
    ingest_catalog(Survey(config), where.HERE)
    return config, store


def test_reddening_and_fluxes_of_the_catalog_over_several_shards(tmp_path):
    config, store = catalog_survey(tmp_path, "dust")
    section = config.product("photoz")
    made = build_training_cube(Survey(config), section, where.HERE, bands=(), cutout=0)
    names = ["object_id", "ra", "dec", "target_redshift", "ebv", "flux_g"]
    assert (made.index.column_names, made.shards) == (names, 3)
    columns = {name: made.index[name].to_numpy() for name in names}
    number = columns["object_id"]
    assert sorted(number) == list(range(ROWS))
    assert (np.diff(healpix29(columns["ra"], columns["dec"])) >= 0).all()
    np.testing.assert_allclose(columns["target_redshift"], number / 100 + 0.1)
    flux = np.where(number == 0, np.nan, number)
    np.testing.assert_array_equal(columns["flux_g"], flux)
    dust = np.where(number == 0, 0.1, np.where(number == 1, 0, number / 1000))
    np.testing.assert_allclose(columns["ebv"], dust, rtol=1e-6)
    record = json.loads(store.read(f"{made.key}/cube.json"))
    assert (record["labels"], record["n"], record["product"]) == (ROWS, ROWS, "photoz")


@pytest.mark.parametrize("reddening", ["dusty", "name"])
def test_a_reddening_that_is_no_number_is_named(tmp_path, reddening):
    config, _store = catalog_survey(tmp_path, reddening)
    with pytest.raises(ConfigError, match=rf"catalog\.reddening: .*'{reddening}'"):
        build_training_cube(Survey(config), config.products[0], where.HERE, bands=(), cutout=0)


def test_bands_and_tiles_that_are_not_there_are_named(tmp_path):
    config, _store = catalog_survey(tmp_path)
    section = config.product("photoz")
    with pytest.raises(ConfigError, match=r"W1 is not in images\.bands"):
        build_training_cube(Survey(config), section, where.HERE, bands=("W1",), cutout=8)
    with pytest.raises(InputError, match="ingest"):
        build_training_cube(Survey(config), section, where.HERE, bands=("g",), cutout=8)
    bare = section.model_copy(update={"training": None})
    with pytest.raises(ConfigError, match="training"):
        build_training_cube(Survey(config), bare, where.HERE, bands=(), cutout=0)
