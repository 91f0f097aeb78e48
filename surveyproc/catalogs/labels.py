"""Tables of what is known of objects, and the objects of a catalog that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc import sky
from surveyproc.catalogs import galaxy_zoo, hats
from surveyproc.catalogs.crossmatch import nearest
from surveyproc.catalogs.foreign import is_numeric, leaf_tables
from surveyproc.catalogs.readers import read_columns, read_ids, truth
from surveyproc.config import SurveyConfig
from surveyproc.config.sections import LabelsSection, TrainingSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.store.storage import Store

REDSHIFT_LIMITS = (0.0, 20.0)
"""Redshifts at or below the first (stars, failures) or at or above the second are no labels."""

TARGET = "target_"
"""Begins the column of a target among those of a catalog, which may have any other name."""

Targets = Mapping[str, NDArray[Any]]
"""Label columns by target: float64, (n,) or (n, k), NaN = unknown; or str and None, (n,)."""


@dataclass(frozen=True)
class Labels:
    """What is known of n objects.

    Attributes
    ----------
    ra, dec : float64 ndarray, shape (n,)
        Degrees; NaN if labels are matched by id.
    targets : mapping of str to ndarray
        See `Targets`.
    radius : float
        Largest distance of a match, arcsec.
    dropped : dict of str to int
        Selected rows of the table that are no labels, by reason.
    ids : int64 ndarray, shape (n,), or None
        Ids of the catalog's objects; None to match on the sky.
    """

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    targets: Targets
    radius: float
    dropped: dict[str, int] = field(default_factory=dict)
    ids: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ra)

    def near(self, ra: float, dec: float, radius: float) -> NDArray[np.int64]:
        """Indexes of labels that an object within `radius` degrees of (ra, dec) can match."""
        centre = sky.unit_vectors(np.array([ra]), np.array([dec]))[0]
        chord = np.linalg.norm(sky.unit_vectors(self.ra, self.dec) - centre, axis=1)
        reach = 2 * np.sin(np.radians(min(radius + self.radius / 3600, 180.0)) / 2)
        return np.flatnonzero(chord <= reach + 1e-12)

    @property
    def checksum(self) -> str:
        """First 16 hex digits of the SHA-256 of how they are matched, and all values."""
        total = hashlib.sha256(repr(self.radius).encode())
        for values in (self.ra, self.dec):
            total.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
        if self.ids is not None:
            total.update(np.ascontiguousarray(self.ids, dtype="<i8").tobytes())
        hash_targets(total, self.targets)
        return total.hexdigest()[:16]


def hash_targets(total: Any, targets: Targets) -> None:
    """Feed the names and values of targets to a hash of `hashlib`."""
    for name, values in sorted(targets.items()):
        total.update(f"{name} {values.shape}".encode())
        if values.dtype.kind == "O":
            total.update("\0".join(text or "" for text in values).encode())
        else:
            total.update(np.ascontiguousarray(values, dtype="<f8").tobytes())


def known_targets(targets: Targets) -> dict[str, NDArray[np.bool_]]:
    """Where a target is known, shape (n,): of several columns, any of them.

    Text that is empty is not, nor is a redshift outside of `REDSHIFT_LIMITS`.
    """
    found = {}
    for name, values in targets.items():
        if values.dtype.kind == "O":
            known = np.array([bool(text) for text in values], bool)
        else:
            known = np.asarray(np.isfinite(values).any(axis=tuple(range(1, values.ndim))))
        if name == "redshift":
            with np.errstate(invalid="ignore"):
                known &= (values > REDSHIFT_LIMITS[0]) & (values < REDSHIFT_LIMITS[1])
        found[name] = known
    return found


def any_known(targets: Targets, n: int) -> NDArray[np.bool_]:
    """Which of n rows any target is known of; all rows if there are no targets."""
    found = list(known_targets(targets).values())
    return np.asarray(np.any(found, axis=0)) if found else np.ones(n, bool)


def target_columns(section: LabelsSection | TrainingSection) -> dict[str, list[str]]:
    """Label columns by target, of a training perhaps none; the redshift's has a key of its own.

    Raises
    ------
    ConfigError
        If the redshift is named twice.
    """
    own = {} if section.redshift is None else {"redshift": [section.redshift]}
    more = section.targets if isinstance(section, TrainingSection) else {}
    if own.keys() & more.keys():
        raise ConfigError("training.targets.redshift: training.redshift names the column already")
    return {**own, **more}


def read_targets(
    section: LabelsSection | TrainingSection, url: str, more: Sequence[str] = ()
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float64]]]:
    """The label columns of a table, and other columns of numbers; all rows.

    Parameters
    ----------
    section : LabelsSection or TrainingSection
        Which says what is where.
    url : str
        The table.
    more : sequence of str
        Other columns; ra and dec among them come in degrees.

    Returns
    -------
    targets : dict of str to ndarray
        See `Targets`. Only a target of one column may hold text.
    columns : dict of str to float64 ndarray, shape (n,)
        The others, and the column that selects rows.

    Raises
    ------
    InputError
        If a column is missing or not numeric.
    """
    named = target_columns(section)
    texts = {one for name, (one, *rest) in named.items() if not rest and name != "redshift"}
    others = [*more, *filter(None, [section.select])]
    wanted = [*(one for names in named.values() for one in names), *others]
    of_votes = isinstance(section, TrainingSection) and section.votes is not None
    columns = read_columns(
        url,
        galaxy_zoo.columns_of(wanted) if of_votes else wanted,
        section.table,
        (section.ra, section.dec) if section.ra in more else None,
        texts - set(others),
    )
    if of_votes:
        told = {one for one in wanted if one in galaxy_zoo.DERIVED}
        columns |= {one: galaxy_zoo.derived(one, columns) for one in told}
    targets = {
        name: columns[names[0]]
        if len(names) == 1
        else np.stack([columns[one] for one in names], axis=1)
        for name, names in named.items()
    }
    return targets, {name: columns[name] for name in others}


def read_labels(section: LabelsSection | TrainingSection, config: SurveyConfig) -> Labels:
    """The selected rows of a label table that tell anything, and have a position or an id.

    A table may hold other objects too, of which nothing is known: null, NaN, empty text; of
    redshifts also a code that says so (-99). They are counted.

    Raises
    ------
    InputError
        If the table lacks a column, one is not numeric, or no row is usable.
    """
    url = config.resolve(section.source)
    id_name = section.id if isinstance(section, TrainingSection) else None
    position = [] if id_name else [section.ra, section.dec]
    targets, columns = read_targets(section, url, position)
    own_ids = None
    if id_name:
        own_ids, placed = read_ids(url, id_name, section.table)
        ra = dec = np.full(len(placed), np.nan)
    else:
        ra, dec = (columns[name] for name in position)
        placed = np.isfinite(ra) & (np.abs(dec) <= 90)
        ra = ra % 360.0
    known = any_known(targets, len(placed))
    chosen = np.ones(len(known), bool)
    if section.select:
        chosen = truth(columns[section.select], url, section.select)
    good = chosen & placed & known
    where = "an id" if id_name else "a position"
    what = "redshift" if targets.keys() == {"redshift"} else "target"
    if not good.any():
        told = f"any of {', '.join(targets)}" if targets else "is wanted"
        if what == "redshift":
            low, high = REDSHIFT_LIMITS
            told = f"a redshift {section.redshift!r} between {low:g} and {high:g}"
        raise InputError(f"{url}: no selected row has {where} and {told}")
    counts = {
        f"labels without a {what}": int((chosen & ~known).sum()),
        f"labels without {where}": int((chosen & known & ~placed).sum()),
    }
    if "redshift" in targets:
        usable = known_targets(targets)["redshift"]
        targets["redshift"] = np.where(usable, targets["redshift"], np.nan)
    return Labels(
        ra[good],
        dec[good],
        {name: values[good] for name, values in targets.items()},
        section.radius,
        {reason: count for reason, count in counts.items() if count},
        None if own_ids is None else own_ids[good],
    )


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
        self._best = np.full(len(labels), np.inf)
        # Which row of all the rows taken from leaves belongs to a label.
        self._place = np.zeros(len(labels), np.int64)
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

    def found(self) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[Any]]]:
        """The columns of the matched objects and their targets, as `match_catalog`."""
        matched = np.isfinite(self._best)
        targets = {name: values[matched] for name, values in self._labels.targets.items()}
        if not self._taken:
            return {name: np.empty(0) for name in self._columns}, targets
        found = pa.concat_tables(self._taken).take(pa.array(self._place[matched]))
        return {name: _numbers(found[name], name) for name in self._columns}, targets


def match_catalog(
    store: Store,
    catalog_key: str,
    labels: Labels,
    columns: Sequence[str],
    foreign: tuple[str, str] | None = None,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[Any]]]:
    """For every label the nearest object of any HATS catalog within the labels' radius.

    Parameters
    ----------
    store : Store
        Where the catalog lies.
    catalog_key : str
        Its key.
    labels, columns
        As `Matches` wants them.
    foreign : tuple of str, optional
        That others wrote the catalog, and its columns with right ascension and declination.

    Returns
    -------
    values : dict of str to float64 ndarray, shape (m,)
        `columns` of the m matched objects, (m, length) for lists; NaN where null. The length is 0
        if no list is known.
    targets : dict of str to ndarray, first axis m
        What the labels tell of them.

    Raises
    ------
    InputError
        If a column is not numeric, or its lists are not equally long.
        If a file of a catalog of others is damaged or lacks a column, see `foreign.leaf_tables`.
    StoreError
        If one of ours is or does.
    """
    matches = Matches(labels, columns, foreign or ("ra", "dec"))
    for leaf in hats.file_keys(store, catalog_key):
        key = f"{catalog_key}/{leaf}"
        tables = leaf_tables if foreign else _whole_leaf
        for table in tables(store, key, matches.reads):
            matches.add(table)
    return matches.found()


def _whole_leaf(store: Store, key: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    yield hats.read_leaf(store, key, columns)


def _numbers(column: pa.ChunkedArray, name: str) -> NDArray[np.float64]:
    """A column as float64, shape (n,), or (n, length) for lists; NaN where null."""
    dtype = column.type
    if not is_numeric(dtype):
        raise InputError(f"column {name!r} is not numeric ({dtype})")
    if not pa.types.is_nested(dtype):
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
