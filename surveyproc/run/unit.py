"""One unit of work: rows of a catalog partition in, the columns of every product out."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.catalogs.around import Around
from surveyproc.errors import SurveyError
from surveyproc.images.cutouts import CutoutReader, Cutouts, over_edge
from surveyproc.products.base import (
    Batch,
    PixelArray,
    Product,
    RowTable,
    pixels_of,
    tables_of,
)
from surveyproc.run.nearby import neighbours_of, with_neighbours
from surveyproc.schemas import Column

# Objects a batch. With images, 512 nine-band 64-pixel cutouts are 75 MB, and of larger ones fewer
# are taken; without, only columns.
IMAGE_ROWS = 512
IMAGE_PIXELS = 512 * 12 * 64 * 64
COLUMN_ROWS = 65_536
MEMORY_BYTES = 1 << 26
"""Pixels of a partition beyond which they are written through a file."""


@dataclass(frozen=True)
class Read:
    """What was read of some rows, for all products together.

    Attributes
    ----------
    index : int64 ndarray, shape (n,)
        The rows.
    batch : Batch
        Without columns; images of all bands that some product wants, as large as one wants them.
    bands : tuple of str
        Of the images, in order.
    absent : bool ndarray, shape (n, band)
        Bands that the object's tile does not have.
    spoilt_from : int32 ndarray, shape (n,)
        Side of the smallest cutout that touches damaged pixels.
    """

    index: NDArray[np.int64]
    batch: Batch
    bands: tuple[str, ...] = ()
    absent: NDArray[np.bool_] | None = None
    spoilt_from: NDArray[np.int32] | None = None


@dataclass
class Output:
    """What the products of one partition say of its rows, in their order.

    Attributes
    ----------
    columns : dict of str to ndarray
        Column to values, shape (n,) or (n, length).
    tables : dict of str to dict of str to ndarray
        Table to `row`, the index of each row's object, ascending, and its columns.
    pixels : dict of str to ndarray
        Array to values, shape (n, *shape); those of many objects lie in a temporary file.
    """

    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    tables: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    pixels: dict[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def empty(cls, products: Sequence[Product], rows: int) -> Output:
        """Nothing known of any row: nulls, no rows in tables."""
        return cls(
            {one.name: _empty(one, rows) for product in products for one in product.columns},
            {
                table.name: {"row": np.empty(0, np.int64)}
                | {one.name: _empty(one, 0) for one in table.columns}
                for product in products
                for table in tables_of(product)
            },
            {one.name: _blank(one, rows) for product in products for one in pixels_of(product)},
        )


def compute(
    table: pa.Table,
    products: Sequence[Product],
    reader: CutoutReader | None,
    known: Mapping[str, NDArray[Any]] | None = None,
    around: Around | None = None,
) -> Output:
    """What all `products` say of the rows of `table`, in the table's row order.

    Every batch goes through the products in their order, so that one reading of the pixels serves
    them all and a product can use columns of an earlier one. The batches depend on the rows and
    the tiles only, never on timing.

    Parameters
    ----------
    table : pyarrow.Table
        Rows of one partition: `ra`, `dec` and the catalog columns the products read.
    products : sequence of Product
        In order.
    reader : CutoutReader or None
        Where cutouts come from; None if no product reads images.
    known : mapping of str to ndarray, optional
        Columns of products that need not be computed, shape (n,) or (n, length).
    around : Around, optional
        The nearest others of the rows; None if no product reads them.
    """
    computation = Computation(table, products, known)
    for read in batches(table, products, reader, around):
        computation.add(read)
    return computation.output()


class Computation:
    """What `products` say of the rows of a partition, batch by batch, in any order.

    Parameters
    ----------
    table, products, known
        As `compute` takes them.
    """

    def __init__(
        self,
        table: pa.Table,
        products: Sequence[Product],
        known: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.products, self._missing = products, table.num_rows if products else 0
        self._columns = {name: _as_numpy(table[name]) for name in _catalog_inputs(products, table)}
        self._columns |= known or {}
        self._output = Output.empty(products, table.num_rows)
        self._parts: dict[str, list[dict[str, NDArray[Any]]]] = {
            name: [] for name in self._output.tables
        }

    def add(self, read: Read) -> None:
        """Compute one batch that `batches` gave for the same rows and products."""
        index, output = read.index, self._output
        self._missing -= len(index) if self.products else 0
        available: dict[str, NDArray[Any]] = {
            name: array[index] for name, array in self._columns.items()
        }
        for product in self.products:
            written = product.compute(_narrow(read, product, available))
            for column in product.columns:
                values = _values(product, column, written, len(index))
                output.columns[column.name][index] = values
                available[column.name] = _as_stored(output.columns[column.name][index], column)
            for beside in tables_of(product):
                self._parts[beside.name].append(_rows(product, beside, written, index))
            for array in pixels_of(product):
                output.pixels[array.name][index] = _pixels(product, array, written, len(index))

    def output(self) -> Output:
        """The values, when all batches were added.

        Raises
        ------
        SurveyError
            If a row was in no batch: its values would be nulls without a word.
        """
        if self._missing:
            raise SurveyError(f"{self._missing} rows were in no batch: repeat the command")
        for name, found in self._parts.items():
            if found:
                joined = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
                # Batches come tile by tile; the rows of an object stay in its product's order.
                order = np.argsort(joined["row"], kind="stable")
                self._output.tables[name] = {key: values[order] for key, values in joined.items()}
        return self._output


def _as_stored(values: NDArray[Any], column: Column) -> NDArray[Any]:
    """A column as the leaf gives it back, so that others read the same if it is carried over."""
    if column.dtype != "string":
        return values
    return np.array([value or "" for value in values.tolist()], dtype=object)


def _rows(
    product: Product,
    table: RowTable,
    written: Mapping[str, Any],
    index: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """What a product wrote into a table, its rows those of the partition."""
    given = written.get(table.name)
    if not isinstance(given, Mapping) or "row" not in given:
        raise SurveyError(f"product {product.name} gave no table {table.name} with its `row`")
    row = np.asarray(given["row"], np.int64)
    if len(row) and not (row.min() >= 0 and row.max() < len(index) and (np.diff(row) >= 0).all()):
        raise SurveyError(
            f"product {product.name} gave {table.name} a `row` that is not ascending within the "
            f"batch of {len(index)}"
        )
    values = {one.name: _values(product, one, given, len(row)) for one in table.columns}
    return {"row": index[row], **values}


def _pixels(
    product: Product, array: PixelArray, written: Mapping[str, Any], rows: int
) -> NDArray[Any]:
    """What a product wrote into an array of pixels, if it is what it declared."""
    values = np.asarray(written.get(array.name))
    if values.shape != (rows, *array.shape) or values.dtype != np.dtype(array.dtype):
        raise SurveyError(
            f"product {product.name} gave {array.name} as {values.dtype} of shape {values.shape} "
            f"for {rows} objects; {array.dtype} of {(rows, *array.shape)} is declared"
        )
    return values


def _blank(array: PixelArray, rows: int) -> NDArray[Any]:
    """An array of nothing: in memory if it is small, in a file that nobody sees if not."""
    shape, dtype = (rows, *array.shape), np.dtype(array.dtype)
    fill = np.nan if dtype.kind == "f" else 0
    if rows * math.prod(array.shape) * dtype.itemsize <= MEMORY_BYTES:
        return np.full(shape, fill, dtype)
    with tempfile.TemporaryFile(prefix="surveyproc-") as file:
        mapped = np.memmap(file, dtype, "w+", shape=shape)
    if dtype.kind == "f":
        mapped[:] = fill
    return mapped


def _values(
    product: Product, column: Column, written: Mapping[str, NDArray[Any]], rows: int
) -> NDArray[Any]:
    """What a product wrote into a column, if it is what it declared."""
    if column.name not in written:
        raise SurveyError(f"product {product.name} gave no {column.name}")
    values = np.asarray(written[column.name])
    shape = (rows, column.length) if column.length else (rows,)
    if values.shape != shape:
        raise SurveyError(
            f"product {product.name} gave {column.name} the shape {values.shape} for {rows} "
            f"objects; {shape} is declared"
        )
    whole = column.dtype != "string" and np.dtype(column.dtype).kind in "iu"
    if whole and values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SurveyError(
            f"product {product.name} gave {column.name} values that are no whole numbers"
        )
    return values


def image_needs(products: Sequence[Product], survey_bands: Sequence[str]) -> tuple[list[str], int]:
    """Bands (in the survey's order) and cutout side in pixels that serve all `products`."""
    wanted = {
        band for product in products if product.inputs.cutout for band in product.inputs.bands
    }
    size = max((product.inputs.cutout for product in products), default=0)
    return [band for band in survey_bands if band in wanted], size


def to_table(
    source: pa.Table, output: Mapping[str, NDArray[Any]], columns: Sequence[Column]
) -> pa.Table:
    """The leaf's table: columns of `source` and `output`; NaN becomes null, and null text empty.

    astropy opens no Parquet file with a null in a column of text or bytes.
    """
    arrays = []
    for column in columns:
        if column.name in output:
            arrays.append(_as_arrow(output[column.name], column))
        else:
            values = source[column.name].cast(column.arrow_type)
            if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
                values = values.fill_null(pa.scalar(b"", values.type))
            arrays.append(values)
    return pa.table(arrays, schema=schemas.arrow_schema(columns))


def quarantined(rows: int, products: Sequence[Product]) -> Output:
    """What `compute` gives for rows that no attempt could compute: nulls and the flag."""
    output = Output.empty(products, rows)
    for product in products:
        for name in schemas.flag_columns(product.name, product.columns):
            output.columns[name][:] = schemas.flag("quarantined")
    return output


def _catalog_inputs(products: Sequence[Product], table: pa.Table) -> set[str]:
    wanted = {name for product in products for name in product.inputs.columns}
    return wanted & set(table.column_names)


def _as_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    # Whole numbers with nulls become floats, the nulls NaN.
    values: NDArray[Any] = column.to_numpy()
    return values


def _empty(column: Column, rows: int) -> NDArray[Any]:
    shape = (rows, column.length) if column.length else (rows,)
    if column.dtype == "string":
        return np.full(shape, None, dtype=object)
    return np.full(shape, column.missing, dtype=np.dtype(column.dtype))


def batches(
    table: pa.Table,
    products: Sequence[Product],
    reader: CutoutReader | None,
    around: Around | None = None,
) -> Iterator[Read]:
    """The rows of a table batch by batch: their indices, what was read of them, its bands."""
    for read in _batches(table, products, reader):
        if around is not None:
            read = replace(
                read, batch=with_neighbours(read.batch, read.index, table, around, reader)
            )
        yield read


def _batches(
    table: pa.Table, products: Sequence[Product], reader: CutoutReader | None
) -> Iterator[Read]:
    rows = table.num_rows
    if reader is None:
        for start in range(0, rows, COLUMN_ROWS):
            index = np.arange(start, min(start + COLUMN_ROWS, rows))
            yield Read(index, Batch(columns={}, flags=np.zeros(len(index), np.int32)))
        return
    bands = tuple(reader.bands)
    size = max(product.inputs.cutout for product in products)
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    uncovered = np.ones(rows, dtype=bool)
    most = min(IMAGE_ROWS, max(1, IMAGE_PIXELS // (len(bands) * size**2)))
    for cutouts in reader.batches(ra, dec, size, most):
        uncovered[cutouts.index] = False
        batch = _from_cutouts(cutouts)
        yield Read(cutouts.index, batch, bands, cutouts.absent, cutouts.spoilt_from)
    alone = np.flatnonzero(uncovered)
    for start in range(0, len(alone), most):
        index = alone[start : start + most]
        yield Read(index, without_image(len(index), len(bands), size), bands)


def _from_cutouts(cutouts: Cutouts) -> Batch:
    return Batch(
        columns={},
        flags=cutouts.flags,
        images=cutouts.images,
        variance=cutouts.variance,
        offsets=cutouts.offsets,
        positions=cutouts.positions,
        tiles=cutouts.tiles,
        tile_shape=cutouts.tile_shape,
        pixel_scale=cutouts.pixel_scale,
        electron_flux=cutouts.electron_flux,
    )


def without_image(rows: int, bands: int, size: int) -> Batch:
    """Objects that no tile covers: no pixel, and the flag that says so."""
    return Batch(
        columns={},
        flags=np.full(rows, schemas.flag("no_image"), np.int32),
        images=np.full((rows, bands, size, size), np.nan, np.float32),
        offsets=np.zeros((rows, 2), np.float32),
        positions=np.full((rows, 2), np.nan),
        tiles=np.full(rows, None, dtype=object),
        tile_shape=np.zeros((rows, 2), np.int32),
        pixel_scale=np.full(rows, np.nan),
    )


def _narrow(read: Read, product: Product, available: Mapping[str, NDArray[Any]]) -> Batch:
    """What `product` declared of a batch: its columns, its bands, its cutout size.

    It does not depend on what other products of the run read.
    """
    batch, bands = read.batch, read.bands
    columns = {name: available[name] for name in product.inputs.columns}
    size = product.inputs.cutout
    nearby = neighbours_of(batch, product.inputs)
    if not size or batch.images is None:
        return Batch(columns=columns, flags=np.zeros(len(batch.flags), np.int32), **nearby)
    pick = [bands.index(band) for band in product.inputs.bands]
    # The object's pixel is at size // 2 in the large cutout and must be so in the small one.
    start = batch.images.shape[-1] // 2 - size // 2
    window = slice(start, start + size)
    spoilt = np.zeros(len(batch.flags), bool)
    if read.spoilt_from is not None:
        spoilt = read.spoilt_from <= size

    def crop(planes: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        if planes is None:
            return None
        chosen = planes if pick == list(range(len(bands))) else planes[:, pick]
        chosen = chosen[..., window, window]
        if spoilt.any():
            chosen = np.where(spoilt[:, None, None, None], np.float32(np.nan), chosen)
        return chosen

    return replace(
        batch,
        columns=columns,
        flags=_flags(read, pick, size) | np.where(spoilt, schemas.flag("corrupt_data"), 0),
        images=crop(batch.images),
        variance=crop(batch.variance),
        electron_flux=None if batch.electron_flux is None else batch.electron_flux[:, pick],
        **nearby,
    )


def _flags(read: Read, pick: list[int], size: int) -> NDArray[np.int32]:
    """no_image, edge and missing_band as cutouts of these bands and this size have them."""
    batch = read.batch
    assert batch.positions is not None
    assert batch.tile_shape is not None
    x, y = batch.positions.T
    flags = batch.flags & schemas.flag("no_image")
    flags |= np.where(over_edge(x, y, batch.tile_shape, size), schemas.flag("edge"), 0)
    if read.absent is not None:
        lacking = read.absent[:, pick].any(axis=1)
        flags |= np.where(lacking, schemas.flag("missing_band"), 0)
    return flags.astype(np.int32)


def _as_arrow(values: NDArray[Any], column: Column) -> pa.Array:
    if column.length:
        return _list_array(values, column)
    if column.dtype == "string":
        # Empty, not null: astropy cannot read a Parquet string column that holds nulls.
        return pa.array([value or "" for value in values.tolist()], type=pa.string())
    typed = values.astype(np.dtype(column.dtype), copy=False)
    return pa.array(typed, mask=np.isnan(typed) if typed.dtype.kind == "f" else None)


def _list_array(values: NDArray[Any], column: Column) -> pa.Array:
    """(n, length) to a list column; a row that holds nothing but `column.missing` becomes null."""
    values = np.ascontiguousarray(values, dtype=np.dtype(column.dtype))
    flat = pa.array(values.ravel())
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * column.length)
    lists = pa.ListArray.from_arrays(offsets, flat)
    if values.dtype.kind not in "fi":
        return lists
    empty = np.isnan(values) if values.dtype.kind == "f" else values == column.missing
    missing = pa.array(empty.all(axis=1))
    return pc.if_else(missing, pa.scalar(None, lists.type), lists)


def prepare(products: Sequence[Product]) -> None:
    """Load what the products need; from then on torch works with one thread.

    Workers are processes or threads, one a core (docs/design.md, speed), and results must not
    depend on how many threads share a sum.

    Raises
    ------
    InputError
        If a model cannot be loaded.
    """
    for product in products:
        product.prepare()
    # Whoever needs torch has imported it by now.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
