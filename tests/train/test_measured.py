"""Training rows from the survey itself: which bands, and fluxes of whoever has them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import where

from surveyproc import verbs
from surveyproc.catalogs.ingest import ingest_catalog
from surveyproc.config import SurveyConfig, load
from surveyproc.errors import ConfigError
from surveyproc.models.base import Network, Reads, register
from surveyproc.models.package import load_package
from surveyproc.models.tasks.classes import ClassTask
from surveyproc.models.tasks.redshift import RedshiftTask
from surveyproc.models.tasks.votes import VoteTask
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train.labels import _fluxes, measured_training_set

ROWS = 12


class Both(Network):
    """Asked for three things; nobody asks it here."""

    def __init__(self, bands):
        super().__init__()
        self.reads = Reads(features=tuple(bands))
        self.tasks = (RedshiftTask(torch.sub), ClassTask(("star", "galaxy")), VoteTask(("a", "b")))

    def forward(self, features):
        raise NotImplementedError


@register("test-both")
def both(name, bands, settings):
    return Both(bands)


def catalog_survey(tmp_path, **photoz):
    """A survey whose fluxes come with its catalog; no images, no product before photoz."""
    number = np.arange(ROWS)
    flux = np.where(number == 3, np.nan, 100.0 + number)
    columns = {
        "object_id": number,
        "ra": 10 + 0.01 * number,
        "dec": np.zeros(ROWS),
        "flux_g": flux,
        "flux_err_g": 0.1 * flux,
        "flux_r": 1000 + number,
        "flux_Ks": 10_000.0 + number,
        "flux_err_Ks": np.ones(ROWS),
    }
    pq.write_table(pa.table(columns), tmp_path / "sources.parquet")
    labels = {"ra": columns["ra"][::2], "dec": np.zeros(ROWS // 2), "z": number[::2] / 10 + 0.1}
    pq.write_table(pa.table(labels), tmp_path / "labels.parquet")
    training = {"source": str(tmp_path / "labels.parquet"), "redshift": "z"}
    config = SurveyConfig.model_validate(
        {
            "survey": {"name": "test", "root": str(tmp_path / "store")},
            "images": {"tiles": [], "bands": ["g", "r", "Ks"]},
            "catalog": {"source": str(tmp_path / "sources.parquet"), "partition_rows": 5},
            "products": [{"name": "photoz", "model": "tabm", "training": training, **photoz}],
        }
    )
    store = Store(config.root)
    ingest_catalog(Survey(config), where.HERE)
    return config, store


def test_fluxes_of_the_catalog_under_the_models_band_names(tmp_path):
    config, _store = catalog_survey(tmp_path, bands={"K": "Ks"})
    found = measured_training_set(Survey(config), config.product("photoz"), where.HERE)
    assert found.bands == ("g", "r", "K")
    order = np.argsort(found.ra)
    number = np.arange(ROWS)[::2]
    np.testing.assert_allclose(found.targets["redshift"][order], number / 10 + 0.1)
    expected = np.stack([100.0 + number, 1000.0 + number, 10_000.0 + number], axis=1)
    np.testing.assert_allclose(found.flux[order], expected)
    np.testing.assert_allclose(found.flux_err[order, 0], 0.1 * expected[:, 0])
    assert np.isnan(found.flux_err[:, 1]).all()
    assert (found.flux_err[:, 2] == 1).all()


@pytest.mark.parametrize("bands", [{"g": "r"}, {"K": "Ks", "k": "Ks"}])
def test_band_maps_that_are_not_one_to_one_are_refused(tmp_path, bands):
    config, _store = catalog_survey(tmp_path, bands=bands)
    with pytest.raises(ConfigError, match=r"products\.photoz\.bands"):
        measured_training_set(Survey(config), config.product("photoz"), where.HERE)


def test_some_bands_of_the_survey(tmp_path):
    config, _store = catalog_survey(tmp_path)
    section = config.product("photoz")

    def found(*bands):
        training = section.training.model_copy(update={"bands": list(bands)})
        chosen = section.model_copy(update={"training": training})
        whole = config.model_copy(update={"products": [chosen]})
        return measured_training_set(Survey(whole), chosen, where.HERE)

    assert found("Ks", "g").bands == ("g", "Ks")
    assert found("Ks", "g").flux.shape == (ROWS // 2, 2)
    with pytest.raises(ConfigError, match=r"training\.bands: the survey has no band 'y'"):
        found("g", "y")


def test_labels_without_a_redshift_are_counted(tmp_path):
    config, _store = catalog_survey(tmp_path)
    labels = pq.read_table(tmp_path / "labels.parquet")
    z = labels["z"].to_numpy().copy()
    z[[0, 2]] = np.nan
    pq.write_table(labels.set_column(2, "z", pa.array(z)), tmp_path / "labels.parquet")
    found = measured_training_set(Survey(config), config.product("photoz"), where.HERE)
    assert len(found) == ROWS // 2 - 2
    assert found.dropped == {"labels without a redshift": 2}


def test_targets_of_any_kind_pass_through_the_cube(tmp_path):
    config, _store = catalog_survey(tmp_path, model="test-both")
    table = pq.read_table(tmp_path / "labels.parquet")
    n = table.num_rows
    table = table.append_column("kind", pa.array(["star", None, "", *["galaxy"] * (n - 3)]))
    for number in range(2):
        share = pa.array([None, *np.linspace(0, 1, n - 1)], pa.float32())
        table = table.append_column(f"v{number}", share)
    pq.write_table(table, tmp_path / "labels.parquet")
    section = config.product("photoz")
    targets = {"class": ["kind"], "votes": ["v0", "v1"]}
    training = section.training.model_copy(update={"targets": targets})
    section = section.model_copy(update={"training": training})
    config = config.model_copy(update={"products": [section]})
    found = measured_training_set(Survey(config), section, where.HERE)
    order = np.argsort(found.ra)
    assert found.targets.keys() == {"redshift", "class", "votes"}
    assert found.targets["class"][order].tolist() == ["star", None, None, *["galaxy"] * (n - 3)]
    assert found.targets["votes"].shape == (n, 2)
    assert np.isnan(found.targets["votes"][order[0]]).all()
    expected = np.linspace(0, 1, n - 1).astype(np.float32)
    np.testing.assert_array_equal(found.targets["votes"][order[1:], 1], expected)


def test_labels_that_no_object_is_left_for_are_counted(tmp_path):
    config, _store = catalog_survey(tmp_path)
    labels = pq.read_table(tmp_path / "labels.parquet")
    moved = labels.set_column(0, "ra", pa.array(labels["ra"].to_numpy() + 5e-6))
    pq.write_table(pa.concat_tables([labels, moved]), tmp_path / "labels.parquet")
    found = measured_training_set(Survey(config), config.product("photoz"), where.HERE)
    assert len(found) == ROWS // 2
    assert found.dropped == {"labels without an object of their own": ROWS // 2}


def test_settings_that_a_network_refuses_name_the_product_before_any_training(tmp_path):
    config, store = catalog_survey(tmp_path, architecture_settings={"widht": 8})
    with pytest.raises(ConfigError, match=r"products\.photoz: tabm: unknown setting 'widht'"):
        verbs.train(Survey(config))
    assert store.names("training") == []


def test_a_model_may_have_another_name_than_its_network(tmp_path):
    network = {"members": 2, "width": 8, "depth": 1, "errors": False}
    config, store = catalog_survey(
        tmp_path, model="my-own", architecture="tabm", architecture_settings=network
    )
    section = config.product("photoz")
    chosen = {"epochs": 1, "batch_size": 2, "workers": 1, "held_out_share": 0.0}
    training = section.training.model_copy(update=chosen)
    section = section.model_copy(update={"training": training})
    done = verbs.train(Survey(config.model_copy(update={"products": [section]})))["photoz"]
    package = load_package(store, "my-own")
    assert (done.model, done.version) == ("my-own", package.version)
    assert package.document["architecture"] == "tabm"
    assert package.document["training"]["rows_training"] == [ROWS // 2]
    assert done.metrics == {}


def test_fluxes_that_nobody_has_are_named(tmp_path):
    config, _store = catalog_survey(tmp_path)
    images = config.images.model_copy(update={"bands": ["g", "r", "Ks", "W1"]})
    config = config.model_copy(update={"images": images})
    with pytest.raises(ConfigError, match=r"flux_W1.* neither the catalog nor"):
        measured_training_set(Survey(config), config.product("photoz"), where.HERE)


def test_measured_photometry_of_every_band_of_the_survey(trained_survey):
    config = load(trained_survey)
    last = config.images.bands[-1]
    plain = config.product("photoz").model_copy(update={"bands": {}})
    renamed = plain.model_copy(update={"bands": {"other": last}})
    for section, name in ((plain, last), (renamed, "other")):
        whole = config.model_copy(update={"products": [config.products[0], section]})
        found = measured_training_set(Survey(whole), section, where.HERE)
        assert found.bands == (*config.images.bands[:-1], name)
        assert np.isfinite(found.flux).mean() > 0.8
        assert np.isfinite(found.flux_err).mean() > 0.8


def test_a_training_reads_the_fluxes_that_a_run_would():
    """Of the read bands r and g; the other one is the photometry's."""
    table = pa.table(
        {
            **{f"flux_{band}": [1.0, 2.0, 3.0] for band in "gri"},
            **{f"flux_err_{band}": [0.1, 0.2, 0.3] for band in "gri"},
            "deblend_flux_g": [7.0, 8.0, None],
            "deblend_flux_r": [7.5, None, 8.5],
            "deblend_flux_err_g": [0.7, 0.8, None],
            "deblend_flux_err_r": [None, 0.8, 0.9],
        }
    )
    found = _fluxes(table, "flux", "gri", ["r", "g"], "deblend")
    np.testing.assert_array_equal(found, [[7.0, 7.5, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]])
    errors = _fluxes(table, "flux_err", "gri", ["r", "g"], "deblend")
    np.testing.assert_array_equal(errors[0], [0.7, np.nan, 0.1])
    plain = _fluxes(table, "flux", "gri", ["r", "g"], None)
    np.testing.assert_array_equal(plain, [[1.0] * 3, [2.0] * 3, [3.0] * 3])
