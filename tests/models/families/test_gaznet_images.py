import dataclasses

import pytest
import torch

from surveyproc.errors import ConfigError, InputError
from surveyproc.models.base import build as registered
from surveyproc.models.base import count_parameters
from surveyproc.models.families.gaznet_images import (
    GAZNET_1,
    GAZNET_81PIX,
    GAZNET_C9I4,
    GAZNET_I4,
    GaZNetImages,
)

ALL = {"I4": GAZNET_I4, "1": GAZNET_1, "C9I4": GAZNET_C9I4, "81pix": GAZNET_81PIX}


def inputs(config, n=3):
    generator = torch.Generator().manual_seed(3)
    shape = (n, len(config.image_bands), config.cutout, config.cutout)
    images = 20 * torch.randn(shape, generator=generator)
    wanted = 3 * len(config.catalog_bands) - 1
    return images, torch.randn(n, wanted, generator=generator) if wanted > 0 else None


def build(config, **changes):
    torch.manual_seed(4)
    return GaZNetImages(dataclasses.replace(config, **changes)).eval()


@pytest.mark.parametrize(
    ("config", "widths", "count"),
    [
        (GAZNET_1, (32, 64, 128, 256), 1_909_344),
        (GAZNET_I4, (32, 64, 128, 256), 1_910_208),
        (GAZNET_1, (64, 128, 256, 512), 7_634_112),
        (GAZNET_I4, (64, 128, 256, 512), 7_635_840),
    ],
)
def test_convolutions_have_the_expected_parameters(config, widths, count):
    with torch.device("meta"):
        network = build(config, image_widths=widths)
    assert count_parameters(network.images) == count


@pytest.mark.parametrize("name", ALL)
def test_outputs_and_gradients(name):
    config = dataclasses.replace(ALL[name], image_widths=(4, 4, 8, 8))
    network = build(config)
    out = network(*inputs(config))["redshift"]
    assert out.point.shape == (3,)
    assert out.log_weights.shape == out.means.shape == out.sigmas.shape == (3, 3)
    assert all(part.isfinite().all() for part in out)
    loss = network.loss({"redshift": out}, {"redshift": torch.tensor([0.1, 0.4, 2.0])})
    assert loss.shape == (3,)
    loss.mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    ("name", "flat", "behind"),
    [("I4", 1024, 3), ("1", 1024, 5), ("C9I4", 1024, 5), ("81pix", 6400, 5)],
)
def test_layers_are_the_paper_s(name, flat, behind):
    config = ALL[name]
    with torch.device("meta"):
        network = GaZNetImages(config)
        shape = (2, len(config.image_bands), config.cutout, config.cutout)
        assert network.images(torch.empty(shape)).shape == (2, flat)
    dense = [m for m in network.joint if isinstance(m, torch.nn.Linear)]
    # The last of them is the head.
    assert len(dense) + 1 == behind
    if network.catalog is None:
        assert name == "I4"
    else:
        assert sum(isinstance(m, torch.nn.Linear) for m in network.catalog.modules()) == 8


def test_missing_image_is_the_same_however_it_is_said():
    config = dataclasses.replace(GAZNET_C9I4, image_widths=(4, 4, 8, 8))
    network = build(config)
    images, features = inputs(config)
    present = torch.ones(3, 4, dtype=torch.bool)
    present[0, 1] = False
    holed = images.clone()
    holed[0, 1] = torch.nan
    by_mask, by_nan, whole = (
        network(*given)["redshift"]
        for given in ((images, features, present), (holed, features), (images, features))
    )
    torch.testing.assert_close(by_mask.means, by_nan.means, rtol=0, atol=0)
    assert not torch.equal(by_mask.means[0], whole.means[0])


def test_wrong_inputs_are_named():
    network = build(GAZNET_1, image_widths=(4, 4, 8, 8))
    images, features = inputs(GAZNET_1)
    with pytest.raises(InputError, match="images: shape"):
        network(images[..., :32, :32], features)
    with pytest.raises(InputError, match="features"):
        network(images)
    alone = build(GAZNET_I4, image_widths=(4, 4, 8, 8))
    with pytest.raises(InputError, match="features"):
        alone(inputs(GAZNET_I4)[0], features)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_bands": ()}, "image_bands"),
        ({"catalog_bands": ("r",)}, "catalog_bands"),
        ({"cutout": 15}, "cutout"),
        ({"image_widths": (8, 8)}, "image_widths"),
    ],
)
def test_wrong_configurations_are_named(changes, match):
    with pytest.raises(ConfigError, match=match):
        dataclasses.replace(GAZNET_1, **changes)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("gaznet-1", {"components": -1}, r"gaznet-1\.components"),
        ("gaznet-1", {"cutout": "wide"}, r"gaznet-1\.cutout"),
        ("gaznet-1", {"depth": 3}, "unknown setting 'depth'"),
        ("gaznet-i9", {}, "gaznet-i9: no such network of 5 bands"),
        ("gaznet-c5i9", {}, "no such network"),
        ("gaznet-c5ix", {}, "no such network"),
        ("gaznet-icecream", {}, "no such network"),
        ("gaznet-c4i2", {}, "the catalog has 5 bands"),
    ],
)
def test_wrong_settings_and_names_are_named(name, settings, match):
    with pytest.raises(ConfigError, match=match):
        registered(name, tuple("ugriz"), settings)
