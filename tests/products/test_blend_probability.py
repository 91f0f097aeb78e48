"""The probability that an object is a blend, and the flag of those that nobody recognised."""

import numpy as np
import pytest
import torch

from surveyproc import schemas
from surveyproc.errors import ConfigError
from surveyproc.models.base import build
from surveyproc.models.package import save_package
from surveyproc.products.base import Batch
from surveyproc.products.blend_probability import BlendProbabilityProduct
from surveyproc.store.storage import Store
from surveyproc.testing import check_product

SIDE = 32


def package(folder, classes=("blend", "single")):
    settings = {"cutout": SIDE, "hidden": 4, "classes": {"class": list(classes)}}
    torch.manual_seed(0)
    network = build("morphology", ("r",), settings)
    network.set_images(iter([torch.from_numpy(batch().images)]))
    return save_package(
        Store(str(folder)), "tells", architecture="morphology", settings=settings, bands=("r",),
        scaling=None, members=[network.state_dict()],
    )  # fmt: skip


def batch(n=8):
    random = np.random.default_rng(0)
    offsets = np.full((n, 1, 2), np.nan)
    offsets[::2] = 1.0
    return Batch(
        columns={},
        flags=np.zeros(n, np.int32),
        images=random.normal(0, 1 + np.arange(n)[:, None, None, None], (n, 1, SIDE, SIDE)).astype(
            np.float32
        ),
        pixel_scale=np.full(n, 0.2),
        neighbour_ids=np.arange(n)[:, None],
        neighbour_offsets=offsets,
    )


def test_it_keeps_the_contract(tmp_path):
    product = BlendProbabilityProduct(package(tmp_path))
    assert [one.name for one in product.columns] == ["blend_probability", "blend_probability_flag"]
    check_product(product, batch())


def test_blends_without_a_neighbour_are_unrecognised(tmp_path):
    found = package(tmp_path)
    p = BlendProbabilityProduct(found).compute(batch())["blend_probability"]
    middle = float(np.median(p))
    product = BlendProbabilityProduct(found, name="blend_probability_deep", threshold=middle)
    out = product.compute(batch())
    np.testing.assert_array_equal(out["blend_probability_deep"], p)
    flagged = out["blend_probability_deep_flag"] & schemas.flag("unrecognised_blend") > 0
    assert flagged.tolist() == ((p > middle) & (np.arange(8) % 2 == 1)).tolist()
    assert 0 < flagged.sum() < 4
    versions = {product.version, BlendProbabilityProduct(found).version}
    assert len(versions) == 2


def test_holes_in_the_cutout_are_flagged(tmp_path):
    given = batch()
    given.images[2, 0, :4, :4] = np.nan
    given.images[5] = np.nan
    flags = BlendProbabilityProduct(package(tmp_path)).compute(given)["blend_probability_flag"]
    assert np.flatnonzero(flags & schemas.flag("bad_pixels")).tolist() == [2]
    assert np.flatnonzero(flags & schemas.flag("no_image")).tolist() == [5]


def test_models_that_tell_no_blends_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"does not tell blends: .* \[\['disc', 'bulge'\]\]"):
        BlendProbabilityProduct(package(tmp_path, ("disc", "bulge")))
