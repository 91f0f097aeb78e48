import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from surveyproc.errors import InputError
from surveyproc.evaluate import pdf
from surveyproc.schemas import pdf_levels

LEVELS = np.array(pdf_levels())
FINE = np.linspace(0.001, 0.999, 999)


def sample(n, seed=0, *, width=1.0, levels=LEVELS):
    """Quantiles of normal PDFs `width` times as wide as the scatter of the true redshifts."""
    generator = np.random.default_rng(seed)
    mean, sigma = generator.uniform(0.5, 2.0, n), generator.uniform(0.02, 0.1, n)
    quantiles = mean[:, None] + width * sigma[:, None] * stats.norm.ppf(levels)
    return quantiles, mean + sigma * generator.standard_normal(n), mean, sigma


def normal_crps(z, mean, sigma):
    """Closed form, Gneiting & Raftery 2007, equation 21."""
    x = (z - mean) / sigma
    density = 2 * stats.norm.pdf(x)
    return sigma * (x * (2 * stats.norm.cdf(x) - 1) + density - 1 / np.sqrt(np.pi))


def cdf_on(grid, quantiles, levels):
    return pdf.pit(np.repeat(quantiles[None], len(grid), axis=0), levels, grid)


def test_pit_of_normal_pdfs():
    quantiles, z, mean, sigma = sample(5000)
    expected = stats.norm.cdf((z - mean) / sigma)
    np.testing.assert_allclose(pdf.pit(quantiles, LEVELS, z), expected, atol=0.0041)
    quantiles, z, mean, sigma = sample(5000, levels=FINE)
    np.testing.assert_allclose(pdf.pit(quantiles, FINE, z), expected, atol=2e-4)


def test_pit_is_the_level_at_each_quantile_and_strictly_inside_0_and_1():
    quantiles, *_ = sample(1)
    np.testing.assert_allclose(cdf_on(quantiles[0], quantiles[0], LEVELS), LEVELS, rtol=1e-12)
    far = cdf_on(np.array([-1.0, 0.0, 3.0]), quantiles[0], LEVELS)
    assert (far >= 0).all()
    assert (far <= 1).all()


def test_crps_of_normal_pdfs():
    quantiles, z, mean, sigma = sample(5000)
    expected = normal_crps(z, mean, sigma)
    found = pdf.crps(quantiles, LEVELS, z)
    assert (np.abs(found - expected) / sigma).max() < 0.004
    assert found.mean() == pytest.approx(expected.mean(), rel=2e-4)
    quantiles, z, mean, sigma = sample(5000, levels=FINE)
    np.testing.assert_allclose(pdf.crps(quantiles, FINE, z), expected, rtol=1e-4)


ROWS = st.lists(st.floats(0.0, 2.0, width=32), min_size=2, max_size=8).map(np.sort)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.floats(-0.5, 2.5, width=32))
def test_crps_is_the_integral_of_the_cdf_that_pit_gives(row, z):
    levels = np.linspace(0.0, 1.0, len(row) + 2)[1:-1]
    reach = 60.0 * (row[-1] - row[0]) + 1e-3
    # Dense around every bend, so that the trapezium rule is exact where F is linear.
    bends = np.concatenate([row, row - 1e-12, [z, z - 1e-12]])
    tails = np.geomspace(1e-9, reach, 4000)
    grid = np.sort(
        np.concatenate([bends, np.linspace(row[0], row[-1], 4000), row[0] - tails, row[-1] + tails])
    )
    grid = np.sort(np.append(grid, np.linspace(min(z, row[0]), max(z, row[-1]), 4000)))
    height = (cdf_on(grid, row, levels) - (grid >= z)) ** 2
    expected = np.trapezoid(height, grid)
    assert pdf.crps(row[None], levels, [z])[0] == pytest.approx(expected, rel=2e-3, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.floats(-0.5, 2.5, width=32), st.floats(0.1, 10.0))
def test_scores_follow_a_change_of_unit(row, z, factor):
    levels = np.linspace(0.0, 1.0, len(row) + 2)[1:-1]
    first = [f(row[None], levels, [z])[0] for f in (pdf.crps, pdf.cde_loss)]
    second = [f(row[None] * factor, levels, [z * factor])[0] for f in (pdf.crps, pdf.cde_loss)]
    assert second[0] == pytest.approx(first[0] * factor, rel=1e-9, abs=1e-12)
    if np.diff(row).min() > 1e-3 and np.abs(row - z).min() > 1e-9:
        assert second[1] == pytest.approx(first[1] / factor, rel=1e-6)


def test_crps_of_a_point_is_its_distance():
    points = np.full((3, len(LEVELS)), 0.5)
    np.testing.assert_allclose(pdf.crps(points, LEVELS, [0.2, 0.5, 0.9]), [0.3, 0.0, 0.4])
    np.testing.assert_array_equal(pdf.pit(points, LEVELS, [0.2, 0.4, 0.9]), [0.0, 0.0, 1.0])


def test_cde_loss_of_normal_pdfs():
    # For the true density f the expected loss is - integral of f^2 = -1 / (2 sqrt(pi) sigma).
    n = 100_000
    generator = np.random.default_rng(1)
    z = 1.0 + 0.05 * generator.standard_normal(n)
    quantiles = np.repeat((1.0 + 0.05 * stats.norm.ppf(LEVELS))[None], n, axis=0)
    expected = -1 / (2 * np.sqrt(np.pi) * 0.05)
    assert np.mean(pdf.cde_loss(quantiles, LEVELS, z)) == pytest.approx(expected, rel=0.01)
    wide = 1.0 + 1.5 * (quantiles - 1.0)
    assert np.mean(pdf.cde_loss(wide, LEVELS, z)) > expected * 0.97


def test_calibrated_pdfs_pass():
    quantiles, z, *_ = sample(5000, seed=3)
    found = pdf.pdf_metrics(quantiles.astype(np.float32), LEVELS, z)
    assert (found["n"], found["n_missing"], found["n_coincident"]) == (5000, 0, 0)
    assert min(found[key] for key in ("ks_p", "cvm_p", "ad_p")) > 0.01
    assert found["coverage_68"] == pytest.approx(0.68, abs=0.02)
    assert found["coverage_95"] == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("width", [0.7, 1.4])
def test_too_narrow_and_too_wide_pdfs_are_found(width):
    quantiles, z, *_ = sample(5000, seed=3)
    good = pdf.pdf_metrics(quantiles, LEVELS, z)
    quantiles, z, *_ = sample(5000, seed=3, width=width)
    found = pdf.pdf_metrics(quantiles, LEVELS, z)
    assert max(found[key] for key in ("ks_p", "cvm_p", "ad_p")) < 1e-6
    assert (found["coverage_68"] < 0.6) == (width < 1)
    assert (found["coverage_68"] > 0.75) == (width > 1)
    assert found["crps"] > good["crps"]
    assert found["cde_loss"] > good["cde_loss"]


@pytest.mark.parametrize(
    ("statistic", "p"), [(1.9329578327, 0.10), (2.4923671600, 0.05), (3.8781250216, 0.01)]
)
def test_anderson_darling_at_published_critical_values(statistic, p):
    # Marsaglia & Marsaglia 2004, limit of many objects.
    assert pdf._anderson_darling_p(statistic) == pytest.approx(p, abs=1e-9)


def test_anderson_darling_against_trials_of_scipy():
    values = np.random.default_rng(8).beta(1.3, 1.0, 40)
    trial = stats.goodness_of_fit(
        stats.uniform,
        values,
        known_params={"loc": 0, "scale": 1},
        statistic="ad",
        n_mc_samples=4000,
        rng=np.random.default_rng(0),
    )
    found = pdf.uniformity(values)
    assert found["ad"] == pytest.approx(trial.statistic, rel=1e-10)
    assert found["ad_p"] == pytest.approx(trial.pvalue, abs=0.03)


def test_pdfs_that_are_none_are_counted_not_hidden():
    quantiles, z, *_ = sample(6)
    quantiles[0] = np.nan
    quantiles[1, 3] = np.nan
    quantiles[2] = quantiles[2, ::-1].copy()
    quantiles[3, 5] = quantiles[3, 6]
    z[4] = np.nan
    found = pdf.pdf_metrics(quantiles, LEVELS, z)
    assert (found["n"], found["n_missing"], found["n_coincident"]) == (2, 3, 1)
    assert np.isfinite(pdf.crps(quantiles, LEVELS, z)).tolist() == [False] * 3 + [True, False, True]
    nothing = pdf.pdf_metrics(quantiles[:1], LEVELS, z[:1])
    assert (nothing["n"], nothing["n_missing"]) == (0, 1)
    assert np.isnan(
        [nothing[key] for key in ("crps", "cde_loss", "coverage_68", "ks", "ad_p")]
    ).all()


def test_chunks_do_not_matter(monkeypatch):
    quantiles, z, *_ = sample(50)
    whole = pdf.pdf_metrics(quantiles, LEVELS, z)
    monkeypatch.setattr(pdf, "CHUNK", 7)
    assert pdf.pdf_metrics(quantiles, LEVELS, z) == whole


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (LEVELS[:-1], "levels"),
        (LEVELS[::-1], "increase"),
        (np.linspace(0, 1, len(LEVELS)), "between"),
    ],
)
def test_wrong_levels_are_named(levels, message):
    quantiles, z, *_ = sample(3)
    with pytest.raises(InputError, match=message):
        pdf.pit(quantiles, levels, z)
    with pytest.raises(InputError, match="true redshifts"):
        pdf.pit(quantiles, LEVELS, z[:2])


def test_qp_ensemble_keeps_the_quantiles_and_agrees():
    quantiles, z, *_ = sample(300)
    ensemble = pdf.to_qp(quantiles.astype(np.float32), LEVELS)
    assert ensemble.npdf == 300
    np.testing.assert_allclose(ensemble.ppf(LEVELS), quantiles, rtol=1e-6)
    theirs = np.squeeze(ensemble.cdf(z[:, None]))
    inside = (z > quantiles[:, 0]) & (z < quantiles[:, -1])
    # Their F is quadratic between quantiles, ours linear.
    np.testing.assert_allclose(pdf.pit(quantiles, LEVELS, z)[inside], theirs[inside], atol=0.004)


def test_qp_metrics_agree():
    import qp

    quantiles, z, *_ = sample(400, levels=FINE)
    ensemble = pdf.to_qp(quantiles, FINE)
    found = pdf.pdf_metrics(quantiles, FINE, z)
    theirs = qp.metrics.pit.PIT(ensemble, z)
    assert found["ks"] == pytest.approx(theirs.evaluate_PIT_KS().statistic, abs=1e-3)
    assert found["cvm"] == pytest.approx(theirs.evaluate_PIT_CvM().statistic, rel=0.01)
    grid = np.linspace(0.0, 3.0, 3001)
    loss = qp.metrics.concrete_metric_classes.CDELossMetric(grid).evaluate(ensemble, z)
    assert found["cde_loss"] == pytest.approx(loss, rel=0.01)


def test_qp_takes_pdfs_only():
    quantiles, *_ = sample(3)
    quantiles[1, 2] = np.nan
    with pytest.raises(InputError, match="1 of 3 PDFs"):
        pdf.to_qp(quantiles, LEVELS)
