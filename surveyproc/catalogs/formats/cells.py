"""Cells of FITS tables, from bytes to values. Arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

STORED = {"B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
"""Types of the numbers of binary tables, by the letter of TFORM."""

# TZERO of the columns whose integers have the other sign (FITS standard 4.0, table 19).
_OTHER_SIGN: dict[tuple[str, float], str] = {
    ("B", -128): "int8",
    ("I", 2**15): "uint16",
    ("J", 2**31): "uint32",
    ("K", 2**63): "uint64",
}


def number_type(letter: str, scale: float, zero: float) -> np.dtype[Any]:
    """The type of a column's values after scaling.

    Integers stay integers where only their sign changes or a whole number is added that cannot
    overflow; everything else that is scaled is float64.

    Examples
    --------
    >>> number_type("K", 0.001, 0), number_type("J", 1, 2**31)
    (dtype('float64'), dtype('uint32'))
    """
    if scale == 1 and zero == 0:
        return np.dtype(STORED[letter]).newbyteorder("=")
    if scale == 1 and (letter, zero) in _OTHER_SIGN:
        return np.dtype(_OTHER_SIGN[letter, zero])
    if scale == 1 and letter in "BIJ" and zero == int(zero) and abs(zero) < 2**53:
        return np.dtype("int64")
    return np.dtype("float64")


def numbers(stored: NDArray[Any], scale: float, zero: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Stored numbers of any shape as physical values: `zero + scale * stored`.

    Parameters
    ----------
    stored : ndarray
        As they lie in the file.
    dtype : dtype
        What `number_type` says.
    """
    if dtype == stored.dtype.newbyteorder("="):
        values = stored.astype(dtype)
    elif stored.dtype.itemsize == dtype.itemsize and dtype.kind in "iu":
        # Only the first bit differs; a sum would overflow.
        native = stored.astype(stored.dtype.newbyteorder("=")).view(f"u{dtype.itemsize}")
        values = (native ^ native.dtype.type(1 << (8 * dtype.itemsize - 1))).view(dtype)
    elif dtype.kind == "i":
        values = stored.astype(dtype) + int(zero)
    else:
        values = stored.astype(np.float64) * scale + zero
    return values


def texts(cells: Bytes) -> pa.Array:
    """Bytes of text, shape (n, width), as strings: they end at a NUL or before trailing blanks."""
    rows, width = cells.shape
    if not width:
        return pa.array([""] * rows, pa.string())
    ended = np.logical_or.accumulate(cells == 0, axis=1)
    cut = np.ascontiguousarray(np.where(ended, 0, cells).astype(np.uint8))
    found = pa.array(cut.view(f"S{width}")[:, 0], pa.binary())
    try:
        whole = found.cast(pa.string())
    except pa.ArrowInvalid:
        decoded = [value.decode("utf-8", "replace") for value in found.to_pylist()]
        whole = pa.array(decoded, pa.string())
    return pc.utf8_rtrim(whole, characters=" ")


def logicals(cells: Bytes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Values, and where there are none: neither T nor F. Shapes as `cells`."""
    true, false = cells == ord("T"), cells == ord("F")
    return true, ~(true | false)


def bits(cells: Bytes, count: int) -> NDArray[np.bool_]:
    """The first `count` bits of each row of bytes, the highest of a byte first; (n, count)."""
    return np.unpackbits(cells, axis=1)[:, :count].astype(bool)


def ascii_numbers(
    cells: Bytes, blank: str | None, *, whole: bool, decimals: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Numbers written as text, shape (n, width): values, shape (n,), and where there are none.

    A blank field and one that says `blank` (TNULL) hold no value, which is 0 here.

    Parameters
    ----------
    whole : bool
        Whether they are integers (int64) or not (float64).
    decimals : int
        Digits behind the decimal point that the format promises.

    Raises
    ------
    ValueError
        If a field is no number; or lacks the decimal point and programs read it differently.
    """
    rows, width = cells.shape
    raw = np.ascontiguousarray(np.where(cells == 0, 32, cells).astype(np.uint8))
    fields = np.strings.strip(raw.view(f"S{width}")[:, 0]) if width else np.zeros(rows, "S1")
    empty = fields == b""
    if blank is not None:
        empty |= fields == blank.strip().encode()
    given = np.where(empty, b"0", fields)
    if whole:
        return given.astype(np.int64), empty
    exponents = np.strings.replace(np.strings.upper(given).astype("S"), b"D", b"E")
    values = exponents.astype(np.float64)
    pointless = ~empty & np.isfinite(values) & (np.strings.find(given, b".") < 0) & (values != 0)
    if decimals and pointless.any():
        raise ValueError(
            f"{given[pointless][0].decode('ascii', 'replace')!r} has no decimal point where its "
            f"format promises {decimals} digits behind one: programs read such numbers differently"
        )
    return values, empty
