"""Objects of the ingested catalog around others: the nearest ones, also across partitions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from surveyproc import sky
from surveyproc.catalogs import hats
from surveyproc.catalogs.hats import Partition
from surveyproc.catalogs.ingest import CatalogInfo
from surveyproc.errors import StoreError
from surveyproc.store.storage import Store, digest, parse_table

Float = NDArray[np.float64]
LEAVES = 16
"""Partitions whose positions are kept in memory: one and those around it."""


@dataclass(frozen=True)
class Around:
    """The nearest other objects of n objects, the m nearest of each.

    Attributes
    ----------
    ids : int64 ndarray, shape (n, m)
        Their object_id, nearest first; 0 where there are fewer.
    offsets : float64 ndarray, shape (n, m, 2)
        How far they are to the east and to the north, arcsec; NaN where there are fewer.
    """

    ids: NDArray[np.int64]
    offsets: Float


def nearest_others(
    ids: NDArray[np.int64],
    vectors: Float,
    other_ids: NDArray[np.int64],
    other_vectors: Float,
    *,
    radius: float,
    most: int,
) -> Around:
    """The `most` nearest others within a radius; rows of an object's own id are no others.

    Parameters
    ----------
    ids, other_ids : int64 ndarray, shapes (n,), (k,)
        Of the objects, and of all among which others are looked for.
    vectors, other_vectors : float64 ndarray, shapes (n, 3), (k, 3)
        Their positions as unit vectors.
    radius : float
        Arcsec.
    most : int
        Others an object.
    """
    found = Around(
        np.zeros((len(ids), most), np.int64), np.full((len(ids), most, 2), np.nan, np.float64)
    )
    if not len(ids) or not len(other_ids):
        return found
    chord = 2 * np.sin(np.radians(radius / 3600) / 2)
    pairs = cKDTree(vectors).sparse_distance_matrix(
        cKDTree(other_vectors), chord, output_type="ndarray"
    )
    pairs = pairs[ids[pairs["i"]] != other_ids[pairs["j"]]]
    # Equal distances in the order of ids, so that no order of leaves can be told.
    pairs = pairs[np.lexsort((other_ids[pairs["j"]], pairs["v"], pairs["i"]))]
    row, other = pairs["i"], pairs["j"]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < most
    row, other, place = row[kept], other[kept], place[kept]
    found.ids[row, place] = other_ids[other]
    found.offsets[row, place] = _offsets(vectors[row], other_vectors[other])
    return found


def _offsets(here: Float, there: Float) -> Float:
    """Arcsec to the east and north in the tangent plane of `here`, shape (n, 2)."""
    along = np.stack([(there * axis).sum(axis=1) for axis in _axes(here)], axis=1)
    return np.asarray(np.degrees(along) * 3600)


def _axes(here: Float) -> tuple[Float, Float]:
    """Unit vectors to the east and north of unit vectors, shape (n, 3)."""
    x, y, z = here.T
    level = np.hypot(x, y)
    # At a pole east is where the y axis points, as of a right ascension of 0.
    sine, cosine = (
        np.divide(one, level, out=np.full_like(one, default), where=level > 0)
        for one, default in ((y, 0.0), (x, 1.0))
    )
    east = np.stack([-sine, cosine, np.zeros_like(x)], axis=1)
    north = np.stack([-z * cosine, -z * sine, level], axis=1)
    return east, north


def displaced(ra: Float, dec: Float, offsets: Float) -> tuple[Float, Float]:
    """Positions that far to the east and to the north, as `nearest_others` says it; degrees.

    Parameters
    ----------
    ra, dec : float64 ndarray, shape (n,)
        Degrees, ICRS.
    offsets : float64 ndarray, shape (n, 2)
        Arcsec.

    Examples
    --------
    >>> ra, dec = displaced(np.array([0.0]), np.array([60.0]), np.array([[-1.8, 3.6]]))
    >>> ra.round(6).tolist(), dec.round(6).tolist()
    ([359.999], [60.001])
    """
    here = sky.unit_vectors(ra, dec)
    east, north = _axes(here)
    along = np.radians(offsets / 3600)
    height = np.sqrt(1 - (along**2).sum(axis=1))
    there = along[:, :1] * east + along[:, 1:] * north + height[:, None] * here
    return sky.lonlat(there)


def near(part: Partition, catalog: CatalogInfo, radius: float) -> list[Partition]:
    """Partitions whose circle comes within `radius` arcsec of that of `part`, itself among them."""
    return _meeting((part.ra, part.dec, part.radius), catalog.partitions, radius)


class Surroundings:
    """Finds the nearest others of rows of the ingested catalog.

    Parameters
    ----------
    store : Store
        The survey's root.
    catalog : CatalogInfo
        The ingested catalog.
    radius : float
        Arcsec.
    most : int
        Others an object.
    """

    def __init__(self, store: Store, catalog: CatalogInfo, radius: float, most: int) -> None:
        self.store, self.catalog, self.radius, self.most = store, catalog, radius, most
        self._kept: OrderedDict[tuple[int, int], tuple[NDArray[np.int64], Float]] = OrderedDict()

    def of(self, table: pa.Table) -> Around:
        """The nearest others of the rows of a table with `object_id`, `ra` and `dec`.

        Raises
        ------
        StoreError
            If a leaf is not the one that was ingested.
        """
        ids = table["object_id"].to_numpy().astype(np.int64)
        ra, dec = (table[name].to_numpy().astype(np.float64) for name in ("ra", "dec"))
        parts = []
        if len(ids):
            parts = _meeting(sky.cap(ra, dec), self.catalog.partitions, self.radius)
        held = [self._positions(part) for part in parts]
        return nearest_others(
            ids,
            sky.unit_vectors(ra, dec),
            np.concatenate([np.empty(0, np.int64), *(one for one, _ in held)]),
            np.concatenate([np.empty((0, 3)), *(one for _, one in held)]),
            radius=self.radius,
            most=self.most,
        )

    def _positions(self, part: Partition) -> tuple[NDArray[np.int64], Float]:
        pixel = part.order, part.pixel
        if pixel in self._kept:
            self._kept.move_to_end(pixel)
            return self._kept[pixel]
        key = f"{self.catalog.key}/{hats.leaf_key(*pixel)}"
        data = self.store.read(key)
        if digest(data) != part.sha256:
            raise StoreError(
                f"{self.store.url_of(key)} is not the leaf that was ingested: if an ingest is "
                "under way, repeat the command after it; else ingest again"
            )
        table = parse_table(pa.BufferReader(data), ["object_id", "ra", "dec"])
        ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
        self._kept[pixel] = table["object_id"].to_numpy(), sky.unit_vectors(ra, dec)
        if len(self._kept) > LEAVES:
            self._kept.popitem(last=False)
        return self._kept[pixel]


def _meeting(
    circle: tuple[float, float, float], parts: Sequence[Partition], radius: float
) -> list[Partition]:
    """Partitions whose circle comes within `radius` arcsec of a circle (ra, dec, radius), deg."""
    ra, dec, reach = circle
    centres = sky.unit_vectors(
        np.array([one.ra for one in parts]), np.array([one.dec for one in parts])
    )
    centre = sky.unit_vectors(np.array([ra]), np.array([dec]))[0]
    chord = np.linalg.norm(centres - centre, axis=1)
    apart = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
    radii = np.array([one.radius for one in parts])
    limit = reach + radii + radius / 3600 + 1e-9
    return [one for one, meets in zip(parts, apart <= limit, strict=True) if meets]
