"""What makes a source row usable, and the columns that it is stored under. No files here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc import schemas, sky
from surveyproc.catalogs import ids
from surveyproc.catalogs.formats.parquet import LEAF_KEYS
from surveyproc.catalogs.readers import TableReader, degrees_of
from surveyproc.catalogs.voparquet import column_of
from surveyproc.config.inputs import CatalogSection
from surveyproc.errors import InputError, near_or_all
from surveyproc.schemas import Column

# By code; a row with several faults gets the one with the highest code.
REASONS = (
    "",
    "dec outside [-90, 90]",
    "ra outside [-180, 360]",
    "position is infinite",
    "position is null or NaN",
    "id is null",
)
# Names under which a HATS catalog keeps what we compute anew.
_RECOMPUTED = ("_healpix_29", "catalog_flag")


@dataclass(frozen=True)
class Roles:
    """Names of the source columns that hold id, right ascension and declination.

    Attributes
    ----------
    url : str
        The table.
    id : str
        Empty if the source has no ids.
    ra, dec : str
        Positions.
    ra_degrees, dec_degrees : float
        Degrees in one unit of theirs.
    origin : str
        Where `object_id` comes from, see `surveyproc.catalogs.ids`.
    """

    url: str
    id: str
    ra: str
    dec: str
    origin: str
    ra_degrees: float = 1.0
    dec_degrees: float = 1.0

    @property
    def names(self) -> list[str]:
        """The names that there are, each once."""
        return list(dict.fromkeys(name for name in (self.id, self.ra, self.dec) if name))


@dataclass(frozen=True)
class Checked:
    """Positions of a batch, and which of its rows are usable; arrays of shape (n,).

    Attributes
    ----------
    ra, dec : float64 ndarray
        Degrees, 0 <= ra < 360; 0 where the row is unusable.
    index : int64 ndarray
        HEALPix pixel of order 29; 0 where the row is unusable.
    code : int8 ndarray
        0 for a usable row, else the index into `REASONS`.
    known_id : bool ndarray
        Whether there is an id, whatever the position.
    """

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
        If a column is missing, ids are neither numbers nor text, or positions are not numbers in a
        unit of angles.
    """
    id_name = section.id
    if id_name is None:
        id_name = "object_id" if "object_id" in reader.names else ""
    for key, name in (("id", id_name), ("ra", section.ra), ("dec", section.dec)):
        if name not in reader.names and (key, name) != ("id", ""):
            raise InputError(
                f"{reader.url}: no column {name!r} (catalog.{key})"
                + near_or_all(name, reader.names)
            )
    try:
        origin = ids.origin(reader.schema.field(id_name).type) if id_name else ids.PLACE
    except TypeError as error:
        raise InputError(
            f"{reader.url}: column {id_name!r} (catalog.id): {error}; object ids must be whole "
            'numbers or text: name another column, or catalog.id = "" if there is none'
        ) from error
    found = Roles(reader.url, id_name, section.ra, section.dec, origin)
    for key, name in (("ra", found.ra), ("dec", found.dec)):
        entry = reader.schema.field(name)
        if not (pa.types.is_floating(entry.type) or pa.types.is_integer(entry.type)):
            raise InputError(
                f"{reader.url}: column {name!r} (catalog.{key}) is {entry.type}; "
                "positions must be numbers: write them as decimal degrees"
            )
        if entry.type in (pa.float16(), pa.float32()):
            reader.warn(
                f"column {name!r} is {entry.type}: positions are rounded, by up to 0.05 arcsec "
                "for a float32 near 360 degrees"
            )
    ra, dec = degrees_of(reader, found.ra, found.dec)
    return replace(found, ra_degrees=ra, dec_degrees=dec)


def stored_columns(
    reader: TableReader, names: Roles
) -> tuple[tuple[Column, ...], dict[str, Column]]:
    """Columns of the leaves: those of schemas/object.toml, then the source's by its names for them.

    A source column that has a name of ours gets another one, see `schemas.source_name`. Ids that
    `object_id` does not hold as they are stay as a column of their own.

    Raises
    ------
    InputError
        If a source column has a type that cannot be stored, or its new name is taken too.
    """
    how = ids.said(names.origin, names.id)
    own = {column.name: column for column in schemas.load("object")}
    if how:
        text = f"Identifier, {how}."
        own["object_id"] = replace(own["object_id"], description=text)
    carried = {}
    for entry in reader.schema:
        held = entry.name in (names.ra, names.dec) or (entry.name == names.id and not how)
        if held or (reader.kind == "hats" and entry.name in _RECOMPUTED):
            continue
        if entry.name in LEAF_KEYS:
            reader.warn(f"column {entry.name!r} is left out: folders of the new catalog say it")
            continue
        try:
            column = column_of(entry)
        except TypeError as error:
            raise InputError(f"{reader.url}: column {error}; remove it") from error
        if entry.name in own:
            column = replace(column, name=schemas.source_name(entry.name))
            if column.name in reader.names:
                raise InputError(
                    f"{reader.url}: column {entry.name!r} has a name that surveyproc writes "
                    f"itself, and there is a {column.name!r} already; rename one in the source"
                )
        carried[entry.name] = column
    return tuple(own.values()), carried


def notes(names: Roles, carried: Mapping[str, Column]) -> list[str]:
    """What a person should know of ids and names, one line each."""
    how = ids.said(names.origin, names.id)
    if names.origin == ids.PLACE:
        how += "; if the source has ids, name their column as catalog.id"
    return ([f"object_id: {how}"] if how else []) + [
        f"the source's column {source!r} is stored as {column.name!r}"
        for source, column in carried.items()
        if source != column.name
    ]


def beyond_int64(batch: pa.RecordBatch) -> set[str]:
    """Names of the unsigned columns with a value that no signed integer can be."""
    found = set()
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_uint64(values.type):
            most = pc.max(values).as_py()
            if most is not None and most > np.iinfo(np.int64).max:
                found.add(name)
    return found


def signed(carried: Mapping[str, Column], beyond: Collection[str]) -> dict[str, Column]:
    """Columns with int64 in place of uint64, and text for those `beyond` its range.

    VOTable, and so VOParquet, knows no unsigned 64-bit integers: astropy would make floats of them.
    """
    return {
        source: replace(column, dtype="string" if source in beyond else "int64")
        if column.dtype == "uint64" and not column.length
        else column
        for source, column in carried.items()
    }


def check(batch: pa.RecordBatch, names: Roles) -> Checked:
    """Judge the rows of a batch that holds the id, ra and dec columns.

    RA in [-180, 0) and 360 itself are wrapped into [0, 360).

    Raises
    ------
    InputError
        If ids are floats that are no whole numbers.
    """
    code = np.zeros(batch.num_rows, np.int8)
    ra = _floats(batch.column(names.ra)) * names.ra_degrees
    dec = _floats(batch.column(names.dec)) * names.dec_degrees
    with np.errstate(invalid="ignore"):
        code[(dec < -90) | (dec > 90)] = 1
        code[(ra < -180) | (ra > 360)] = 2
    code[np.isinf(ra) | np.isinf(dec)] = 3
    code[np.isnan(ra) | np.isnan(dec)] = 4
    null_id = np.zeros(batch.num_rows, bool)
    if names.id:
        values = batch.column(names.id)
        null_id = ids.is_absent(values)
        wrong = ids.strange(values)
        if wrong is not None:
            raise InputError(
                f"{names.url}: column {names.id!r} (catalog.id) is {values.type} and holds "
                f"{wrong!r}, which is no whole number that it can hold exactly; write ids as "
                'integers or text, name another column, or catalog.id = "" for none'
            )
    code[null_id] = 5
    good = code == 0
    ra, dec = np.where(good, ra, 0.0), np.where(good, dec, 0.0)
    ra = np.where(ra < 0, ra + 360.0, ra)
    # A tiny negative number plus 360 is 360, which is 0; -0.0 becomes 0.0 on the way.
    ra = np.where(ra >= 360.0, 0.0, ra) + 0.0
    index = np.where(good, sky.healpix29(ra, dec), 0)
    return Checked(ra, dec, index, code, ~null_id)


def _floats(column: pa.Array) -> NDArray[np.float64]:
    values = column.cast(pa.float64(), safe=False).fill_null(np.nan)
    return np.array(values.to_numpy(zero_copy_only=False), np.float64)


def stored_rows(
    batch: pa.RecordBatch,
    object_ids: NDArray[np.int64],
    checked: Checked,
    carried: Mapping[str, Column],
    chosen: NDArray[np.int64],
) -> list[pa.Array]:
    """Our columns but `catalog_flag`, then the source's, of the chosen rows; NaN becomes null."""
    taken = pa.array(chosen)
    ours = {
        "object_id": object_ids,
        "ra": checked.ra,
        "dec": checked.dec,
        "_healpix_29": checked.index,
    }
    arrays = [
        pa.array(ours[column.name][chosen])
        for column in schemas.load("object")
        if column.name != "catalog_flag"
    ]
    for source, column in carried.items():
        values = batch.column(source)
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
