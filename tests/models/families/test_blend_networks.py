"""The papers' networks of blends: their sizes, what they are fed, and what their losses mean."""

import numpy as np
import pytest
import torch

from surveyproc.errors import ConfigError, InputError
from surveyproc.models.base import build, count_parameters
from surveyproc.models.families.blends import UNet, UNetConfig
from surveyproc.models.tasks.fluxes import FluxOutput, error_loss, percentage_loss
from surveyproc.models.tasks.masks import MaskTask
from surveyproc.testing import check_network

NAN = torch.nan
SMALL = {
    "blend2flux": {"cutout": 16, "width": 4},
    "unet": {"cutout": 16, "filters": 2, "depth": 3},
    "blend2mask2flux": {"cutout": 16, "filters": 2, "depth": 3, "width": 4, "dense": [8]},
}


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        # Table 2.
        ("blend2flux", {"width": 64, "errors": False}, 1_607_106),
        ("blend2flux", {"width": 256, "errors": False}, 25_696_002),
        ("blend2flux", {"width": 512, "errors": False}, 102_772_226),
        # Figure 4, with either transposed convolution, and with a third map.
        ("unet", {}, 8_629_954),
        ("unet", {"overlap": True}, 8_629_987),
        ("unet", {"up": 2}, 7_759_554),
        ("unet", {"up": 2, "overlap": True}, 7_759_587),
        # The paper's 18.5 million: ours, and what else comes near.
        ("blend2mask2flux", {"errors": False}, 18_497_092),
        ("blend2mask2flux", {"errors": False, "overlap": True}, 18_498_277),
        (
            "blend2mask2flux",
            {"errors": False, "up": 3, "width": 256, "pools": 5, "dense": [64, 64]},
            18_539_716,
        ),
    ],
)
def test_parameters_of_the_paper(name, settings, count):
    with torch.device("meta"):
        assert count_parameters(build(name, ("F160W",), settings)) == count


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("bands", [("r",), ("g", "r", "i")])
@pytest.mark.parametrize("galaxies", [2, 3])
def test_any_bands_and_galaxies(name, bands, galaxies):
    torch.manual_seed(0)
    network = build(name, bands, SMALL[name] | {"galaxies": galaxies}).eval()
    out = network(torch.randn(2, len(bands), 16, 16))
    if name != "unet":
        assert out["fluxes"].flux.shape == out["fluxes"].error.shape == (2, galaxies * len(bands))
        assert (out["fluxes"].error > 0).all()
        assert network.tasks[0].names[0] == f"central_{bands[0]}"
    if name != "blend2flux":
        assert out["masks"].shape == (2, galaxies, 16, 16)


@pytest.mark.parametrize("name", SMALL)
def test_what_a_network_must_keep_to(name):
    torch.manual_seed(0)
    check_network(build(name, ("g", "r"), SMALL[name]))


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("blend2flux", {"cutout": 15}, "cutout: 15 pixels do not outlast 4 pools"),
        ("blend2flux", {"pools": 6}, "five convolutions, not 6"),
        ("unet", {"cutout": 40}, "40 pixels cannot be halved 4 times"),
        ("unet", {"up": 4}, "up: "),
        ("blend2mask2flux", {"filter": 3}, "unknown setting 'filter'"),
    ],
)
def test_settings_that_cannot_be_are_named(name, settings, match):
    with pytest.raises(ConfigError, match=match):
        build(name, ("r",), settings)
    with pytest.raises(ConfigError, match="at least one band"):
        build(name, (), {})


def test_a_stamp_of_another_size_is_named():
    network = build("blend2flux", ("r",), SMALL["blend2flux"])
    with pytest.raises(InputError, match=r"shape \(1, 1, 12, 12\) is not \(n, \*\(1, 16, 16\)\)"):
        network(torch.zeros(1, 1, 12, 12))


@pytest.mark.parametrize("name", SMALL)
def test_missing_pixels_are_read_as_sky(name):
    torch.manual_seed(0)
    network = build(name, ("r",), SMALL[name]).eval()
    images = torch.randn(3, 1, 16, 16)
    hole = images.clone()
    hole[:, :, :4] = NAN
    images[:, :, :4] = 0.0
    for one, other in zip(
        torch.utils._pytree.tree_leaves(network(images)),
        torch.utils._pytree.tree_leaves(network(hole)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_units_are_those_of_the_training_set():
    """Another unit of the pixels is the same input, and missing pixels do not count."""
    torch.manual_seed(0)
    network = build("blend2flux", ("g", "r"), SMALL["blend2flux"])
    images = torch.randn(50, 2, 16, 16) * torch.tensor([2.0, 30.0])[:, None, None]
    images[:, 0, :3] = NAN
    network.set_images(iter(images.split(20)))
    torch.testing.assert_close(
        network.scaling.level.flatten(), torch.tensor([2.0, 30.0]), rtol=0.03, atol=0.0
    )
    planes = network.scaling(images)
    network.set_images([1e3 * images])
    torch.testing.assert_close(network.scaling(1e3 * images), planes)
    assert not network.outside(1e3 * images).any()
    assert network.outside(1e6 * images).any()


def test_losses_by_hand():
    output = FluxOutput(torch.tensor([[90.0, 300.0]] * 3), torch.tensor([[10.0, 100.0]] * 3))
    true = torch.tensor([[100.0, 200.0], [100.0, NAN], [NAN, NAN]])
    found = percentage_loss(output, true, torch.tensor([0.0, 20.0]))
    torch.testing.assert_close(found, torch.tensor([30.0, 10.0, 0.0]))
    found = percentage_loss(output, true, torch.tensor([200.0, 20.0]))
    torch.testing.assert_close(found, torch.tensor([27.5, 5.0, 0.0]))
    spread = torch.tensor([10.0, 100.0]) * (2 / torch.pi) ** 0.5
    each = spread.log() + torch.tensor([10.0, 100.0]) / spread
    expected = torch.stack([each.mean(), each[0], torch.tensor(0.0)])
    torch.testing.assert_close(error_loss(output, true), expected)


def test_a_flux_of_almost_nothing_does_not_rule_the_others():
    network = build("blend2flux", ("g", "r"), SMALL["blend2flux"])
    fluxes = torch.tensor([[100.0, 100.0, 100.0, 100.0]] * 9 + [[0.001, 100.0, 100.0, 100.0]])
    network.set_targets({"fluxes": fluxes})
    (task,) = network.tasks
    output = FluxOutput(torch.full((10, 4), 90.0), torch.full((10, 4), 10.0))
    loss = task.loss(output, {"fluxes": fluxes})
    assert loss[9] < 100 * loss[0]


def test_errors_take_nothing_from_the_fluxes():
    """The gradient of the errors' loss ends before the features, so fluxes learn as without."""
    torch.manual_seed(0)
    network = build("blend2flux", ("r",), SMALL["blend2flux"])
    output = network(torch.randn(4, 1, 16, 16))["fluxes"]
    error_loss(output, torch.ones(4, 2)).sum().backward()
    assert network.fluxes.flux.weight.grad is None
    assert network.fluxes.features[0].weight.grad is None
    assert network.fluxes.error[0].weight.grad.abs().sum() > 0


def test_the_weights_of_the_losses():
    torch.manual_seed(0)
    settings = SMALL["blend2mask2flux"] | {"dropout": 0.0}
    images = torch.randn(4, 1, 16, 16)
    targets = {"fluxes": torch.rand(4, 2) + 1, "masks": (torch.rand(4, 2, 16, 16) > 0.5).float()}
    found = []
    for weights in ({}, {"mask_weight": 0.0}, {"flux_weight": 0.0, "mask_weight": 1.0}):
        torch.manual_seed(0)
        network = build("blend2mask2flux", ("r",), settings | weights)
        found.append(network.loss(network(images), targets))
    both, fluxes, masks = found
    torch.testing.assert_close(both, fluxes + 0.1 * masks)


def test_the_overlap_is_learned_and_not_judged():
    task = MaskTask(("overlap", "a", "b"), (1, 2), overlap=True)
    truth = torch.tensor([[[[1.0, 1.0]], [[1.0, 0.0]]]])
    sure = torch.tensor([[[[99.0, -99.0]], [[99.0, 99.0]], [[99.0, -99.0]]]])
    assert task.loss(sure, {"masks": truth}).item() == pytest.approx(0.0, abs=1e-6)
    assert task.loss(-sure, {"masks": truth}).item() == pytest.approx(99.0)
    kept = task.compare(sure.sigmoid().numpy(), truth.numpy())
    found = task.metrics(kept, {})
    assert found["iou_by_mask"] == {"a": 1.0, "b": 1.0}
    assert found["overlap_bias"] == 0.0


@pytest.mark.parametrize("up", [2, 3])
def test_the_paths_of_the_unet_are_in_step(up):
    """What moves by whole pools moves with the input, away from the edges."""
    torch.manual_seed(0)
    unet = UNet(1, 1, UNetConfig(filters=2, depth=2, up=up, dropout=0.0)).double()
    x = torch.zeros(1, 1, 48, 48, dtype=torch.float64)
    x[..., 24, 21] = 1.0
    moved = unet(torch.roll(x, (2, 4), (2, 3)))[..., 18:-18, 18:-18]
    torch.testing.assert_close(moved, torch.roll(unet(x), (2, 4), (2, 3))[..., 18:-18, 18:-18])


def test_first_weights_are_keras_own():
    torch.manual_seed(0)
    network = build("blend2mask2flux", ("r",), SMALL["blend2mask2flux"])
    layer = network.fluxes.features[0]
    limit = np.sqrt(6 / ((layer.in_channels + layer.out_channels) * 9))
    assert layer.weight.abs().max() <= limit
    assert layer.weight.abs().max() > 0.8 * limit
    assert (layer.bias == 0).all()
