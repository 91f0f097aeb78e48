"""Which HEALPix pixels become partitions: pure functions on counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surveyproc.catalogs.hats import ORDER

# 51 arcsec: finer partitions would be all border for any crossmatch.
MAX_ORDER = 12
# Occupied pixels that are counted at once (50 MB): the whole sky at order 9. Beyond, pixels one
# order coarser are counted.
MAX_OCCUPIED = 12 * 4**9

Int = NDArray[np.int64]


class SkyCounts:
    """Counts rows a pixel in bounded memory.

    Pixels are of order 12 while at most three million of them are occupied, and coarser for
    catalogs that cover more (the whole sky: order 9, 7 arcmin). The outcome does not depend on how
    rows are cut into batches.

    Parameters
    ----------
    order : int
        The finest order.
    max_occupied : int
        Occupied pixels beyond which the order falls by one.
    """

    def __init__(self, order: int = MAX_ORDER, max_occupied: int = MAX_OCCUPIED) -> None:
        self.order, self._max = order, max_occupied
        self.pixels: Int = np.empty(0, np.int64)
        self.counts: Int = np.empty(0, np.int64)

    def add(self, indexes: Int) -> None:
        """Count rows with these pixels of order 29, shape (n,)."""
        pixels, counts = np.unique(indexes >> 2 * (ORDER - self.order), return_counts=True)
        where: Int = np.asarray(np.searchsorted(self.pixels, pixels), np.int64)
        known: NDArray[np.bool_] = where < len(self.pixels)
        known[known] = self.pixels[where[known]] == pixels[known]
        self.counts[where[known]] += counts[known]
        self.pixels = np.insert(self.pixels, where[~known], pixels[~known])
        self.counts = np.insert(self.counts, where[~known], counts[~known])
        while len(self.pixels) > self._max and self.order > 0:
            self.order -= 1
            parents = self.pixels >> 2
            first = np.flatnonzero(np.diff(parents, prepend=-1))
            self.pixels, self.counts = parents[first], np.add.reduceat(self.counts, first)


def choose(pixels: Int, counts: Int, order: int, limit: int) -> list[tuple[int, int, int]]:
    """The fewest pixels that hold all rows with at most `limit` rows each.

    A pixel of the finest order that holds more is taken as it is.

    Parameters
    ----------
    pixels, counts : int64 ndarray, shape (n,)
        Occupied pixels of order `order` and their rows.
    limit : int
        Most rows a partition.

    Returns
    -------
    list of (order, pixel, rows)
        In nested order; disjoint, none empty.

    Examples
    --------
    >>> import numpy as np
    >>> choose(np.array([0, 1, 5]), np.array([3, 3, 3]), 1, 6)
    [(0, 0, 6), (0, 1, 3)]
    """
    chosen: list[tuple[int, int, int]] = []
    for level in range(order + 1):
        if not len(pixels):
            break
        parents, inverse = np.unique(pixels >> 2 * (order - level), return_inverse=True)
        totals = np.zeros(len(parents), np.int64)
        np.add.at(totals, inverse, counts)
        fits = (totals <= limit) | (level == order)
        chosen += [
            (level, int(pixel), int(rows))
            for pixel, rows in zip(parents[fits], totals[fits], strict=True)
        ]
        left = ~fits[inverse]
        pixels, counts = pixels[left], counts[left]
    return sorted(chosen, key=lambda part: part[1] << 2 * (ORDER - part[0]))


class Assigner:
    """Finds the partition of each row.

    Parameters
    ----------
    chosen : list of (order, pixel, rows)
        As `choose` returns them.
    """

    def __init__(self, chosen: list[tuple[int, int, int]]) -> None:
        shifts = [2 * (ORDER - order) for order, _, _ in chosen]
        self._starts: Int = np.array(
            [part[1] << shift for part, shift in zip(chosen, shifts, strict=True)], np.int64
        )
        self._stops: Int = np.array(
            [(part[1] + 1) << shift for part, shift in zip(chosen, shifts, strict=True)], np.int64
        )

    def __call__(self, indexes: Int) -> Int:
        """Partition number of each pixel of order 29, shape (n,); -1 where none holds it."""
        number = np.searchsorted(self._starts, indexes, side="right") - 1
        inside = (number >= 0) & (indexes < self._stops[np.maximum(number, 0)])
        found: Int = np.where(inside, number, -1)
        return found
