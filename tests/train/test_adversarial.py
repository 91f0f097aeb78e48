import numpy as np
import pytest

from surveyproc.errors import InputError
from surveyproc.store.storage import Store
from surveyproc.train.adversarial import score_split, tell_apart


def sets(difference, n=64, seed=0):
    random = np.random.default_rng(seed)
    one, other = random.uniform(0, 200, (2, n, 3, 36, 36)).astype(np.float32)
    return one, other + difference


def verdict(tmp_path, difference):
    return tell_apart(
        Store(str(tmp_path / "store")),
        "adversary",
        *sets(difference),
        bands=("r", "g", "b"),
        network={"cutout": 32, "pixels": "eight_bit", "hidden": 8},
        settings={"epochs": 4, "batch_size": 16, "shift": 2, "seed": 1},
    )


def test_sets_that_differ_are_told_apart(tmp_path):
    found = verdict(tmp_path, 150)
    assert found.accuracy > 0.9
    assert found.area > 0.95
    assert found.training.mean() > 0.5 > found.inference.mean()
    assert found.training.shape == (64,)
    assert found.package.metrics["held_out"]["class"]["n"] == 32


def test_sets_that_do_not_differ_are_not(tmp_path):
    assert verdict(tmp_path, 0).accuracy == pytest.approx(0.5, abs=0.25)


def test_the_split_takes_either_side_of_the_score():
    score = np.array([0.1, 0.71, 0.9, 0.7, np.nan, 0.3])
    assert score_split(score).tolist() == [False, True, True, False, False, False]
    low = score_split(score, above=False, threshold=0.5)
    assert low.tolist() == [True, False, False, False, False, True]
    some = [score_split(score, most=1, seed=seed) for seed in range(20)]
    assert all(one.sum() == 1 for one in some)
    assert np.sum(some, axis=0).tolist()[1] > 0
    assert np.any(some, axis=0).tolist() == score_split(score).tolist()
    with pytest.raises(InputError, match=r"0 of 6 images lie above 0\.95"):
        score_split(score, threshold=0.95)
