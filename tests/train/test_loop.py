import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import where
from sums import sums

from surveyproc.config.sections import RunSection, TrainingSection
from surveyproc.errors import ConfigError, InputError, StoreError, SurveyError
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.models.ensemble import Ensemble
from surveyproc.models.inference import predict
from surveyproc.places import Places
from surveyproc.products.base import Batch
from surveyproc.products.photoz import PhotozProduct
from surveyproc.store.storage import Store
from surveyproc.train import apart, curves, job, loop
from surveyproc.train.data import TrainingSet, sky_folds, sky_split
from surveyproc.train.fit import FitState
from surveyproc.train.loop import train

NET = {"widths": [32] * 8, "components": 2}


def training_set(n=900):
    rng = np.random.default_rng(0)
    z = rng.uniform(0.1, 1.5, n)
    flux = 1e3 * np.exp(np.sin(np.arange(4) * 0.7 + 2 * z[:, None]) + rng.normal(0, 0.01, (n, 4)))
    ra, dec = 10 + rng.uniform(0, 1, n), rng.uniform(-0.5, 0.5, n)
    return TrainingSet(flux, 0.01 * flux, {"redshift": z}, ra, dec, tuple("ugri"))


def settings(**keys):
    base = {"source": "x", "redshift": "z", "epochs": 10, "batch_size": 64, "workers": 1}
    return TrainingSection(**(base | keys))


def go(root, data=None, say=None, places=where.HERE, **keys):
    return train(
        data or training_set(),
        settings=settings(**keys),
        store=Store(str(root)),
        name="gaznet-c4",
        network=NET,
        # A dozen steps an epoch: workers are killed within epochs.
        fit_options={"checkpoint_steps": 5},
        places=places,
        say=say,
    )


def epochs(root, number=0):
    """Of a network, as far as they were saved."""
    for path in Path(root).glob("runs/train-gaznet-c4/*"):
        # Read while it is written, or gone meanwhile.
        with suppress(StoreError, KeyError):
            return len(job.histories(Store(str(root)), f"runs/train-gaznet-c4/{path.name}")[number])


def wait_for(found, seconds=120.0):
    until = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return result


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A training in this process, never interrupted."""
    root = tmp_path_factory.mktemp("undisturbed")
    return root, go(root)


@pytest.fixture(scope="module")
def undisturbed_epoch(tmp_path_factory):
    return go(tmp_path_factory.mktemp("epoch"), epochs=1)


@pytest.fixture
def saved_often(monkeypatch):
    """Every state is saved, and told of."""
    monkeypatch.setattr(apart, "SAVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(curves, "PLAIN_INTERVAL_S", 0.02)


def same_weights(first, second):
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[k], second.tensors[k]) for k in first.tensors)
    assert first.document["training"]["loss_curve"] == second.document["training"]["loss_curve"]
    assert first.version == second.version


@pytest.mark.parametrize("folds", [1, 2])
def test_rows_of_the_test_change_no_weight(tmp_path, folds):
    chosen = {"epochs": 1, "folds": folds, "test_share": 0.3}
    data, said = training_set(), []
    package = go(tmp_path / "a", data, said.append, **chosen)
    record = package.document["training"]
    assert record["rows"] + record["rows_test"] == len(data)
    assert 0.3 <= record["rows_test"] / len(data) < 0.4
    assert any(f"{record['rows_test']} for the test" in line for line in said)
    assert package.metrics["test"]["redshift"]["median"]["n"] == record["rows_test"]
    assert package.metrics["test"]["redshift"]["pdf"]["n"] == record["rows_test"]
    tested = sky_split(data.ra, data.dec, 0, 0.3)
    other = replace(data, flux=np.where(tested[:, None], 2 * data.flux, data.flux))
    again = go(tmp_path / "b", other, **chosen)
    assert all(torch.equal(again.tensors[k], package.tensors[k]) for k in package.tensors)
    assert again.metrics["held_out"] == package.metrics["held_out"]
    assert again.metrics["test"] != package.metrics["test"]


def test_redshifts_and_dropped_bands_are_set(tmp_path):
    chosen = {"epochs": 1, "redshifts": [0.2, 1.0], "dropped_rows": 0.0}
    data, said = training_set(), []
    package = go(tmp_path, data, said.append, **chosen)
    inside = int(((data.targets["redshift"] > 0.2) & (data.targets["redshift"] < 1.0)).sum())
    assert package.document["training"]["rows"] == inside
    assert package.absent_bands == "refuse"
    assert any(f"{len(data) - inside} left out: no usable redshift" in line for line in said)


def test_trains_a_usable_model_and_records_how(undisturbed):
    root, package = undisturbed
    record = package.document["training"]
    assert len(record["loss_curve"]) == 20
    assert record["rows_training"][0] + record["rows_held_out"][0] == record["rows"] == 900
    assert record["recipe"]["workers"] == 1
    assert package.metrics["held_out"]["redshift"]["median"]["nmad"] < 0.05
    data = training_set()
    columns = {f"flux_{band}": data.flux[:50, k] for k, band in enumerate(data.bands)}
    out = PhotozProduct(package).compute(Batch(columns, np.zeros(50, np.int32)))
    assert np.median(np.abs(out["gaznet_c4_z_median"] - data.targets["redshift"][:50])) < 0.1
    assert [path.name for path in root.glob("runs/train-gaznet-c4/*/*")] == ["log"]


def test_workers_that_share_gradients_need_ray(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.workers = 2 needs Ray"):
        go(tmp_path, workers=2)


def test_repeating_a_finished_training_does_nothing(undisturbed):
    root, package = undisturbed
    before = {p: p.stat().st_mtime_ns for p in Path(root).rglob("*") if p.is_file()}
    same_weights(go(root), package)
    assert before == {p: p.stat().st_mtime_ns for p in Path(root).rglob("*") if p.is_file()}


@pytest.mark.ray
@pytest.mark.parametrize("members", [1, 2])
def test_bytes_do_not_depend_on_ray(ray_session, tmp_path, members):
    go(tmp_path / "here", members=members, epochs=2)
    go(tmp_path / "ray", members=members, epochs=2, places=ray_session)
    assert sums(tmp_path / "ray/models") == sums(tmp_path / "here/models")


DRIVER = """
import sys
sys.path.insert(0, {here!r})
import where
from test_loop import apart, go
apart.SAVE_INTERVAL_S = 0.0
go({root!r}, {keys})
"""


def kill_driver(root, ready, keys=""):
    """Train in a process of its own, killed when it is `ready`."""
    code = DRIVER.format(here=str(Path(__file__).parent), root=str(root), keys=keys)
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    family = []
    try:
        wait_for(ready)
        family = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    psutil.wait_procs(family, timeout=30)
    assert not (root / "models").exists()


def mark(path):
    """A sign in the history of a saved state, to see that a second call goes on from there."""
    state = FitState.from_bytes(path.read_bytes())
    if state.history:
        state.history[0]["loss"] = 123.0
        path.write_bytes(state.to_bytes())


def went_on_to_the_same(package, expected):
    """From the marked states, as `expected` which was never interrupted."""
    assert all(torch.equal(package.tensors[k], expected.tensors[k]) for k in expected.tensors)
    curves, whole = (p.document["training"]["loss_curve"] for p in (package, expected))
    if package.document["members"] == 1:
        curves, whole = [curves], [whole]
    for curve, one in zip(curves, whole, strict=True):
        assert curve[0]["loss"] == 123.0
        assert curve[1:] == one[1:]


@pytest.mark.kill
@pytest.mark.parametrize("members", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_repeated_it_goes_on(tmp_path, members):
    whole = go(tmp_path / "whole", members=members)
    root = tmp_path / "cut"
    kill_driver(root, lambda: epochs(root, members - 1), f"members={members}")
    for state in root.glob("runs/train-gaznet-c4/*/network-*.safetensors"):
        mark(state)
    went_on_to_the_same(go(root, members=members), whole)


@pytest.mark.parametrize("file", ["network-0", "start-0", "data"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_what_is_damaged_of_a_training_is_made_anew(
    undisturbed_epoch, tmp_path, saved_often, monkeypatch, file, share
):
    def full(store, key, value):
        raise StoreError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put_json", full)
        with pytest.raises(StoreError, match="no space left"):
            go(tmp_path, epochs=1)
    (path,) = tmp_path.glob(f"runs/train-gaznet-c4/*/{file}.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    if file != "network-0":
        with pytest.raises(StoreError, match=rf"{file}\.safetensors: damaged, and removed"):
            go(tmp_path, epochs=1)
    same_weights(go(tmp_path, epochs=1), undisturbed_epoch)


class Overtaken(Places):
    """Places of a process that another one overtakes, whose finished survey is copied."""

    def __init__(self, run, finished, root):
        super().__init__(run)
        self.finished, self.root = finished, root

    def overtake(self):
        if not (self.root / "models").exists():
            shutil.copytree(self.finished / "models", self.root / "models")
            shutil.rmtree(self.root / "runs")

    def stream(self, *arguments, **keys):
        self.overtake()
        return super().stream(*arguments, **keys)

    def need_ray(self, *arguments):
        self.overtake()
        return super().need_ray(*arguments)


def test_another_process_that_finishes_first_is_no_harm(undisturbed, tmp_path):
    places = Overtaken(RunSection(place="here"), undisturbed[0], tmp_path)
    said = []
    same_weights(go(tmp_path, None, said.append, places), undisturbed[1])
    assert any("trained by another process" in line for line in said)
    assert not list(tmp_path.glob("runs/train-gaznet-c4/*"))


def test_a_failure_without_another_process_is_told(tmp_path):
    class Unlucky(Places):
        def stream(self, *_, **__):
            raise SurveyError("no luck")

    with pytest.raises(SurveyError, match="no luck"):
        go(tmp_path, places=Unlucky(RunSection()))


def test_epochs_and_loss_are_told_while_it_goes_on(tmp_path, saved_often, capsys):
    go(tmp_path)
    lines = capsys.readouterr().err
    assert re.search(r"^train gaznet-c4: epoch \d+ of 20, loss -?\d+\.\d+$", lines, re.MULTILINE)


def test_epochs_of_members_are_told(tmp_path, saved_often):
    said = []
    go(tmp_path, None, said.append, members=2, epochs=6)
    for number in (1, 2):
        line = rf"train gaznet-c4: network {number} of 2, epoch \d+ of 12, loss -?\d+\.\d+"
        assert any(re.fullmatch(line, one) for one in said)


def test_folds_hold_out_the_whole_sky_between_them(tmp_path):
    said = []
    package = go(tmp_path, None, said.append, folds=3, epochs=4)
    assert package.metrics["held_out"]["redshift"]["median"]["n"] == 900
    assert package.document["members"] == 3
    record = package.document["training"]
    assert len(record["loss_curve"]) == len(record["rows_held_out"]) == 3
    assert sum(record["rows_held_out"]) == 900
    assert any("900 rows, 900 of them held out in 3 folds" in line for line in said)
    network, data = package.network(), training_set()
    values, _ = predict(network, package.scaling, data.flux[:100])
    singles = []
    for member in network.members:
        singles.append(predict(member, package.scaling, data.flux[:100])[0]["z_point"])
    np.testing.assert_allclose(values["z_point"], np.mean(singles, axis=0), rtol=1e-4)
    assert not np.allclose(singles[0], singles[1], rtol=1e-4)
    again = go(tmp_path, folds=3, epochs=4)
    assert again.version == package.version


def test_members_of_each_fold_are_judged_by_their_mean(tmp_path):
    data = training_set()
    package = go(tmp_path, data, folds=2, members=2, epochs=1)
    networks = list(package.network().members)
    assert len(networks) == 4
    assert package.metrics["held_out"]["redshift"]["median"]["n"] == 900
    fold, settled = sky_folds(data.ra, data.dec, 0, 2), np.empty(900)
    for part in (0, 1):
        mean = Ensemble(networks[part::2]).eval()
        found, _ = predict(mean, package.scaling, data.flux[fold == part])
        settled[fold == part] = found["z_median"]
    expected = redshift_metrics(settled, data.targets["redshift"])["nmad"]
    assert package.metrics["held_out"]["redshift"]["median"]["nmad"] == pytest.approx(
        expected, rel=1e-6
    )


def test_all_labels_may_be_trained_with(tmp_path):
    package = go(tmp_path, held_out_share=0.0, test_share=0.2, members=2, epochs=1)
    record = package.document["training"]
    assert record["rows_held_out"] == [0]
    assert record["rows_training"] == [record["rows"]]
    assert record["best_epoch"] == [2, 2]
    assert set(record["loss_curve"][0][0]) == {"epoch", "rate", "loss"}
    assert set(package.metrics) == {"test"}


def test_what_is_said_beats_what_suits_the_network():
    suited = {"precision": "bfloat16", "patience": 3, "dropped_rows": 0.0, "rates": (0.5,)}
    said = loop._fit_settings(settings(), suited, {})
    assert (said.precision, said.patience, said.dropped_rows) == ("bfloat16", 3, 0.0)
    said = loop._fit_settings(
        settings(precision="float32", patience=7, dropped_rows=0.1, learning_rates=[0.1]),
        suited,
        {"patience": 9},
    )
    assert (said.precision, said.patience, said.dropped_rows) == ("float32", 9, 0.1)
    assert said.rates == (0.1,)


def test_batches_that_workers_cannot_share(tmp_path):
    with pytest.raises(InputError, match=r"batch_size = 65 cannot be shared evenly"):
        go(tmp_path, batch_size=65, workers=2)


def test_set_smaller_than_a_batch(tmp_path):
    with pytest.raises(InputError, match="batch_size"):
        go(tmp_path, training_set(60))
    with pytest.raises(InputError, match="batch_size"):
        go(tmp_path, batch_size=1, workers=2)
    assert not (tmp_path / "models").exists()


def test_wrong_architecture_is_named_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="gaznet-c4"):
        train(
            training_set(),
            settings=settings(),
            store=Store(str(tmp_path)),
            name="x",
            architecture="gaznet-c9",
        )
    assert not any(tmp_path.iterdir())
