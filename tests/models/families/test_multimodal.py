import dataclasses
import math

import pytest
import torch

from surveyproc.errors import ConfigError, InputError
from surveyproc.models.base import build, count_parameters
from surveyproc.models.families.modalities import draw_kept, select_modalities
from surveyproc.models.families.multimodal import MultimodalConfig, MultimodalNetwork
from surveyproc.models.tasks import binned

NINE = tuple("ugrizyjhk")
SMALL = MultimodalConfig(
    tuple("gri"), select_modalities(3, 2), edges=binned.uniform_edges(10), width=0.05
)

# Table C.1 of Ait Ouahmed et al. 2023, millions; and what the layers sum to.
TABLE = [
    ("baseline", 9, [1], 2, 19.03, 19_025_177),
    ("2 bands, extremely early", 2, [1], 0, 9.52, 9_516_961),
    ("2 bands, very early", 2, [1], 1, 11.16, 11_154_881),
    ("2 bands, early", 2, [1], 2, 12.51, 12_511_201),
    ("2 bands, middle", 2, [1], 4, 15.22, 15_223_841),
    ("2 bands, late", 2, [1], 6, 17.94, 17_936_481),
    ("early, 1 band", 1, [1], 2, 8.80, 8_802_329),
    ("early, 2 bands", 2, [1], 2, 12.51, 12_511_201),
    ("early, 3 bands", 3, [1], 2, 17.23, 17_229_305),
    ("early, 4 bands", 4, [1], 2, 22.11, 22_104_737),
    ("early, 5 bands", 5, [1], 2, 26.29, 26_285_593),
    ("early, orders 1 and 2", 2, [1, 2], 2, 17.37, 17_373_233),
    ("early, orders 1, 2 and 3", 2, [1, 2, 3], 2, 21.54, 21_540_689),
    ("early, orders 2 and 3", 2, [2, 3], 2, 15.98, 15_984_081),
]


def small(**changes):
    torch.manual_seed(2)
    return MultimodalNetwork(dataclasses.replace(SMALL, **changes)).eval()


def inputs(n=3, bands=3):
    generator = torch.Generator().manual_seed(5)
    images = 20 * torch.randn(n, bands, 64, 64, generator=generator)
    return images, 0.1 * torch.rand(n, generator=generator)


@pytest.mark.parametrize(
    ("size", "orders", "depth", "millions", "count"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_table_c1(size, orders, depth, millions, count):
    with torch.device("meta"):
        config = MultimodalConfig(NINE, select_modalities(9, size, orders), depth)
        found = count_parameters(MultimodalNetwork(config))
    assert found == count
    assert abs(found / 1e6 - millions) < 0.006


@pytest.mark.parametrize(("size", "count"), [(5, 10_185_293), (2, 9_097_397)])
def test_five_bands_and_180_bins(size, count):
    with torch.device("meta"):
        config = MultimodalConfig(
            tuple("ugriz"), select_modalities(5, size), edges=binned.uniform_edges(180, 0.0, 0.4)
        )
        assert count_parameters(MultimodalNetwork(config)) == count


@pytest.mark.parametrize("depth", [0, 1, 2, 4, 6])
def test_shapes_of_the_full_network(depth):
    with torch.device("meta"):
        network = MultimodalNetwork(MultimodalConfig(NINE, select_modalities(9, 2), depth))
        seen = {}
        network.common.register_forward_hook(lambda m, i, out: seen.update(maps=out.shape))
        network.reduction.register_forward_hook(lambda m, i, out: seen.update(latent=out.shape))
        out = network(torch.empty(2, 9, 64, 64), torch.empty(2))["redshift"]
    assert seen == {"maps": (2, 500, 8, 8), "latent": (2, 96)}
    assert out.logits.shape == (2, 800)
    assert out.point.shape == (2, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fusion_depth": 0},
        {"fusion_depth": 6},
        {"fusion": "cross"},
        {"fusion": "cross", "fusion_depth": 4},
        {"modalities": select_modalities(3, 3)},
        {"modalities": select_modalities(3, 2, all_bands=True, single_bands=True)},
        {"cnn_layers": 5, "fusion_depth": 1},
        {"cnn_layers": 10, "fusion": "cross"},
    ],
    ids=str,
)
def test_every_parameter_has_a_gradient(changes):
    network = small(width=0.1, **changes)
    out = network(*inputs())["redshift"]
    redshift = torch.tensor([0.1, 0.5, 3.0])
    index = binned.bin_index(redshift, network.edges)
    binned.joint_loss(out.logits, out.point, redshift, index).mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_first_convolutions_have_the_paper_s_activations():
    for path in small().paths:
        kinds = [type(layer).__name__ for layer in path.first]
        assert kinds == ["Conv2d", "PReLU", "Conv2d", "Tanh"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mae", [0.1, 0.2, 0.4]), ("nmae", [0.1, 0.1, 0.1]), ("rmse", [math.sqrt(0.07)] * 3)],
)
def test_loss_is_the_entropy_plus_the_chosen_regression_loss(name, expected):
    network = small(regression_loss=name)
    point = torch.tensor([[0.1], [0.8], [3.4]])
    output = binned.BinnedOutput(torch.zeros(3, 10), point, network.edges)
    targets = {"redshift": torch.tensor([0.0, 1.0, 3.0])}
    loss = network.loss({"redshift": output}, targets)
    torch.testing.assert_close(loss - math.log(10), torch.tensor(expected))


@pytest.mark.parametrize("heads", ["classification", "regression"])
def test_single_heads(heads):
    out = small(heads=heads)(*inputs())["redshift"]
    assert (out.logits is None) == (heads == "regression")
    assert (out.point is None) == (heads == "classification")


@pytest.mark.parametrize(
    ("layers", "pools", "parallel"),
    [(5, (1, 2, 3), 1), (10, (1, 4, 6), 2), (21, (1, 8, 13), 5)],
)
@pytest.mark.parametrize("size", [2, 3])
def test_plain_networks_have_the_layers_they_are_named_for(layers, pools, parallel, size):
    network = small(cnn_layers=layers, modalities=select_modalities(3, size))
    assert (network.config.pools, network.config.parallel_blocks) == (pools, parallel)
    one_way = [network.paths[0], network.common, network.reduction]
    found = [m for part in one_way for m in part.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(found) == layers
    assert network(*inputs())["redshift"].logits.shape == (3, 10)


@pytest.mark.parametrize("layers", [None, 5])
def test_half_the_cutout_does_without_the_first_pool(layers):
    network, whole = small(cutout=32, cnn_layers=layers), small(cnn_layers=layers)
    assert (network.reads.cutout, network.config.pools) == (32, whole.config.pools[1:])
    assert count_parameters(network) == count_parameters(whole)
    images, reddening = inputs()
    assert network(images[..., :32, :32], reddening)["redshift"].logits.shape == (3, 10)
    with pytest.raises(ConfigError, match="cutout"):
        small(cutout=48)


def test_missing_band_is_the_same_however_it_is_said():
    network = small()
    images, reddening = inputs()
    present = torch.ones(3, 3, dtype=torch.bool)
    present[1, 2] = False
    by_mask = network(images, reddening, present)["redshift"]
    holed = images.clone()
    holed[1, 2] = torch.nan
    for found in (network(holed, reddening), network(holed, reddening, present)):
        torch.testing.assert_close(found["redshift"].logits, by_mask.logits, rtol=0, atol=0)
    everywhere = network(images, reddening)["redshift"]
    assert not torch.equal(everywhere.logits[1], by_mask.logits[1])
    torch.testing.assert_close(everywhere.logits[[0, 2]], by_mask.logits[[0, 2]])


def test_bands_reach_only_their_modalities():
    network = small()
    images, reddening = inputs()
    other = images.clone()
    other[:, 0] = images[:, 0].flip(0)
    # The first band is in g_r only: once that is dropped, it does not matter.
    kept = network.without("g_r")
    assert kept.tolist() == [False, True]
    a, b = (network(one, reddening, kept=kept)["redshift"] for one in (images, other))
    torch.testing.assert_close(a.logits, b.logits, rtol=0, atol=0)
    assert not torch.equal(
        network(images, reddening)["redshift"].logits, network(other, reddening)["redshift"].logits
    )


def test_order_of_modalities_is_only_an_order_of_channels():
    first = small(fusion_depth=0)
    second = small(fusion_depth=0, modalities=SMALL.modalities[::-1])
    weights = first.state_dict()
    width = first.paths[0].outputs
    swapped = {}
    for key, value in weights.items():
        if key.startswith("paths."):
            _, number, rest = key.split(".", 2)
            key = f"paths.{1 - int(number)}.{rest}"
        if key.startswith("common.1") and value.ndim == 4 and value.shape[1] == 2 * width:
            value = torch.cat([value[:, width:], value[:, :width]], dim=1)
        swapped[key] = value
    second.load_state_dict(swapped)
    torch.testing.assert_close(
        first(*inputs())["redshift"].logits, second(*inputs())["redshift"].logits
    )


def test_modality_dropout_is_a_function_of_the_seed():
    network = small(modalities=select_modalities(3, 2, single_bands=True))

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return [
            network(*inputs(), kept=draw_kept(5, generator, 4))["redshift"].logits for _ in range(3)
        ]

    first, second, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_training_drops_what_a_step_draws_and_evaluation_nothing():
    network = small(modalities=select_modalities(3, 2, single_bands=True), modality_dropout=4)
    whole = network(*inputs())["redshift"].logits
    for seed in range(5):
        network.begin_step(torch.Generator().manual_seed(seed))
        kept = draw_kept(5, torch.Generator().manual_seed(seed), 4)
        dropped = network(*inputs(), kept=kept)["redshift"].logits
        assert torch.equal(network.train()(*inputs())["redshift"].logits, dropped)
        assert torch.equal(network.eval()(*inputs())["redshift"].logits, whole)


def test_dropping_nothing_changes_nothing():
    network = small()
    kept = torch.ones(2, dtype=torch.bool)
    torch.testing.assert_close(
        network(*inputs(), kept=kept)["redshift"].logits, network(*inputs())["redshift"].logits
    )


def test_channels_last_gives_the_same():
    network = small()
    images, reddening = inputs()
    expected = network(images, reddening)["redshift"].logits
    network = network.to(memory_format=torch.channels_last)
    given = images.to(memory_format=torch.channels_last)
    found = network(given, reddening)["redshift"].logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_reddening_matters():
    network = small()
    images, reddening = inputs()
    found = network(images, reddening + 1.0)["redshift"].logits
    assert not torch.allclose(found, network(images, reddening)["redshift"].logits)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"modalities": ((0, 5),)}, "do not fit 3 bands"),
        ({"modalities": ()}, "do not fit"),
        ({"fusion_depth": 3}, "fusion_depth"),
        ({"fusion": "sum"}, "fusion"),
        ({"heads": "all"}, "heads"),
        ({"edges": (0.0, 1.0, 1.0)}, "edges"),
        ({"width": 0.0}, "width"),
        ({"cnn_layers": 4}, "cnn_layers"),
        ({"fusion": "cross", "modalities": ((0, 1), (2,))}, "one size"),
        ({"fusion": "cross", "fusion_depth": 0}, "at least one block"),
    ],
)
def test_wrong_configurations_are_named(changes, match):
    with pytest.raises(ConfigError, match=match):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"orders": 2}, "orders"),
        ({"size": "two"}, "size"),
        ({"width": "wide"}, "width"),
        ({"cnn_layers": "ten"}, "cnn_layers"),
        ({"bins": [float("nan"), 0, 4]}, "bins"),
        ({"bins": [10, 4, 0]}, "lowest redshift comes first"),
        ({"layers": 3}, "unknown setting 'layers'"),
    ],
)
def test_wrong_settings_are_named(settings, match):
    with pytest.raises(ConfigError, match=match):
        build("multimodal", tuple("gri"), settings)


@pytest.mark.parametrize("heads", ["classification", "both", "regression"])
def test_losses_are_float32_under_bfloat16(heads):
    network = small(heads=heads)
    images, reddening = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images, reddening)
    targets = {"redshift": torch.rand(len(images))}
    assert network.loss(output, targets).dtype == torch.float32


def test_wrong_inputs_are_named():
    network = small()
    with pytest.raises(InputError, match="images: shape"):
        network(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    with pytest.raises(ConfigError, match="known are g_r, r_i"):
        network.without("u_g")
