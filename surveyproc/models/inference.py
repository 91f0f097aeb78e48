"""What a network says of objects, block by block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surveyproc.images.places import marked
from surveyproc.models.base import Network
from surveyproc.models.features import FeatureScaling, Float, network_inputs
from surveyproc.models.tasks.base import Task, Values

BLOCK = 512
IMAGE_BLOCK = 64
"""Rows of one forward pass, without and with images. The last block is padded to it, so that no
result depends on how many rows the caller hands over: matrix products may round differently for
different shapes."""

Read = Callable[[Task, Any], dict[str, NDArray[Any]]]
"""What is taken of a task's output."""


def device_here() -> str:
    """The device of a process that nobody told where to compute: `cuda` if torch sees a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def predict(
    network: Network,
    scaling: FeatureScaling | None,
    flux: Float | None = None,
    images: NDArray[np.float32] | None = None,
    reddening: Float | None = None,
    flux_err: Float | None = None,
    places: Float | None = None,
    *,
    device: str = "cpu",
    read: Read | None = None,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """The values of all tasks, row by row the same whatever rows come with them.

    Parameters
    ----------
    network : Network
        In evaluation mode; it says which of the inputs it reads. It is moved to the device and
        stays there.
    scaling : FeatureScaling or None
        Of the same model; None if it reads no fluxes.
    flux : float ndarray, shape (n, band), optional
        nJy; not finite = missing.
    images : float32 ndarray, shape (n, band, y, x), optional
        nJy a pixel; not finite = missing.
    reddening : float ndarray, shape (n,), optional
        Galactic E(B - V), mag; not finite = 0.
    flux_err : float ndarray, shape (n, band), optional
        nJy, for a network that reads errors; not finite or <= 0 = unknown.
    places : float ndarray, shape (n, m, 2), optional
        (x, y) of neighbours minus the central pixel, in pixels, for a network that is told them;
        not finite = unknown.
    device : str
        Torch device that the blocks go to: `cpu`, `cuda`, `cuda:1`. Another kind of device rounds
        otherwise (`tests/products/test_photoz.py` holds it to 1e-3 of 1 + z), always the same way.
    read : callable, optional
        What is taken of a task's output instead of its values: arrays with the objects as first
        axis, by their names.

    Returns
    -------
    values : dict of ndarray, first axis n
        What `Task.values` gives of each task, float32 (or text, or whole numbers), by the names of
        their columns without the model's prefix: `z_median`, `p_star`, ...; or what `read` gives.
    outside : bool ndarray, shape (n,)
        Outside the training range of the fluxes, or of the images if there are no fluxes.
    """
    given = [part for part in (flux, images) if part is not None]
    n = len(given[0])
    size = BLOCK if images is None else IMAGE_BLOCK
    taken = read or partial(_values, network)
    # With a pixel's channels side by side convolutions take 0.5 to 0.9 of the time on CPUs.
    network.to(torch.device(device)).to(memory_format=torch.channels_last)
    values: dict[str, NDArray[Any]] = {}
    outside = np.zeros(n, bool)
    # Without a row one block of nothing still tells the shapes.
    for start in range(0, max(n, 1), size):
        part = slice(start, min(start + size, n))
        rows = part.stop - start
        inputs: dict[str, torch.Tensor] = {}
        if flux is not None and scaling is not None:
            errors = None if flux_err is None else _padded(flux_err[part], size, np.nan)
            features, beyond = network_inputs(_padded(flux[part], size, np.nan), scaling, errors)
            inputs["features"] = torch.from_numpy(features).to(device)
            outside[part] = beyond[:rows]
        with torch.inference_mode(), _same_bits():
            if images is not None:
                pixels = torch.from_numpy(_padded(images[part], size, np.nan)).to(device)
                inputs["images"] = pixels.contiguous(memory_format=torch.channels_last)
                outside[part] |= network.outside(pixels)[:rows].cpu().numpy()
            if reddening is not None:
                known = np.nan_to_num(reddening[part].astype(np.float32), nan=0.0)
                inputs["reddening"] = torch.from_numpy(_padded(known, size, 0.0)).to(device)
            if places is not None and network.reads.neighbours:
                planes = marked(_padded(places[part], size, np.nan), network.reads.cutout)
                inputs["places"] = torch.from_numpy(planes).to(device)
            outputs = network(**inputs)
            found = {
                key: column
                for task in network.tasks
                for key, column in taken(task, outputs[task.name]).items()
            }
        for key, column in found.items():
            if key not in values:
                values[key] = np.empty((n, *column.shape[1:]), column.dtype)
            values[key][part] = column[:rows]
    return values, outside


def _same_bits() -> AbstractContextManager[None]:
    """On a GPU: kernels that add in one order, without TF32, whose 10 bits a CPU does not have."""
    chosen: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return chosen


def _values(network: Network, task: Task, output: Any) -> Values:
    """The task's columns, calibrated if the network is."""
    values: Values = task.values(output)
    if task.name in network.calibrations:
        values = task.calibrated(values, network.calibrations[task.name])
    return values


def _padded(array: NDArray[Any], size: int, fill: float) -> NDArray[Any]:
    if len(array) == size:
        return np.ascontiguousarray(array)
    block = np.full((size, *array.shape[1:]), fill, array.dtype)
    block[: len(array)] = array
    return block
