"""Indexes by which the rows are found that are most like another: codes of a column, one file each.

    <release>/neighbours/<column>/Norder=<k>-Npix=<n>.arrow

Each is an Arrow file of the partition's rows that have a code: `object_id`, `ra`, `dec` and `code`,
not compressed, so that a local one is mapped into memory and not parsed. A search looks at every
code of every partition. That is exact, and no slower than most graphs (HNSW), which must be
opened first: see docs/design.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc.errors import StoreError
from surveyproc.schemas import Column
from surveyproc.store.storage import Store

FOLDER = "neighbours"
LONGEST = 64
"""Bytes of a code, at most."""
Codes = NDArray[np.signedinteger[Any]]
Floats = NDArray[np.floating[Any]]
IDENTIFYING = ("object_id", "ra", "dec")
BLOCK = 16_384
"""Codes that are compared in one go: their copy as floats stays in a processor's cache."""


def index_key(column: str, order: int, pixel: int) -> str:
    """Where the index of a partition lies in the release.

    Examples
    --------
    >>> index_key("m_embedding", 3, 17)
    'neighbours/m_embedding/Norder=3-Npix=17.arrow'
    """
    return f"{FOLDER}/{column}/Norder={order}-Npix={pixel}.arrow"


def encode(leaf: pa.Table, column: Column, version: str) -> bytes:
    """The index of one column of a leaf; equal rows give equal bytes.

    Parameters
    ----------
    leaf : pyarrow.Table
        With `object_id`, `ra`, `dec` and the column, lists of one length or null.
    column : Column
        Which.
    version : str
        Of the product that wrote the column.
    """
    known = leaf.filter(leaf[column.name].is_valid()).combine_chunks()
    numbers = pc.list_flatten(known[column.name]).combine_chunks()
    codes = pa.FixedSizeListArray.from_arrays(numbers, column.length)
    table = pa.table(
        [*(known[name] for name in IDENTIFYING), codes],
        names=[*IDENTIFYING, "code"],
        metadata={"column": column.name, "version": version},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@dataclass(frozen=True)
class Index:
    """The index of one partition.

    Attributes
    ----------
    object_id : int64 ndarray, shape (n,)
        Of the rows with a code.
    ra, dec : float64 ndarray, shape (n,)
        Degrees, ICRS.
    codes : int8 or int16 ndarray, shape (n, length)
        Of which Euclidean distances count.
    """

    object_id: NDArray[np.int64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    codes: Codes


def read(store: Store, key: str, column: str, version: str) -> Index:
    """One index; on a local disk nothing is read yet.

    Parameters
    ----------
    key : str
        Full key.
    column, version : str
        What it must be of.

    Raises
    ------
    StoreError
        If it is missing or damaged, or of another column or version than its release.
    """
    where = store.url_of(key)
    try:
        local = store.is_local
        source = pa.memory_map(store.path(key)) if local else pa.BufferReader(store.read(key))
        table = pa.ipc.open_file(source).read_all().combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{where} cannot be read ({error}): repeat `surveyproc run`") from error
    told = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    if told != {"column": column, "version": version}:
        raise StoreError(
            f"{where} is the index of {told.get('column')} of version {told.get('version')}, and "
            f"the release has {column} of version {version}: `surveyproc validate` says which "
            "files are not those of the release"
        )
    codes = table["code"].combine_chunks()
    object_id, ra, dec = (table[name].to_numpy() for name in IDENTIFYING)
    return Index(object_id, ra, dec, codes.flatten().to_numpy().reshape(-1, codes.type.list_size))


def can_index(column: Column) -> bool:
    """Whether a column's values are codes: whole numbers of a byte or two, `LONGEST` bytes."""
    known = column.dtype in ("int8", "int16") and column.length > 0
    return known and column.length * np.dtype(column.dtype).itemsize <= LONGEST


def nearest(codes: Codes, code: Codes, n: int) -> tuple[NDArray[np.int64], Floats]:
    """Rows whose codes are nearest to one, all of them compared.

    Parameters
    ----------
    codes : int8 or int16 ndarray, shape (rows, length)
        `LONGEST` bytes at most: squares of distances are then whole numbers below 2^24 or 2^53,
        which float32 and float64 hold exactly, so that no order of summation matters.
    code : ndarray of the same type, shape (length,)
        The one.
    n : int
        Rows wanted; all those that are as near as the last of them are given too.

    Returns
    -------
    rows : int64 ndarray, shape (m,)
        Ascending.
    squares : float32 or float64 ndarray, shape (m,)
        Squared Euclidean distances.

    Examples
    --------
    >>> codes = np.array([[0, 3], [4, 0], [1, 0]], np.int8)
    >>> rows, squares = nearest(codes, np.zeros(2, np.int8), 2)
    >>> rows.tolist(), squares.tolist()
    ([0, 2], [9.0, 1.0])
    """
    wanted: Floats = code.astype(np.float32 if codes.dtype == np.int8 else np.float64)
    squares = np.empty(len(codes), wanted.dtype)
    for start in range(0, len(codes), BLOCK):
        away = codes[start : start + BLOCK] - wanted
        np.einsum("ij,ij->i", away, away, out=squares[start : start + BLOCK])
    if len(codes) <= n:
        return np.arange(len(codes)), squares
    rows = np.flatnonzero(squares <= np.partition(squares, n - 1)[n - 1])
    return rows, squares[rows]
