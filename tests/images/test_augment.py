"""Augmentation: only whole pixels move, the object hardly, and every device draws the same."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from surveyproc.images.augment import (
    Distortion,
    augment,
    centre,
    magnified,
    recede,
    scaled,
    turn,
    zoom,
)

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
    """Which of the eight brings `found` back to a window of `plane`, whose edges meet."""
    wrapped, side = np.pad(plane, (0, cutout), mode="wrap"), plane.shape[-1]
    matches = []
    for k, other in enumerate(squares(found)):
        y, x = divmod(int(other[0, 0]), side)
        if (wrapped[y : y + cutout, x : x + cutout] == other).all():
            matches.append(k)
    (match,) = matches
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
    assert np.abs(places - cutout // 2).max() <= shift
    still = augment(numbered(50, side), generator(seed), cutout, shift=0)
    assert (object_at(still, side) == cutout // 2).all()


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


def test_no_distortion_draws_nothing():
    images, source = torch.randn(2, 3, 8, 8), generator()
    assert Distortion()(images, source) is images
    assert torch.rand(1, generator=source) == torch.rand(1, generator=generator())


def test_zoom_and_recession_by_one_change_nothing():
    images = torch.randn(3, 2, 9, 9)
    images[0, 1, 2, 3] = torch.nan
    one = torch.ones(3)
    for found in (
        zoom(images, torch.ones(2, 3), torch.rand(2, 3)),
        recede(images, one, one),
        turn(images, torch.zeros(3)),
    ):
        torch.testing.assert_close(found, images, equal_nan=True)


def test_each_axis_is_zoomed_by_its_own_factor():
    # A plane that is linear in y and x tells where each pixel comes from.
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    images = torch.stack([y, x])[None]
    found = zoom(images, torch.tensor([[1.25], [1.0]]), torch.tensor([[0.0], [0.5]]))
    inner = found[0, 0, 1:-1]
    torch.testing.assert_close(inner[1:] - inner[:-1], torch.full((17, 20), 1 / 1.25))
    torch.testing.assert_close(found[0, 1], x)
    assert found[0, 0, 0, 0] == pytest.approx(0.0, abs=0.2)
    last = zoom(images, torch.tensor([[1.25], [1.0]]), torch.tensor([[1.0], [0.5]]))
    assert last[0, 0, -1, 0] == pytest.approx(19.0, abs=0.2)


def test_receding_galaxies_are_smaller_and_fainter_and_mirrored_about():
    side, m, k = 64, 0.5, 0.6
    y, x = np.mgrid[:side, :side] - 31.5
    image = torch.tensor(np.exp(-(y**2 + (x / 1.5) ** 2) / 2 / 4**2), dtype=torch.float32)
    found = recede(image[None, None], torch.tensor([k]), torch.tensor([m]))[0, 0]
    small = torch.tensor(np.exp(-(y**2 + (x / 1.5) ** 2) / 2 / 2**2), dtype=torch.float32)
    middle = slice(16, 48)
    assert (found[middle, middle] - k * small[middle, middle]).abs().max() < 0.08
    # Flux falls with the area, and with k; the border repeats the image's edge in a mirror.
    flux = found[middle, middle].sum() / image.sum()
    assert flux == pytest.approx(k * m**2, rel=0.01)
    torch.testing.assert_close(found[:16], found[16:32].flip(0))
    torch.testing.assert_close(found[:, 48:], found[:, 32:48].flip(1))


@pytest.mark.parametrize("side", [8, 9])
def test_turns_by_right_angles_are_those_of_whole_pixels(side):
    images = torch.randn(4, 2, side, side)
    images[0, 1, 2, 3] = torch.nan
    angles = torch.arange(4) * torch.pi / 2
    found = turn(images, angles)
    expected = torch.stack([torch.rot90(one, k, (-2, -1)) for k, one in enumerate(images)])
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_a_turn_moves_up_to_the_right_and_mirrors_the_corners():
    side = 41
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    image = torch.exp(-((y - 30.0) ** 2 + (x - 20.0) ** 2) / 8)
    found = turn(image[None, None], torch.tensor([torch.pi / 6]))[0, 0]
    peak = found.flatten().argmax()
    assert (int(peak // side), int(peak % side)) == (29, 25)  # 10 cos 30 up, 10 sin 30 right
    ones = turn(torch.ones(1, 1, side, side), torch.tensor([0.7]))
    torch.testing.assert_close(ones, torch.ones_like(ones))


def test_receding_averages_what_a_pixel_covers():
    noise = torch.randn(2, 1, 96, 96, generator=generator())
    found = recede(noise, torch.ones(2), torch.full((2,), 0.4))
    assert found.std() < 0.6


def test_missing_pixels_stay_missing_and_spoil_no_others():
    images = torch.ones(1, 1, 32, 32)
    images[0, 0, 10:20, 10:20] = torch.nan
    found = recede(images, torch.tensor([0.8]), torch.tensor([0.7]))
    share = found.isnan().float().mean() / images.isnan().float().mean()
    assert 0.3 < share < 0.7
    torch.testing.assert_close(found.nan_to_num(0.8), torch.full_like(found, 0.8))


@pytest.mark.parametrize(
    "kernel",
    [
        lambda images: turn(images, torch.full((len(images),), 0.3)),
        lambda images: magnified(images, 1.13),
        lambda images: scaled(
            images, torch.full((len(images),), 1.37), torch.zeros(len(images), 2), 20
        ),
    ],
    ids=["turn", "magnified", "scaled"],
)
def test_an_image_gives_the_same_whatever_is_beside_it(kernel):
    images = 100 * torch.rand(40, 3, 33, 33, generator=generator())
    alone = kernel(images)
    # Of images with missing pixels the means are divided by what is known, which rounds.
    images[::2, 1, 4, 5] = torch.nan
    beside = kernel(images)
    for both in zip(alone[1::2], beside[1::2], strict=True):
        np.testing.assert_array_equal(*both)
    for number in (0, 1, 7):
        np.testing.assert_array_equal(kernel(images[number : number + 1])[0], beside[number])


def test_distortions_are_drawn_within_their_bounds_for_each_object():
    images = torch.zeros(500, 1, 16, 16)
    images[:] = 100.0
    found = Distortion(1.2, (0.6, 0.9), (0.5, 1.0), 90.0)(images, generator())
    k = found.mean(dim=(1, 2, 3)) / 100
    assert (k >= 0.6 - 1e-5).all()
    assert (k <= 0.9 + 1e-5).all()
    assert k.std() == pytest.approx(0.3 / 12**0.5, rel=0.1)
    again = Distortion(1.2, (0.6, 0.9), (0.5, 1.0), 90.0)(images, generator())
    assert found.equal(again)
