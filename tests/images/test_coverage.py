import numpy as np
import pytest

from surveyproc.images.coverage import MIN_PIXELS, gaps, zeros_are_gaps


def noise(seed: int = 0, shape: tuple[int, int] = (200, 200)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def test_large_regions_of_zeros_are_gaps_and_small_ones_are_not():
    image = noise()
    image[:, 150:] = 0
    image[20:28, 20:28] = 0
    image[60:67, 20:29] = 0  # 63 pixels
    image[100, :100] = 0  # a dead row
    image[150, 90] = 0
    expected = image == 0
    expected[60:67, 20:29] = False
    expected[150, 90] = False
    assert MIN_PIXELS == 64
    np.testing.assert_array_equal(gaps(image), expected)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (noise(), True),
        (np.where(np.arange(200) < 30, noise(), 0), True),
        (np.zeros((200, 200), np.float32), True),
        (noise() + 1000, True),
        (np.round(noise() * 30), True),
        (np.maximum(noise(), 0), False),
        (np.round(noise()), False),
        (np.random.default_rng(1).poisson(0.02, (200, 200)), False),
        (np.random.default_rng(1).poisson(0.5, (200, 200)), False),
    ],
    ids=["noise", "mostly gap", "all gap", "sky", "integers", "cut off at zero", "small integers",
         "few photons", "photons"],
)  # fmt: skip
def test_zeros_are_data_where_they_are_common_among_what_is_measured(image, expected):
    assert zeros_are_gaps(image[:200:3]) == expected
