"""Objects of a HATS catalog that have a label: an LSDB crossmatch, wherever there is room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
from lsdb import from_dataframe, open_catalog  # type: ignore[attr-defined]
from upath import UPath

from surveyproc.catalogs import hats
from surveyproc.catalogs.labels import Labels
from surveyproc.errors import InputError
from surveyproc.places import Places
from surveyproc.store.storage import Store

OBJECT_COLUMNS = ("object_id", "ra", "dec")

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
    """Every object of a catalog within the labels' radius of a label, with the nearest's redshift.

    No label is given twice: of several objects whose nearest it is, the nearest one has it.

    One Dask task a leaf; leaves far from all labels are not read.

    Parameters
    ----------
    store : Store
        Where the catalog lies.
    catalog_key : str
        Its folder.
    labels : Labels
        Known redshifts. They may lie anywhere, also where the catalog has no object.
    columns : sequence of str
        Columns of the catalog to take along; those that it lacks are left out.
    places : Places
        Where the tasks may run: by Dask in this process, or by Ray.

    Returns
    -------
    pyarrow.Table
        object_id, ra, dec, _healpix_29, redshift (of the label), then `columns`. Sorted by
        _healpix_29, then object_id.

    Raises
    ------
    InputError
        If no object is near a label, or the labels cannot be partitioned on the sky.
    StoreError
        If the catalog's metadata cannot be read.
    """
    held = hats.leaf_schema(store, f"{catalog_key}/dataset/_common_metadata").names
    own = {*OBJECT_COLUMNS, hats.SPATIAL, "redshift"}
    taken = [name for name in dict.fromkeys(columns) if name in held and name not in own]
    # Told a plain `s3://` URL, hats takes the bucket for a public one; hence UPath.
    objects = open_catalog(UPath(store.url_of(catalog_key)), columns=[*OBJECT_COLUMNS, *taken])
    # The suffix marks what comes from the labels: a catalog may have any column name.
    frame = pd.DataFrame({"ra": labels.ra, "dec": labels.dec, "redshift": labels.redshift})
    frame["number"] = np.arange(len(frame))
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
            f"{len(labels.ra)} labels with radius {labels.radius} arcsec cannot be partitioned on "
            f"the sky ({error}): check their positions, and the radius"
        ) from error
    nothing = InputError(
        f"no object of {store.url_of(catalog_key)} lies within {labels.radius} arcsec of one of "
        f"{len(labels.ra)} labels: check the ra and dec columns of the label table"
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
    _, first = np.unique(table["number_of_label"].to_numpy(), return_index=True)
    table = table.take(pa.array(first))
    names = [*OBJECT_COLUMNS, hats.SPATIAL, "redshift_of_label", *taken]
    table = table.select(names).rename_columns(
        [name.removesuffix("_of_label") if name not in taken else name for name in names]
    )
    order = np.lexsort((table["object_id"].to_numpy(), table[hats.SPATIAL].to_numpy()))
    return table.replace_schema_metadata().take(pa.array(order)).combine_chunks()


def _scheduler(places: Places, leaves: int) -> dict[str, Any]:
    """What tells Dask to run its tasks where the work is to run."""
    if places.choose("label match", leaves * LEAF_S) == "here":
        # Its threads would gain little: the tasks are of pandas, which holds Python's lock.
        return {"scheduler": "synchronous"}
    places.cluster()
    from ray.util.dask import ray_dask_get

    return {"scheduler": ray_dask_get}
