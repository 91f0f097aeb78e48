import pytest
import torch

from surveyproc.errors import InputError
from surveyproc.models.base import count_parameters
from surveyproc.models.families.inception import (
    P19,
    BandScaling,
    Inception,
    compress,
    same_average_pool,
)
from surveyproc.models.tasks.binned import uniform_edges


def test_compression_by_hand():
    x = torch.tensor([0.0, 3.0, -3.0, 99.0])
    torch.testing.assert_close(compress(x), torch.tensor([0.0, 1.0, -1.0, 9.0]))


def test_pool_averages_real_pixels_only():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    expected = torch.tensor([[2.0, 3.0, 3.5], [5.0, 6.0, 6.5], [6.5, 7.5, 8.0]])
    torch.testing.assert_close(same_average_pool(x)[0, 0], expected)


def test_inception_concatenates_its_paths():
    block = Inception(6, 4, 5, 3)
    assert block.outputs == 2 * 5 + 4 + 3
    assert block(torch.randn(2, 6, 8, 8)).shape == (2, 17, 8, 8)
    # Every output comes through an activation.
    assert (block(torch.randn(2, 6, 8, 8)) >= 0).all()


def test_scaling_standardises_finite_pixels():
    torch.manual_seed(0)
    images = 30 * torch.randn(40, 2, 8, 8) + torch.tensor([10.0, 500.0])[:, None, None]
    images[:5, 1] = torch.nan
    images[7, 0, 3, 3] = torch.inf
    scaling = BandScaling(2, 8)
    scaling.fit(images.split(7))
    planes = scaling(images)
    known = images.isfinite()
    assert (planes[~known] == 0).all()
    for band in range(2):
        values = planes[:, band][known[:, band]]
        assert float(values.mean()) == pytest.approx(0.0, abs=1e-4)
        assert float(values.std()) == pytest.approx(1.0, abs=1e-3)
    assert set(scaling.state_dict()) == {"mean", "std", "brightness"}


def test_objects_brighter_or_fainter_than_all_of_the_training_set_are_outside():
    torch.manual_seed(0)
    scaling = BandScaling(2, 9)
    images = torch.rand(30, 2, 9, 9) + 10 * torch.rand(30, 1, 1, 1)
    assert not scaling.outside(1e9 * images).any()
    images[3, 1] = torch.nan
    scaling.fit(images.split(7))
    assert not scaling.outside(images).any()
    changed = images[:4].clone()
    changed[0, 1, 2:7, 2:7] += 100.0
    changed[1, 0, 2:7, 2:7] -= 100.0
    changed[2, :, :2] += 1e6
    assert scaling.outside(changed).tolist() == [True, True, False, False]


def test_scaling_needs_pixels_in_every_band():
    images = torch.zeros(3, 2, 8, 8)
    images[:, 1] = torch.nan
    with pytest.raises(InputError, match="band 1"):
        BandScaling(2, 8).fit([images])


def test_p19_has_the_published_size():
    with torch.device("meta"):
        network = P19("ugriz", uniform_edges(180, 0.0, 0.4))
        assert count_parameters(network) == 27_596_372
        maps = network.maps(torch.empty(2, 5, 64, 64))
        assert maps.shape == (2, 22_272)
        assert network(torch.empty(2, 5, 64, 64), torch.empty(2))["redshift"].logits.shape == (
            2,
            180,
        )
