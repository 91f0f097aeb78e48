"""Which fluxes a network reads: the photometry's, or those of another product where it has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def better_fluxes(
    columns: Mapping[str, NDArray[Any]],
    kind: str,
    bands: Sequence[str],
    product: str | None,
) -> NDArray[np.float64]:
    """Fluxes or their errors, nJy, shape (n, band).

    Where `product` has a flux in every band, its own; elsewhere the photometry's in all bands, so
    that no colour is made of two kinds of photometry.

    Parameters
    ----------
    columns : mapping of str to ndarray, shape (n,)
        `<kind>_<band>`, and of a product `<product>_<kind>_<band>` and `<product>_flux_<band>`.
    kind : {'flux', 'flux_err'}
        Which.
    bands : sequence of str
        Under the survey's names.
    product : str or None
        Whose fluxes are preferred.

    Examples
    --------
    >>> import numpy as np
    >>> columns = {"flux_r": np.array([5.0, 7.0]), "deblend_flux_r": np.array([np.nan, 3.0])}
    >>> better_fluxes(columns, "flux", ["r"], "deblend").tolist()
    [[5.0], [3.0]]
    """

    def of(start: str) -> NDArray[np.float64]:
        return np.stack([np.asarray(columns[f"{start}_{band}"], np.float64) for band in bands], 1)

    found = of(kind)
    if product is not None:
        known: Any = np.isfinite(of(f"{product}_flux")).all(axis=1)
        found = np.where(known[:, None], of(f"{product}_{kind}"), found)
    return found
