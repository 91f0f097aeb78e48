"""Cutouts as wide as objects are: the same galaxy at any distance, and what cannot be scaled."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from surveyproc import schemas
from surveyproc.config.sections import ScaledSection
from surveyproc.errors import ConfigError
from surveyproc.images.augment import scaled
from surveyproc.models.base import build
from surveyproc.models.package import save_package
from surveyproc.products.base import Batch
from surveyproc.products.deblend import DeblendSection
from surveyproc.products.morphology import MorphologyProduct
from surveyproc.products.scaled import scaled_cutouts, window
from surveyproc.store.storage import Store
from surveyproc.testing import check_product

SIDE, SCALE = 32, 0.2
HALF = ScaledSection(column="r50", times=8, largest=64)


def galaxies(sizes, offsets, side):
    """Gaussians of one central brightness with these half-light radii, pixels."""
    y, x = np.indices((side, side)) - side // 2
    dx, dy = offsets.T[..., None, None]
    squares = (x - dx) ** 2 + (y - dy) ** 2
    made = np.exp2(-squares / sizes[:, None, None] ** 2)
    return made[:, None].astype(np.float32)


def batch(sizes, offsets=None, side=None):
    sizes = np.asarray(sizes, np.float64)
    offsets = np.zeros((len(sizes), 2)) if offsets is None else offsets
    return Batch(
        columns={"r50": SCALE * sizes},
        flags=np.zeros(len(sizes), np.int32),
        images=galaxies(np.where(sizes > 0, sizes, 4.0), offsets, side or window(HALF, SIDE, SIDE)),
        offsets=offsets.astype(np.float32),
        pixel_scale=np.full(len(sizes), SCALE),
    )


@settings(max_examples=20, deadline=None)
@given(size=st.floats(3.0, 8.0), x=st.floats(-0.5, 0.5), y=st.floats(-0.5, 0.5))
def test_a_galaxy_looks_the_same_at_any_size(size, x, y):
    found, cut_off = scaled_cutouts(
        batch([size], np.array([[x, y]])), HALF, SIDE, SIDE, "morphology"
    )
    # 8 half-light radii on 32 pixels: a radius of 4.
    expected = galaxies(np.array([4.0]), np.zeros((1, 2)), SIDE)
    assert found.shape == (1, 1, SIDE, SIDE)
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert not cut_off.any()


def test_pixels_as_large_as_those_given_are_those_given():
    images = torch.randn(2, 3, 11, 11)
    found = scaled(images, torch.ones(2), torch.zeros(2, 2), 9)
    torch.testing.assert_close(found, images[..., 1:10, 1:10])


def test_what_lies_beyond_the_image_or_is_mostly_missing_is_missing():
    images = torch.ones(1, 1, 9, 9)
    images[..., 0:3] = torch.nan
    found = scaled(images, torch.full((1,), 2.0), torch.zeros(1, 2), 7)[0, 0]
    assert found.isfinite().int().tolist() == [
        [0] * 7,
        *[[0, 0, 0, 1, 1, 1, 0]] * 5,
        [0] * 7,
    ]
    assert (found[found.isfinite()] == 1).all()


def test_no_size_and_too_large_a_size():
    found, cut_off = scaled_cutouts(batch([4.0, np.nan, 0.0, 20.0]), HALF, SIDE, SIDE, "morphology")
    assert np.isfinite(found).all(axis=(1, 2, 3)).tolist() == [True, False, False, True]
    assert np.isnan(found[1:3]).all()
    assert cut_off.tolist() == [False, False, False, True]


def package(folder):
    told = {"cutout": SIDE, "hidden": 4, "classes": {"class": ["early", "late"]}}
    torch.manual_seed(0)
    network = build("morphology", ("r",), told)
    seen = np.array([0.5, 2.0])[:, None, None, None] * batch([4.0, 4.0], side=SIDE).images
    network.set_images([torch.from_numpy(seen.astype(np.float32))])
    return save_package(
        Store(str(folder)), "looks", architecture="morphology", settings=told, bands=("r",),
        scaling=None, members=[network.state_dict()], pixel_scale=0.5,
    )  # fmt: skip


def test_a_product_reads_more_and_says_the_same_of_all_sizes(tmp_path):
    found = package(tmp_path)
    product = MorphologyProduct(found, scaled=HALF)
    assert product.inputs.cutout == window(HALF, SIDE, SIDE) == 66
    assert product.inputs.columns == ("r50",)
    assert product.version != MorphologyProduct(found).version
    sizes = [3.0, 5.0, 8.0, np.nan, 20.0]
    given = batch(sizes)
    check_product(product, given)
    out = product.compute(given)
    p = out["looks_p_early"]
    np.testing.assert_allclose(p[:3], p[0], atol=0.02)
    assert np.isnan(p[3])
    flags = out["morphology_flag"]
    # The model's own pixels, 0.5 arcsec, count for nothing.
    outside = (flags & schemas.flag("outside_training_range")) > 0
    assert outside.tolist() == [False, False, False, False, True]
    assert ((flags & schemas.flag("no_image")) > 0).tolist() == [*[False] * 3, True, False]


def test_networks_of_blends_are_not_scaled():
    with pytest.raises(ValidationError, match="cutouts for networks of blends are not scaled"):
        DeblendSection(name="deblend", model="m", scaled=HALF)


def test_without_images_nothing_is_scaled():
    nothing = Batch(columns={"r50": np.ones(1)}, flags=np.zeros(1, np.int32))
    with pytest.raises(ConfigError, match=r"products\.morphology\.scaled: the survey has no"):
        scaled_cutouts(nothing, HALF, SIDE, SIDE, "morphology")
