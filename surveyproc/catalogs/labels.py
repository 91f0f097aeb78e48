"""Tables of known redshifts, and the objects of a catalog that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc import sky
from surveyproc.catalogs import hats
from surveyproc.catalogs.crossmatch import nearest
from surveyproc.catalogs.readers import read_numbers, truth
from surveyproc.config import SurveyConfig
from surveyproc.config.sections import LabelsSection
from surveyproc.errors import InputError
from surveyproc.store.storage import Store

REDSHIFT_LIMITS = (0.0, 20.0)
"""Redshifts at or below the first (stars, failures) or at or above the second are no labels."""


@dataclass(frozen=True)
class Labels:
    """Known redshifts on the sky; all arrays float64, shape (n,); positions in degrees.

    `dropped` counts the selected rows of the table that are no labels, by reason.
    """

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    redshift: NDArray[np.float64]
    radius: float
    dropped: dict[str, int] = field(default_factory=dict)

    def near(self, ra: float, dec: float, radius: float) -> NDArray[np.int64]:
        """Indexes of labels that an object within `radius` degrees of (ra, dec) can match."""
        centre = sky.unit_vectors(np.array([ra]), np.array([dec]))[0]
        chord = np.linalg.norm(sky.unit_vectors(self.ra, self.dec) - centre, axis=1)
        reach = 2 * np.sin(np.radians(min(radius + self.radius / 3600, 180.0)) / 2)
        return np.flatnonzero(chord <= reach + 1e-12)

    @property
    def checksum(self) -> str:
        """First 16 hex digits of the SHA-256 of the radius and all values."""
        total = hashlib.sha256(repr(self.radius).encode())
        for values in (self.ra, self.dec, self.redshift):
            total.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
        return total.hexdigest()[:16]


def read_labels(section: LabelsSection, config: SurveyConfig) -> Labels:
    """The selected rows of a label table that have a position and a redshift.

    A table may hold other objects too, whose redshift is unknown, or a code that says so (-99):
    they are counted.

    Raises
    ------
    InputError
        If the table lacks a column, one is not numeric, or no row is usable.
    """
    url = config.resolve(section.source)
    names = [section.ra, section.dec, section.redshift]
    wanted = names + ([section.select] if section.select else [])
    columns = read_numbers(url, wanted, section.table, (section.ra, section.dec))
    ra, dec, redshift = (columns[name] for name in names)
    placed = np.isfinite(ra) & (np.abs(dec) <= 90)
    known = (redshift > REDSHIFT_LIMITS[0]) & (redshift < REDSHIFT_LIMITS[1])
    chosen = np.ones(len(ra), bool)
    if section.select:
        chosen = truth(columns[section.select], url, section.select)
    good = chosen & placed & known
    if not good.any():
        raise InputError(
            f"{url}: no selected row has a position and a redshift {section.redshift!r} between "
            f"{REDSHIFT_LIMITS[0]:g} and {REDSHIFT_LIMITS[1]:g}"
        )
    counts = {
        "labels without a redshift": int((chosen & ~known).sum()),
        "labels without a position": int((chosen & known & ~placed).sum()),
    }
    dropped = {reason: count for reason, count in counts.items() if count}
    return Labels(ra[good] % 360.0, dec[good], redshift[good], section.radius, dropped)


class Matches:
    """For every label the nearest object of a catalog within the labels' radius, leaf by leaf.

    Parameters
    ----------
    labels : Labels
        Known redshifts.
    columns : sequence of str
        Columns of numbers, or of lists of them, to take along.
    position : tuple of str
        Columns with right ascension and declination, degrees.

    Attributes
    ----------
    reads : list of str
        The columns that `add` wants of every leaf.
    """

    def __init__(
        self, labels: Labels, columns: Sequence[str], position: tuple[str, str] = ("ra", "dec")
    ) -> None:
        self.reads = list(dict.fromkeys([*position, *columns]))
        self._labels, self._columns, self._position = labels, list(columns), position
        self._best = np.full(len(labels.ra), np.inf)
        # Which row of all the rows taken from leaves belongs to a label.
        self._place = np.zeros(len(labels.ra), np.int64)
        self._taken, self._count = list[pa.Table](), 0

    def add(self, table: pa.Table) -> None:
        """Take the rows of one leaf; InputError if a position is not numeric."""
        if not table.num_rows:
            return
        labels = self._labels
        ra, dec = (_numbers(table[name], name) for name in self._position)
        candidates = labels.near(*sky.cap(ra, dec))
        if not len(candidates):
            return
        index, separation = nearest(
            labels.ra[candidates], labels.dec[candidates], ra, dec, labels.radius
        )
        closer = (index >= 0) & (separation < self._best[candidates])
        chosen, rows = candidates[closer], index[closer]
        self._best[chosen] = separation[closer]
        self._place[chosen] = self._count + np.arange(len(rows))
        self._taken.append(table.select(self._columns).take(pa.array(rows)))
        self._count += len(rows)

    def found(self) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
        """The columns of the matched objects and their known redshifts, as `match_catalog`."""
        matched = np.isfinite(self._best)
        redshift = self._labels.redshift[matched]
        if not self._taken:
            return {name: np.empty(0) for name in self._columns}, redshift
        found = pa.concat_tables(self._taken).take(pa.array(self._place[matched]))
        return {name: _numbers(found[name], name) for name in self._columns}, redshift


def match_catalog(
    store: Store,
    catalog_key: str,
    labels: Labels,
    columns: Sequence[str],
    position: tuple[str, str] = ("ra", "dec"),
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """For every label the nearest object of any HATS catalog within the labels' radius.

    Parameters
    ----------
    store : Store
        Where the catalog lies.
    catalog_key : str
        Its key.
    labels, columns, position
        As `Matches` wants them.

    Returns
    -------
    values : dict of str to float64 ndarray, shape (m,)
        `columns` of the m matched objects, (m, length) for lists; NaN where null. The length is 0
        if no list is known.
    redshift : float64 ndarray, shape (m,)
        Their known redshifts.

    Raises
    ------
    InputError
        If a column is not numeric, or its lists are not equally long.
    StoreError
        If a file of the catalog is damaged, or lacks a column.
    """
    matches = Matches(labels, columns, position)
    for leaf in hats.file_keys(store, catalog_key):
        matches.add(hats.read_leaf(store, f"{catalog_key}/{leaf}", matches.reads))
    return matches.found()


def _numbers(column: pa.ChunkedArray, name: str) -> NDArray[np.float64]:
    """A column as float64, shape (n,), or (n, length) for lists; NaN where null."""
    dtype, lists = column.type, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
    inner = dtype.value_type if isinstance(dtype, lists) else dtype
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    if not any(is_kind(inner) for is_kind in kinds):
        raise InputError(f"column {name!r} is not numeric ({dtype})")
    if inner is dtype:
        # Of large integers a double may lose the last digits, which nothing here needs.
        values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
        return values
    lengths = pc.unique(pc.list_value_length(column.drop_null())).to_pylist()
    if len(lengths) > 1:
        raise InputError(
            f"column {name!r} holds lists of {min(lengths)} and of {max(lengths)} values; they "
            "must be equally long"
        )
    out = np.empty((len(column), *(lengths or [0])))
    for k in range(out.shape[1]):
        out[:, k] = pc.list_element(column, k).to_numpy()
    return out
