"""What work is expected to take, so that it can be decided where it runs."""

from __future__ import annotations

from surveyproc.products.base import Product
from surveyproc.run.plan import Plan, pointer_document
from surveyproc.store.storage import Store

IMAGE_S = 4e-4
"""Seconds of one core an object for a product that sees a cutout of it, a guess on the high side: a
small network took 2e-4, aperture photometry in nine bands 7e-5. Large networks take more, which is
seen when they run."""
COLUMNS_S = 2e-5
"""The same for a product that reads columns alone; GaZNet-C took 8e-6."""
MEASURED_ROWS = 5000
"""Objects of a release from whose time that of others is foreseen, at least."""


def expected_seconds(product: Product) -> float:
    """Seconds of one core an object, by what a product reads."""
    return IMAGE_S if product.inputs.cutout else COLUMNS_S


def seconds_per_object(store: Store, plan: Plan) -> float:
    """Seconds of one core an object: those of the published release, if it has the same products.

    Reads one small document. Of few objects the time is mostly that of their units.
    """
    published = pointer_document(store, plan.survey)
    same = published.get("products") == {one.name: one.version for one in plan.products}
    if same and published["rows"] >= MEASURED_ROWS:
        return 1.0 / max(float(published["rows_per_second"]), 1e-9)
    return sum(expected_seconds(product) for product in plan.products)
