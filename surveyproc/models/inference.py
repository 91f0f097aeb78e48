"""Redshifts and PDF summaries of fluxes with a network, block by block."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from surveyproc.models.base import RedshiftNetwork
from surveyproc.models.features import FeatureScaling, Float, network_inputs
from surveyproc.models.pdf import summarise

BLOCK = 512
"""Rows of one forward pass. The last block is padded to it, so that no result depends on how many
rows the caller hands over: matrix products may round differently for different shapes."""
_NAMES = ("point", "median", "mean", "mode", "err68_low", "err68_high", "quantiles")


def predict(
    network: RedshiftNetwork, scaling: FeatureScaling, flux: Float
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Redshifts and PDF summaries of fluxes, row by row the same whatever rows come with them.

    Parameters
    ----------
    network : RedshiftNetwork
        In evaluation mode.
    scaling : FeatureScaling
        Of the same model.
    flux : float ndarray, shape (n, band)
        nJy; not finite = missing.

    Returns
    -------
    values : dict of float32 ndarray
        `point`, `median`, `mean`, `mode`, `err68_low`, `err68_high`, each (n,), and `quantiles`
        (n, 19).
    outside : bool ndarray, shape (n,)
        Outside the training range.
    """
    n, width = flux.shape
    values = {key: np.empty(n, np.float32) for key in _NAMES[:-1]}
    values["quantiles"] = np.empty((n, 19), np.float32)
    outside = np.zeros(n, bool)
    block = np.full((BLOCK, width), np.nan)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        part = slice(start, start + size)
        block[:size], block[size:] = flux[part], np.nan
        features, beyond = network_inputs(block, scaling)
        with torch.inference_mode():
            output = network(torch.from_numpy(features))
            pdf = summarise(output.log_weights, output.means, output.sigmas)
        outside[part] = beyond[:size]
        found = (
            output.point.numpy(),
            pdf.median,
            pdf.mean,
            pdf.mode,
            pdf.low,
            pdf.high,
            pdf.quantiles,
        )
        for key, column in zip(_NAMES, found, strict=True):
            values[key][part] = column[:size]
    return values, outside
