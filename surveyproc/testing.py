"""Checks that any product must pass, ours and those of third parties.

Examples
--------
In a test of your own package::

    from surveyproc.testing import check_product
    check_product(MyProduct(...), my_batch)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.products.base import Batch, Product


def check_product(product: Product, batch: Batch) -> None:
    """Assert that `product` keeps the contract of `surveyproc.products.base.Product` on `batch`.

    Checked are: names and types of the declared columns, one value a row and column, the same
    result when called again and when the rows come in other batches, an untouched input, and that
    rows without any usable input come out flagged, with NaN in every float column.

    Parameters
    ----------
    product : Product
        What to check.
    batch : Batch
        At least three rows with usable inputs, as the product declares them.

    Raises
    ------
    AssertionError
        Saying which part of the contract is broken.
    """
    needed = "name, inputs, columns, version, prepare, compute"
    assert isinstance(product, Product), f"a product needs {needed}"
    product.prepare()
    names = [column.name for column in product.columns]
    assert len(set(names)) == len(names), f"columns are declared twice: {names}"
    assert names[-1] == f"{product.name}_flag", f"the last column must be {product.name}_flag"
    assert product.version == product.version != "", "version must be a constant, not empty"
    rows = len(batch.flags)
    assert rows >= 3, "give at least three rows"
    kept = {name: np.copy(values) for name, values in batch.columns.items()}
    whole = product.compute(batch)
    for column in product.columns:
        values = np.asarray(whole[column.name])
        shape = (rows, column.length) if column.length else (rows,)
        assert values.shape == shape, f"{column.name}: shape {values.shape}, declared {shape}"
        if column.dtype != "string":
            kinds = values.dtype.kind, np.dtype(column.dtype).kind
            assert kinds[0] == kinds[1], f"{column.name}: {values.dtype}, declared {column.dtype}"
    for name, values in kept.items():
        np.testing.assert_array_equal(batch.columns[name], values, f"input {name} was changed")
    _same(product, whole, product.compute(batch), "a second call")
    split = [product.compute(_rows(batch, part)) for part in (slice(0, 1), slice(1, rows))]
    joined = {name: np.concatenate([part[name] for part in split]) for name in names}
    _same(product, whole, joined, "other batches")
    empty = product.compute(_without_input(batch))
    assert (np.asarray(empty[names[-1]]) != 0).all(), "rows without input must be flagged"
    for column in product.columns:
        values = np.asarray(empty[column.name])
        # Where the object lies on its tile is known without a usable pixel.
        if values.dtype.kind == "f" and not column.ucd.startswith("pos."):
            assert np.isnan(values).all(), f"{column.name}: a value from no input"


def _same(
    product: Product, one: Mapping[str, NDArray[Any]], two: Mapping[str, NDArray[Any]], what: str
) -> None:
    for column in product.columns:
        message = f"{column.name}: {what} gave another result"
        np.testing.assert_array_equal(one[column.name], two[column.name], message)


def _rows(batch: Batch, part: slice) -> Batch:
    arrays = {
        field.name: getattr(batch, field.name)[part]
        for field in fields(batch)
        if field.name != "columns" and getattr(batch, field.name) is not None
    }
    return replace(batch, columns={k: v[part] for k, v in batch.columns.items()}, **arrays)


def _without_input(batch: Batch) -> Batch:
    columns = {
        name: np.full_like(values, np.nan) if values.dtype.kind == "f" else values
        for name, values in batch.columns.items()
    }
    images = None if batch.images is None else np.full_like(batch.images, np.nan)
    return replace(batch, columns=columns, images=images)
