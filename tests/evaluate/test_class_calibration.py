"""Calibration, ROC curves and weights: by hand, against scikit-learn, and on known truths."""

import numpy as np
import pytest
from sklearn import metrics as peer
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from surveyproc.errors import InputError
from surveyproc.evaluate.calibration import (
    apply_platt,
    calibration_error,
    cross_calibrated,
    fit_platt,
    isotonic,
    reliability,
)
from surveyproc.evaluate.roc import (
    accuracy_at,
    area,
    contingency,
    iso_accuracy,
    mean_area,
    roc,
    youden,
)
from surveyproc.evaluate.weights import normal_quantiles, standardised, weight_summary


def drawn(n=4000, k=2, seed=0):
    """True probabilities, and classes drawn by them."""
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(k, 0.6), n)
    return p, (random.random((n, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)


def distorted(p, slope=2.5, shift=1.0):
    """Probabilities that are too sure of themselves, and of the first class."""
    raised = p**slope
    raised[:, 0] *= np.exp(shift)
    return raised / raised.sum(axis=1, keepdims=True)


def two(p):
    return np.stack([1 - np.asarray(p), p], axis=1)


def test_reliability_and_error_by_hand():
    curve = reliability([0.05, 0.15, 0.17, 1.0, np.nan], [False, True, False, True, True])
    assert curve["n"] == [1, 2, 1]
    assert curve["share"] == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(curve["probability"], [0.05, 0.16, 1.0])
    # Gaps of 0.05, 0.34 and 0, for either class.
    found = calibration_error(two([0.05, 0.15, 0.17, 1.0]), [0, 1, 0, 1])
    assert found == pytest.approx((0.05 + 2 * 0.34) / 4)
    assert np.isnan(calibration_error(np.empty((0, 2)), []))


@pytest.mark.parametrize("k", [2, 4])
def test_platt_undoes_what_a_slope_and_offsets_did(k):
    p, true = drawn(6000, k)
    wrong = distorted(p)
    values = fit_platt(wrong, true)
    assert values[0] == pytest.approx(1 / 2.5, rel=0.1)
    assert calibration_error(wrong, true) > 0.08
    right = apply_platt(wrong, values)
    np.testing.assert_allclose(right, p, atol=0.05)
    np.testing.assert_allclose(right.sum(axis=1), 1.0)
    assert np.isnan(apply_platt(np.full((1, k), np.nan), values)).all()


def test_platt_of_two_classes_is_the_logistic_regression_of_the_logit():
    p, true = drawn(3000)
    wrong = np.clip(distorted(p), 1e-6, 1)
    logit = np.log(wrong[:, 1] / wrong[:, 0])[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-8).fit(logit, true)
    expected = model.predict_proba(logit)
    # Platt's targets differ from 0 and 1 by a thousandth.
    np.testing.assert_allclose(apply_platt(wrong, fit_platt(wrong, true)), expected, atol=5e-3)


def test_few_and_separable_objects_give_no_certainty():
    p = two([0.01, 0.02, 0.98, 0.99])
    found = apply_platt(p, fit_platt(p, [0, 0, 1, 1]))
    assert 0.6 < found[3, 1] < 0.9
    with pytest.raises(InputError, match="class 1 has no object"):
        fit_platt(p, [0, 0, 0, 0])


def test_isotonic_as_scikit_learn_has_it():
    p, true = drawn(500)
    p = p.round(2)
    peers = IsotonicRegression(out_of_bounds="clip").fit(p[:, 1], true)
    given = two(np.linspace(0, 1, 200))
    np.testing.assert_allclose(isotonic(p, true)(given)[:, 1], peers.predict(given[:, 1]))
    p, true = drawn(4000, 3)
    found = isotonic(distorted(p), true)(distorted(p))
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert calibration_error(found, true) < 0.03


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_no_object_is_calibrated_by_itself(kind):
    p, true = drawn(600, 3)
    wrong = distorted(p)
    found = cross_calibrated(wrong, true, kind)
    assert calibration_error(found, true) < calibration_error(wrong, true)
    other = true.copy()
    other[7] = (other[7] + 1) % 3
    # Another class of object 7 moves the parts of classes; its own value must come from others.
    same = [k for k in range(600) if k != 7]
    alone = cross_calibrated(wrong[same], true[same], kind)
    assert np.isfinite(alone).all()
    with pytest.raises(InputError, match="class 1 has 1 objects"):
        cross_calibrated(p[:4], [0, 0, 1, 0], kind)


def test_roc_and_areas_as_scikit_learn_has_them():
    p, true = drawn(300)
    score = p[:, 1].round(2)
    curve = roc(score, true == 1)
    false, hits, thresholds = peer.roc_curve(true, score, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive, false)
    np.testing.assert_allclose(curve.true_positive, hits)
    np.testing.assert_allclose(curve.threshold, thresholds)
    assert area(score, true == 1) == pytest.approx(peer.roc_auc_score(true, score))
    p, true = drawn(300, 3)
    expected = peer.roc_auc_score(true, p, multi_class="ovr")
    assert mean_area(p, true) == pytest.approx(expected)
    assert np.isnan(mean_area(p, np.zeros(300, int)))


def test_youden_and_contingency_by_hand():
    score = np.array([0.9, 0.8, 0.7, 0.4, 0.3, 0.2])
    positive = np.array([True, True, False, True, False, False])
    gain, threshold = youden(roc(score, positive))
    assert (gain, threshold) == (pytest.approx(2 / 3), 0.8)
    found = contingency(score, positive, threshold)
    assert found["table"] == [[2, 0], [1, 3]]
    assert found["accuracy"]["value"] == pytest.approx(5 / 6)
    assert found["true_positive"]["value"] == pytest.approx(2 / 3)
    assert found["true_positive"]["binomial"] == pytest.approx(np.sqrt(2 / 9 / 3))
    assert found["true_negative"] == {"value": 1.0, "binomial": 0.0, "bootstrap": 0.0}


def test_bootstrap_and_binomial_errors_agree():
    p, true = drawn(2000)
    found = contingency(p[:, 1], true == 1, 0.5)
    for name in ("accuracy", "true_positive", "true_negative"):
        assert found[name]["bootstrap"] == pytest.approx(found[name]["binomial"], rel=0.1)


def test_the_papers_accuracy_follows_from_its_rates():
    # Table 6 from Tables 3 and 5, and the baseline that calls all late.
    assert accuracy_at(28 / 31, 336 / 339, 31 / 370) == pytest.approx(364 / 370)
    assert accuracy_at(0.0, 1.0, 31 / 370) == pytest.approx(339 / 370)
    line = iso_accuracy(339 / 370, 31 / 370, [1.0, 308 / 339, 0.5])
    np.testing.assert_allclose(line, [0.0, 1.0, np.nan])
    assert accuracy_at(iso_accuracy(0.8, 0.3, 0.9), 0.9, 0.3) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("score", "positive", "match"),
    [
        ([0.1, 0.2], [True, True], "2 objects 2 are positive"),
        ([0.1, np.nan], [True, False], "1 scores are not finite"),
        ([0.1], [True, False], "shapes"),
    ],
)
def test_what_has_no_roc_is_named(score, positive, match):
    with pytest.raises(InputError, match=match):
        roc(score, positive)


def test_weights_in_units_of_their_layers():
    random = np.random.default_rng(2)
    layers = random.normal(0.3, 2.0, (500, 64))
    layers[:, 0] = 0.3 + 2.0 * np.sign(random.normal(size=500)) * 1.5
    found = weight_summary(standardised(layers, np.arange(500) % 63 + 1))
    assert found["median"] == pytest.approx(0.0, abs=3 * found["median_error"])
    assert found["kurtosis"] == pytest.approx(3.0, abs=3 * found["kurtosis_error"])
    assert found["above_1"] == pytest.approx(0.159, abs=0.05)
    flat = weight_summary(standardised(layers, 0))
    assert flat["kurtosis"] < 1.2
    assert flat["above_1"] == pytest.approx(0.5, abs=0.08)
    normal, held = normal_quantiles(random.normal(size=2000))
    assert np.corrcoef(normal, held)[0, 1] > 0.995
    with pytest.raises(InputError, match="shape"):
        standardised([1.0, 2.0], 0)
