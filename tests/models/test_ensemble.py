"""Averages of PDFs: what an ensemble publishes is the mean of its members' densities."""

import numpy as np
import pytest
import torch

from surveyproc.models.base import build
from surveyproc.models.ensemble import Ensemble
from surveyproc.models.features import fit_scaling
from surveyproc.models.inference import predict
from surveyproc.models.package import load_package, save_package
from surveyproc.models.tasks.binned import BinnedOutput, uniform_edges
from surveyproc.models.tasks.pdf import MixtureOutput, density
from surveyproc.store.storage import Store


def mixture(seed, n=6, k=3):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(3, n, k, generator=generator)
    # Means near zero: the truncation takes a different share of each member.
    return MixtureOutput(
        torch.rand(n, generator=generator),
        draw[0].log_softmax(dim=1),
        0.3 * draw[1],
        0.05 + 0.3 * draw[2],
    )


def test_average_of_mixtures_is_the_mean_of_their_densities():
    members = [mixture(seed) for seed in range(3)]
    z = torch.linspace(0, 4, 400)
    found = density(*MixtureOutput.average(members)[1:], z)
    expected = torch.stack([density(*member[1:], z) for member in members]).mean(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    points = torch.stack([member.point for member in members]).mean(dim=0)
    torch.testing.assert_close(MixtureOutput.average(members).redshift(), points)


def test_average_of_bins_is_the_mean_of_their_probabilities():
    edges = torch.tensor(uniform_edges(20, 0.0, 2.0), dtype=torch.float64)
    members = [BinnedOutput(torch.randn(5, 20), torch.rand(5, 1), edges) for _ in range(4)]
    found = BinnedOutput.average(members)
    expected = torch.stack([member.logits.softmax(dim=1) for member in members]).mean(dim=0)
    torch.testing.assert_close(found.logits.softmax(dim=1), expected)
    assert found.summarise().quantiles.shape == (5, 21)
    alone = BinnedOutput(None, torch.rand(5, 1), edges)
    assert np.isnan(alone.summarise().median).all()
    assert alone.redshift().shape == (5,)


@pytest.mark.parametrize("name", ["gaznet-c3", "tabm"])
def test_an_ensemble_survives_its_package(tmp_path, name):
    flux = np.exp(np.random.default_rng(0).normal(5, 1, (300, 3)))
    error = 0.1 * flux
    settings = {} if name.startswith("gaznet") else {"members": 2, "width": 8, "depth": 1}
    members = [build(name, "gri", settings) for _ in range(2)]
    scaling = fit_scaling(flux, error, tuple("gri"), errors=members[0].reads.errors)
    store = Store(str(tmp_path))
    save_package(
        store,
        name,
        architecture=name,
        settings=settings,
        bands=tuple("gri"),
        scaling=scaling,
        members=[member.state_dict() for member in members],
    )
    package = load_package(store, name)
    whole, _ = predict(Ensemble(members).eval(), scaling, flux, flux_err=error)
    again, _ = predict(package.network(), package.scaling, flux, flux_err=error)
    for key, values in whole.items():
        np.testing.assert_array_equal(values, again[key])
