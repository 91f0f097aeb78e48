"""Checks that any product and any network must pass, ours and those of third parties.

Examples
--------
In a test of your own package::

    from surveyproc.testing import check_network, check_product
    check_product(MyProduct(...), my_batch)
    check_network(MyNetwork(...))
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.models.tasks.columns import task_columns, task_pixels
from surveyproc.products.base import Batch, Product, pixels_of, tables_of

if TYPE_CHECKING:
    from torch import Tensor

    from surveyproc.models.base import Network
    from surveyproc.models.tasks.base import Task

ROWS = 70
"""Objects that a network is checked with: more than a block of those with images."""


def check_product(product: Product, batch: Batch) -> None:
    """Assert that `product` keeps the contract of `surveyproc.products.base.Product` on `batch`.

    Checked are: names and types of the declared columns, one value a row and column, the same
    result (tables and pixels too) when called again and when the rows come in other batches, an
    untouched input, and that rows without any usable input come out flagged, with NaN in every
    float column.

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
    _check_beside(product, whole, split, rows)
    empty = product.compute(_without_input(batch))
    assert (np.asarray(empty[names[-1]]) != 0).all(), "rows without input must be flagged"
    for column in product.columns:
        values = np.asarray(empty[column.name])
        # Where the object lies on its tile is known without a usable pixel.
        if values.dtype.kind == "f" and not column.ucd.startswith("pos."):
            assert np.isnan(values).all(), f"{column.name}: a value from no input"


def _check_beside(
    product: Product, whole: Mapping[str, Any], split: Sequence[Mapping[str, Any]], rows: int
) -> None:
    """Tables and pixels as declared, and the same when the first row comes alone."""
    for array in pixels_of(product):
        values = np.asarray(whole[array.name])
        found, declared = (
            (values.dtype, values.shape),
            (np.dtype(array.dtype), (rows, *array.shape)),
        )
        assert found == declared, f"{array.name}: {found}, declared {declared}"
        parts = np.concatenate([part[array.name] for part in split])
        message = f"{array.name}: other batches gave another result"
        np.testing.assert_array_equal(values, parts, message)
    for table in tables_of(product):
        one, (first, rest) = whole[table.name], [part[table.name] for part in split]
        assert (np.diff(one["row"]) >= 0).all(), f"{table.name}: `row` must be ascending"
        for name in ("row", *(column.name for column in table.columns)):
            later = rest[name] + 1 if name == "row" else rest[name]
            message = f"{table.name}.{name}: other batches gave another result"
            np.testing.assert_array_equal(one[name], np.concatenate([first[name], later]), message)


def check_network(
    network: Network, targets: Mapping[str, NDArray[Any]] | None = None, seed: int = 0
) -> None:
    """Assert that `network` keeps the contract of `surveyproc.models.base.Network`.

    Checked are, on random inputs as `network.reads` wants them: the names of tasks and targets; an
    output for every task; a loss of shape (n,), finite, with finite gradients, also where targets
    are missing, which then change nothing; values of the columns that each task declares for a
    plan; averages of several outputs; the same values whatever rows come with a row; no exception
    where nothing is known of an object; and weights that safetensors hold, the scales of targets
    and images among them.

    Parameters
    ----------
    network : Network
        What to check; it is copied, not changed.
    targets : mapping of str to float ndarray, shape (70,) or (70, k), optional
        Labels as numbers. By default random ones, for tasks of our kinds.
    seed : int
        Of what is random.

    Raises
    ------
    AssertionError
        Saying which part of the contract is broken.
    """
    import safetensors.torch
    import torch

    torch.manual_seed(seed)
    network = copy.deepcopy(network).eval()
    fresh = copy.deepcopy(network)
    names = [task.name for task in network.tasks]
    assert names, "a network needs tasks"
    assert len(set(names)) == len(names), f"two tasks have one name: {names}"
    given, scaling = _inputs_of(network, seed)
    numbers = targets or _targets_of(network.tasks, seed)
    labels = {name: torch.from_numpy(np.asarray(one, np.float32)) for name, one in numbers.items()}
    for task in network.tasks:
        for target in task.targets:
            known = target.name in labels or target.optional
            assert known, f"task {task.name}: give `targets` with {target.name!r}"
    network.set_targets({name: one.double() for name, one in labels.items()})
    inputs = _tensors_of(given, scaling)
    if "images" in inputs:
        network.set_images(iter([inputs["images"]]))
    outputs = network(**inputs)
    assert set(outputs) == set(names), f"forward gives {sorted(outputs)}, the tasks are {names}"
    if labels:
        _check_loss(network, inputs, labels)
    values = _predicted(network, given, scaling)
    for task in network.tasks:
        _check_values(task, outputs[task.name], values)
    for part in (slice(0, 1), slice(1, ROWS)):
        some = {key: one[part] for key, one in given.items()}
        for key, found in _predicted(network, some, scaling).items():
            message = f"{key}: other rows beside it gave another result"
            np.testing.assert_array_equal(found, values[key][part], message)
    _predicted(network, {key: np.full_like(one, np.nan) for key, one in given.items()}, scaling)
    with torch.no_grad():
        for weight in fresh.parameters():
            weight.add_(1.0)
    kept = safetensors.torch.save({k: t.contiguous() for k, t in network.state_dict().items()})
    fresh.load_state_dict(safetensors.torch.load(kept))
    for key, found in _predicted(fresh, given, scaling).items():
        message = f"{key}: the saved weights gave another result"
        np.testing.assert_array_equal(found, values[key], message)


def _inputs_of(network: Network, seed: int) -> tuple[dict[str, NDArray[Any]], Any]:
    """Random objects as `predict` wants them, and the scaling of their fluxes."""
    from surveyproc.models.features import fit_scaling

    random, reads = np.random.default_rng(seed), network.reads
    given: dict[str, NDArray[Any]] = {}
    scaling = None
    assert reads.features or reads.images, "a network reads fluxes, or cutouts"
    if reads.features:
        given["flux"] = np.exp(random.normal(6, 0.5, (ROWS, len(reads.features))))
        errors = given["flux"] * random.uniform(0.01, 0.1, given["flux"].shape)
        scaling = fit_scaling(given["flux"], errors, reads.features, errors=reads.errors)
        if reads.errors:
            given["flux_err"] = errors
    if reads.images:
        assert reads.cutout > 0, "reads.cutout is the side of the cutouts in pixels"
        shape = (ROWS, len(reads.images), reads.cutout, reads.cutout)
        given["images"] = random.normal(0, 30, shape).astype(np.float32)
    if reads.reddening:
        given["reddening"] = random.uniform(0, 0.1, ROWS)
    if reads.neighbours:
        given["places"] = random.integers(-3, 4, (ROWS, reads.neighbours, 2)).astype(float)
    return given, scaling


def _tensors_of(given: Mapping[str, NDArray[Any]], scaling: Any) -> dict[str, Tensor]:
    """The same objects as the network's `forward` wants them."""
    import torch

    from surveyproc.images.places import marked
    from surveyproc.models.features import network_inputs

    inputs: dict[str, Tensor] = {}
    if scaling is not None:
        features, _ = network_inputs(given["flux"], scaling, given.get("flux_err"))
        inputs["features"] = torch.from_numpy(features)
    for key in ("images", "reddening"):
        if key in given:
            inputs[key] = torch.from_numpy(given[key].astype(np.float32))
    if "places" in given:
        planes = marked(given["places"], given["images"].shape[-1])
        inputs["places"] = torch.from_numpy(planes)
    return inputs


def _targets_of(tasks: Sequence[Task], seed: int) -> dict[str, NDArray[np.float64]]:
    """Random labels for the tasks of our kinds."""
    random = np.random.default_rng(seed + 1)
    found: dict[str, NDArray[np.float64]] = {}
    for task in tasks:
        entry = task.describe()
        if task.kind == "redshift":
            low, high = getattr(task, "redshifts", (0.0, 20.0))
            found["redshift"] = random.uniform(low, min(high, low + 2.0), ROWS)
        elif task.kind == "classes":
            found[task.name] = random.integers(0, len(entry["classes"]), ROWS).astype(float)
        elif task.kind == "votes":
            shape = (ROWS, len(entry["names"]))
            found[task.name] = random.uniform(0, 1, shape)
            found[f"{task.name}_counts"] = random.integers(1, 40, shape).astype(float)
        elif task.kind == "fluxes":
            found[task.name] = np.exp(random.normal(5, 1, (ROWS, len(entry["names"]))))
        elif task.kind == "masks":
            shape = (ROWS, len(entry["names"]), *entry["shape"])
            found[task.name] = random.integers(0, 2, shape).astype(float)
    return found


def _check_loss(
    network: Network, inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]
) -> None:
    import torch

    def losses(targets: Mapping[str, Tensor]) -> Tensor:
        network.zero_grad()
        found = network.loss(network(**inputs), targets)
        assert found.shape == (ROWS,), f"loss: shape {tuple(found.shape)} for {ROWS} objects"
        assert found.isfinite().all(), "loss: not finite"
        assert found.requires_grad, "loss: no gradient leads to the weights"
        found.sum().backward()  # type: ignore[no-untyped-call]
        for name, weight in network.named_parameters():
            finite = weight.grad is None or bool(weight.grad.isfinite().all())
            assert finite, f"loss: the gradient of {name} is not finite"
        return found.detach()

    whole = losses(labels)
    holed = {name: one.clone() for name, one in labels.items()}
    for one in holed.values():
        one[::2] = torch.nan
    without = losses(holed)
    assert (without[::2] == 0).all(), "loss: objects without any target must add 0"
    close = torch.allclose(without[1::2], whole[1::2], rtol=1e-4, atol=1e-6)
    assert close, "loss: missing targets of others change it"


def _predicted(network: Network, given: Mapping[str, Any], scaling: Any) -> dict[str, NDArray[Any]]:
    from surveyproc.models.inference import predict

    return predict(network, scaling, **given)[0]


def _check_values(task: Task, output: Any, values: Mapping[str, NDArray[Any]]) -> None:
    """That the task's values are the columns that a plan expects, and outlast an average."""
    import torch

    entry = json.loads(json.dumps(task.describe()))
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        column.name[1:]: ((ROWS, column.length) if column.length else (ROWS,), column.dtype)
        for column in task_columns(entry, "")
    }
    for name, shape, dtype in task_pixels([entry], ""):
        shapes[name[1:]] = (ROWS, *shape), dtype
    with torch.no_grad():
        alone, twice = task.values(output), task.values(task.average([output, output]))
    where = f"task {task.name}"
    assert set(alone) == set(shapes), f"{where}: values {sorted(alone)}, declared {sorted(shapes)}"
    for name, (shape, dtype) in shapes.items():
        found = values[name]
        assert found.shape == shape, f"{where}: {name}: shape {found.shape}, declared {shape}"
        if dtype == "string":
            assert found.dtype == object, f"{where}: {name}: {found.dtype}, text is declared"
            assert twice[name].tolist() == alone[name].tolist(), f"{where}: average of {name}"
        else:
            assert found.dtype == np.dtype(dtype), f"{where}: {name}: {found.dtype}, not {dtype}"
            message = f"{where}: the average of twice the same changes {name}"
            np.testing.assert_allclose(twice[name], alone[name], 1e-3, 1e-4, err_msg=message)


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
