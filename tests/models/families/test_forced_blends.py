"""The network that is told where the galaxies are: its light, its losses, its settings."""

import numpy as np
import pytest
import torch

from surveyproc.errors import ConfigError
from surveyproc.images.places import marked
from surveyproc.models.base import build
from surveyproc.models.families.forced_blends import LightUnits
from surveyproc.models.tasks.columns import task_columns
from surveyproc.models.tasks.fluxes import FluxOutput, ratio_loss
from surveyproc.testing import check_network

SMALL = {"cutout": 16, "width": 4, "dense": [8]}


@pytest.mark.parametrize("galaxies", [2, 3])
def test_what_a_network_must_keep_to(galaxies):
    torch.manual_seed(0)
    network = build("forced_blend2flux", ("g", "r"), SMALL | {"galaxies": galaxies})
    assert network.reads.neighbours == galaxies - 1
    check_network(network)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"cutout": 15}, "cutout: 15 pixels do not outlast 4 pools"),
        ({"pools": 6}, "five convolutions, not 6"),
        ({"galaxies": 1}, "two at least"),
        ({"errors": False}, "unknown setting 'errors'"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, match):
    with pytest.raises(ConfigError, match=match):
        build("forced_blend2flux", ("r",), settings)


def test_places_become_planes():
    places = np.array([[[2.0, -3.0], [np.nan, 0.0]], [[8.0, 0.0], [-8.0, -8.4]]])
    planes = marked(places, 16)
    assert planes.shape == (2, 2, 16, 16)
    # 8 pixels to the right of index 8 are outside, 8 to the left are the first one.
    assert [one.tolist() for one in np.nonzero(planes)] == [[0, 1], [0, 1], [5, 0], [10, 0]]


def test_light_is_what_lies_about_a_place():
    scaling = LightUnits(2, 32)
    pixels = torch.zeros(1, 2, 32, 32)
    pixels[0, 0, 16, 16] = 1e4
    pixels[0, 1, 12, 20] = 5e4
    light = scaling.light(pixels, torch.tensor([[[0.0, 0.0], [4.0, -4.0]]]))
    own = light * scaling.noise_of_light
    far = float(np.exp(-32 / (2 * scaling.sigma**2)))
    torch.testing.assert_close(
        own, torch.tensor([[[1e4, 5e4 * far], [1e4 * far, 5e4]]]), rtol=1e-3, atol=0.1
    )
    # Nothing, and less than nothing, is as bright as the noise, and less.
    assert scaling.light(0 * pixels, torch.zeros(1, 1, 2)).flatten().tolist() == [1.0, 1.0]
    below = scaling.light(-pixels, torch.zeros(1, 1, 2))
    assert 0 < below[0, 0, 0] < 0.01


def test_noise_is_that_of_the_sky():
    torch.manual_seed(1)
    scaling = LightUnits(2, 16)
    images = torch.randn(200, 2, 16, 16) * torch.tensor([2.0, 30.0])[:, None, None]
    images[:, :, 7:9, 7:9] += 1e4
    images[:, 0, :3] = torch.nan
    scaling.fit(iter(images.split(64)))
    torch.testing.assert_close(scaling.noise, torch.tensor([2.0, 30.0]), rtol=0.05, atol=0.0)


def test_a_brighter_blend_is_the_same_blend():
    """Far above the noise only `bright` says how bright it is: its weights 0, fluxes scale."""
    torch.manual_seed(0)
    network = build("forced_blend2flux", ("g", "r"), SMALL).eval()
    first = network.dense[0].weight
    with torch.no_grad():
        first[:, -5:-1] = 0.0
    images = 100 + 1e4 * torch.rand(4, 2, 16, 16)
    places = torch.from_numpy(marked(np.array([[[3.0, 2.0]]] * 4), 16))
    one, other = (network(k * images, places)["fluxes"].flux for k in (1.0, 50.0))
    torch.testing.assert_close(50 * one, other, rtol=1e-4, atol=0.0)
    elsewhere = torch.from_numpy(marked(np.array([[[-3.0, 2.0]]] * 4), 16))
    assert not torch.allclose(one, network(images, elsewhere)["fluxes"].flux, rtol=1e-2)


def test_it_says_how_far_the_nearest_galaxy_is():
    torch.manual_seed(0)
    network = build("forced_blend2flux", ("r",), SMALL | {"galaxies": 3}).eval()
    offsets = np.array([[[3.0, 4.0], [6.0, 0.0]], [[np.nan, np.nan], [0.0, -2.0]]] * 2)
    offsets[3] = np.nan
    images = torch.rand(4, 1, 16, 16)
    with torch.inference_mode():
        output = network(images, torch.from_numpy(marked(offsets, 16)))["fluxes"]
    assert output.apart.tolist() == [5.0, 2.0, 5.0, -1.0]
    (task,) = network.tasks
    assert task.values(output)["apart"].tolist() == [5.0, 2.0, 5.0, -1.0]
    assert [one.name for one in task_columns(task.describe(), "m")][-1] == "m_apart"


def test_half_costs_as_much_as_twice():
    nan = torch.nan
    flux = torch.tensor([[50.0, 100.0], [200.0, 100.0], [1.0, 300.0], [1.0, 1.0]])
    true = torch.tensor([[100.0, 100.0], [100.0, 100.0], [nan, 100.0], [nan, nan]])
    found = ratio_loss(FluxOutput(flux, torch.ones_like(flux)), true)
    expected = 100 * torch.tensor([np.log(2) / 2, np.log(2) / 2, np.log(3), 0.0])
    torch.testing.assert_close(found, expected.float())
