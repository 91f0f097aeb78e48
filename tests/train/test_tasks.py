"""Networks of several tasks through the loop: labels to package, package to columns."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import task_networks
import torch
import where
from task_networks import ANSWERS, BANDS, CLASSES, labelled
from test_loop import mark, wait_for, went_on_to_the_same

from surveyproc import verbs
from surveyproc.catalogs.ingest import ingest_catalog
from surveyproc.config import SurveyConfig
from surveyproc.config.sections import TrainingSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.models.inference import predict
from surveyproc.models.package import load_package
from surveyproc.products.base import Batch, PixelArray
from surveyproc.products.network import NetworkProduct
from surveyproc.products.photoz import PhotozProduct
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.testing import check_product
from surveyproc.train import job
from surveyproc.train.loop import train


def go(root, name="test-types", targets=("class", "redshift"), data=None, **keys):
    data = labelled() if data is None else data
    chosen = {"source": "x", "epochs": 15, "batch_size": 50, "learning_rates": [3e-3], **keys}
    return train(
        replace(data, targets={target: data.targets[target] for target in targets}),
        settings=TrainingSection(**chosen),
        store=Store(str(root)),
        name=name,
        # A dozen steps an epoch: it is killed within epochs.
        fit_options={"checkpoint_steps": 5, "dropped_rows": 0.0},
        places=where.HERE,
    )


@pytest.fixture(scope="module")
def types(tmp_path_factory):
    """Two folds of two members, whose classes the labels tell."""
    return go(tmp_path_factory.mktemp("types"), folds=2, members=2)


@pytest.fixture(scope="module")
def votes(tmp_path_factory):
    return go(tmp_path_factory.mktemp("votes"), "test-votes", ("votes",), test_share=0.2)


def batch(data, rows=slice(None)):
    columns = {f"flux_{band}": data.flux[rows, k] for k, band in enumerate(BANDS)}
    return Batch(columns, np.zeros(len(data.ra[rows]), np.int32))


def test_metrics_of_every_task_on_the_rows_that_it_knows(types):
    data = labelled()
    found = types.metrics["held_out"]
    known = np.array([name is not None for name in data.targets["class"]])
    measured = np.isfinite(data.targets["redshift"])
    assert found["class"]["n"] == known.sum()
    assert found["redshift"]["median"]["n"] == found["redshift"]["pdf"]["n"] == measured.sum()
    record = types.document["training"]
    # A row that neither task can learn from is left out.
    assert record["rows_dropped"] == {"no usable class or redshift": (~known & ~measured).sum()}
    assert record["rows_known"] == {"class": known.sum(), "redshift": measured.sum()}
    assert found["class"]["accuracy"] > 0.9
    assert found["redshift"]["median"]["nmad"] < 0.05
    assert set(found["class"]["purity"]) == set(CLASSES)


def test_classes_that_the_labels_told_are_kept_in_the_package(types):
    assert types.document["settings"]["classes"] == {"class": list(CLASSES)}
    entry, redshift = types.tasks
    assert (entry["kind"], entry["classes"]) == ("classes", list(CLASSES))
    assert redshift == {"name": "redshift", "kind": "redshift", "pdf": True}


def test_classes_and_redshifts_become_columns(types):
    data = labelled(seed=1)
    product = PhotozProduct(types)
    out = product.compute(batch(data))
    assert list(out) == [column.name for column in product.columns]
    assert list(out)[:4] == [*(f"test_types_p_{one}" for one in CLASSES), "test_types_class"]
    p = np.stack([out[f"test_types_p_{one}"] for one in CLASSES], axis=1)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-5)
    best = np.array(CLASSES)[p.argmax(axis=1)]
    np.testing.assert_array_equal(out["test_types_class"], best)
    assert (best == data.targets["class"]).mean() > 0.8
    known = np.isfinite(data.targets["redshift"])
    miss = out["test_types_z_median"][known] - data.targets["redshift"][known]
    assert np.median(np.abs(miss)) < 0.05
    check_product(product, batch(data))


def test_an_ensemble_gives_the_mean_of_its_members_probabilities(types):
    data, network = labelled(seed=1), types.network()
    whole, _ = predict(network, types.scaling, data.flux)
    members = [predict(one, types.scaling, data.flux)[0] for one in network.members]
    for one in CLASSES:
        mean = np.mean([values[f"p_{one}"] for values in members], axis=0)
        np.testing.assert_allclose(whole[f"p_{one}"], mean, rtol=1e-4, atol=1e-6)


def test_a_flux_that_is_not_there_gives_no_class(types):
    data = labelled(5)
    flux = np.full_like(data.flux, np.nan)
    out = PhotozProduct(types).compute(batch(replace(data, flux=flux)))
    assert out["test_types_class"].tolist() == [""] * 5
    assert np.isnan(out["test_types_p_star"]).all()
    empty = PhotozProduct(types).compute(batch(data, slice(0, 0)))
    assert empty["test_types_class"].shape == (0,)
    assert empty["test_types_z_quantiles"].shape == (0, 21)


def test_votes_and_embeddings(votes):
    assert set(votes.metrics) == {"held_out", "test"}
    found = votes.metrics["test"]["votes"]
    assert set(votes.metrics["test"]) == {"votes"}
    assert set(found["rmse"]) == set(ANSWERS)
    assert found["mean_rmse"] < 0.1
    assert found["calibration_error"] < 0.05
    product = NetworkProduct(votes, name="morphology")
    data = labelled(700, seed=1)
    check_product(product, batch(data))
    out = product.compute(batch(data))
    assert list(out)[:2] == ["test_votes_t00", "test_votes_t01"]
    assert list(out)[-2:] == ["test_votes_embedding", "morphology_flag"]
    codes = out["test_votes_embedding"]
    assert (codes.shape, codes.dtype) == ((700, 64), np.int8)
    # Fitted to the training rows: neither lost in one step nor cut off.
    assert 15 < codes.std() < 60
    assert (np.abs(codes) == 127).mean() < 0.01
    miss = out["test_votes_t05"] - data.targets["votes"][:, 5]
    assert np.nanmedian(np.abs(miss)) < 0.1
    with pytest.raises(ConfigError, match="'test-votes' gives no redshift, only votes, embedding"):
        PhotozProduct(votes)


def test_numbers_of_votes_weigh(tmp_path, votes):
    data = labelled()
    counts = {"votes_counts": np.full_like(data.targets["votes"], 40.0)}
    data = replace(data, targets={**data.targets, **counts})
    keys = {"epochs": 1, "test_share": 0.2}
    package = go(tmp_path, "test-votes", ("votes", "votes_counts"), data, **keys)
    loss = package.document["training"]["loss_curve"][0]["loss"]
    plain = votes.document["training"]["loss_curve"][0]["loss"]
    # Not forty times: the steps differ after the first one.
    assert 20 < loss / plain < 60


def test_masks_are_pixels_and_not_columns(tmp_path):
    network = task_networks.Pixels(("g", "r"))
    assert [task.kind for task in network.tasks] == ["masks", "fluxes"]
    from surveyproc.models.package import save_package

    package = save_package(
        Store(str(tmp_path)), "test-pixels", architecture="test-pixels", settings={},
        bands=("g", "r"), scaling=None, members=[network.state_dict()], pixel_scale=0.2,
    )  # fmt: skip
    product = NetworkProduct(package, name="deblend")
    assert product.pixels == (PixelArray("test_pixels_masks", (2, 8, 8), "float32"),)
    assert next(column.name for column in product.columns) == "test_pixels_flux_g"
    images = np.random.default_rng(0).normal(0, 30, (3, 2, 8, 8)).astype(np.float32)
    images[1] = np.nan
    out = product.compute(Batch({}, np.zeros(3, np.int32), images=images))
    masks = out["test_pixels_masks"]
    assert (masks.shape, masks.dtype) == ((3, 2, 8, 8), np.float32)
    assert np.isnan(masks[1]).all()
    assert ((masks[::2] > 0) & (masks[::2] < 1)).all()
    data = labelled()
    data = replace(data, targets={"masks": np.zeros((600, 2, 8, 8)), "fluxes": data.flux})
    with pytest.raises(InputError, match="task 'masks' learns from images of masks, which a"):
        go(tmp_path, "test-pixels", ("masks", "fluxes"), data)


def test_labels_that_no_task_wants_and_tasks_without_labels_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"task 'redshift' .* set training\.redshift"):
        go(tmp_path, targets=("class",))
    with pytest.raises(ConfigError, match=r"training\.targets\.votes: no task"):
        go(tmp_path, targets=("class", "redshift", "votes"))
    assert not any(tmp_path.iterdir())


def test_the_labels_decide_the_training(tmp_path):
    data = labelled()
    first = go(tmp_path, data=data, epochs=1)
    kinds = np.array([name or "" for name in data.targets["class"]])
    kinds[kinds == "star"] = "dwarf"
    renamed = replace(data, targets={**data.targets, "class": kinds})
    second = go(tmp_path, data=renamed, epochs=1)
    assert first.version != second.version
    assert second.tasks[0]["classes"] == ["dwarf", "galaxy", "quasar"]
    assert go(tmp_path, data=data, epochs=1).version == first.version


DRIVER = """
import sys
sys.path[:0] = [{here!r}, {tests!r}]
from test_tasks import go
from surveyproc.train import apart
apart.SAVE_INTERVAL_S = 0.0
go({root!r}, epochs=40)
"""


@pytest.mark.kill
def test_killed_and_repeated_it_goes_on_to_the_last_bit(tmp_path, monkeypatch):
    # What was under way at the kill gets a process of its own, which must know the network too.
    told = tmp_path / "plugin" / "theirs-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(
        "[surveyproc.models]\ntest-types = task_networks:types\n"
    )
    monkeypatch.syspath_prepend(told.parent)
    whole, root = go(tmp_path / "whole", epochs=40), tmp_path / "cut"
    here = Path(__file__).parent
    code = DRIVER.format(here=str(here), tests=str(here.parent), root=str(root))
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    def begun():
        for folder in root.glob("runs/train-test-types/*"):
            return job.histories(Store(str(root)), f"runs/train-test-types/{folder.name}").get(0)
        return None

    try:
        wait_for(begun)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not (root / "models").exists()
    (state,) = root.glob("runs/train-test-types/*/network-0.safetensors")
    mark(state)
    went_on_to_the_same(go(root, epochs=40), whole)


def test_from_survey_toml_to_published_columns(tmp_path):
    """Labels by text id, classes as text; training, run, and metrics of the release."""
    data = labelled(300)
    names = [f"obj-{number}" for number in range(300)]
    columns = {"name": names, "ra": data.ra, "dec": data.dec}
    columns |= {f"flux_{band}": data.flux[:, k] for k, band in enumerate(BANDS)}
    pq.write_table(pa.table(columns), tmp_path / "sources.parquet")
    z = pa.array(data.targets["redshift"], from_pandas=True)
    kind = data.targets["class"].tolist()
    labels = {"source": names, "type": kind, "zspec": z, "ra": data.ra, "dec": data.dec}
    pq.write_table(pa.table(labels), tmp_path / "labels.parquet")
    table = str(tmp_path / "labels.parquet")
    training = {
        "source": table,
        "redshift": "zspec",
        "targets": {"class": "type"},
        "id": "source",
        "epochs": 15,
        "batch_size": 30,
        "learning_rates": [3e-3],
    }
    config = SurveyConfig.model_validate(
        {
            "survey": {"name": "test", "root": str(tmp_path / "store")},
            "images": {"tiles": [], "bands": list(BANDS)},
            "catalog": {
                "source": str(tmp_path / "sources.parquet"), "id": "name", "partition_rows": 100,
            },
            "products": [{"name": "photoz_types", "model": "test-types", "training": training}],
            "truth": {"source": table, "redshift": "zspec"},
        }
    )  # fmt: skip
    ingest_catalog(Survey(config), where.HERE)
    done = verbs.train(Survey(config))["photoz_types"]
    assert done.metrics["held_out"]["class"]["accuracy"] > 0.7
    released = verbs.run(Survey(config))
    assert released.did == "published"
    rows = pq.read_table(released.url + "/dataset").to_pandas().set_index("name")
    assert len(rows) == 300
    told = np.array([name is not None for name in kind])
    found = rows.loc[names, "test_types_class"].to_numpy()
    assert (found[told] == np.array(kind)[told]).mean() > 0.8
    assert rows["test_types_p_star"].between(0, 1).all()
    judged = verbs.evaluate(Survey(config))
    assert judged.column == "test_types_z_median"
    assert judged.matched == np.isfinite(data.targets["redshift"]).sum()
    # PDFs and the flag behind columns of another task are found too.
    assert judged.pdf is not None
    assert judged.unflagged is not None
    package = load_package(Store(config.root), "test-types")
    assert all(torch.isfinite(tensor).all() for tensor in package.tensors.values())
