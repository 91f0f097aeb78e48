"""Tables of known redshifts, and the objects of a catalog that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surveyproc import sky
from surveyproc.catalogs import hats
from surveyproc.catalogs.crossmatch import nearest
from surveyproc.catalogs.readers import read_numbers, truth
from surveyproc.config import LabelsSection, SurveyConfig
from surveyproc.errors import InputError
from surveyproc.storage import Store


@dataclass(frozen=True)
class Labels:
    """Known redshifts on the sky; all arrays float64, shape (n,); positions in degrees."""

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    redshift: NDArray[np.float64]
    radius: float

    def near(self, ra: float, dec: float, radius: float) -> NDArray[np.int64]:
        """Indexes of labels that an object within `radius` degrees of (ra, dec) can match."""
        centre = sky.unit_vectors(np.array([ra]), np.array([dec]))[0]
        chord = np.linalg.norm(sky.unit_vectors(self.ra, self.dec) - centre, axis=1)
        reach = 2 * np.sin(np.radians(min(radius + self.radius / 3600, 180.0)) / 2)
        return np.flatnonzero(chord <= reach + 1e-12)


def read_labels(section: LabelsSection, config: SurveyConfig) -> Labels:
    """The selected rows of a label table that have a position and a finite redshift.

    Raises
    ------
    InputError
        If the table lacks a column, one is not numeric, or no row is usable.
    """
    url = config.resolve(section.source)
    names = [section.ra, section.dec, section.redshift]
    columns = read_numbers(url, names + ([section.select] if section.select else []))
    ra, dec, redshift = (columns[name] for name in names)
    good = np.isfinite(ra) & np.isfinite(dec) & np.isfinite(redshift)
    if section.select:
        good &= truth(columns[section.select], url, section.select)
    if not good.any():
        raise InputError(f"{url}: no selected row has a position and a finite {section.redshift!r}")
    return Labels(ra[good] % 360.0, dec[good], redshift[good], section.radius)


def match_catalog(
    store: Store, catalog_key: str, labels: Labels, columns: Sequence[str]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """For every label the nearest object of a catalog within the labels' radius.

    Returns
    -------
    values : dict of str to float64 ndarray, shape (m,)
        `columns` of the m matched objects; NaN where null.
    redshift : float64 ndarray, shape (m,)
        Their known redshifts.
    """
    best = np.full(len(labels.ra), np.inf)
    found = {name: np.full(len(labels.ra), np.nan) for name in columns}
    for leaf in hats.leaf_keys(store, catalog_key):
        table = hats.read_leaf(store, f"{catalog_key}/{leaf}", ["ra", "dec", *columns])
        ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
        candidates = labels.near(*sky.cap(ra, dec))
        if not len(candidates):
            continue
        index, separation = nearest(
            labels.ra[candidates], labels.dec[candidates], ra, dec, labels.radius
        )
        closer = (index >= 0) & (separation < best[candidates])
        chosen, rows = candidates[closer], index[closer]
        best[chosen] = separation[closer]
        for name in columns:
            found[name][chosen] = table[name].to_numpy().astype(float)[rows]
    matched = np.isfinite(best)
    return {name: values[matched] for name, values in found.items()}, labels.redshift[matched]
