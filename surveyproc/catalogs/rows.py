"""What makes a source row usable, and the columns that it is stored under. No files here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc import schemas, sky
from surveyproc.catalogs.formats.parquet import LEAF_KEYS
from surveyproc.catalogs.readers import TableReader, degrees_of, nearest_name
from surveyproc.catalogs.voparquet import column_of
from surveyproc.config import CatalogSection
from surveyproc.errors import InputError
from surveyproc.schemas import Column

# By code; a row with several faults gets the one with the highest code.
REASONS = (
    "",
    "dec outside [-90, 90]",
    "ra outside [-180, 360]",
    "position is infinite",
    "position is null or NaN",
    "id does not fit int64",
    "id is null",
)
# Names under which a HATS catalog keeps what we compute anew.
_RECOMPUTED = ("_healpix_29", "catalog_flag")


@dataclass(frozen=True)
class Roles:
    """Names of the source columns that hold id, right ascension and declination.

    `ra_degrees` and `dec_degrees` are the degrees in one unit of the latter two.
    """

    id: str
    ra: str
    dec: str
    ra_degrees: float = 1.0
    dec_degrees: float = 1.0

    @property
    def names(self) -> list[str]:
        """The three names."""
        return [self.id, self.ra, self.dec]


@dataclass(frozen=True)
class Checked:
    """Ids and positions of a batch, arrays of shape (n,).

    Attributes
    ----------
    ids : int64 ndarray
        0 where the row is unusable.
    ra, dec : float64 ndarray
        Degrees, 0 <= ra < 360; 0 where the row is unusable.
    index : int64 ndarray
        HEALPix pixel of order 29; 0 where the row is unusable.
    code : int8 ndarray
        0 for a usable row, else the index into `REASONS`.
    known_id : bool ndarray
        Whether the id could be read, whatever the position.
    """

    ids: NDArray[np.int64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    index: NDArray[np.int64]
    code: NDArray[np.int8]
    known_id: NDArray[np.bool_]


def roles(reader: TableReader, section: CatalogSection) -> Roles:
    """The configured columns, checked against the table.

    Raises
    ------
    InputError
        If a column is missing, ids are not integers, or positions are not numbers in a unit of
        angles.
    """
    found = Roles(section.id, section.ra, section.dec)
    for key, name in zip(("id", "ra", "dec"), found.names, strict=True):
        if name not in reader.names:
            raise InputError(
                f"{reader.url}: no column {name!r} (catalog.{key}); "
                f"the nearest is {nearest_name(name, reader.names)!r}"
            )
    id_type = reader.schema.field(found.id).type
    if not pa.types.is_integer(id_type):
        raise InputError(
            f"{reader.url}: column {found.id!r} (catalog.id) is {id_type}; object ids must be "
            "integers: name another column, or number the rows"
        )
    for key, name in (("ra", found.ra), ("dec", found.dec)):
        entry = reader.schema.field(name)
        if not (pa.types.is_floating(entry.type) or pa.types.is_integer(entry.type)):
            raise InputError(
                f"{reader.url}: column {name!r} (catalog.{key}) is {entry.type}; "
                "positions must be numbers: write them as decimal degrees"
            )
    ra, dec = degrees_of(reader, found.ra, found.dec)
    return replace(found, ra_degrees=ra, dec_degrees=dec)


def stored_columns(reader: TableReader, names: Roles) -> tuple[Column, ...]:
    """Columns of the leaves: those of schemas/object.toml, then the source's under their names.

    Raises
    ------
    InputError
        If a source column has a name of ours, or a type that cannot be stored.
    """
    own = schemas.load("object")
    taken = {column.name for column in own}
    carried = []
    for entry in reader.schema:
        if entry.name in names.names:
            continue
        if entry.name in LEAF_KEYS:
            reader.warn(f"column {entry.name!r} is left out: folders of the new catalog say it")
            continue
        if reader.kind == "hats" and entry.name in _RECOMPUTED:
            continue
        if entry.name in taken:
            raise InputError(
                f"{reader.url}: column {entry.name!r} has a name that surveyproc writes itself; "
                "rename it in the source, or name it in [catalog]"
            )
        try:
            carried.append(column_of(entry))
        except TypeError as error:
            raise InputError(f"{reader.url}: column {error}; remove it") from error
    return own + tuple(carried)


def beyond_int64(batch: pa.RecordBatch) -> set[str]:
    """Names of the unsigned columns with a value that no signed integer can be."""
    found = set()
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_uint64(values.type):
            most = pc.max(values).as_py()
            if most is not None and most > np.iinfo(np.int64).max:
                found.add(name)
    return found


def signed(columns: Sequence[Column], beyond: Collection[str]) -> tuple[Column, ...]:
    """Columns with int64 in place of uint64, and text for those `beyond` its range.

    VOTable, and so VOParquet, knows no unsigned 64-bit integers: astropy would make floats of them.
    """
    return tuple(
        replace(column, dtype="string" if column.name in beyond else "int64")
        if column.dtype == "uint64" and not column.length
        else column
        for column in columns
    )


def check(batch: pa.RecordBatch, names: Roles) -> Checked:
    """Judge the rows of a batch that holds the id, ra and dec columns.

    RA in [-180, 0) and 360 itself are wrapped into [0, 360).
    """
    id_column = batch.column(names.id)
    code = np.zeros(batch.num_rows, np.int8)
    ra = _floats(batch.column(names.ra)) * names.ra_degrees
    dec = _floats(batch.column(names.dec)) * names.dec_degrees
    with np.errstate(invalid="ignore"):
        code[(dec < -90) | (dec > 90)] = 1
        code[(ra < -180) | (ra > 360)] = 2
    code[np.isinf(ra) | np.isinf(dec)] = 3
    code[np.isnan(ra) | np.isnan(dec)] = 4
    null_id = id_column.is_null().to_numpy(zero_copy_only=False)
    too_large = np.zeros(batch.num_rows, bool)
    if pa.types.is_uint64(id_column.type):
        limit = pa.scalar(np.iinfo(np.int64).max, pa.uint64())
        too_large = pc.greater(id_column, limit).fill_null(False).to_numpy(zero_copy_only=False)
    code[too_large] = 5
    code[null_id] = 6
    ids = id_column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    good = code == 0
    ra, dec = np.where(good, ra, 0.0), np.where(good, dec, 0.0)
    ra = np.where(ra < 0, ra + 360.0, ra)
    # A tiny negative number plus 360 is 360, which is 0; -0.0 becomes 0.0 on the way.
    ra = np.where(ra >= 360.0, 0.0, ra) + 0.0
    index = np.where(good, sky.healpix29(ra, dec), 0)
    return Checked(np.where(good, ids, 0), ra, dec, index, code, ~(null_id | too_large))


def all_ids(batch: pa.RecordBatch, names: Roles, checked: Checked) -> NDArray[np.int64]:
    """Every id of the batch that can be read, int64, also those of rows without a position."""
    values = batch.column(names.id).fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(values.astype(np.int64)[checked.known_id], np.int64)


def _floats(column: pa.Array) -> NDArray[np.float64]:
    values = column.cast(pa.float64(), safe=False).fill_null(np.nan)
    return np.array(values.to_numpy(zero_copy_only=False), np.float64)


def stored_rows(
    batch: pa.RecordBatch, checked: Checked, columns: Sequence[Column], chosen: NDArray[np.int64]
) -> list[pa.Array]:
    """Arrays of `columns` but `catalog_flag`, for the chosen rows; NaN becomes null."""
    taken = pa.array(chosen)
    ours = {
        "object_id": checked.ids,
        "ra": checked.ra,
        "dec": checked.dec,
        "_healpix_29": checked.index,
    }
    arrays = []
    for column in columns:
        if column.name == "catalog_flag":
            continue
        if column.name in ours:
            arrays.append(pa.array(ours[column.name][chosen]))
            continue
        values = batch.column(column.name)
        if len(chosen) < len(values):
            values = values.take(taken)
        if pa.types.is_floating(values.type):
            missing = pc.is_nan(values)
            if pc.any(missing).as_py():
                # One mark for a missing value, whatever the format of the source.
                values = pc.if_else(missing, pa.scalar(None, values.type), values)
        arrays.append(values.cast(column.arrow_type))
    return arrays


def batch_rows(schema: pa.Schema, nbytes: int = 32 << 20) -> int:
    """Rows of about `nbytes` together, between 1,024 and 131,072."""
    width = 0
    for entry in schema:
        dtype, count = entry.type, 1
        if isinstance(dtype, pa.FixedSizeListType):
            dtype, count = dtype.value_type, dtype.list_size
        try:
            width += count * max(1, dtype.bit_width // 8)
        except ValueError:
            width += count * 32
    return int(np.clip(nbytes // max(width, 1), 1024, 131_072))
