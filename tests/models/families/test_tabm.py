import math

import numpy as np
import pytest
import torch

from surveyproc.errors import ConfigError
from surveyproc.models.base import Reads, architectures, build
from surveyproc.models.families.tabm import CRPS_UNIT, LIKELIHOOD, crps
from surveyproc.models.features import input_count
from surveyproc.train.examples import BandDropout, Examples
from surveyproc.train.fit import FitSettings, fit

BANDS = ("g", "r", "i")
SMALL = {
    "members": 3,
    "width": 16,
    "depth": 2,
    "components": 2,
    "frequencies": 4,
    "embedding": 3,
}


def start(seed=0, **changes):
    torch.manual_seed(seed)
    return build("tabm", BANDS, {**SMALL, **changes})


@pytest.fixture
def inputs():
    return torch.randn(20, input_count(3, errors=True), generator=torch.Generator().manual_seed(1))


def test_it_is_registered_and_reads_errors():
    assert "tabm*" in architectures()
    assert start().reads == Reads(features=BANDS, errors=True)


def test_it_does_without_errors():
    network = build("tabm", BANDS, {"errors": False})
    assert network.reads == Reads(features=BANDS)
    assert torch.isfinite(network(torch.randn(4, input_count(3)))["redshift"].means).all()
    with pytest.raises(ConfigError, match=r"tabm\.errors"):
        build("tabm", BANDS, {"errors": 1})


@pytest.mark.parametrize("n", [2, 9])
def test_any_band_set_gives_valid_pdfs(n):
    network = build("tabm", [f"b{k}" for k in range(n)], SMALL)
    out = network(100 * torch.randn(20, 4 * n - 1))["redshift"]
    assert out.point.shape == (20,)
    assert out.log_weights.shape == out.means.shape == out.sigmas.shape == (20, 3 * 2)
    assert all(torch.isfinite(part).all() for part in out)
    assert (out.means >= 0).all()
    assert (out.sigmas > 0).all()
    torch.testing.assert_close(out.log_weights.exp().sum(1), torch.ones(20))


def test_every_weight_has_a_gradient(inputs):
    network = start()
    loss = network.loss(network(inputs), {"redshift": torch.linspace(0.1, 1.0, 20)})
    assert loss.shape == (20,)
    loss.mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


def test_members_differ_and_average(inputs):
    network = start().eval()
    out = network(inputs)["redshift"]
    means = out.means.reshape(20, 3, 2)
    assert (means.std(dim=1) > 1e-4).all()
    expected = (out.log_weights.exp() * out.means).sum(1).expm1()
    torch.testing.assert_close(out.point, expected)


def test_crps_is_the_integral_of_the_squared_cdf_error():
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means = torch.tensor([0.3, 0.5, 1.2], dtype=torch.float64)
    sigmas = torch.tensor([0.05, 0.2, 0.01], dtype=torch.float64)
    x = torch.linspace(-4, 6, 400_001, dtype=torch.float64)
    cdf = (weights * torch.special.ndtr((x[:, None] - means) / sigmas)).sum(1)
    for y in (-0.5, 0.31, 1.2, 3.0):
        expected = torch.trapezoid((cdf - (x >= y).double()) ** 2, x)
        found = crps(weights.log(), means, sigmas, torch.tensor(y, dtype=torch.float64))
        assert found.item() == pytest.approx(expected.item(), abs=3e-5)


def test_crps_of_one_gaussian_has_the_known_form():
    # sigma (u (2 Phi(u) - 1) + 2 phi(u) - 1 / sqrt(pi)), Gneiting & Raftery 2007.
    mean, sigma, y = 0.4, 0.1, 0.55
    u = (y - mean) / sigma
    phi = math.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
    expected = sigma * (u * math.erf(u / math.sqrt(2)) + 2 * phi - 1 / math.sqrt(math.pi))
    zero, one = torch.zeros(1), torch.ones(1)
    found = crps(zero, mean * one, sigma * one, torch.tensor(y))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_loss_by_hand_for_one_member(inputs):
    network = start(members=1, components=1).eval()
    z = torch.linspace(0.1, 1.0, 20)
    with torch.no_grad():
        out = network(inputs)["redshift"]
        found = network.loss({"redshift": out}, {"redshift": z})
    normal = torch.distributions.Normal(out.means[:, 0], out.sigmas[:, 0])
    y = torch.log1p(z)
    score = crps(out.log_weights, out.means, out.sigmas, y) / (CRPS_UNIT * network.target[1])
    expected = (1 - LIKELIHOOD) * score - LIKELIHOOD * normal.log_prob(y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_loss_is_the_mean_of_the_members_losses(inputs):
    network, z = start().eval(), torch.linspace(0.1, 1.0, 20)
    with torch.no_grad():
        out = network(inputs)["redshift"]
        whole = network.loss({"redshift": out}, {"redshift": z})
        network.members = 1
        alone = []
        for k in range(3):
            part = [field[:, 2 * k : 2 * k + 2] for field in out[1:]]
            part[0] = part[0] + math.log(3)
            one = out._replace(log_weights=part[0], means=part[1], sigmas=part[2])
            alone.append(network.loss({"redshift": one}, {"redshift": z}))
    torch.testing.assert_close(whole, torch.stack(alone).mean(0))


def test_weights_and_training_follow_the_seed(inputs):
    targets = {"redshift": torch.linspace(0.1, 1.0, 20)}
    nothing = torch.zeros(20, dtype=torch.bool)

    def trained(seed):
        network = start(seed)
        examples = Examples(
            network.reads, {"features": inputs}, targets, nothing, None, BandDropout(0.0, 0.0), seed
        )
        settings = FitSettings(2, 8, seed, **network.fit_options)
        *_, last = fit(network, examples, settings)
        return last.best

    first, second, other = trained(3), trained(3), trained(4)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_targets_scale_the_outputs(inputs):
    network = start().eval()
    network.set_targets({"redshift": torch.full((10,), 2.0) + torch.linspace(-0.01, 0.01, 10)})
    with torch.no_grad():
        found = network(inputs)["redshift"].point
    np.testing.assert_allclose(found, 2.0, atol=0.1)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"layers": 3}, "layers"),
        ({"members": 0}, "members"),
        ({"width": 1.5}, "width"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_wrong_settings_are_named(settings, match):
    with pytest.raises(ConfigError, match=match):
        build("tabm", BANDS, settings)


def test_one_band_is_too_few():
    with pytest.raises(ConfigError, match="two bands"):
        build("tabm", "g", {})
