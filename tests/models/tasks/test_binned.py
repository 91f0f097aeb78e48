import math

import pytest
import torch

from surveyproc.errors import InputError
from surveyproc.models.tasks import binned

EDGES = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
PDF = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])


def test_uniform_edges():
    edges = binned.uniform_edges()
    assert (len(edges), edges[0], edges[-1]) == (801, 0.0, 4.0)
    assert binned.uniform_edges(4, 0.0, 0.4)[3] == pytest.approx(0.3)


def test_bins_hold_their_lower_edge_and_the_last_its_upper_one():
    z = torch.tensor([0.0, 0.999, 1.0, 2.0, 3.9, 4.0])
    assert binned.bin_index(z, EDGES).tolist() == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("edge", [0.1, 0.4, 0.7, 1.1])
def test_labels_at_the_ends_stay_there_in_single_precision(edge):
    for low, high in ((edge, 5.0), (0.0, edge)):
        edges = torch.tensor(binned.uniform_edges(40, low, high), dtype=torch.float64)
        found = binned.bin_index(torch.tensor([edge], dtype=torch.float32), edges)
        assert found.tolist() == [0 if edge == low else 39]


@pytest.mark.parametrize("wrong", [-0.01, 4.001, math.nan])
def test_labels_outside_the_bins_are_refused(wrong):
    with pytest.raises(
        InputError, match="1 of 2 redshifts lie outside the bins, which cover 0 to 4"
    ):
        binned.bin_index(torch.tensor([1.0, wrong]), EDGES)


def test_point_estimates_by_hand():
    # Half of the first PDF lies below 2.0; of the last anywhere from 1 to 2: its lower end counts.
    torch.testing.assert_close(binned.median(PDF, EDGES), torch.tensor([2.0, 1.5, 1.0]))
    torch.testing.assert_close(binned.mean(PDF, EDGES), torch.tensor([2.05, 1.5, 1.75]))
    # Densities: (0.2, 0.3, 0.25) and (0.5, 0, 0.25).
    assert binned.mode(PDF, EDGES).tolist() == [1.5, 1.5, 0.5]


def test_nan_stays_nan():
    pdf = torch.full((1, 3), torch.nan)
    for estimate in (binned.median, binned.mean, binned.mode):
        assert estimate(pdf, EDGES).isnan().all()


def test_quantiles_invert_the_cumulative_distribution():
    torch.manual_seed(1)
    edges = torch.tensor(binned.uniform_edges(50), dtype=torch.float64)
    pdf = torch.softmax(3 * torch.randn(20, 50), dim=1)
    probabilities = [0.0, 0.16, 0.5, 0.84, 1.0]
    z = binned.quantiles(pdf, edges, probabilities).double()
    cdf = torch.cat([torch.zeros(20, 1), pdf.cumsum(1)], dim=1).double()
    for row in range(20):
        for column, probability in enumerate(probabilities):
            k = int(((z[row, column] - edges[0]) / 0.08).clamp(max=49.999))
            share = (z[row, column] - edges[k]) / 0.08
            got = cdf[row, k] + share * (cdf[row, k + 1] - cdf[row, k])
            assert float(got) == pytest.approx(probability, abs=1e-4)
    assert (z.diff(dim=1) > 0).all()


def test_losses_by_hand():
    redshift = torch.tensor([0.0, 1.0, 3.0])
    point = torch.tensor([[0.1], [0.8], [3.4]])
    assert binned.absolute_error(point, redshift).tolist() == pytest.approx([0.1, 0.2, 0.4])
    assert binned.normalised_absolute_error(point, redshift).tolist() == pytest.approx(
        [0.1, 0.1, 0.1], abs=1e-6
    )
    expected = math.sqrt((0.01 + 0.04 + 0.16) / 3)
    assert binned.root_mean_square_error(point, redshift).tolist() == pytest.approx([expected] * 3)
    logits = torch.log(PDF[[0, 0, 0]])
    index = binned.bin_index(redshift, EDGES)
    entropy = [-math.log(0.2), -math.log(0.3), -math.log(0.5)]
    assert binned.cross_entropy(logits, index).tolist() == pytest.approx(entropy)
    both = [entropy[0] + 0.1, entropy[1] + 0.2, entropy[2] + 0.4]
    assert binned.joint_loss(logits, point, redshift, index).tolist() == pytest.approx(both)


def test_rms_has_a_gradient_at_zero():
    point = torch.ones(4, 1, requires_grad=True)
    binned.root_mean_square_error(point, torch.ones(4)).mean().backward()
    assert point.grad.isfinite().all()
