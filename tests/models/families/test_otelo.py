"""The network of types and redshifts: its sizes, what it reads, and what its outputs are."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from task_networks import BANDS, labelled

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import ConfigError
from surveyproc.models.base import Reads, build, count_parameters
from surveyproc.models.ensemble import Ensemble
from surveyproc.models.families.otelo import ALTERNATIVES, PAPER
from surveyproc.models.features import input_count
from surveyproc.models.tasks.pdf import density
from surveyproc.testing import check_network
from surveyproc.train.data import TrainingSet

EIGHT = ("u", "g", "r", "i", "z", "J", "H", "Ks")
SMALL = {"base": [16], "classifier": [8], "components": 2}
THREE = {"classes": {"class": ["galaxy", "quasar", "star"]}}


def made(bands=BANDS, **settings):
    torch.manual_seed(0)
    return build("otelo", bands, settings)


@pytest.mark.parametrize(("number", "count"), [(1, 22627), (2, 3811), (3, 21571), (4, 30339)])
def test_parameters_of_the_papers_architectures(number, count):
    assert count_parameters(made(EIGHT, **ALTERNATIVES[number])) == count


def test_the_papers_network_reads_magnitudes_and_ends_in_one_neuron_each():
    network = made(EIGHT, **PAPER).eval()
    parts = [count_parameters(part) for part in (network.base, network.classifier, network.head)]
    assert parts == [4608, 17505, 513]
    assert len(network.redshift_weights) == 513
    features = torch.randn(5, input_count(8))
    other = features.clone()
    other[:, 8:] = 7.0
    first, second = network(features), network(other)
    assert torch.equal(first["class"], second["class"])
    assert torch.equal(first["redshift"].point, second["redshift"].point)
    # One sigmoid: the second logit's excess is what it says.
    assert (first["class"][:, 0] == 0).all()
    assert [task.describe()["kind"] for task in network.tasks] == ["classes", "redshift"]
    assert network.tasks[1].describe()["pdf"] is False


def test_the_redshift_hears_the_class_and_tells_it_its_own_loss():
    network = made(**SMALL)
    features = torch.randn(6, input_count(4, errors=True))
    assert network.reads == Reads(features=BANDS, errors=True)
    z = {"redshift": torch.linspace(0.1, 1.0, 6), "class": torch.full((6,), math.nan)}
    network.loss(network(features), z).sum().backward()
    assert network.classifier[-1].weight.grad.abs().max() > 0
    alone = made(**SMALL, pass_class=False)
    assert count_parameters(network) - count_parameters(alone) == 1 + 3 * 2
    alone.loss(alone(features), z).sum().backward()
    assert alone.classifier[-1].weight.grad.abs().max() == 0


def test_the_joint_pdf_is_the_sum_over_the_classes():
    network = made(**SMALL, **THREE, by_class=True, redshift_classes=["galaxy", "quasar"]).eval()
    features = torch.randn(4, input_count(4, errors=True))
    with torch.no_grad():
        out = network(features)
    grid = torch.linspace(0.0, 8.0, 400)
    p = out["class"].softmax(dim=1)[:, :2].double()
    given = [density(*one[1:], grid) for one in out["redshift_by_class"].mixtures]
    expected = (p[:, :1] * given[0] + p[:, 1:] * given[1]) / p.sum(dim=1, keepdim=True)
    torch.testing.assert_close(density(*out["redshift"][1:], grid), expected, rtol=1e-4, atol=1e-7)
    assert (given[0] - given[1]).abs().max() > 1e-3
    values = network.tasks[2].values(out["redshift_by_class"])
    names = [f"{key}_{one}" for key in ("z_median", "z_err68_low", "z_err68_high", "z_quantiles")
             for one in ("galaxy", "quasar")]  # fmt: skip
    assert list(values) == names


def test_what_is_learned_given_the_class_is_that_of_the_true_one():
    network = made(**SMALL, **THREE, by_class=True, redshift_classes=["galaxy", "quasar"]).eval()
    with torch.no_grad():
        out = network(torch.randn(4, input_count(4, errors=True)))
    task = network.tasks[2]
    x = torch.tensor([0.3, 0.3, 0.3, math.nan])
    targets = {"class": torch.tensor([0.0, 1.0, 2.0, 0.0]), "redshift": torch.expm1(x)}
    found = task.loss(out["redshift_by_class"], targets)
    for row, mixture in enumerate(out["redshift_by_class"].mixtures):
        p = density(*mixture[1:], targets["redshift"][:1])[row, 0] * math.exp(0.3)
        assert float(found[row]) == pytest.approx(-math.log(float(p)), rel=1e-4)
    assert found[2:].tolist() == [0.0, 0.0]
    known = task.known({name: one.double().numpy() for name, one in targets.items()})
    assert known.tolist() == [True, True, False, False]


def test_the_joint_pdf_of_an_ensemble_is_the_sum_over_the_classes_too():
    settings = SMALL | THREE | {"by_class": True}
    networks = [made(**settings).eval(), made(**settings).eval()]
    for weight in networks[1].parameters():
        torch.nn.init.normal_(weight, std=0.3)
    features, grid = torch.randn(4, input_count(4, errors=True)), torch.linspace(0.0, 8.0, 300)
    with torch.no_grad():
        out = Ensemble(networks)(features)
        each = [network(features)["redshift"] for network in networks]
    p = out["class"].softmax(dim=1).double()
    given = out["redshift_by_class"]
    torch.testing.assert_close(given.log_weights.exp().double(), p, rtol=1e-4, atol=1e-6)
    parts = torch.stack([density(*one[1:], grid) for one in given.mixtures], dim=1)
    mean = torch.stack([density(*one[1:], grid) for one in each]).mean(dim=0)
    torch.testing.assert_close((p[:, :, None] * parts).sum(dim=1), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(density(*out["redshift"][1:], grid), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        SMALL | THREE,
        SMALL | THREE | {"by_class": True},
        SMALL | {"classes": {"class": ["a", "b"]}, "image_bands": ["r"], "cutout": 16},
    ],
)
def test_it_keeps_the_contract_of_networks(settings):
    check_network(made(**settings))


def test_cutouts_are_read_beside_the_fluxes():
    network = made(**SMALL, image_bands=["g", "r"], cutout=16).eval()
    assert (network.reads.images, network.reads.cutout) == (("g", "r"), 16)
    features, images = torch.randn(3, input_count(4, errors=True)), torch.randn(3, 2, 16, 16)
    network.set_images([images])
    with torch.no_grad():
        first, second = network(features, images), network(features, 5 * images)
    assert not torch.equal(first["class"], second["class"])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"depth": 3}, "unknown setting 'depth'"),
        ({"base": []}, "base"),
        ({"inputs": "colours"}, "inputs"),
        ({"by_class": True, "components": 0}, "by_class needs a PDF"),
        ({"redshift_classes": ["star"]}, "which is not set"),
        ({**THREE, "by_class": True, "redshift_classes": ["dwarf"]}, "'dwarf' is none of"),
        ({"inputs": "magnitudes"}, "errors must be false"),
        ({"image_bands": ["y"]}, "band 'y' is not among"),
    ],
)
def test_wrong_settings_are_named(settings, match):
    with pytest.raises(ConfigError, match=match):
        made(**settings)


def test_one_band_is_too_few():
    with pytest.raises(ConfigError, match="two bands"):
        made("g")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Types and redshifts of simulated fluxes, stars without redshift, in two folds."""
    import where

    from surveyproc.store.storage import Store
    from surveyproc.train.loop import train

    data: TrainingSet = labelled(900)
    keys = ("class", "redshift")
    return train(
        replace(data, targets={key: data.targets[key] for key in keys}),
        settings=TrainingSection(source="x", epochs=25, batch_size=50, folds=2),
        store=Store(str(tmp_path_factory.mktemp("otelo"))),
        name="types",
        architecture="otelo",
        network={
            "base": [64], "base_dropout": 0.1, "by_class": True, "components": 2,
            "redshift_classes": ["galaxy", "quasar"],
        },
        places=where.HERE,
    )  # fmt: skip


def test_labels_to_calibrated_classes_and_redshifts_of_each(trained):
    found = trained.metrics["held_out"]
    assert found["class"]["accuracy"] > 0.9
    assert found["class"]["area"] > 0.97
    assert found["class"]["calibration_error"] < 0.06
    assert found["redshift"]["median"]["nmad"] < 0.1
    assert found["redshift_by_class"]["median"]["nmad"] < 0.1
    (entry,) = [task for task in trained.tasks if task["kind"] == "classes"]
    assert len(entry["calibration"]["platt"]) == 4
    names = [column.name for column in trained.columns("m")]
    assert "m_z_median_quasar" in names
    assert "m_z_median_star" not in names


def test_the_package_gives_the_calibrated_probabilities(trained):
    from surveyproc.evaluate.calibration import apply_platt
    from surveyproc.models.inference import predict

    data, network = labelled(seed=1), trained.network()
    values, _ = predict(network, trained.scaling, data.flux, flux_err=data.flux_err)
    calibrations, network.calibrations = network.calibrations, {}
    raw, _ = predict(network, trained.scaling, data.flux, flux_err=data.flux_err)
    names = ["p_galaxy", "p_quasar", "p_star"]
    before = np.stack([raw[name] for name in names], axis=1)
    after = np.stack([values[name] for name in names], axis=1)
    np.testing.assert_allclose(
        after, apply_platt(before, calibrations["class"]["platt"]), rtol=1e-5, atol=1e-7
    )
    best = np.array(["galaxy", "quasar", "star"], object)[after.argmax(axis=1)]
    assert (values["class"] == best).all()


def test_the_paper_protocol_stops_by_the_class_and_slows_down_by_the_redshift(trained):
    curves = trained.document["training"]["loss_curve"]
    for curve in curves:
        assert {"validation_loss_class", "validation_loss_redshift"} <= set(curve[0])
        rates = [entry["rate"] for entry in curve]
        assert rates[0] == 1e-3
        assert all(later <= earlier for earlier, later in pairwise(rates))
    assert trained.document["training"]["recipe"]["fit"]["optimiser"] == "rmsprop"
