"""A source catalog becomes a HATS catalog, in bounded memory.

Pass 1 counts rows on the sky and chooses partitions; pass 2 spills rows by partition and ids by
hash; then every partition is sorted and written by itself. `ingest.json` is the commit record:
removed before the first leaf changes, written last. Until then nothing of an older catalog is
touched.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

import surveyproc
from surveyproc.catalogs import hats, ids, leaves, metadata, rows, spill
from surveyproc.catalogs.hats import Leaf, Partition
from surveyproc.catalogs.partition import Assigner, SkyCounts, choose
from surveyproc.catalogs.readers import TableReader, checksum, open_table, table_kind
from surveyproc.catalogs.rejected import RejectedRows
from surveyproc.config import SurveyConfig
from surveyproc.errors import InputError, StoreError, UnreachableError
from surveyproc.places import Places
from surveyproc.progress import Meter
from surveyproc.schemas import Column
from surveyproc.store import layout
from surveyproc.store.storage import Store, fingerprint
from surveyproc.store.urls import file_name
from surveyproc.survey import Survey

# Raised whenever the same source gives other bytes than before.
FORMAT = 2
RECORD = "ingest.json"
REJECTED = "rejected.parquet"
MEND = "`surveyproc ingest` makes it anew"
SPILL_BYTES = 96 << 20
IDS_PER_BUCKET = 4_000_000


@dataclass(frozen=True)
class CatalogSummary:
    """What an ingest did.

    Attributes
    ----------
    rows_in, rows_out, rejected : int
        Rows of the source, of the catalog, and of `rejected.parquet`.
    duplicates : int
        Rows of the catalog whose id another source row carries too.
    partitions : int
        Leaves.
    skipped : bool
        Whether there was nothing to do.
    url : str
        The HATS catalog.
    notes : list of str
        What a person should know: how ids were made, that the source is a part of what was asked
        for, which columns were renamed, converted or left out.
    """

    rows_in: int
    rows_out: int
    rejected: int
    duplicates: int
    partitions: int
    skipped: bool
    url: str
    notes: list[str]


@dataclass(frozen=True)
class CatalogInfo:
    """An ingested catalog, as planning wants it.

    Attributes
    ----------
    key : str
        Its folder in the store.
    columns : tuple of Column
        Of the leaves: schemas/object.toml, then the source's own.
    partitions : tuple of Partition
        In nested order.
    rows_in, rows_out, rejected, duplicates : int
        As in `CatalogSummary`.
    fingerprint : str
        Hash of columns and leaves.
    """

    key: str
    columns: tuple[Column, ...]
    partitions: tuple[Partition, ...]
    rows_in: int
    rows_out: int
    rejected: int
    duplicates: int
    fingerprint: str


def record_key(name: str) -> str:
    """The commit record of the ingested catalog of a survey; absent while it is being changed."""
    return f"{layout.catalog(name)}/{RECORD}"


def read_catalog(store: Store, name: str) -> CatalogInfo:
    """The ingested catalog of survey `name`.

    Raises
    ------
    InputError
        If there is none, or an ingest was interrupted.
    """
    key = layout.catalog(name)
    record = store.read_json(record_key(name), MEND)
    if record is None:
        raise InputError(f"no catalog of {name} under {store.url}: run `surveyproc ingest` first")
    columns = tuple(
        Column(**{**entry, "range": entry["range"] and tuple(entry["range"])})
        for entry in record["columns"]
    )
    try:
        partitions = tuple(hats.read_partitions(store, key))
    except UnreachableError:
        raise
    except StoreError as error:
        raise StoreError(f"{error}; {MEND}") from error
    return CatalogInfo(key, columns, partitions, **record["counts"], fingerprint=record["content"])


def _record(store: Store, name: str) -> dict[str, Any] | None:
    """The commit record of a catalog that is as it was ingested; None if there is none."""
    if store.exists(layout.void_catalog(name)):
        return None
    try:
        found: dict[str, Any] | None = store.read_json(record_key(name))
    except UnreachableError:
        raise
    except StoreError:
        return None  # damaged: the catalog is made anew
    return found


def is_whole(store: Store, name: str) -> bool:
    """Whether the ingested catalog of a survey can be used. Reads no leaf."""
    record = _record(store, name)
    return record is not None and _intact(store, layout.catalog(name), record.get("metadata"))


def ingest_catalog(
    survey: Survey,
    places: Places,
    *,
    rows_per_batch: int | None = None,
    spill_bytes: int = SPILL_BYTES,
) -> CatalogSummary:
    """Turn the configured source catalog into `catalogs/<survey>/`.

    The catalog's bytes depend on the source's bytes, its modification time (the creation date in
    `hats.properties`) and the configuration, and on nothing else.

    Parameters
    ----------
    survey : Survey
        Its name and its `catalog` section matter.
    places : Places
        Where leaves may be written.
    rows_per_batch, spill_bytes : int
        Rows read at once (by default about 32 MB) and bytes held before they are spilled.

    Raises
    ------
    InputError
        If the source cannot be read, is empty, lacks a column, or has no usable row.
    """
    url, kind = table_kind(survey.config.resolve(survey.config.catalog.source))
    key = layout.catalog(survey.name)
    settings = {
        "format": FORMAT,
        "source_sha256": checksum(url),
        "source_kind": kind,
        "name": survey.name,
        # Of the others the catalog does not depend.
        **survey.config.catalog.model_dump(
            include={"table", "id", "ra", "dec", "reddening", "partition_rows"}
        ),
    }
    record = _made(survey.store, survey.name, settings)
    if record is not None:
        return _summary(survey.store, key, record, skipped=True)
    with open_source(survey.config) as reader, spill.own_folder(survey.store, key) as folder:
        build = _Build(survey, key, folder, reader, places)
        build.rows_per_batch = rows_per_batch or rows.batch_rows(reader.schema)
        build.spill_bytes = spill_bytes
        record = build.run(settings)
    return _summary(survey.store, key, record, skipped=False)


def _made(store: Store, name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the catalog that these settings give, if it is there and whole."""
    record = _record(store, name)
    same = record is not None and record["settings"] == settings and is_whole(store, name)
    return record if same else None


def open_source(config: SurveyConfig) -> TableReader:
    """The survey's source catalog, opened.

    Raises
    ------
    InputError
        As `open_table` does.
    """
    section = config.catalog
    columns = [name for name in (section.id, section.ra, section.dec) if name]
    return open_table(config.resolve(section.source), section.table, columns)


def _summary(store: Store, key: str, record: dict[str, Any], *, skipped: bool) -> CatalogSummary:
    return CatalogSummary(
        **record["counts"],
        partitions=record["partitions"],
        skipped=skipped,
        url=store.url_of(key),
        notes=record["notes"],
    )


class _Build:
    """One ingest, step by step."""

    rows_per_batch = 65_536
    spill_bytes = SPILL_BYTES

    def __init__(
        self,
        survey: Survey,
        key: str,
        folder: str,
        reader: TableReader,
        places: Places,
    ) -> None:
        self.config, self.store, self.key, self.folder = survey.config, survey.store, key, folder
        self.reader, self.places = reader, places
        self.roles = rows.roles(reader, survey.config.catalog)
        self.own, self.carried = rows.stored_columns(reader, self.roles)
        self.rows_in = 0

    def run(self, settings: dict[str, Any]) -> dict[str, Any]:
        """All steps; returns the commit record."""
        chosen = self.count()
        rows_out = sum(part[2] for part in chosen)
        with Meter("ingest, reading", objects=self.rows_in, units=1) as meter:
            spilled, spilled_ids, bits, rejected = self.spill(chosen, meter)
        folders = leaves.Folders(
            self.key, f"{self.folder}/rows", f"{self.folder}/ids", f"{self.folder}/repeated"
        )
        origin = self.roles.origin
        buckets = leaves.find_repeated(self.store, folders, spilled_ids, origin, self.places)
        if (made := self.begin(settings)) is not None:
            return made
        written = []
        with Meter("ingest, writing", objects=rows_out, units=len(chosen)) as meter:
            for done in leaves.write_all(
                self.store,
                folders,
                chosen,
                spilled,
                self.columns,
                (bits, buckets),
                origin,
                self.places,
            ):
                meter.advance(objects=done.leaf.rows, nbytes=done.leaf.nbytes)
                written.append(done)
        record = {
            "settings": settings,
            "source": file_name(self.reader.url),
            "surveyproc": surveyproc.__version__,
            "columns": [asdict(column) for column in self.columns],
            "notes": [*rows.notes(self.roles, self.carried), *self.reader.warnings],
            "partitions": len(written),
            "counts": {
                "rows_in": self.rows_in,
                "rows_out": rows_out,
                "rejected": rejected,
                "duplicates": sum(done.duplicates for done in written),
            },
        }
        return self.finish(record, written)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the leaves."""
        return (*self.own, *self.carried.values())

    def count(self) -> list[tuple[int, int, int]]:
        """Pass 1: rows on the sky, and from them the partitions."""
        counts = SkyCounts()
        unsigned = {name for name, column in self.carried.items() if column.dtype == "uint64"}
        names = list(dict.fromkeys([*self.roles.names, *sorted(unsigned)]))
        beyond: set[str] = set()
        for batch in self.reader.batches(self.rows_per_batch, names):
            beyond |= rows.beyond_int64(batch) & unsigned
            self.rows_in += batch.num_rows
            checked = rows.check(batch, self.roles)
            counts.add(checked.index[checked.code == 0])
        self.carried = rows.signed(self.carried, beyond)
        for name in sorted(beyond):
            self.reader.warn(f"column {name!r} has integers above 2**63 - 1 and is kept as text")
        if not self.rows_in:
            raise InputError(f"{self.reader.url}: the catalog has no rows; check catalog.source")
        if not len(counts.pixels):
            raise InputError(
                f"{self.reader.url}: none of its {self.rows_in} rows has an id and a position; "
                "check catalog.id, catalog.ra and catalog.dec"
            )
        return choose(
            counts.pixels, counts.counts, counts.order, self.config.catalog.partition_rows
        )

    def spill(
        self, chosen: list[tuple[int, int, int]], meter: Meter
    ) -> tuple[dict[int, spill.Int], dict[int, spill.Int], int, int]:
        """Pass 2: rows to disk by partition, ids by hash, unusable rows aside."""
        assign = Assigner(chosen)
        bits = max(0, int(self.rows_in // IDS_PER_BUCKET)).bit_length()
        schema = leaves.spill_schema(self.columns)
        by_partition = spill.Spill(self.store, f"{self.folder}/rows", schema, self.spill_bytes)
        id_schema = leaves.id_schema(self.roles.origin)
        by_hash = spill.Spill(self.store, f"{self.folder}/ids", id_schema, self.spill_bytes // 4)
        aside = RejectedRows(self.store, f"{self.folder}/{REJECTED}", self.reader.schema)
        first = 0
        with aside:
            for batch in self.reader.batches(self.rows_per_batch):
                checked = rows.check(batch, self.roles)
                good = np.flatnonzero(checked.code == 0)
                numbers = assign(checked.index[good])
                if (numbers < 0).any():
                    raise self._changed()
                source_row = np.arange(first, first + batch.num_rows)
                object_ids, known = np.zeros(batch.num_rows, np.int64), list[spill.Int]()
                if self.roles.id:
                    object_ids, check = ids.read(batch.column(self.roles.id))
                    # Also those of rows without a position.
                    known = [
                        key[checked.known_id] for key in (object_ids, check) if key is not None
                    ]
                stored = rows.stored_rows(batch, object_ids, checked, self.carried, good)
                by_partition.add(numbers, [*stored, pa.array(source_row[good])])
                if known:
                    known = spill.at_most_two(*known)
                    by_hash.add(spill.bucket(known[0], bits), [pa.array(key) for key in known])
                aside.add(batch, checked.code, source_row)
                first += batch.num_rows
                meter.advance(objects=batch.num_rows, units=0)
            meter.advance(objects=0, units=1)
        if first != self.rows_in:
            raise self._changed()
        by_partition.flush()
        by_hash.flush()
        return by_partition.places(), by_hash.places(), bits, aside.rows

    def _changed(self) -> InputError:
        return InputError(f"{self.reader.url}: changed while it was read; repeat the command")

    def begin(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """From here on there is no catalog until the commit record is written again.

        Unless another ingest was faster: then this is the record of its catalog, which stays.
        """
        keys = [f"{self.key}/{name}" for name in (RECORD, *metadata.PROPERTIES)]
        # Looked for first: what another ingest writes from here on is not removed.
        there = [key for key in keys if self.store.exists(key)]
        if (made := _made(self.store, self.config.survey.name, settings)) is not None:
            return made
        for key in there:
            self.store.remove(key)
        return None

    def finish(self, record: dict[str, Any], written: list[leaves.Written]) -> dict[str, Any]:
        """Drop what an older catalog left, write the metadata, commit."""
        made = [done.leaf for done in written]
        _drop_strangers(self.store, self.key, made)
        staged = f"{self.folder}/{REJECTED}"
        if record["counts"]["rejected"]:
            with (
                self.store.reading(staged) as source,
                self.store.writing(f"{self.key}/{REJECTED}") as target,
            ):
                shutil.copyfileobj(source, target, 1 << 20)
        else:
            self.store.remove(f"{self.key}/{REJECTED}")
        partitions = [done.partition for done in written]
        hats.write_partitions(self.store, self.key, partitions)
        record["content"] = fingerprint(
            [record["columns"], [[part.order, part.pixel, part.sha256] for part in partitions]]
        )
        hats.finish_catalog(
            self.store,
            self.key,
            made,
            name=self.config.survey.name,
            columns=self.columns,
            properties={
                "hats_creation_date": _source_date(self.reader),
                "surveyproc_version": surveyproc.__version__,
                "surveyproc_source": record["source"],
                "surveyproc_source_sha256": record["settings"]["source_sha256"],
            },
        )
        record["metadata"] = metadata.sums(self.store, self.key)
        self.store.put_record(f"{self.key}/{RECORD}", record)
        self.store.remove(layout.void_catalog(self.config.survey.name))
        return record


def _source_date(reader: TableReader) -> str:
    """When the source was last modified: a clock would make equal ingests differ."""
    fs, path = fsspec.core.url_to_fs(reader.url)
    try:
        paths = fs.find(path) if fs.isdir(path) else [path]
        moment = max(fs.modified(one) for one in paths)
    except (OSError, NotImplementedError, KeyError):
        moment = datetime.now(UTC)
    return str(moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%MUTC"))


def _intact(store: Store, key: str, sums: dict[str, str] | None) -> bool:
    """Whether all that an ingest writes is there, leaves with their sizes. Reads no leaf.

    Files beside the leaves are compared with their checksums.
    """
    try:
        expected = {
            hats.leaf_key(part.order, part.pixel): part.nbytes
            for part in hats.read_partitions(store, key)
        }
    except StoreError:
        return False
    found = store.sizes(key)
    sizes = {name: size for name, size in found.items() if "/Npix=" in name}
    if sizes != expected or not all(found.get(name) for name in metadata.METADATA):
        return False
    # Catalogs of earlier versions have none.
    return sums is None or metadata.sums(store, key) == sums


def _drop_strangers(store: Store, key: str, made: list[Leaf]) -> None:
    """Remove leaves, and folders of leaves, that are not of this catalog."""
    expected = {hats.leaf_key(leaf.order, leaf.pixel) for leaf in made}
    for name in hats.leaf_keys(store, key):
        if name not in expected:
            store.remove(f"{key}/{name}")
            parent = f"{key}/{name}".rsplit("/", 1)[0]
            for folder in (parent, parent.rsplit("/", 1)[0]):
                if not store.names(folder):
                    store.remove(folder)
