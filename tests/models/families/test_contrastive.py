"""Networks that learn without labels: their loss, their views, and what a training begins with."""

import math

import numpy as np
import pytest
import torch

from surveyproc.errors import ConfigError
from surveyproc.models.base import build
from surveyproc.models.inference import predict
from surveyproc.models.tasks.likeness import nt_xent
from surveyproc.testing import check_network

SMALL = {"cutout": 32, "pixels": "eight_bit", "hidden": 16, "projection": 8}


def network(**settings):
    torch.manual_seed(0)
    return build("contrastive", tuple("rgb"), {**SMALL, **settings})


def test_the_loss_by_hand():
    same = torch.eye(3)
    first, second = same.clone(), same.clone()
    # Of five others one is alike (e^2), four are at right angles (e^0).
    expected = torch.full((3,), math.log((math.e**2 + 4) / math.e**2))
    torch.testing.assert_close(nt_xent(first, second, 0.5), expected)
    alike = torch.ones(4, 2) / 2**0.5
    torch.testing.assert_close(nt_xent(alike, alike, 0.1), torch.full((4,), math.log(7)))
    mixed = nt_xent(first, second.roll(1, dims=0), 0.5)
    assert (mixed > expected).all()


def test_views_are_drawn_anew_in_every_step_and_the_same_in_validation():
    made = network()
    images = 255 * torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def seen(seed):
        made.begin_step(torch.Generator().manual_seed(seed))
        return made(images)["likeness"]

    made.backbone.eval()
    assert seen(1).equal(seen(1))
    assert not seen(1).equal(seen(2))
    first, second = seen(1).unbind(dim=1)
    assert not first.equal(second)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(6))
    made.eval()
    assert seen(1).equal(seen(2))


def test_objects_are_told_again_after_some_steps():
    """Blobs of four shapes: their views come to lie together."""
    y, x = np.mgrid[:32, :32] - 16.0
    shapes = [np.exp(-(y**2 / (2 * a**2) + x**2 / (2 * b**2))) for a, b in ((2, 2), (5, 5))]
    shapes += [np.exp(-(y**2 / 8 + x**2 / 72)), np.exp(-np.hypot(y, x) / 6)]
    levels = np.linspace(0.5, 1, 4)[:, None, None, None]
    images = torch.tensor(np.stack([shapes] * 3, axis=1) * 255 * levels, dtype=torch.float32)
    made = network(noise=0.0)
    optimiser = torch.optim.Adam(made.parameters(), 3e-3)
    losses = []
    for step in range(30):
        made.begin_step(torch.Generator().manual_seed(step))
        loss = made.loss(made(images), {}).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_at_inference_there_is_an_embedding_and_no_view():
    made = network().eval()
    images = np.random.default_rng(0).uniform(0, 255, (5, 3, 32, 32)).astype(np.float32)
    vectors, _ = predict(
        made, None, images=images, read=lambda task, out: {task.name: out.float().numpy()}
    )
    assert vectors["embedding"].shape == (5, 16)
    assert vectors["likeness"].shape == (5, 2, 8)
    again, _ = predict(
        made, None, images=images[::-1].copy(), read=lambda task, out: {task.name: out.numpy()}
    )
    np.testing.assert_array_equal(again["embedding"][::-1], vectors["embedding"])


def test_it_keeps_the_contract_of_networks():
    check_network(network())


def test_layers_have_the_names_of_a_morphology_network():
    own = network().state_dict()
    settings = {"cutout": 32, "pixels": "eight_bit", "hidden": 16}
    other = build("morphology", tuple("rgb"), {**settings, "classes": {"class": ("a", "b")}})
    shared = {
        key: value for key, value in other.state_dict().items() if not key.startswith("head.")
    }
    assert {key: value.shape for key, value in shared.items()}.items() <= {
        key: value.shape for key, value in own.items()
    }.items()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"image_bands": ["r", "x"]}, "band 'x' is not among r, g, b"),
        ({"image_bands": []}, "at least one band"),
        ({"cutout": 16}, r"contrastive\.cutout"),
        ({"dimming": [0.0, 1.0]}, r"contrastive\.dimming"),
        ({"temperature": 0}, r"contrastive\.temperature"),
        ({"colour": 1}, "unknown setting 'colour'"),
    ],
)
def test_wrong_settings_are_named(settings, match):
    with pytest.raises(ConfigError, match=match):
        network(**settings)
