"""Vectors as bytes: distances stay, what is no vector is marked, and nothing depends on others."""

import numpy as np
import pytest
import torch

from surveyproc.models.tasks.codes import Codes, missing
from surveyproc.models.tasks.embedding import EmbeddingTask


def vectors(n=3000, length=200, seed=0):
    """Of few directions that matter, most of the variance in the first ones; not around zero."""
    random = np.random.default_rng(seed)
    made = random.normal(size=(n, 40)) * np.arange(1, 41) ** -0.7
    return (made @ random.normal(size=(40, length)) + 3.0).astype(np.float32)


def distances(values, to):
    return np.linalg.norm(values.astype(np.float64) - values[to].astype(np.float64), axis=1)


@pytest.mark.parametrize(
    ("length", "numbers", "dtype"),
    [(3, 4, "int16"), (32, 32, "int16"), (33, 64, "int8"), (64, 64, "int8"), (200, 64, "int8")],
)
def test_distances_of_codes_are_those_of_vectors(length, numbers, dtype):
    given = vectors(length=length)
    codes = Codes(length)
    codes.fit(given[:2000])
    found = codes(torch.from_numpy(given)).numpy()
    assert found.dtype == dtype
    assert found.shape == (3000, numbers)
    assert found[0].nbytes <= 64
    assert found.min() > missing(found.dtype)
    true = distances(given, 2500)
    near = np.argsort(true)[1:200]
    step = float(codes.step)
    # Every number of the two codes is off by half a step at most.
    np.testing.assert_allclose(
        step * distances(found, 2500)[near], true[near], 0.01, step * found.shape[1] ** 0.5
    )
    for row in range(2000, 3000, 100):
        nearest = set(np.argsort(distances(given, row))[:11])
        same = len(nearest & set(np.argsort(distances(found, row))[:11]))
        assert same >= (11 if dtype == "int16" else 10)


def test_all_numbers_of_a_code_have_one_scale():
    given = vectors()
    codes = Codes(200)
    codes.fit(given)
    spread = codes(torch.from_numpy(given)).numpy().std(axis=0)
    assert spread.max() < 1.2 * spread.min()
    assert spread.min() > 20


def test_what_is_no_vector_has_no_code_and_changes_no_fit():
    given = vectors(500, 10)
    codes, other = Codes(10), Codes(10)
    codes.fit(given)
    holed = np.concatenate([given, np.full((3, 10), np.nan, np.float32)])
    holed[501, :] = np.inf
    other.fit(holed)
    assert torch.equal(codes.axes, other.axes)
    found = EmbeddingTask(10)
    found.fit(given)
    values = found.values(torch.from_numpy(holed))["embedding"]
    assert (values[500:] == missing(values.dtype)).all()
    assert (values[:500] != missing(values.dtype)).all()


def test_vectors_that_are_all_the_same_have_one_code():
    codes = Codes(5)
    codes.fit(np.full((20, 5), 2.5, np.float32))
    found = codes(torch.full((2, 5), 2.5))
    assert (found == 0).all()
    assert all(torch.isfinite(one).all() for one in codes.state_dict().values())


def test_before_it_is_fitted_the_first_numbers_are_the_code():
    found = Codes(100)(torch.arange(100.0)[None])
    assert found.tolist() == [list(range(64))]
