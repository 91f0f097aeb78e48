import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, truncnorm

from surveyproc import schemas
from surveyproc.models.tasks.pdf import QUANTILES, density, summarise


def one(weights, means, sigmas):
    rows = (np.log(np.asarray(weights)), means, sigmas)
    return tuple(torch.tensor(np.atleast_2d(row), dtype=torch.float64) for row in rows)


def test_far_from_zero_a_component_is_a_gaussian_in_x():
    found = summarise(*one([1.0], [0.6], [0.05]))
    x = norm(0.6, 0.05)
    np.testing.assert_allclose(found.quantiles[0], np.expm1(x.ppf(QUANTILES)), rtol=1e-5)
    assert found.median[0] == pytest.approx(np.expm1(0.6), rel=1e-6)
    assert found.low[0] == pytest.approx(np.expm1(x.ppf(0.16)), rel=1e-5)
    assert found.high[0] == pytest.approx(np.expm1(x.ppf(0.84)), rel=1e-5)
    assert found.mean[0] == pytest.approx(np.exp(0.6 + 0.05**2 / 2) - 1, rel=1e-6)
    # Log-normal mode.
    assert found.mode[0] == pytest.approx(np.exp(0.6 - 0.05**2) - 1, rel=1e-6)


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 0.3), (0.05, 0.1), (0.2, 1.0), (0.01, 0.001)])
def test_truncated_at_zero(mean, sigma):
    found = summarise(*one([1.0], [mean], [sigma]))
    x = truncnorm(-mean / sigma, np.inf, mean, sigma)
    np.testing.assert_allclose(found.quantiles[0], np.expm1(x.ppf(QUANTILES)), rtol=2e-3, atol=1e-5)
    grid = np.linspace(0, mean + 9 * sigma, 200_001)
    expected = np.trapezoid(np.expm1(grid) * x.pdf(grid), grid)
    assert found.mean[0] == pytest.approx(expected, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.05, 1.0), st.floats(0.0, 1.5), st.floats(0.002, 0.5)),
        min_size=1,
        max_size=5,
    )
)
def test_any_mixture_against_its_cdf(components):
    weights, means, sigmas = (np.array(part) for part in zip(*components, strict=True))
    weights = weights / weights.sum()
    found = summarise(*one(weights, means, sigmas))
    x = np.log1p(found.quantiles[0].astype(np.float64))

    def cdf(at):
        return (weights * norm.cdf((np.atleast_1d(at)[:, None] - means) / sigmas)).sum(axis=1)

    reached = (cdf(x) - cdf(0.0)) / (1 - cdf(0.0))
    np.testing.assert_allclose(reached, QUANTILES, atol=3e-4)
    assert (np.diff(found.quantiles[0]) >= 0).all()
    assert found.low[0] <= found.median[0] <= found.high[0]
    z = torch.linspace(0, 6, 4001, dtype=torch.float64)
    highest = density(*one(weights, means, sigmas), z).max().item()
    at_mode = density(*one(weights, means, sigmas), torch.tensor([float(found.mode[0])]))
    assert at_mode.item() >= 0.97 * highest


def test_two_separate_peaks():
    found = summarise(*one([0.4, 0.6], [0.2, 1.0], [0.01, 0.02]))
    assert found.quantiles[0, QUANTILES.index(0.35)] < 0.3
    assert found.quantiles[0, QUANTILES.index(0.45)] > 1.5
    assert found.mode[0] == pytest.approx(np.expm1(0.2), rel=1e-2)


def test_rows_do_not_depend_on_each_other_and_nan_stays_in_its_row():
    generator = torch.Generator().manual_seed(0)
    weights = torch.log_softmax(torch.randn(9000, 4, generator=generator), dim=1)
    means = torch.rand(9000, 4, generator=generator)
    sigmas = 0.01 + 0.2 * torch.rand(9000, 4, generator=generator)
    whole = summarise(weights, means, sigmas)
    means[17, 2] = torch.nan
    holed = summarise(weights, means, sigmas)
    for key in ("median", "mean", "mode", "low", "high", "quantiles"):
        found, expected = getattr(holed, key), getattr(whole, key)
        assert np.isnan(found[17]).all()
        np.testing.assert_array_equal(np.delete(found, 17, 0), np.delete(expected, 17, 0))


def test_quantiles_are_those_of_the_schema():
    (column,) = [c for c in schemas.load("photoz", model="m") if c.name == "m_z_quantiles"]
    assert column.length == len(QUANTILES)
    inner = (round(0.05 * k, 2) for k in range(1, 20))
    assert schemas.pdf_levels() == QUANTILES == (0.025, *inner, 0.975)
