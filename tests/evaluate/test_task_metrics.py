"""Metrics of classes, votes and fluxes, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as peer

from surveyproc.errors import InputError
from surveyproc.evaluate.classes import class_metrics
from surveyproc.evaluate.fluxes import flux_metrics
from surveyproc.evaluate.votes import roc_area, roc_table, vote_metrics


def test_classes_by_hand():
    p = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [np.nan, np.nan]]
    found = class_metrics(p, [0, 1, 1, 0], ("a", "b"))
    assert (found["n"], found["n_missing"]) == (3, 1)
    assert found["confusion"] == [[1, 0], [1, 1]]
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["completeness"] == {"a": 1.0, "b": 0.5}
    assert found["purity"] == {"a": 0.5, "b": 1.0}
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8]).mean())
    assert found["brier"] == pytest.approx((2 * 0.01 + 2 * 0.36 + 2 * 0.04) / 3)


def test_classes_as_scikit_learn_has_them():
    random = np.random.default_rng(0)
    p, true = random.dirichlet([1, 1, 1], 400), random.integers(0, 3, 400)
    found, predicted = class_metrics(p, true, ("a", "b", "c")), p.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(peer.accuracy_score(true, predicted))
    assert found["log_loss"] == pytest.approx(peer.log_loss(true, p))
    np.testing.assert_array_equal(found["confusion"], peer.confusion_matrix(true, predicted))
    purity, completeness, *_ = peer.precision_recall_fscore_support(true, predicted)
    np.testing.assert_allclose(list(found["purity"].values()), purity)
    np.testing.assert_allclose(list(found["completeness"].values()), completeness)


def test_classes_that_nobody_has_are_undefined_and_certain_errors_finite():
    found = class_metrics([[1.0, 0.0, 0.0]], [1], ("a", "b", "c"))
    assert np.isfinite(found["log_loss"])
    assert np.isnan(found["completeness"]["c"])
    assert np.isnan(found["purity"]["b"])
    nothing = class_metrics(np.empty((0, 2)), [], ("a", "b"))
    assert nothing["n"] == 0
    assert np.isnan(nothing["accuracy"])
    with pytest.raises(InputError, match="3 classes, and 2 names"):
        class_metrics([[1.0, 0.0, 0.0]], [1], ("a", "b"))


def test_votes_by_hand():
    predicted = [[0.1, 0.5], [0.3, np.nan], [np.nan, np.nan]]
    true = [[0.2, 0.5], [np.nan, 1.0], [0.5, 0.5]]
    found = vote_metrics(predicted, true, ("x", "y"))
    assert (found["n"], found["n_missing"]) == (1, 2)
    assert found["rmse"] == {"x": pytest.approx(0.1), "y": 0.0}
    assert found["mean_rmse"] == pytest.approx(0.05)
    # Two pairs in two bins: gaps of 0.1 and 0.
    assert found["calibration_error"] == pytest.approx(0.05)
    assert np.isnan(vote_metrics(np.empty((0, 1)), np.empty((0, 1)), ("x",))["mean_rmse"])
    with pytest.raises(InputError, match="2 answers"):
        vote_metrics(np.ones((1, 1)), np.ones((1, 1)), ("x", "y"))


def test_features_at_their_thresholds():
    shares = np.array([[0.9, 0.9], [0.5, 0.1], [0.4, 0.1], [0.1, 0.1], [np.nan, 0.1]])
    p = np.array([[0.3, 0.1], [0.1, 0.1], [0.4, 0.1], [0.2, 0.1], [0.9, 0.1]])
    found = vote_metrics(p, shares, ("bar", "ring"), {"bar": 0.25, "ring": 0.5})
    assert found["passing"] == {"bar": 0.5, "ring": 0.0}
    assert found["completeness"] == {"bar": 0.5, "ring": 0.0}
    assert found["purity"]["bar"] == 0.5
    assert np.isnan(found["purity"]["ring"])
    assert "passing" not in vote_metrics(p, shares, ("bar", "ring"))


def test_calibrated_shares_have_no_error_though_they_scatter():
    random = np.random.default_rng(0)
    share = random.uniform(0, 1, (200_000, 1))
    seen = random.binomial(20, share) / 20
    found = vote_metrics(share, seen, ("x",))
    assert found["calibration_error"] < 0.002
    assert found["mean_rmse"] == pytest.approx(np.sqrt((share * (1 - share) / 20).mean()), rel=0.01)
    assert vote_metrics(0.5 * share, seen, ("x",))["calibration_error"] > 0.2


def test_fluxes_with_known_noise():
    random = np.random.default_rng(0)
    true = random.uniform(100, 200, 100_000)
    error = random.uniform(1, 3, 100_000)
    flux = 1.1 * true + random.normal(0, error)
    found = flux_metrics(flux, error, true)
    assert found["median_bias"] == pytest.approx(0.1, abs=1e-3)
    unbiased = flux_metrics(flux - 0.1 * true, error, true)
    assert unbiased["pull_scatter"] == pytest.approx(1.0, abs=0.02)
    assert unbiased["median_bias"] == pytest.approx(0.0, abs=1e-3)


def test_fluxes_without_use_are_counted():
    found = flux_metrics([1.0, np.nan, 2.0, 3.0], [0.1, 0.1, 0.0, 0.1], [1.0, 1.0, 2.0, np.nan])
    assert (found["n"], found["n_missing"]) == (1, 2)
    assert np.isnan(flux_metrics([], [], [])["nmad"])
    with pytest.raises(InputError, match="shapes"):
        flux_metrics([1.0], [1.0, 2.0], [1.0])


@pytest.mark.parametrize("steps", [4, 1000])
def test_roc_areas_against_scikit_learn(steps):
    random = np.random.default_rng(steps)
    true = random.random(500) < 0.2
    score = np.round((random.normal(size=500) + true) * steps) / steps
    assert roc_area(score, true) == pytest.approx(peer.roc_auc_score(true, score), abs=1e-12)
    score[:3] = np.nan
    assert roc_area(score, true) == pytest.approx(
        peer.roc_auc_score(true[3:], score[3:]), abs=1e-12
    )
    assert np.isnan(roc_area(score, np.ones(500, bool)))


def test_areas_of_two_models_side_by_side():
    true = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], bool)
    good, poor = np.where(true, 0.9, 0.1), np.array([[0.9, 0.5]] * 4)
    first, second = roc_table({"without": poor, "with": good}, true, ("ring", "bar"))
    assert first == {"name": "ring", "n": 2, "without": 0.5, "with": 1.0, "difference": 0.5}
    assert second["name"] == "bar"
    with pytest.raises(InputError, match="with: scores of 1 answers"):
        roc_table({"with": good}, true, ("ring",))


def test_areas_of_votes_take_the_majority_for_true():
    shares = np.array([[0.9], [0.5], [0.4], [0.1], [np.nan]])
    found = vote_metrics(np.array([[0.9], [0.4], [0.6], [0.2], [0.3]]), shares, ("x",))
    assert found["roc_area"] == {"x": 0.75}
