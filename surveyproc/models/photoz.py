"""The `photoz` product: redshifts of a catalog from its fluxes with a packaged network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.errors import ConfigError
from surveyproc.models.base import RedshiftNetwork
from surveyproc.models.features import FeatureScaling, Float, network_inputs
from surveyproc.models.package import Package
from surveyproc.models.pdf import summarise
from surveyproc.product import Batch, Inputs
from surveyproc.schemas import Column
from surveyproc.storage import fingerprint

BLOCK = 4096
"""Rows of one forward pass. The last block is padded to it, so that no result depends on how many
rows the caller hands over: matrix products may round differently for different shapes."""

RELEASED_RANGE = (-1.0, 20.0)

_NAMES = ("point", "median", "mean", "mode", "err68_low", "err68_high", "quantiles")


def column_prefix(model: str) -> str:
    """Column prefix of a model's name: `gaznet-c9` gives `gaznet_c9`.

    Examples
    --------
    >>> column_prefix("gaznet-c9"), column_prefix("9bands.v2")
    ('gaznet_c9', 'model_9bands_v2')
    """
    safe = re.sub(r"[^A-Za-z0-9_]", "_", model)
    return safe if safe[:1].isalpha() else f"model_{safe}"


class PhotozProduct:
    """Redshift point estimates and PDFs from fluxes; satisfies `surveyproc.product.Product`.

    Reads `flux_<band>` (nJy) of every band of the model. Flux errors are not read: the network has
    no use for them.

    Flag bits it sets: `missing_band` where a flux is null or not finite; `non_finite_input` as well
    where it is infinite (an infinite flux counts as missing); `outside_training_range` where a
    magnitude or colour lies outside the range of the training set; `no_image` where every band is
    missing, which leaves nothing to predict from: all outputs are NaN; `model_failure` where the
    network gave a non-finite value from usable inputs. Bits that the batch brings are kept.

    Parameters
    ----------
    package : Package
        The model.
    bands : mapping of str to str, optional
        Model band to survey band, where the names differ.

    Raises
    ------
    ConfigError
        If `bands` names a band that the model does not have, or one survey band twice.
    InputError
        If the weights do not fit the architecture.
    """

    def __init__(self, package: Package, bands: Mapping[str, str] | None = None) -> None:
        self.package = package
        chosen = dict(bands or {})
        unknown = sorted(set(chosen) - set(package.bands))
        if unknown:
            raise ConfigError(
                f"products.photoz.bands: model {package.name!r} has no band {unknown[0]!r} "
                f"(it has {', '.join(package.bands)})"
            )
        self.band_map = {band: chosen.get(band, band) for band in package.bands}
        if len(set(self.band_map.values())) != len(self.band_map):
            raise ConfigError("products.photoz.bands: two model bands read the same survey band")
        self._scaling = package.scaling
        self._network = package.network()
        self._prefix = column_prefix(package.name)

    @property
    def name(self) -> str:
        """`photoz`."""
        return "photoz"

    @property
    def inputs(self) -> Inputs:
        """The flux columns, in the model's band order; no images."""
        return Inputs(columns=tuple(f"flux_{band}" for band in self.band_map.values()))

    @property
    def columns(self) -> tuple[Column, ...]:
        """schemas/photoz.toml under the model's name."""
        return schemas.load("photoz", model=self._prefix)

    @property
    def version(self) -> str:
        """Package version and a hash of name and band map."""
        return f"{self.package.version}-{fingerprint([self._prefix, self.band_map])[:8]}"

    def compute(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """Columns of `batch`; NaN where nothing could be predicted. See the class for flags."""
        flux = np.stack(
            [np.asarray(batch.columns[name], np.float64) for name in self.inputs.columns], axis=1
        )
        present = np.isfinite(flux)
        empty = ~present.any(axis=1)
        values, outside = predict(self._network, self._scaling, flux)
        failed = ~empty & np.any(
            [~np.isfinite(np.atleast_2d(v.T)).all(axis=0) for v in values.values()], axis=0
        )
        flags = np.asarray(batch.flags, np.int32).copy()
        for name, where in (
            ("missing_band", ~present.all(axis=1)),
            ("non_finite_input", np.isinf(flux).any(axis=1)),
            ("no_image", empty),
            ("outside_training_range", outside & ~empty),
            ("model_failure", failed),
        ):
            flags[where] |= schemas.flag(name)
        out: dict[str, NDArray[Any]] = {}
        for key in _NAMES:
            column = values[key]
            column[empty | failed] = np.nan
            out[f"{self._prefix}_z_{key}"] = column
        out["photoz_flag"] = flags
        return out


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
