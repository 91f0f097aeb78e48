"""Morphology networks: the paper's counts, our own backbones, what they take and give."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch

from surveyproc.catalogs.galaxy_zoo import FEATURES, QUESTIONS
from surveyproc.errors import ConfigError, InputError
from surveyproc.images.augment import Distortion, magnified, turn
from surveyproc.models.base import build, count_parameters
from surveyproc.models.families.backbones import ELEVEN, backbone, symmetries
from surveyproc.models.families.pixels import SCALINGS
from surveyproc.testing import check_network

FIVE = {"classes": {"class": tuple("abcde")}}
# Backbone, with 128 + 5, with 512 + 34; side of the maps at 100 x 100.
COUNTS = {
    "resnet50": (23_508_032, 23_770_949, 24_574_562, 4),
    "resnet101": (42_500_160, 42_763_077, 43_566_690, 4),
    "resnet152": (58_143_808, 58_406_725, 59_210_338, 4),
    "inception_v3": (21_785_568, 22_048_485, 22_852_098, 1),
    "inception_resnet_v2": (54_306_464, 54_503_845, 55_110_850, 1),
    "densenet121": (6_953_856, 7_085_701, 7_496_098, 3),
    "densenet169": (12_484_480, 12_698_245, 13_354_402, 3),
    "densenet201": (18_092_928, 18_339_461, 19_093_922, 3),
    "nasnetalarge": (84_720_150, 85_237_019, 86_802_488, 4),
    "vgg16": (14_714_688, 14_780_997, 14_994_786, 3),
    "legacy_xception": (20_806_952, 21_069_869, 21_873_482, 3),
}
RGB = tuple("rgb")


def network(name="morphology", bands=RGB, **settings):
    torch.manual_seed(0)
    return build(name, bands, {**FIVE, "cutout": 48, "pixels": "eight_bit", **settings}).eval()


@pytest.mark.parametrize("name", ELEVEN)
def test_counts_are_the_paper_s(name):
    alone, five, features, side = COUNTS[name]
    with torch.device("meta"):
        whole = build(f"morphology-{name}", RGB, {**FIVE, "pixels": "eight_bit"})
        votes = build("morphology", RGB, {"backbone": name, "decides": "votes"})
        assert count_parameters(whole.backbone) == alone
        assert count_parameters(whole) == five
        assert count_parameters(votes) == features
        images = torch.empty(2, 3, 100, 100)
        maps = whole.backbone.eval().forward_features(images)
        assert maps.shape == (2, whole.backbone.num_features, side, side)
        assert whole.eval()(images)["class"].shape == (2, 5)
        assert votes.eval()(images)["votes"].shape == (2, 34)


def test_the_adversarial_network_has_the_paper_s_count():
    with torch.device("meta"):
        made = build("morphology-resnet101", RGB, {"classes": {"class": ("a", "b")}})
    assert count_parameters(made) == 42_762_690


@pytest.mark.slow
@pytest.mark.parametrize("name", ELEVEN)
def test_forward_passes_at_100_pixels(name):
    made = network(f"morphology-{name}", cutout=100)
    found = made(torch.rand(1, 3, 100, 100) * 255)
    assert found["class"].shape == (1, 5)
    assert found["embedding"].shape == (1, 128)
    assert all(one.isfinite().all() for one in found.values())


@pytest.mark.parametrize("name", ["morphology", "morphology-equivariant"])
@pytest.mark.parametrize("settings", [{}, {"decides": "votes", "questions": "galaxy_zoo_2"}])
def test_the_contract_is_kept(name, settings):
    made = network(name, **settings)
    check_network(made)
    task = made.tasks[0].name
    length = 34 if settings else 5
    found = made(torch.rand(3, 3, 48, 48) * 255)
    assert found[task].shape == (3, length)
    assert found["embedding"].shape == (3, 512 if settings else 128)


def test_all_weights_of_our_own_learn():
    for name in ("residual", "equivariant"):
        made = network(backbone=name).train()
        out = made(torch.rand(8, 3, 48, 48) * 255)
        made.loss(out, {"class": torch.arange(8.0) % 5}).mean().backward()
        for key, parameter in made.named_parameters():
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("side", [32, 48, 64])
def test_the_equivariant_backbone_does_not_know_which_way_a_galaxy_lies(side):
    torch.manual_seed(1)
    made = backbone("equivariant", 2).eval()
    images = torch.randn(2, 2, side, side)
    first, *others = [made.forward_features(one).amax(dim=(2, 3)) for one in symmetries(images)]
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-4)
    plain = backbone("residual", 2).eval()
    one, other = [plain.forward_features(one).amax(dim=(2, 3)) for one in symmetries(images)[:2]]
    assert (one - other).abs().max() > 1e-2


def test_channels_of_our_own_backbones():
    for name, made in (("residual", 64), ("equivariant", 64)):
        wide = network(backbone=name, widths=[8, 16, 24, made])
        assert wide.backbone.num_features == made
        assert torch.isfinite(wide(torch.rand(1, 3, 48, 48) * 255)["class"]).all()
    assert network(backbone="residual", widths=[4] * 5, cutout=32).backbone.num_features == 4


@pytest.mark.parametrize(
    ("backbone", "cutout"), [("residual", 48), ("equivariant", 48), ("equivariant", 44)]
)
def test_averages_are_the_same_for_all_eight(backbone, cutout):
    chosen = {"backbone": backbone, "cutout": cutout}
    made = network(average=True, **chosen)
    images = torch.rand(2, 3, cutout, cutout) * 255
    first, *others = [made(one) for one in symmetries(images)]
    for other in others:
        for key, values in first.items():
            torch.testing.assert_close(other[key], values, rtol=1e-4, atol=1e-5)
    single = network(average=False, **chosen)
    each = [single(one)["class"].softmax(dim=1) for one in symmetries(images)]
    mean = torch.stack(each).mean(dim=0)
    torch.testing.assert_close(first["class"].softmax(dim=1), mean, rtol=1e-4, atol=1e-6)


def test_galaxies_are_turned_at_inference_as_in_training():
    images = torch.rand(2, 3, 48, 48) * 255
    plain, made = network(), network(turned=(20.0, 40.0))
    assert made.suited(Distortion(turning=180.0)) == plain.suited(Distortion(turning=0.0)) == {}
    assert plain.suited(Distortion(turning=180.0)) == {"turned": (22.5, 7.5, 37.5)}
    assert plain.suited(Distortion(turning=6.0)) == {"turned": (3.0, 1.0, 5.0)}
    wanted = [plain(turned_by(images, angle))["class"].softmax(dim=1) for angle in (20.0, 40.0)]
    torch.testing.assert_close(made(images)["class"].softmax(dim=1), wanted[0])
    torch.testing.assert_close(made.train()(images)["class"], plain.train()(images)["class"])
    # Of an equivariant network two of the eight symmetries are enough.
    both = network(backbone="equivariant", average=True, turned=(20.0, 40.0))
    single = network(backbone="equivariant", turned=(0.0,))
    each = [
        single(turned_by(one, angle))["class"].softmax(dim=1)
        for one in symmetries(images)
        for angle in (20.0, 40.0)
    ]
    found = both(images)["class"].softmax(dim=1)
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("turned", [(), (math.nan,), (20.0, math.inf)])
def test_angles_that_are_none_are_named(turned):
    with pytest.raises(ConfigError, match="turned"):
        network(turned=turned)


def turned_by(images, angle):
    return turn(images, torch.full((len(images),), math.radians(angle)))


def test_galaxies_are_as_large_at_inference_as_in_training():
    images = torch.rand(2, 3, 48, 48) * 255
    plain, larger = network(), network(zoom=1.1)
    assert larger.suited(Distortion(1.2)) == plain.suited(Distortion()) == {}
    assert plain.suited(Distortion(1.2)) == {"zoom": pytest.approx(1.1)}
    wanted = plain(magnified(images, 1.1))["class"]
    torch.testing.assert_close(larger(images)["class"], wanted)
    assert not torch.allclose(plain(images)["class"], wanted, atol=1e-3)
    # What training shows is enlarged already.
    torch.testing.assert_close(larger.train()(images)["class"], plain.train()(images)["class"])


def test_colour_images_are_scaled_by_the_paper_s_first_equation():
    scaling = SCALINGS["eight_bit"](3, 8)
    images = torch.tensor([0.0, 127.5, 255.0])[None, :, None, None].expand(1, 3, 8, 8)
    assert scaling(images)[0, :, 0, 0].tolist() == [-0.5, 0.0, 0.5]
    scaling.fit([images.clone()])
    assert scaling(images)[0, :, 0, 0].tolist() == [-0.5, 0.0, 0.5]
    assert scaling.outside(images + 1).all()
    assert not scaling.outside(images).any()


@pytest.mark.parametrize("name", ["asinh", "lupton"])
def test_fluxes_are_compressed_about_their_noise(name):
    generator = torch.Generator().manual_seed(0)
    images = 3.0 * torch.randn(64, 2, 32, 32, generator=generator)
    images[:, 1] *= 2
    images[:, :, 15:18, 15:18] += 1e5
    images[0, 1, 3, 4] = torch.nan
    scaling = SCALINGS[name](2, 32)
    scaling.fit(iter([images[:40], images[40:]]))
    np.testing.assert_allclose(scaling.softening.flatten(), [3, 6], rtol=0.05)
    planes = scaling(images)
    assert planes[0, 1, 3, 4] == 0
    assert planes.isfinite().all()
    assert planes.std() == pytest.approx(1, abs=0.05)
    # The brightest pixel, 30,000 times the noise, is not much more than a sum of a few.
    assert planes.max() < 20


def test_lupton_keeps_colours():
    scaling = SCALINGS["lupton"](3, 8)
    faint = torch.tensor([1.0, 2.0, 4.0])[None, :, None, None].expand(1, 3, 8, 8)
    for factor in (1e-3, 1.0, 1e4):
        bands = scaling.compress(factor * faint)[0, :, 0, 0]
        torch.testing.assert_close(bands / bands[0], torch.tensor([1.0, 2.0, 4.0]))
    assert scaling.compress(torch.zeros(1, 3, 8, 8)).abs().max() == 0


def test_a_band_without_pixels_is_named():
    images = torch.zeros(4, 2, 8, 8)
    images[:, 1] = torch.nan
    with pytest.raises(InputError, match="band 1 has no finite pixel"):
        SCALINGS["asinh"](2, 8).fit([images])


def test_a_backbone_starts_from_a_file(tmp_path):
    donor = network(backbone="resnet18").backbone.state_dict()
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({**donor, "fc.weight": torch.zeros(2, 2)}, path)
    made = network(backbone="resnet18", weights=str(path))
    torch.manual_seed(5)
    other = build("morphology-resnet18", RGB, {**FIVE, "weights": str(path)})
    key = "layer1.0.conv1.weight"
    assert not other.backbone.state_dict()[key].equal(donor[key])
    for one in (made, other):
        one.begin_training()
        assert one.backbone.state_dict()[key].equal(donor[key])
    four = build("morphology-resnet18", tuple("griz"), {**FIVE, "weights": str(path)})
    with pytest.raises(InputError, match=r"'conv1.weight' has shape \(64, 3, 7, 7\)"):
        four.begin_training()
    del donor[key]
    safetensors.torch.save_file(donor, path)
    with pytest.raises(InputError, match=f"tensor '{key}' of backbone 'resnet18' is missing"):
        made.begin_training()


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("morphology-resnet5O", {}, "neither we nor timm"),
        ("morphology", {"backbone": "residul"}, "there are residual, equivariant, resnet50"),
        ("morphology", {"cutout": 16}, "32 is least"),
        ("morphology", {"widths": [4] * 6}, "morphology.widths"),
        ("morphology-resnet50", {"widths": [4]}, "widths: those of backbone 'resnet50' are timm's"),
        ("morphology", {"pixels": "sqrt"}, "morphology.pixels"),
        ("morphology", {"depth": 3}, "unknown setting 'depth'"),
        ("morphology", {"image_bands": ["r", "K"]}, "band 'K' is not among"),
        ("morphology", {"image_bands": []}, "at least one band"),
        ("morphology", {"questions": "galaxy_zoo_2"}, "only with decides"),
        (
            "morphology",
            {"decides": "votes", "answers": ["a", "b"], "questions": {"t": ["a"]}},
            "answer 'b' must be one of the 2 answers",
        ),
    ],
)
def test_wrong_settings_are_named(name, settings, match):
    with pytest.raises(ConfigError, match=match):
        build(name, RGB, settings)


def test_a_backbone_without_maps_is_named():
    made = network("morphology-vit_tiny_patch16_224", cutout=224)
    with pytest.raises(InputError, match="no maps of 192 features"):
        made(torch.zeros(1, 3, 224, 224))


def test_the_34_features_belong_to_eleven_questions():
    assert len(FEATURES) == 34
    assert len({one.name for one in FEATURES}) == 34
    assert list(QUESTIONS) == [f"t{number:02d}" for number in range(1, 12)]
    assert sum(map(len, QUESTIONS.values())) == 34
    assert QUESTIONS["t01"] == ("smooth", "features_or_disk", "star_or_artifact")
    described = network(decides="votes").tasks[0].describe()
    assert described["thresholds"]["odd_no"] == 0.45
    assert math.isclose(sum(described["thresholds"].values()), 3.25)
