"""What work is expected to take, so that it can be decided where it runs."""

from __future__ import annotations

from surveyproc.product import Product
from surveyproc.run.plan import Plan, pointer_key
from surveyproc.storage import Store

IMAGE_S = 4e-4
"""Seconds of one core an object for a product that sees a cutout of it: aperture photometry in nine
bands, or a small network. Large ones take more, which is seen when they run."""
COLUMNS_S = 2e-5
"""The same for a product that reads columns alone."""


def expected_seconds(product: Product) -> float:
    """Seconds of one core an object, by what a product reads."""
    return IMAGE_S if product.inputs.cutout else COLUMNS_S


def seconds_per_object(store: Store, plan: Plan) -> float:
    """Seconds of one core an object: those of the published release, if it has the same products.

    Reads one small document.
    """
    published = store.read_json(pointer_key(plan.survey)) or {}
    if set(published.get("flags", {})) == {product.name for product in plan.products}:
        return 1.0 / max(float(published["rows_per_second"]), 1e-9)
    return sum(expected_seconds(product) for product in plan.products)
