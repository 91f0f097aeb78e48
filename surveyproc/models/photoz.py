"""The `photoz` product: redshifts of a catalog from its fluxes with a packaged network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.errors import ConfigError
from surveyproc.models.package import Package
from surveyproc.product import Batch, Inputs
from surveyproc.schemas import Column
from surveyproc.storage import fingerprint

# Planning needs a product's inputs and version, not torch.
if TYPE_CHECKING:
    from surveyproc.models.base import RedshiftNetwork


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

    @cached_property
    def _network(self) -> RedshiftNetwork:
        return self.package.network()

    def compute(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """Columns of `batch`; NaN where nothing could be predicted. See the class for flags."""
        from surveyproc.models.inference import predict

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
        for key, column in values.items():
            column[empty | failed] = np.nan
            out[f"{self._prefix}_z_{key}"] = column
        out["photoz_flag"] = flags
        return out
