"""Redshifts and PDF summaries of objects with a network, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surveyproc.models.base import RedshiftNetwork
from surveyproc.models.features import FeatureScaling, Float, network_inputs
from surveyproc.models.pdf import QUANTILES

BLOCK = 512
IMAGE_BLOCK = 64
"""Rows of one forward pass, without and with images. The last block is padded to it, so that no
result depends on how many rows the caller hands over: matrix products may round differently for
different shapes."""
_NAMES = ("point", "median", "mean", "mode", "err68_low", "err68_high", "quantiles")


def predict(
    network: RedshiftNetwork,
    scaling: FeatureScaling | None,
    flux: Float | None = None,
    images: NDArray[np.float32] | None = None,
    reddening: Float | None = None,
    flux_err: Float | None = None,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Redshifts and PDF summaries, row by row the same whatever rows come with them.

    Parameters
    ----------
    network : RedshiftNetwork
        In evaluation mode; it says which of the inputs it reads.
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

    Returns
    -------
    values : dict of float32 ndarray
        `point`, `median`, `mean`, `mode`, `err68_low`, `err68_high`, each (n,), and `quantiles`
        (n, levels), as schemas/photoz.toml declares them.
    outside : bool ndarray, shape (n,)
        Outside the training range of the fluxes, or of the images if there are no fluxes.
    """
    given = [part for part in (flux, images) if part is not None]
    n = len(given[0])
    size = BLOCK if images is None else IMAGE_BLOCK
    values = {key: np.empty(n, np.float32) for key in _NAMES[:-1]}
    values["quantiles"] = np.empty((n, len(QUANTILES)), np.float32)
    outside = np.zeros(n, bool)
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        rows = part.stop - start
        inputs: dict[str, torch.Tensor] = {}
        if flux is not None and scaling is not None:
            errors = None if flux_err is None else _padded(flux_err[part], size, np.nan)
            features, beyond = network_inputs(_padded(flux[part], size, np.nan), scaling, errors)
            inputs["features"] = torch.from_numpy(features)
            outside[part] = beyond[:rows]
        if images is not None:
            inputs["images"] = torch.from_numpy(_padded(images[part], size, np.nan))
            outside[part] |= network.outside(inputs["images"])[:rows].numpy()
        if reddening is not None:
            known = np.nan_to_num(reddening[part].astype(np.float32), nan=0.0)
            inputs["reddening"] = torch.from_numpy(_padded(known, size, 0.0))
        with torch.inference_mode():
            output = network(**inputs)
            pdf = output.summarise()
            point = output.redshift().numpy()
        found = (point, pdf.median, pdf.mean, pdf.mode, pdf.low, pdf.high, pdf.quantiles)
        for key, column in zip(_NAMES, found, strict=True):
            values[key][part] = column[:rows]
    return values, outside


def _padded(array: NDArray[Any], size: int, fill: float) -> NDArray[Any]:
    if len(array) == size:
        return np.ascontiguousarray(array)
    block = np.full((size, *array.shape[1:]), fill, array.dtype)
    block[: len(array)] = array
    return block
