import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from surveyproc.errors import ConfigError
from surveyproc.models import base
from surveyproc.models.base import Reads, architectures, build, is_registered, register
from surveyproc.models.tasks.pdf import MixtureOutput, log_density


def test_nine_bands_have_26_inputs_and_eight_hidden_layers():
    network = build("gaznet-c9", tuple("ugrizYJHK"), {})
    assert network.reads == Reads(features=tuple("ugrizYJHK"))
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 8 + 1
    assert layers[0].in_features == 26
    assert any(isinstance(m, torch.nn.Flatten) for m in network.modules())


@pytest.mark.parametrize("n", [2, 4, 7, 12])
def test_any_band_set_gives_valid_outputs(n):
    network = build(f"gaznet-c{n}", [f"b{k}" for k in range(n)], {"components": 3})
    out = network(100 * torch.randn(50, 3 * n - 1))["redshift"]
    assert out.point.shape == (50,)
    assert out.means.shape == out.sigmas.shape == out.log_weights.shape == (50, 3)
    assert all(torch.isfinite(part).all() for part in out)
    assert (out.means >= 0).all()
    assert (out.sigmas > 0).all()
    torch.testing.assert_close(out.log_weights.exp().sum(1), torch.ones(50))
    loss = network.loss({"redshift": out}, {"redshift": torch.rand(50)})
    assert loss.shape == (50,)
    loss.mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_parameter_count_is_the_sum_of_the_layers():
    network = build("gaznet-c4", "ugri", {"widths": [8] * 8, "components": 2})
    assert base.count_parameters(network) == (11 * 8 + 8) + 7 * (8 * 8 + 8) + (8 * 7 + 7)


def test_density_of_the_truncated_mixture_integrates_to_one():
    x = torch.linspace(0, 3, 20001, dtype=torch.float64)
    n = len(x)
    row = MixtureOutput(
        torch.zeros(n),
        torch.log(torch.tensor([[0.3, 0.7]], dtype=torch.float64)).expand(n, 2),
        torch.tensor([[0.0, 0.4]], dtype=torch.float64).expand(n, 2),
        torch.tensor([[0.1, 0.3]], dtype=torch.float64).expand(n, 2),
    )
    assert torch.trapezoid(log_density(row, x).exp(), x).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["gaznet-c4", "gaznet-i4"])
def test_point_loss_turns_linear_at_the_paper_s_delta(name):
    network = build(name, "ugri", {})
    redshift = torch.full((3,), 0.5, dtype=torch.float64)
    miss = torch.tensor([0.0, 0.0005, 0.1], dtype=torch.float64)
    one = torch.ones(3, 1, dtype=torch.float64)
    output = MixtureOutput(redshift + miss, 0 * one, 0.4 * one, 0.1 * one)
    loss = network.loss({"redshift": output}, {"redshift": redshift})
    # Over its delta of 0.001 (Li et al. 2022, section 3.1) the loss is the miss less half a delta.
    expected = torch.tensor([0.0, 0.0005**2 / 0.002, 0.1 - 0.0005], dtype=torch.float64)
    torch.testing.assert_close((loss - loss[0]) / 5, expected)


def test_unknown_architecture_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"gaznet-c\*"):
        build("resnet", "ug", {})
    assert "gaznet-c*" in architectures()
    assert is_registered("gaznet-c7")
    assert not is_registered("resnet")


def test_name_must_fit_the_bands():
    with pytest.raises(ConfigError, match="gaznet-c4"):
        build("gaznet-c9", "ugri", {})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"depth": 3}, "depth"),
        ({"widths": [8, 8]}, "widths.*8 items"),
        ({"widths": 64}, "widths"),
        ({"components": -1}, "components"),
        ({"components": 2.5}, "components"),
        ({"huber_delta": -1.0}, "huber_delta"),
        ({"point_weight": -1.0}, "point_weight"),
    ],
)
def test_wrong_settings_are_named(settings, match):
    with pytest.raises(ConfigError, match=match):
        build("gaznet-c4", "ugri", settings)


def test_third_party_architecture_from_an_entry_point(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from surveyproc.models.base import build\n"
        "def net(name, bands, settings):\n"
        "    return build('gaznet-c4', bands, settings)\n"
    )
    told = tmp_path / "theirs-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[surveyproc.models]\ntheir-net = theirs:net\n")
    script = (
        "from surveyproc.models.base import architectures, build\n"
        "assert 'their-net' in architectures()\n"
        "print(*build('their-net', 'ugri', {}).reads.features)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == list("ugri"), done.stderr


def test_two_functions_cannot_share_a_pattern():
    with pytest.raises(ConfigError, match="two architectures"):
        register("gaznet-c*")(lambda name, bands, settings: None)


def test_weights_follow_the_seed():
    torch.manual_seed(3)
    first = build("gaznet-c4", "ugri", {})
    torch.manual_seed(3)
    second = build("gaznet-c4", "ugri", {})
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach(), b.detach())


@pytest.mark.parametrize("name", ["gaznet-c4", "gaznet-i4"])
def test_without_a_mixture_there_is_the_papers_loss_and_no_pdf(name):
    network = build(name, "ugri", {"components": 0}).eval()
    assert not network.tasks[0].pdf
    shape = (3, 11) if name == "gaznet-c4" else (3, 4, 40, 40)
    output = network(**{"features" if len(shape) == 2 else "images": torch.randn(shape)})[
        "redshift"
    ]
    redshift = output.redshift().detach() + torch.tensor([0.0005, 0.1, -0.3])
    expected = torch.tensor([0.5 * 0.0005**2, 0.001 * (0.1 - 0.0005), 0.001 * (0.3 - 0.0005)])
    found = network.loss({"redshift": output}, {"redshift": redshift}).detach()
    torch.testing.assert_close(found, expected / 0.001, rtol=1e-3, atol=1e-6)
    together = type(output).average([output, output])
    torch.testing.assert_close(together.redshift(), output.redshift())
    assert np.isnan(together.summarise().quantiles).all()
