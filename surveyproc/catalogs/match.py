"""Objects of a HATS catalog that have a label, by position (LSDB) or by id, leaf by leaf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
from lsdb import from_dataframe, open_catalog  # type: ignore[attr-defined]
from numpy.typing import NDArray
from upath import UPath

from surveyproc.catalogs import hats
from surveyproc.catalogs.labels import TARGET, Labels
from surveyproc.errors import InputError
from surveyproc.places import Item, Places, Stage
from surveyproc.store.storage import Store

OBJECT_COLUMNS = ("object_id", "ra", "dec")
NUMBER = "number_of_label"

# Every task that matches a leaf is sent a whole partition of the labels and makes a tree of it.
PARTITION_LABELS = 100_000
# Pixels of 47 square arcmin; the histogram that chooses among them takes 25 MB.
FINEST_ORDER = 9
# LSDB lists all pixels of about this size along the edges of its partitions: for 1 arcsec that is
# millions, and takes it 10 s.
LEAST_MARGIN_ARCSEC = 60.0
# Seconds of one core to read and match a leaf: a guess.
LEAF_S = 0.1


def match_labels(
    store: Store, catalog_key: str, labels: Labels, columns: Sequence[str], places: Places
) -> pa.Table:
    """Every object of a catalog that has a label, with what that tells.

    Labels with ids belong to the object of that id; the others to the nearest object within their
    radius. No label is given twice: of several objects whose nearest it is, the nearest one has it,
    of several with its id the first by position.

    One task a leaf (of Dask, on the sky); leaves far from all labels are not read.

    Parameters
    ----------
    store : Store
        Where the catalog lies.
    catalog_key : str
        Its folder.
    labels : Labels
        They may be of objects that the catalog does not have.
    columns : sequence of str
        Columns of the catalog to take along; those that it lacks are left out.
    places : Places
        Where the tasks may run: in this process, or by Ray.

    Returns
    -------
    pyarrow.Table
        object_id, ra, dec, _healpix_29, `target_<name>` of every target of the labels (lists, where
        it has several columns), then `columns`. Sorted by _healpix_29, then object_id.

    Raises
    ------
    InputError
        If no object has a label, or the labels cannot be partitioned on the sky.
    StoreError
        If the catalog's metadata cannot be read.
    """
    held = hats.leaf_schema(store, f"{catalog_key}/dataset/_common_metadata").names
    targets = {TARGET + name: values for name, values in labels.targets.items()}
    own = {*OBJECT_COLUMNS, hats.SPATIAL, *targets}
    taken = [name for name in dict.fromkeys(columns) if name in held and name not in own]
    if labels.ids is None:
        found = _on_the_sky(store, catalog_key, labels, taken, places)
    else:
        found = _by_id(store, catalog_key, labels.ids, taken, places)
    number = found[NUMBER].to_numpy()
    table = found.select([*OBJECT_COLUMNS, hats.SPATIAL])
    for name, values in targets.items():
        table = table.append_column(name, _column(values[number]))
    for name in taken:
        table = table.append_column(found.schema.field(name), found[name])
    order = np.lexsort((table["object_id"].to_numpy(), table[hats.SPATIAL].to_numpy()))
    return table.replace_schema_metadata().take(pa.array(order)).combine_chunks()


def _column(values: NDArray[Any]) -> pa.Array:
    if values.dtype.kind == "O":
        return pa.array(values.tolist(), pa.string())
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _on_the_sky(
    store: Store, catalog_key: str, labels: Labels, taken: Sequence[str], places: Places
) -> pa.Table:
    """The objects near a label, and the number of that, by an LSDB crossmatch."""
    # Told a plain `s3://` URL, hats takes the bucket for a public one; hence UPath.
    objects = open_catalog(UPath(store.url_of(catalog_key)), columns=[*OBJECT_COLUMNS, *taken])
    # The suffix marks what comes from the labels: a catalog may have any column name.
    frame = pd.DataFrame({"ra": labels.ra, "dec": labels.dec, "number": np.arange(len(labels))})
    try:
        known = from_dataframe(
            frame.add_suffix("_of_label"),
            ra_column="ra_of_label",
            dec_column="dec_of_label",
            highest_order=FINEST_ORDER,
            drop_empty_siblings=False,
            partition_rows=PARTITION_LABELS,
            margin_threshold=max(labels.radius, LEAST_MARGIN_ARCSEC),
        )
    except ValueError as error:
        raise InputError(
            f"{len(labels)} labels with radius {labels.radius} arcsec cannot be partitioned on "
            f"the sky ({error}): check their positions, and the radius"
        ) from error
    nothing = InputError(
        f"no object of {store.url_of(catalog_key)} lies within {labels.radius} arcsec of one of "
        f"{len(labels)} labels: check the ra and dec columns of the label table"
    )
    try:
        matched = objects.crossmatch(
            known,
            n_neighbors=1,
            radius_arcsec=labels.radius,
            suffixes=("", "_of_label"),
            suffix_method="overlapping_columns",
        )
    except RuntimeError as error:
        # LSDB sees from the two coverage maps alone that nothing can match.
        if "do not overlap" in str(error):
            raise nothing from error
        raise
    with dask.config.set(**_scheduler(places, objects.npartitions)):
        found = matched.compute(progress_bar=False)
    if not len(found):
        raise nothing
    table = pa.Table.from_pandas(found.reset_index(), preserve_index=False)
    table = table.sort_by([("_dist_arcsec", "ascending"), ("object_id", "ascending")])
    return _once(table)


def _by_id(
    store: Store,
    catalog_key: str,
    wanted: NDArray[np.int64],
    taken: Sequence[str],
    places: Places,
) -> pa.Table:
    """The objects that have the id of a label, and the number of that."""
    keys = [f"{catalog_key}/{leaf}" for leaf in hats.file_keys(store, catalog_key)]
    names = [*OBJECT_COLUMNS, hats.SPATIAL, *taken]
    stage = Stage("leaves", IdMatcher, (store.url_of(""), wanted, names))
    items = [Item(key, key, LEAF_S) for key in keys]
    found = dict(places.stream(items, stage))
    tables = [found[key] for key in keys if found[key] is not None]
    if not tables:
        raise InputError(
            f"no object of {store.url_of(catalog_key)} has an id of one of {len(wanted)} labels: "
            "check training.id, which must name a column of the source catalog's own ids"
        )
    table = pa.concat_tables(tables)
    return _once(table.sort_by([(hats.SPATIAL, "ascending"), ("object_id", "ascending")]))


class IdMatcher:
    """Finds in one leaf after the other the objects of given ids.

    Parameters
    ----------
    root : str
        URL of the store.
    wanted : int64 ndarray, shape (n,)
        Ids; of equal ones the first counts.
    names : sequence of str
        Columns to take along.
    """

    def __init__(self, root: str, wanted: NDArray[np.int64], names: Sequence[str]) -> None:
        self.store, self.names = Store(root), list(names)
        self.ids, self.number = np.unique(wanted, return_index=True)

    def __call__(self, key: str) -> tuple[str, pa.Table | None]:
        """The leaf's key, and its objects that are wanted, with their labels' numbers."""
        held = hats.read_leaf(self.store, key, ["object_id"])["object_id"].to_numpy()
        place = np.searchsorted(self.ids, held).clip(max=len(self.ids) - 1)
        rows = np.flatnonzero(self.ids[place] == held)
        if not len(rows):
            return key, None
        whole = hats.read_leaf(self.store, key, self.names)
        numbers = pa.array(self.number[place[rows]])
        return key, whole.take(pa.array(rows)).append_column(NUMBER, numbers)


def _once(table: pa.Table) -> pa.Table:
    """The first row of every label."""
    _, first = np.unique(table[NUMBER].to_numpy(), return_index=True)
    return table.take(pa.array(first))


def _scheduler(places: Places, leaves: int) -> dict[str, Any]:
    """What tells Dask to run its tasks where the work is to run."""
    if places.choose("label match", leaves * LEAF_S) == "here":
        # Its threads would gain little: the tasks are of pandas, which holds Python's lock.
        return {"scheduler": "synchronous"}
    places.cluster()
    from ray.util.dask import ray_dask_get

    return {"scheduler": ray_dask_get}
