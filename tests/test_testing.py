"""The conformance checks pass on our own products and fail on one that breaks the contract."""

import numpy as np
import pytest

from surveyproc import schemas
from surveyproc.config import load
from surveyproc.products.base import Batch, Inputs
from surveyproc.products.photometry import AperturePhotometry
from surveyproc.products.registry import build_products
from surveyproc.survey import Survey
from surveyproc.testing import check_product


def image_batch(rows: int = 5, bands: int = 2, size: int = 64) -> Batch:
    rng = np.random.default_rng(1)
    return Batch(
        columns={},
        flags=np.zeros(rows, np.int32),
        images=rng.normal(100, 5, (rows, bands, size, size)).astype(np.float32),
        offsets=rng.uniform(-0.5, 0.5, (rows, 2)).astype(np.float32),
        positions=rng.uniform(100, 200, (rows, 2)),
        tiles=np.full(rows, "t", object),
        tile_shape=np.full((rows, 2), 300, np.int32),
        pixel_scale=np.full(rows, 0.3),
    )


def test_photometry_keeps_the_contract():
    check_product(AperturePhotometry(("g", "r"), [1.2, 0.6]), image_batch())


def test_photoz_keeps_the_contract(trained_survey):
    config = load(trained_survey)
    photoz = build_products(Survey(config))[1]
    rng = np.random.default_rng(2)
    columns = {name: rng.uniform(500, 5000, 700) for name in photoz.inputs.columns}
    check_product(photoz, Batch(columns=columns, flags=np.zeros(700, np.int32)))


class Offender:
    """Its result depends on the batch it comes in."""

    name, inputs, version = "photometry", Inputs(columns=("a",)), "1"
    columns = (*schemas.load("photometry", bands=("g",))[:1], schemas.load("photometry")[-1])

    def prepare(self):
        pass

    def compute(self, batch):
        a = batch.columns["a"]
        return {"flux_g": (a - a.mean()).astype(np.float32), "photometry_flag": batch.flags}


def test_a_product_that_breaks_the_contract_is_caught():
    batch = Batch(columns={"a": np.array([1.0, 2.0, 4.0])}, flags=np.zeros(3, np.int32))
    with pytest.raises(AssertionError, match="other batches gave another result"):
        check_product(Offender(), batch)
