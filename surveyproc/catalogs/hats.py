"""HATS on disk: the one module that knows the paths and the files of a HATS catalog."""

from __future__ import annotations

import base64
import datetime
import io
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from surveyproc.catalogs import metadata, voparquet
from surveyproc.errors import InputError, StoreError
from surveyproc.schemas import Column, arrow_schema
from surveyproc.store.storage import Store, digest
from surveyproc.store.temporary import temporary_folder
from surveyproc.store.urls import is_web

SPATIAL = "_healpix_29"
ORDER = 29
# The coverage map is one dense array in every reader: 786,432 pixels of 14 arcmin are enough.
MAP_ORDER = 8
ROW_GROUP_ROWS = 131_072
PARTITIONS = "partitions.parquet"
PROPERTIES_BYTES = 1 << 20  # what parses such a file takes minutes for a line of 100 MB
_LEAF = re.compile(r"dataset/Norder=(\d+)/Dir=(\d+)/Npix=(\d+)\.parquet$")
# HATS allows other endings than ours, and folders of files; their names may not begin like those of
# metadata and of what is hidden.
_FILE = re.compile(
    r"dataset/Norder=(\d+)/Dir=\d+/Npix=(\d+)(?:[^/]*|/[^/_.][^/]*)\.(?:parquet|parq|pq)"
)

# 800,000 rows of 12 mostly float columns, one thread: dictionaries (the default) make Parquet
# writing five times slower and larger on numbers. Without them, with split float bytes and
# delta-coded integers: snappy 18.6 M rows/s and 54.8 B a row, zstd 1 10.7 M rows/s and 51.1 B,
# zstd 3 no smaller, zstd 15 (HATS's default) 0.5 M rows/s. Zstd 1 is far from being the bottleneck
# and gains most on flags and text.
CODEC: dict[str, Any] = {"compression": "zstd", "compression_level": 1}


@dataclass(frozen=True)
class Leaf:
    """A leaf that was written.

    Attributes
    ----------
    order, pixel : int
        Its HEALPix pixel (nested).
    rows, nbytes : int
        Rows, and bytes of the file.
    sha256 : str
        Of the file's bytes.
    footer : bytes
        Its Parquet footer as a metadata file, so that `_metadata` is made without the leaf.
    points : str
        Rows in each pixel of order `MAP_ORDER`, packed as text; empty if not known.
    """

    order: int
    pixel: int
    rows: int
    nbytes: int
    sha256: str
    footer: bytes = field(repr=False)
    points: str = field(default="", repr=False)


@dataclass(frozen=True)
class Partition:
    """One partition of an ingested catalog: its leaf, and a circle that holds its objects.

    Attributes
    ----------
    order, pixel : int
        HEALPix pixel (nested).
    rows, nbytes : int
        Rows, and bytes of the leaf.
    sha256 : str
        Of the leaf.
    ra, dec, radius : float
        Centre and radius of the circle, degrees.
    """

    order: int
    pixel: int
    rows: int
    nbytes: int
    sha256: str
    ra: float
    dec: float
    radius: float


def leaf_key(order: int, pixel: int) -> str:
    """Where the leaf of a pixel lies, relative to the catalog.

    Examples
    --------
    >>> leaf_key(6, 12345)
    'dataset/Norder=6/Dir=10000/Npix=12345.parquet'
    """
    return f"dataset/Norder={order}/Dir={pixel // 10_000 * 10_000}/Npix={pixel}.parquet"


def pixel_of(key: str) -> tuple[int, int]:
    """Order and pixel of a leaf's key.

    Raises
    ------
    ValueError
        If `key` is not what `leaf_key` gives, with or without a catalog before it.
    """
    match = _LEAF.search(key)
    if match is None or not key.endswith(leaf_key(int(match[1]), int(match[3]))):
        raise ValueError(f"{key!r} is not the key of a HATS leaf")
    return int(match[1]), int(match[3])


def leaf_keys(store: Store, key: str) -> list[str]:
    """Keys of all leaves that exist under the catalog `key`, relative to it, in nested order."""
    names = (f"dataset/{name}" for name in store.sizes(f"{key}/dataset"))
    found = [name for name in names if _LEAF.search(name) is not None]
    return sorted(found, key=lambda name: nested_start(*pixel_of(name)))


def file_keys(store: Store, key: str) -> list[str]:
    """Keys of all files with rows of any HATS catalog `key`, relative to it, in nested order.

    Others than we write leaves with other endings, or folders `Npix=N/` of files.
    """
    if is_web(store.url):
        return _told_keys(store, key)
    names = (f"dataset/{name}" for name in store.sizes(f"{key}/dataset"))
    matches = (match for name in names if (match := _FILE.fullmatch(name)) is not None)
    found = [match for match in matches if int(match[1]) <= ORDER]
    found.sort(key=lambda match: (nested_start(int(match[1]), int(match[2])), match[0]))
    return [match[0] for match in found]


def _told_keys(store: Store, key: str) -> list[str]:
    """`file_keys` by what the catalog says of itself: few web servers list many folders."""
    content = store.read_if_there(f"{key}/partition_info.csv")
    if content is None:
        return []
    try:
        pixels = csv.read_csv(io.BytesIO(content)).select(["Norder", "Npix"]).to_pydict().values()
        ordered = sorted(zip(*pixels, strict=True), key=lambda pixel: nested_start(*pixel))
    except (pa.ArrowInvalid, KeyError, ValueError, TypeError) as error:
        where = f"{store.url_of(key)}/partition_info.csv"
        raise InputError(f"{where}: is no list of HEALPix pixels ({error})") from error
    leaves = [leaf_key(*pixel).removesuffix(".parquet") for pixel in ordered]
    suffix = _table_properties(store, key).get("hats_npix_suffix", ".parquet")
    if suffix != "/":
        return [f"{leaf}{suffix}" for leaf in leaves]
    names = (f"{leaf}/{unquote(name)}" for leaf in leaves for name in store.names(f"{key}/{leaf}"))
    return [name for name in names if _FILE.fullmatch(name)]


def main_table(store: Store, key: str) -> str:
    """Path or URL of the main catalog of the HATS collection `key`; empty if it is none.

    A relative path begins at the collection.
    """
    return _read_properties(store, f"{key}/collection.properties").get("hats_primary_table_url", "")


def position_columns(store: Store, key: str) -> tuple[str, str]:
    """Names of the columns with right ascension and declination of any HATS catalog `key`."""
    found = _table_properties(store, key)
    return found.get("hats_col_ra", "ra"), found.get("hats_col_dec", "dec")


def _table_properties(store: Store, key: str) -> dict[str, str]:
    # Older writers know the second name only.
    found = (_read_properties(store, f"{key}/{name}") for name in metadata.PROPERTIES)
    return next(filter(None, found), {})


def _read_properties(store: Store, key: str) -> dict[str, str]:
    """What the properties file `key` says, unchecked; nothing if there is none."""
    if not store.exists(key):
        return {}
    with store.reading(key) as stream:
        content = stream.read(PROPERTIES_BYTES + 1)
    if len(content) > PROPERTIES_BYTES:
        raise InputError(
            f"{store.url_of(key)}: has more than {PROPERTIES_BYTES >> 10} kB, which are not the "
            "properties of a catalog; fetch or write it again"
        )
    # Importing hats takes over a second; whoever only reads leaves does without.
    from hats.catalog.dataset.hats_properties import HatsProperties
    from upath import UPath

    with temporary_folder() as folder:
        path = UPath(folder) / "properties"
        path.write_bytes(content)
        return HatsProperties.read_from_file(path).model_extra or {}


def nested_start(order: int, pixel: int) -> tuple[int, int]:
    """First pixel of order 29 inside a pixel, then its order: the order in which HATS sorts."""
    return pixel << 2 * (ORDER - order), order


def write_leaf(store: Store, key: str, table: pa.Table, columns: Sequence[Column]) -> Leaf:
    """Write one partition as a Parquet leaf with a VOParquet footer, in one step.

    Equal tables give equal bytes.

    Parameters
    ----------
    key : str
        Full key, ending in what `leaf_key` gives.
    table : pyarrow.Table
        Rows sorted by `_healpix_29`, all inside the pixel; at least one.
    columns : sequence of Column
        What is written, in this order; cast to their declared types.

    Raises
    ------
    ValueError
        If rows are unsorted, outside the pixel or absent.
    StoreError
        If the store cannot take it.
    """
    order, pixel = pixel_of(key)
    indexes = table[SPATIAL].to_numpy()
    if not len(indexes):
        raise ValueError(f"{key}: a leaf without rows is not written")
    if (np.diff(indexes) < 0).any():
        raise ValueError(f"{key}: rows are not sorted by {SPATIAL}")
    shift = 2 * (ORDER - order)
    if indexes[0] >> shift != pixel or indexes[-1] >> shift != pixel:
        raise ValueError(f"{key}: rows lie outside the pixel")
    schema = arrow_schema(columns)
    data = table.select(schema.names).cast(schema).combine_chunks()
    data = data.replace_schema_metadata(voparquet.footer(columns, _longest_texts(data)))
    sink, footers = io.BytesIO(), list[Any]()
    pq.write_table(
        data,
        sink,
        row_group_size=ROW_GROUP_ROWS,
        metadata_collector=footers,
        **CODEC,
        **_encodings(schema),
    )
    content = sink.getvalue()
    store.put(key, content)
    footers[0].set_file_path(leaf_key(order, pixel).removeprefix("dataset/"))
    footer = io.BytesIO()
    footers[0].write_metadata_file(footer)
    return Leaf(
        order,
        pixel,
        table.num_rows,
        len(content),
        digest(content),
        footer.getvalue(),
        _pack_points(indexes),
    )


def _longest_texts(table: pa.Table) -> dict[str, int]:
    """Bytes of the longest text in each text column; VOTable counts char in bytes."""
    names = [entry.name for entry in table.schema if pa.types.is_string(entry.type)]
    return {name: pc.max(pc.binary_length(table[name])).as_py() or 0 for name in names}


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Encodings by column: floats split into byte streams, integers as differences."""
    encodings, dictionaries = {}, []
    for entry in schema:
        path, dtype = entry.name, entry.type
        if isinstance(dtype, pa.ListType):
            path, dtype = f"{path}.list.element", dtype.value_type
        if pa.types.is_floating(dtype):
            encodings[path] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(dtype):
            encodings[path] = "DELTA_BINARY_PACKED"
        elif not pa.types.is_boolean(dtype):
            dictionaries.append(path)
    return {"use_dictionary": dictionaries, "column_encoding": encodings or None}


def _pack_points(indexes: NDArray[np.int64]) -> str:
    pixels, counts = np.unique(indexes >> 2 * (ORDER - MAP_ORDER), return_counts=True)
    pairs = np.stack([pixels, counts]).astype("<i8")
    return base64.b64encode(zlib.compress(pairs.tobytes())).decode()


def _add_points(histogram: NDArray[np.int64], leaf: Leaf) -> None:
    if leaf.points:
        pairs = np.frombuffer(zlib.decompress(base64.b64decode(leaf.points)), "<i8").reshape(2, -1)
        histogram[pairs[0]] += pairs[1]
    elif leaf.order >= MAP_ORDER:
        histogram[leaf.pixel >> 2 * (leaf.order - MAP_ORDER)] += leaf.rows
    else:
        # Nothing is known but the pixel: all of it counts as covered.
        shift = 2 * (MAP_ORDER - leaf.order)
        histogram[leaf.pixel << shift : (leaf.pixel + 1) << shift] += 1


def finish_catalog(
    store: Store,
    key: str,
    leaves: Iterable[Leaf],
    *,
    name: str,
    columns: Sequence[Column],
    properties: Mapping[str, str],
    default_columns: Sequence[str] | None = None,
) -> None:
    """Write everything of a HATS catalog but its leaves; `hats.properties` comes last.

    Parameters
    ----------
    leaves : iterable of Leaf
        All leaves, in any order.
    name : str
        `obs_collection`.
    columns : sequence of Column
        Columns of the leaves.
    properties : mapping of str to str
        Provenance, added to the properties; a key of ours in it beats ours.
    default_columns : sequence of str, optional
        What readers load who name no columns; those with `default` by default.

    Notes
    -----
    The creation date is now, unless `properties` names `hats_creation_date`: whoever promises the
    same bytes for the same input has to.

    Raises
    ------
    ValueError
        If there is no leaf.
    """
    ordered = sorted(leaves, key=lambda leaf: nested_start(leaf.order, leaf.pixel))
    if not ordered:
        raise ValueError(f"{key}: a catalog without leaves is not written")
    histogram = np.zeros(12 << 2 * MAP_ORDER, np.int64)
    total = None
    for leaf in ordered:
        _add_points(histogram, leaf)
        footer = pq.read_metadata(pa.BufferReader(leaf.footer))
        if total is None:
            total = footer
        else:
            total.append_row_groups(footer)
    sink = io.BytesIO()
    assert total is not None
    total.write_metadata_file(sink)
    store.put(f"{key}/dataset/_metadata", sink.getvalue())
    schema = arrow_schema(columns).with_metadata(voparquet.footer(columns))
    sink = io.BytesIO()
    pq.write_metadata(schema, sink)
    store.put(f"{key}/dataset/_common_metadata", sink.getvalue())
    rows = "".join(f"{leaf.order},{leaf.pixel}\n" for leaf in ordered)
    store.put(f"{key}/partition_info.csv", f"Norder,Npix\n{rows}".encode())
    store.put(f"{key}/point_map.fits", metadata.point_map(histogram))
    document = _properties(ordered, name, columns, default_columns) | {
        "moc_sky_fraction": f"{np.count_nonzero(histogram) / len(histogram):.8f}",
        **properties,
    }
    content = metadata.properties_file(document)
    # Older readers want the second name.
    store.put(f"{key}/properties", content)
    store.put(f"{key}/hats.properties", content)


def metadata_problems(store: Store, key: str, leaves: Sequence[Leaf]) -> list[str]:
    """What in the metadata of a catalog of ours, read back from the store, does not fit its leaves.

    What `hats.io.validation` looks at, without a footer of every leaf, and without the seconds that
    it takes to import hats.
    """
    expected = {leaf_key(leaf.order, leaf.pixel) for leaf in leaves}
    rows = sum(leaf.rows for leaf in leaves)
    try:
        told = csv.read_csv(pa.BufferReader(store.read(f"{key}/partition_info.csv")))
        pixels = zip(told["Norder"].to_pylist(), told["Npix"].to_pylist(), strict=True)
        partitions = sorted(leaf_key(*pixel) for pixel in pixels)
        footers = pq.read_metadata(pa.BufferReader(store.read(f"{key}/dataset/_metadata")))
        schema = leaf_schema(store, f"{key}/dataset/_common_metadata")
        properties = store.read(f"{key}/hats.properties").decode().splitlines()
    except (StoreError, OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        return [str(error)]
    right = {
        "dataset: other leaves than were written": set(leaf_keys(store, key)) == expected,
        "partition_info.csv: other partitions": partitions == sorted(expected),
        f"_metadata: not {rows} rows": footers.num_rows == rows,
        "_metadata and _common_metadata: other columns": footers.schema.to_arrow_schema().equals(
            schema
        ),
        f"hats.properties: not {rows} rows": f"hats_nrows={rows}" in properties,
        "properties or point_map.fits is missing": bool(
            store.size(f"{key}/properties") and store.size(f"{key}/point_map.fits")
        ),
    }
    return [problem for problem, fine in right.items() if not fine]


def _properties(
    leaves: Sequence[Leaf],
    name: str,
    columns: Sequence[Column],
    default_columns: Sequence[str] | None,
) -> dict[str, str]:
    if default_columns is None:
        default_columns = [column.name for column in columns if column.default]
    # The list is separated by spaces; a name that holds one would break every reader.
    listed = [entry for entry in default_columns if not re.search(r"[;, \n]", entry)]
    now = datetime.datetime.now(datetime.UTC)
    return {
        "obs_collection": name,
        "dataproduct_type": "object",
        "hats_nrows": str(sum(leaf.rows for leaf in leaves)),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_cols_default": " ".join(listed),
        "hats_col_healpix": SPATIAL,
        "hats_col_healpix_order": str(ORDER),
        "hats_npix_suffix": ".parquet",
        "hats_order": str(max(leaf.order for leaf in leaves)),
        "hats_max_rows": str(max(leaf.rows for leaf in leaves)),
        "hats_max_bytes": str(max(leaf.nbytes for leaf in leaves)),
        "hats_estsize": str(-(-sum(leaf.nbytes for leaf in leaves) // 1024)),
        "hats_builder": f"surveyproc v{version('surveyproc')}",
        "hats_version": "v1.0",
        metadata.DATE: now.strftime("%Y-%m-%dT%H:%MUTC"),
    }


def read_leaf(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The named columns (all by default) of the leaf `key` (full key), in that order.

    Raises
    ------
    StoreError
        If the leaf is missing, damaged, or lacks a column.
    """
    wanted = None if columns is None else list(columns)
    table = store.read_table(key, wanted)
    if wanted is None:
        return table
    if lacking := set(wanted) - set(table.column_names):
        raise StoreError(f"{store.url_of(key)} has no column {', '.join(sorted(lacking))}")
    return table.select(wanted)


def leaf_schema(store: Store, key: str) -> pa.Schema:
    """Arrow schema of the leaf `key` (full key).

    Raises
    ------
    StoreError
        If the leaf is missing or damaged.
    """
    try:
        with store.reading(key) as stream:
            return pq.read_schema(stream)
    except pa.ArrowInvalid as error:
        raise StoreError(f"cannot read {store.url_of(key)}: {error}") from error


_PARTITION_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("order", "pixel", "rows", "nbytes")]
    + [("sha256", pa.string())]
    + [(name, pa.float64()) for name in ("ra", "dec", "radius")]
)


def write_partitions(store: Store, key: str, partitions: Sequence[Partition]) -> None:
    """Write `partitions.parquet` beside the catalog `key`: one row a partition."""
    table = pa.Table.from_pylist([asdict(part) for part in partitions], _PARTITION_SCHEMA)
    with store.writing(f"{key}/{PARTITIONS}") as stream:
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)


def read_partitions(store: Store, key: str) -> list[Partition]:
    """Rows of `partitions.parquet` beside the catalog `key`, in nested order.

    Raises
    ------
    StoreError
        If it is missing or damaged.
    """
    table = read_leaf(store, f"{key}/{PARTITIONS}", _PARTITION_SCHEMA.names)
    return [Partition(**row) for row in table.to_pylist()]
