"""Augmentation: only whole pixels move, the object hardly, and every device draws the same."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from surveyproc.images.augment import augment, centre

SIDES = st.tuples(st.integers(1, 9), st.integers(0, 6)).map(lambda t: (t[0], t[0] + t[1]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(n, side, bands=2):
    """Images whose pixels are all different, within an object."""
    plane = torch.arange(bands * side * side, dtype=torch.float32).reshape(1, bands, side, side)
    return plane.repeat(n, 1, 1, 1)


def squares(plane):
    """The eight turns and mirror images of a plane."""
    return [np.rot90(p, k) for p, k in itertools.product((plane, plane.T), range(4))]


def which(plane, cutout, found):
    """Which of the eight `found` is, of whatever window of `plane`."""
    low = int(found.min())
    y, x = divmod(low, plane.shape[-1])
    window = plane[y : y + cutout, x : x + cutout]
    (match,) = [k for k, other in enumerate(squares(window)) if (other == found).all()]
    return match


def object_at(images, side):
    """(y, x) of the object's pixel in the first band of each image; its value marks it."""
    mark = (side // 2) * side + side // 2
    return np.argwhere((images[:, 0] == mark).numpy())[:, 1:]


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 5))
def test_without_margin_the_pixels_are_kept(seed, side, bands):
    images = torch.randn(7, bands, side, side)
    found = augment(images, generator(seed), side)
    assert found.shape == images.shape
    assert (found.flatten(2).sort().values == images.flatten(2).sort().values).all()


@pytest.mark.parametrize(("side", "cutout"), [(5, 5), (6, 6), (9, 5), (10, 6), (9, 6), (10, 5)])
def test_all_turns_and_mirror_images_are_equally_likely(side, cutout):
    images = numbered(1600, side)
    found = augment(images, generator(), cutout).numpy()
    plane = images[0, 0].numpy()
    counts = np.bincount([which(plane, cutout, one[0]) for one in found], minlength=8)
    assert counts.min() > 140
    assert counts.max() < 260


@given(st.integers(0, 2**32), SIDES)
def test_the_object_moves_at_most_by_the_margin(seed, sides):
    cutout, side = sides
    shift = (side - cutout) // 2
    # A larger margin may move the object out of the window.
    assume(shift <= (cutout - 1) // 2)
    found = augment(numbered(50, side), generator(seed), cutout)
    places = object_at(found, side)
    assert len(places) == 50
    allowed = max(shift, 0 if cutout % 2 or side > cutout else 1)
    assert np.abs(places - cutout // 2).max() <= allowed


def test_all_shifts_within_the_margin_occur():
    found = augment(numbered(2000, 9), generator(), 5)
    assert len(np.unique(object_at(found, 9), axis=0)) == 25


def test_bands_of_an_object_stay_together_and_missing_ones_missing():
    images = torch.randn(40, 3, 10, 10)
    images[:, 2] = images[:, 0] + 1
    images[:, 1] = torch.nan
    found = augment(images, generator(), 8)
    assert found[:, 1].isnan().all()
    assert not found[:, [0, 2]].isnan().any()
    assert (found[:, 2] == found[:, 0] + 1).all()


def test_the_generator_decides():
    images = torch.randn(20, 2, 8, 8)
    assert (augment(images, generator(1), 6) == augment(images, generator(1), 6)).all()
    assert (augment(images, generator(1), 6) != augment(images, generator(2), 6)).any()


@given(SIDES)
def test_the_centre_has_the_object_in_the_middle(sides):
    cutout, side = sides
    found = centre(numbered(2, side), cutout)
    assert found.shape == (2, 2, cutout, cutout)
    assert (object_at(found, side) == cutout // 2).all()


@pytest.mark.parametrize(("shape", "cutout"), [((1, 1, 4, 4), 5), ((1, 1, 4, 5), 4)])
def test_windows_that_do_not_fit_are_refused(shape, cutout):
    for call in (lambda x: augment(x, generator(), cutout), lambda x: centre(x, cutout)):
        with pytest.raises(ValueError, match=f"no window of {cutout} pixels"):
            call(torch.zeros(shape))
