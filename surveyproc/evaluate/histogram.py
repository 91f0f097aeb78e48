"""Histograms that can be added up, and how far two of them lie apart.

Buckets are logarithmic and the same for all data, as in DDSketch (Masson, Rim & Lee 2019, PVLDB 12,
2195): a value lies in bucket floor(n log2 |v|) of its sign, n of them an octave. Histograms of the
parts of a table therefore add up to that of the table, whatever the unit and scale of a column.

The distance is the two-sample Kolmogorov-Smirnov statistic, the largest difference of the two
cumulative distributions, at the buckets' edges; between edges it can be larger by at most the share
of one bucket.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

PER_OCTAVE = 4
"""Buckets an octave: 19 % wide. A shift shows at their edges even if it is much smaller."""
SMALLEST = 2.0**-40
"""Absolute values below count as zero."""
LARGEST = 2.0**1023

Histogram = Mapping[int, int]


def buckets(values: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Bucket of every value, shape (n,); never decreasing with the value; 0 for (almost) zero.

    Infinities share the outermost buckets. NaN is not allowed.
    """
    wide = values.astype(np.float64)
    size = np.clip(np.abs(wide), SMALLEST / 2, LARGEST)
    # Not the logarithm of their ratio, which overflows.
    octaves = np.log2(size) - np.log2(SMALLEST)
    number = np.floor(PER_OCTAVE * octaves).astype(np.int64) + 1
    return np.where(size < SMALLEST, 0, np.sign(wide).astype(np.int64) * number)


def histogram(values: NDArray[np.floating] | NDArray[np.integer]) -> dict[int, int]:
    """Values, shape (n,), without NaN, counted by bucket."""
    found, counts = np.unique(buckets(values), return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def add(into: dict[int, int], other: Histogram) -> None:
    """Add the counts of `other` to those of `into`."""
    for bucket, count in other.items():
        into[bucket] = into.get(bucket, 0) + count


def pack(counts: Histogram) -> str:
    """A histogram as text, a few bytes a bucket."""
    pairs = np.array(sorted(counts.items()), "<i8").reshape(-1, 2)
    return base64.b64encode(zlib.compress(pairs.T.tobytes())).decode()


def unpack(text: str) -> dict[int, int]:
    """What `pack` was given.

    Raises
    ------
    ValueError
        If `text` is damaged.
    """
    try:
        found, counts = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").reshape(2, -1)
    except zlib.error as error:
        raise ValueError(f"not a packed histogram: {error}") from error
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def distance(first: Histogram, second: Histogram) -> float:
    """Kolmogorov-Smirnov distance, 0 to 1, of two histograms; 0 if one of them is empty.

    Examples
    --------
    >>> distance({1: 5, 2: 5}, {1: 1, 2: 1}), distance({1: 1}, {2: 1})
    (0.0, 1.0)
    """
    totals = sum(first.values()), sum(second.values())
    if not all(totals):
        return 0.0
    edges = sorted(first.keys() | second.keys())
    shares = [
        np.cumsum([counts.get(edge, 0) for edge in edges]) / total
        for counts, total in zip((first, second), totals, strict=True)
    ]
    return float(np.abs(shares[0] - shares[1]).max())
