"""Parquet files, folders of them, and HATS catalogs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from surveyproc.catalogs.formats.base import TableReader, damaged, drift, field, plain
from surveyproc.catalogs.voparquet import CONTENT_KEY, field_metadata
from surveyproc.errors import InputError
from surveyproc.urls import opened


class ParquetReader(TableReader):
    """One Parquet file, or all `*.parquet` files under a folder in the order of their paths.

    Units, UCDs and descriptions come from VOParquet footers or from Arrow field metadata.

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
        self.url, self.kind = url, kind
        self._fs, self._paths = parquet_files(url, kind)
        first = self._open(self._paths[0])
        self.schema = _described(first, self.url)
        first.close()

    def _open(self, path: str) -> Any:
        try:
            # A buffered stream a column keeps memory flat even where a row group is huge.
            return pq.ParquetFile(opened(self._fs, path), buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise damaged(path, error) from error

    def _read(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for path in self._paths:
            file = self._open(path)
            self._check(file.schema_arrow, path)
            try:
                yield from file.iter_batches(batch_size=rows, columns=columns, use_threads=False)
            except (pa.ArrowInvalid, OSError) as error:
                raise damaged(path, error) from error
            finally:
                file.close()

    def _check(self, found: pa.Schema, path: str) -> None:
        names = set(found.names)
        for entry in self.schema:
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


def parquet_files(url: str, kind: str) -> tuple[Any, list[str]]:
    """The filesystem of `url` and the sorted paths of its Parquet files.

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
    if not paths:
        raise InputError(f"{url}: holds no Parquet files; check the path in survey.toml")
    return fs, paths


def _described(file: Any, url: str) -> pa.Schema:
    """The file's columns under their plain types, with what the footer says of each."""
    footer = file.metadata.metadata or {}
    known = field_metadata(footer[CONTENT_KEY]) if CONTENT_KEY in footer else {}
    fields = []
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
        fields.append(field(entry.name, dtype, **described))
    return pa.schema(fields)
