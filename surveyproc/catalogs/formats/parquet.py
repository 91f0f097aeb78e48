"""Parquet files, folders of them, and HATS catalogs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from surveyproc.catalogs.formats.base import FileReader, damaged, drift, field, plain
from surveyproc.catalogs.voparquet import CONTENT_KEY, field_metadata
from surveyproc.errors import InputError
from surveyproc.store.urls import opened

# Of a leaf in the HATS layout; what they say is where it lies, not what is in it.
LEAF_KEYS = ("Norder", "Dir", "Npix")
ROW_BYTES = 1 << 16
"""Of a row on average: a few kB of a file may be GB of one text, or one list, again and again."""
BATCH_BYTES = 1 << 28
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")


class ParquetReader(FileReader):
    """One Parquet file, or all `*.parquet` files under a folder in the order of their paths.

    Units, UCDs and descriptions come from VOParquet footers or from Arrow field metadata. Folders
    called `key=value` (Hive) give a column each, of integers or text, unless the files have it.

    Parameters
    ----------
    url : str
        File, folder, or root of a HATS catalog.
    kind : {"parquet", "hats"}
        For "hats" only the leaves under `dataset/` are read.

    Raises
    ------
    InputError
        If a file is truncated, or a column differs in type between files.
    """

    def __init__(self, url: str, kind: str = "parquet") -> None:
        super().__init__()
        self.url, self.kind = url, kind
        self._fs, self._paths = parquet_files(url, kind)
        with self._opened(self._paths[0]) as first:
            inside = _described(first, self.url)
        self._folders = self._hive(inside)
        types = {name: column.type for name, column in self._folders.items()}
        self.schema = pa.schema([*inside, *(pa.field(*item) for item in types.items())])

    def _hive(self, inside: pa.Schema) -> dict[str, pa.Array]:
        """What the names of folders say of each file, by key.

        Raises
        ------
        InputError
            If a file lies in folders of other keys than the first.
        """
        root = fsspec.core.url_to_fs(self.url)[1].rstrip("/")
        said = [_keys(path.removeprefix(root)) for path in self._paths]
        for path, keys in zip(self._paths, said, strict=True):
            if list(keys) != list(said[0]):
                raise InputError(
                    f"{path}: lies in folders of {', '.join(keys) or 'no key'}, but "
                    f"{self._paths[0]} in those of {', '.join(said[0]) or 'none'}; name the "
                    "folder whose files belong together"
                )
        names = [name for name in said[0] if name not in inside.names and name not in LEAF_KEYS]
        return {name: _folder_values([keys[name] for keys in said]) for name in names}

    @contextmanager
    def _opened(self, path: str) -> Iterator[Any]:
        with ExitStack() as stack:
            try:
                # Arrow leaves open what it is given.
                stream = stack.enter_context(opened(self._fs, path))
                # A buffered stream a column keeps memory flat even where a row group is huge.
                file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
                if coded := _coded_texts(file):
                    file = pq.ParquetFile(
                        stream, buffer_size=1 << 20, pre_buffer=False, read_dictionary=coded
                    )
            except (pa.ArrowException, OSError) as error:
                raise damaged(path, error) from error
            yield file

    def _read(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        folders = [name for name in columns if name in self._folders]
        # A file of which no column is wanted still says how many rows it has.
        inside = [name for name in columns if name not in folders] or self.names[:1]
        for number, path in enumerate(self._paths):
            with self._opened(path) as file:
                self._check(file.schema_arrow, path)
                width = row_bytes(file, inside)
                if width > ROW_BYTES:
                    raise too_wide(path, width)
                most, found = max(1, min(rows, int(BATCH_BYTES / width))), 0
                try:
                    for batch in file.iter_batches(most, columns=inside, use_threads=False):
                        if (texts := _text_bytes(batch)) > ROW_BYTES * batch.num_rows:
                            raise too_wide(path, texts / batch.num_rows)
                        found += batch.num_rows
                        for name in folders:
                            value = self._folders[name][number]
                            column = pa.repeat(value, batch.num_rows)
                            batch = batch.append_column(name, column)
                        yield batch
                except (pa.ArrowException, OSError) as error:
                    raise damaged(path, error) from error
                if found != (claimed := _claimed_rows(file, path)):
                    raise damaged(path, f"{found} rows where its footer claims {claimed}")

    def _check(self, found: pa.Schema, path: str) -> None:
        names = set(found.names)
        for entry in self.schema:
            if entry.name in self._folders:
                continue
            if entry.name not in names:
                raise InputError(
                    f"{path}: column {entry.name!r} of {self._paths[0]} is absent here; "
                    "write all files with the same columns"
                )
            dtype = plain(found.field(entry.name).type)
            if dtype != entry.type:
                raise drift(path, entry.name, entry.type, dtype)
        for name in found.names:
            if self.schema.get_field_index(name) < 0:
                raise InputError(
                    f"{path}: column {name!r} is absent from {self._paths[0]}; "
                    "write all files with the same columns"
                )


def _chunks(file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of each row group, and what the footer says of each column of it."""
    names = file.schema_arrow.names
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        # Nested columns, which are refused, have several parts.
        if group.num_columns == len(names):
            yield group.num_rows, {name: group.column(i) for i, name in enumerate(names)}


def _claimed_rows(file: Any, path: str) -> int:
    """Rows by the footer, which says it twice."""
    claimed = int(file.metadata.num_rows)
    groups = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
    if sum(groups) != claimed:
        raise damaged(path, f"its footer claims {claimed} rows and groups of {sum(groups)}")
    return claimed


def _coded_texts(file: Any) -> list[str]:
    """Columns of text that are stored as places in a list of texts, which may be few and long."""
    _, columns = next(_chunks(file), (0, {}))
    types = {entry.name: plain(entry.type) for entry in file.schema_arrow}
    return [
        name
        for name, one in columns.items()
        if pa.types.is_string(types[name])
        and {"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(one.encodings)
    ]


def row_bytes(file: Any, wanted: list[str]) -> float:
    """Bytes that a row takes in memory, by the footer; of coded texts their places only."""
    widest = 8.0
    for rows, columns in _chunks(file):
        inside = [one for name, one in columns.items() if name in wanted]
        nbytes = sum(max(8 * one.num_values, one.total_uncompressed_size) for one in inside)
        widest = max(widest, nbytes / max(rows, 1))
    return widest


def _text_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of the texts of a batch that are stored as places in a list."""
    total = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
            total += pc.sum(lengths.cast(pa.int64())).as_py() or 0
    return total


def too_wide(path: str, width: float) -> InputError:
    """The error of a file whose rows take more than `ROW_BYTES` each."""
    return InputError(
        f"{path}: its rows are {width / 1e3:,.0f} kB long, and {ROW_BYTES >> 10} kB on average are "
        "the most that a catalog may have; write it without the wide columns"
    )


def parquet_files(url: str, kind: str) -> tuple[Any, list[str]]:
    """The filesystem of `url` and the sorted paths of its Parquet files.

    Where there are leaves of the HATS layout, whatever lies beside them is not of the table: a
    thumbnail repeats rows of every leaf.

    Raises
    ------
    InputError
        If there are none.
    """
    fs, path = fsspec.core.url_to_fs(url)
    if fs.isfile(path):
        return fs, [path]
    root = f"{path.rstrip('/')}/dataset" if kind == "hats" else path.rstrip("/")
    paths = [
        found
        for found in sorted(fs.find(root))
        if found.endswith((".parquet", ".parq", ".pq"))
        and not any(part.startswith(("_", ".")) for part in found[len(root) :].split("/"))
    ]
    leaves = [found for found in paths if "/Npix=" in found[len(root) :]]
    paths = leaves or paths
    if not paths:
        raise InputError(f"{url}: holds no Parquet files; check the path in survey.toml")
    return fs, paths


def _keys(path: str) -> dict[str, str]:
    """The `key=value` folders of a path, in order."""
    pairs = (part.partition("=") for part in path.split("/")[:-1])
    return {key: unquote(value) for key, equals, value in pairs if key and equals}


def _folder_values(texts: list[str]) -> pa.Array:
    """One value a file: integers if all are, else text; null where Hive says so."""
    values = [None if text == _NO_VALUE else text for text in texts]
    strings = pa.array(values, pa.string())
    # A leading zero is part of a name.
    whole = all(text is None or _WHOLE.fullmatch(text) for text in values)
    return strings.cast(pa.int64()) if whole else strings


def _described(file: Any, url: str) -> pa.Schema:
    """The file's columns under their plain types, with what the footer says of each."""
    footer = file.metadata.metadata or {}
    known = field_metadata(footer[CONTENT_KEY]) if CONTENT_KEY in footer else {}
    fields = []
    repeated = [name for name in file.schema_arrow.names if file.schema_arrow.names.count(name) > 1]
    if repeated:
        raise InputError(f"{url}: several columns are called {repeated[0]!r}; rename all but one")
    for entry in file.schema_arrow:
        dtype = plain(entry.type)
        inner = dtype.value_type if isinstance(dtype, pa.ListType | pa.FixedSizeListType) else dtype
        if pa.types.is_nested(inner):
            raise InputError(
                f"{url}: column {entry.name!r} is nested ({entry.type}); "
                "flatten it or write the catalog without it"
            )
        own = {key.decode(): value.decode() for key, value in (entry.metadata or {}).items()}
        described = {key: own.get(key, "") for key in ("unit", "ucd", "description")}
        described |= known.get(entry.name, {})
        if pa.types.is_duration(entry.type):
            described["unit"] = "s"
        fields.append(field(entry.name, dtype, **described))
    return pa.schema(fields)
