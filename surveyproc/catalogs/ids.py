"""One int64 for every row: the source's own id, or one made of it, or of the row's place.

Pure functions on columns. The same row has the same id in every ingest, whatever the batches.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc.catalogs.hats import ORDER
from surveyproc.errors import InputError

Int = NDArray[np.int64]

INTEGER, UNSIGNED, FLOAT, TEXT, PLACE = "integer", "unsigned", "float", "text", "place"
"""Where an object_id comes from; the last is for a source without ids."""

PLACE_ORDER = 20
"""HEALPix order of a place (0.2 arcsec): coarse enough that digits lost in a copy rarely matter."""
PLACE_BITS = 19
"""Bits for the row's number at its place: 63 less those of a pixel."""

_SAID = {
    UNSIGNED: "the numbers of column {name!r}, those from 2^63 on less 2^64",
    TEXT: "made from the text column {name!r}: the first 63 bits of the SHA-256 of its UTF-8, "
    "without spaces at the ends",
    PLACE: f"made from the place: HEALPix pixel of order {PLACE_ORDER} times 2^{PLACE_BITS}, plus "
    "the row's number in that pixel by _healpix_29, then by order in the source",
}


def origin(dtype: pa.DataType) -> str:
    """Where ids come from that the source holds as `dtype`.

    Raises
    ------
    TypeError
        If nothing that it holds is an id: dates, truth values, lists.
    """
    if pa.types.is_uint64(dtype):
        return UNSIGNED
    if pa.types.is_integer(dtype):
        return INTEGER
    if pa.types.is_floating(dtype):
        return FLOAT
    if pa.types.is_string(dtype):
        return TEXT
    raise TypeError(f"{dtype} is neither numbers nor text")


def said(kind: str, name: str) -> str:
    """How object_id is made, where it is not simply the source's number; else empty."""
    return _SAID.get(kind, "").format(name=name)


def is_absent(values: pa.Array) -> NDArray[np.bool_]:
    """Where there is no id: null, NaN, or text without a character, shape (n,)."""
    absent: NDArray[np.bool_] = values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if pa.types.is_string(values.type):
        empty = pc.equal(pc.utf8_trim_whitespace(values), "").fill_null(True)
        absent = absent | empty.to_numpy(zero_copy_only=False)
    return absent


def strange(values: pa.Array) -> float | None:
    """The first id, held as a float, that is no whole number or too large to be exact; else None.

    From 2^53 on (2^24 in single precision) floats skip whole numbers: two ids became one.
    """
    if not pa.types.is_floating(values.type):
        return None
    numbers = values.drop_null().to_numpy(zero_copy_only=False)
    exact = 2.0 ** (np.finfo(numbers.dtype).nmant + 1)
    with np.errstate(invalid="ignore"):
        wrong = ~((numbers == np.trunc(numbers)) & (np.abs(numbers) < exact)) & ~np.isnan(numbers)
    return float(numbers[wrong][0]) if wrong.any() else None


def read(values: pa.Array) -> tuple[Int, Int | None]:
    """The int64 of every id, and for text 64 more bits of its hash, which tell collisions.

    Parameters
    ----------
    values : pyarrow.Array, shape (n,)
        Of a type that `origin` knows; floats without what `strange` finds.

    Returns
    -------
    ids : int64 ndarray, shape (n,)
        Of no meaning where `is_absent`.
    check : int64 ndarray, shape (n,), or None
        Equal for equal texts. None if `values` are numbers.
    """
    if pa.types.is_string(values.type):
        texts = (text.strip().encode() for text in values.fill_null("").to_pylist())
        digests = b"".join(hashlib.sha256(text).digest()[:16] for text in texts)
        words = np.frombuffer(digests, ">u8").reshape(-1, 2)
        return (words[:, 0] >> np.uint64(1)).astype(np.int64), words[:, 1].astype("u8").view("i8")
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    if numbers.dtype.kind == "f":
        numbers = np.nan_to_num(numbers)
    # Unsigned numbers from 2^63 on wrap around, each to a number of its own.
    return numbers.astype(np.int64), None


def of_place(index: Int) -> Int:
    """Ids of rows that have none, from where they are.

    Parameters
    ----------
    index : int64 ndarray, shape (n,)
        HEALPix pixels of order 29, sorted; rows of one pixel in the order of the source. All rows
        of a pixel of order 20 are among them.

    Returns
    -------
    int64 ndarray, shape (n,)
        Distinct. Rows elsewhere on the sky do not matter, so a catalog may grow.

    Raises
    ------
    InputError
        If one place holds more rows than can be numbered.

    Examples
    --------
    >>> of_place(np.array([5 << 18, 5 << 18, 6 << 18])) - (np.array([5, 5, 6]) << 19)
    array([0, 1, 0])
    """
    place = index >> 2 * (ORDER - PLACE_ORDER)
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    number = np.arange(len(place)) - np.repeat(starts, np.diff(starts, append=len(place)))
    if number.max(initial=0) >> PLACE_BITS:
        raise InputError(
            f"{number.max() + 1} rows lie within 0.2 arcsec, too many to make ids for: name a "
            "column of ids (catalog.id)"
        )
    return (place << PLACE_BITS) | number
