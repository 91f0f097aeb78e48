"""Training cubes from the survey itself: labels matched to objects, measured and cut out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import surveyproc
from surveyproc import schemas
from surveyproc.catalogs.around import Surroundings
from surveyproc.catalogs.ingest import CatalogInfo, read_catalog
from surveyproc.catalogs.labels import TARGET, Labels, read_labels
from surveyproc.config import SurveyConfig
from surveyproc.config.sections import ModelSection, ScaledSection
from surveyproc.errors import ConfigError, InputError, SurveyError
from surveyproc.images.cube import Tile, read_tiles
from surveyproc.images.cutouts import CutoutReader
from surveyproc.places import Item, Ledger, Places, Stage
from surveyproc.products.base import Batch, Inputs, Product
from surveyproc.products.registry import build_products, check_columns
from surveyproc.products.scaled import scaled_cutouts, window
from surveyproc.progress import Meter
from surveyproc.run import unit
from surveyproc.run.cost import IMAGE_S, expected_seconds
from surveyproc.run.nearby import neighbour_needs
from surveyproc.run.plan import OUTPUT_REVISION
from surveyproc.schemas import Column
from surveyproc.store import layout
from surveyproc.store.storage import fingerprint
from surveyproc.store.urls import public_url
from surveyproc.survey import Survey
from surveyproc.train import cube
from surveyproc.train.cube import SHARD, TrainingCube


class CutoutProduct:
    """The cutouts themselves as a product, so that one reading of the pixels serves all."""

    name, version = "cutouts", ""

    def __init__(
        self, bands: Sequence[str], side: int, cutout: int, scaled: ScaledSection | None
    ) -> None:
        self.side, self.cutout, self.scaled = side, cutout, scaled
        self.inputs = Inputs(bands=tuple(bands), cutout=side)
        if scaled is not None:
            wide = window(scaled, side, cutout)
            self.inputs = Inputs(tuple(bands), wide, columns=(scaled.column,))
        self.columns = (
            Column("pixels", "float32", length=len(bands) * side**2),
            Column("pixel_scale", "float64"),
            Column("flags", "int32"),
        )

    def prepare(self) -> None:
        """Nothing to load."""

    def compute(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """What the batch holds, the pixels of an object in one row."""
        assert batch.images is not None
        assert batch.pixel_scale is not None
        images, flags = batch.images, batch.flags
        if self.scaled is not None:
            images, _ = scaled_cutouts(batch, self.scaled, self.side, self.cutout, self.name)
            nothing = ~np.isfinite(images).any(axis=(1, 2, 3))
            flags = flags | np.where(nothing, np.int32(schemas.flag("no_image")), np.int32(0))
        pixels = images.reshape(len(images), -1)
        return {"pixels": pixels, "pixel_scale": batch.pixel_scale, "flags": flags}


@dataclass(frozen=True)
class _Content:
    """Everything that decides a cube's content."""

    catalog: CatalogInfo
    tiles: Sequence[Tile]
    labels: Labels
    products: tuple[Product, ...]
    key: str


def build_training_cube(
    survey: Survey,
    section: ModelSection,
    places: Places,
    *,
    bands: Sequence[str],
    cutout: int,
) -> TrainingCube:
    """Every object that has a label: its cutouts, photometry, E(B-V), and what the label tells.

    The cube's name is a hash of all it is made of: built before, it is returned at once; killed
    and asked for again, it ends in the same bytes.

    Parameters
    ----------
    survey : Survey
        The survey, ingested.
    section : ModelSection
        The product to train. Its labels are matched, and the products listed before it measure.
    places : Places
        Where the work may run.
    bands : sequence of str
        Bands of the cutouts in the order wanted, under the survey's names.
    cutout : int
        Side of the cutouts in pixels, twice `training.shift` included; 0 for a cube of columns
        alone.

    Returns
    -------
    TrainingCube
        Sorted by position on the sky (`_healpix_29`, then object_id). Objects that no tile covers
        are in it, with `no_image` set and all pixels NaN. `flags` are those of the largest cutout
        that a product or the cube wants.

    Raises
    ------
    ConfigError
        If the product has no training section, a band or the column of E(B-V) is unknown.
    InputError
        If catalog, tiles, labels or a model are missing, no label matches an object, or no tile
        covers any that does.
    SurveyError
        If the inputs changed while the cube was built.
    """
    content = _content(survey, section, bands, cutout)
    if survey.store.exists(f"{content.key}/{cube.RECORD}"):
        return TrainingCube.open(survey.store, content.key)
    # LSDB takes seconds to import; a cube that is there needs none.
    from surveyproc.catalogs.match import match_labels

    taken = _catalog_columns(survey.config, section, content.catalog, content.products)
    matched = match_labels(survey.store, content.catalog.key, content.labels, taken, places)
    starts = range(0, matched.num_rows, SHARD)
    # Taken, not sliced: a slice is pickled with all of the table behind it.
    tables = [
        matched.take(pa.array(range(start, min(start + SHARD, matched.num_rows))))
        for start in starts
    ]
    seconds = sum(expected_seconds(one) for one in content.products) + (IMAGE_S if cutout else 0.0)
    items = [
        Item(str(number), (number, table), table.num_rows * seconds)
        for number, table in enumerate(tables)
    ]
    stage = Stage(
        "shards",
        ShardWorker,
        (survey, section, content.key, tuple(bands), cutout),
        ledger=Ledger(survey.store, f"{content.key}/begun"),
    )
    if cutout:
        cube.write_header(survey.store, content.key, matched.num_rows, len(bands), cutout)
    parts: dict[int, pa.Table] = {}
    with Meter("training cube", objects=matched.num_rows, units=len(items)) as meter:
        for number, table, nbytes in places.stream(items, stage):
            parts[number] = table
            meter.advance(objects=table.num_rows, nbytes=nbytes)
    index = pa.concat_tables([parts[number] for number in sorted(parts)])
    scale = None
    if cutout:
        if pc.all(index["no_image"]).as_py():
            raise InputError(
                f"none of the {index.num_rows} objects with a label lies on a tile: check that "
                "images and catalog cover the same sky"
            )
        if section.scaled is None:
            scale = float(np.nanmedian(index["pixel_scale"].to_numpy()))
    if _content(survey, section, bands, cutout).key != content.key:
        raise SurveyError(
            f"products.{section.name}: catalog, tiles, labels or models changed while the training "
            "cube was built: repeat the command"
        )
    assert section.training is not None
    record = {
        "product": section.name,
        "bands": list(bands),
        "cutout": cutout,
        "pixel_scale": scale,
        "label_source": public_url(section.training.source),
        "label_radius": content.labels.radius,
        "labels": len(content.labels),
        "targets": sorted(content.labels.targets),
        "labels_dropped": content.labels.dropped,
        "without_image": pc.sum(index["no_image"]).as_py() if cutout else None,
        "provenance": {
            "surveyproc_version": surveyproc.__version__,
            "surveyproc_revision": OUTPUT_REVISION,
            "catalog": content.catalog.fingerprint,
            "tiles": fingerprint([[tile.id, tile.version] for tile in content.tiles]),
            "labels": content.labels.checksum,
            **{f"{one.name}_version": one.version for one in content.products},
        },
    }
    return cube.finish(survey.store, content.key, index, record)


class ShardWorker:
    """Measures the objects of one shard, writes their cutouts, gives their columns."""

    def __init__(
        self,
        survey: Survey,
        section: ModelSection,
        key: str,
        bands: tuple[str, ...],
        cutout: int,
    ) -> None:
        self.store, self.config, self.key = survey.store, survey.config, key
        self.fluxes = flux_columns(survey.config, section)
        self.products: tuple[Product, ...] = build_products(survey, section)
        unit.prepare(self.products)
        self.shape = (len(bands), cutout, cutout)
        if cutout:
            assert section.training is not None
            seen = cutout - 2 * section.training.shift
            self.products += (CutoutProduct(bands, cutout, seen, section.scaled),)
        wanted, size = unit.image_needs(self.products, survey.config.images.bands)
        tiles = read_tiles(self.store, survey.name) if size else []
        self.reader = CutoutReader(self.store, tiles, wanted) if size else None
        radius, most = neighbour_needs(self.products)
        self.surroundings = None
        if most:
            catalog = read_catalog(self.store, survey.name)
            self.surroundings = Surroundings(self.store, catalog, radius, most)

    def __call__(self, item: tuple[int, pa.Table]) -> tuple[int, pa.Table, int]:
        """Number of the shard, its part of the index, and the bytes written."""
        number, table = item
        around = None if self.surroundings is None else self.surroundings.of(table)
        measured = unit.compute(table, self.products, self.reader, around=around).columns
        pixels = measured.pop("pixels", None)
        nbytes = 0
        if pixels is not None:
            images = pixels.reshape(-1, *self.shape)
            nbytes = cube.write_shard(self.store, self.key, number, images)
        return number, self._index(table, measured), nbytes

    def _index(self, table: pa.Table, measured: Mapping[str, NDArray[Any]]) -> pa.Table:
        names = [name for name in table.column_names if name.startswith(TARGET)]
        columns = {name: table[name] for name in ("object_id", "ra", "dec", *names)}
        reddening = self.config.catalog.reddening
        ebv = _floats(table[reddening]) if reddening else np.zeros(table.num_rows)
        columns["ebv"] = np.nan_to_num(ebv, nan=0.0)
        for name in self.fluxes:
            if name in measured:
                columns[name] = measured[name].astype(np.float64)
            elif name in table.column_names:
                columns[name] = _floats(table[name])
        if "flags" in measured:
            columns |= {name: measured[name] for name in ("flags", "pixel_scale")}
            columns["no_image"] = (measured["flags"] & schemas.flag("no_image")) != 0
        return pa.table(columns)


def _content(
    survey: Survey,
    section: ModelSection,
    bands: Sequence[str],
    cutout: int,
) -> _Content:
    if section.training is None:
        raise ConfigError(f"products.{section.name}: add a [products.training] section to train it")
    if unknown := [band for band in bands if band not in survey.config.images.bands]:
        raise ConfigError(
            f"products.{section.name}: {', '.join(unknown)} is not in images.bands "
            f"({', '.join(survey.config.images.bands)})"
        )
    catalog = read_catalog(survey.store, survey.name)
    labels = read_labels(section.training, survey.config)
    products = build_products(survey, section)
    check_columns(products, catalog.columns)
    _catalog_columns(survey.config, section, catalog, products)
    images = bool(cutout) or any(product.inputs.cutout for product in products)
    tiles = read_tiles(survey.store, survey.name) if images else []
    version = fingerprint(
        {
            "format": cube.FORMAT,
            "revision": OUTPUT_REVISION,
            "catalog": catalog.fingerprint,
            "reddening": survey.config.catalog.reddening,
            "tiles": [[tile.id, tile.version] for tile in tiles],
            "labels": labels.checksum,
            "products": [[product.name, product.version] for product in products],
            "survey_bands": list(survey.config.bands),
            "bands": list(bands),
            "cutout": cutout,
            **({"fluxes": section.fluxes} if section.fluxes else {}),
            **({"scaled": _scale(section)} if section.scaled and cutout else {}),
        }
    )
    return _Content(catalog, tiles, labels, products, layout.training_cube(section.name, version))


def _scale(section: ModelSection) -> list[Any]:
    """What decides the pixels of scaled cutouts."""
    assert section.scaled is not None
    assert section.training is not None
    return [section.scaled.model_dump(), section.training.shift]


def flux_columns(config: SurveyConfig, section: ModelSection) -> list[str]:
    """Columns of fluxes and errors that a training may want, of every band."""
    starts = ["", *([f"{section.fluxes}_"] if section.fluxes else [])]
    kinds = [f"{start}{kind}" for start in starts for kind in ("flux", "flux_err")]
    return [f"{kind}_{band}" for kind in kinds for band in config.bands]


def _catalog_columns(
    config: SurveyConfig,
    section: ModelSection,
    catalog: CatalogInfo,
    products: Sequence[Product],
) -> list[str]:
    """What the products and the index want of the catalog.

    Raises
    ------
    ConfigError
        If the catalog has no numeric column of E(B-V) of the configured name.
    """
    held = {column.name: column for column in catalog.columns}
    reddening = config.catalog.reddening
    if reddening is not None:
        column = held.get(reddening)
        if column is None or column.dtype == "string" or column.length:
            raise ConfigError(
                f"catalog.reddening: the catalog has no numeric column {reddening!r}; there are "
                f"{', '.join(held)}"
            )
    written = {column.name for product in products for column in product.columns}
    read = {name for product in products for name in product.inputs.columns}
    fluxes = set(flux_columns(config, section)) - written
    wanted = read | fluxes | ({reddening} if reddening else set())
    if section.scaled is not None:
        if section.scaled.column not in written | set(held):
            raise ConfigError(
                f"products.{section.name}.scaled.column: neither the catalog nor an earlier "
                f"product has {section.scaled.column!r}"
            )
        wanted.add(section.scaled.column)
    return sorted(wanted & set(held))


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column as float64, NaN where null."""
    values: NDArray[np.float64] = column.to_numpy().astype(np.float64)
    return values
