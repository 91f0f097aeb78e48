"""Training rows from the survey itself: labels matched to objects, their photometry measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveyproc import cluster
from surveyproc.catalogs import hats
from surveyproc.catalogs.crossmatch import nearest
from surveyproc.catalogs.ingest import read_catalog
from surveyproc.catalogs.labels import Labels, read_labels
from surveyproc.config import ProductSection, SurveyConfig
from surveyproc.errors import ConfigError, InputError
from surveyproc.images.cube import read_tiles
from surveyproc.images.cutouts import CutoutReader
from surveyproc.run import unit
from surveyproc.run.products import build_product, check_columns
from surveyproc.storage import Store
from surveyproc.train.data import TrainingSet


class LabelWorker:
    """Measures the labelled objects of one partition with the products before the one to train.

    Gives the catalog's `columns` as well, except those that a product writes.
    """

    def __init__(
        self, config: SurveyConfig, product: str, labels: Labels, columns: Sequence[str]
    ) -> None:
        unit.use_one_thread()
        self.store = Store(config.root)
        self.labels = labels
        self.catalog = read_catalog(self.store, config.survey.name)
        before = config.products[: [one.name for one in config.products].index(product)]
        self.products = [build_product(section, config, self.store) for section in before]
        held = {column.name for column in self.catalog.columns}
        inputs = {name for product in self.products for name in product.inputs.columns}
        written = {column.name for product in self.products for column in product.columns}
        self.columns = sorted((set(columns) & held) - written)
        self.needed = sorted({"ra", "dec", *self.columns, *(inputs & held)})
        bands, size = unit.image_needs(self.products, config.images.bands)
        self.reader = CutoutReader(self.store, read_tiles(self.store), bands) if size else None

    def __call__(self, number: int) -> tuple[int, pa.Table]:
        """The number of a partition, and those of its rows that match a label."""
        part = self.catalog.partitions[number]
        leaf = f"{self.catalog.key}/{hats.leaf_key(part.order, part.pixel)}"
        table = hats.read_leaf(self.store, leaf, self.needed)
        near = self.labels.near(part.ra, part.dec, part.radius)
        index, _ = nearest(
            table["ra"].to_numpy(),
            table["dec"].to_numpy(),
            self.labels.ra[near],
            self.labels.dec[near],
            self.labels.radius,
        )
        chosen = np.flatnonzero(index >= 0)
        table = table.take(chosen)
        columns = {
            "redshift": self.labels.redshift[near][index[chosen]],
            "ra": table["ra"].to_numpy(),
            "dec": table["dec"].to_numpy(),
            **{name: table[name].to_numpy() for name in self.columns},
            **unit.compute(table, self.products, self.reader),
        }
        numbers = {name: values for name, values in columns.items() if values.dtype != object}
        return number, pa.table(numbers)


def measured_training_set(
    config: SurveyConfig, store: Store, section: ProductSection, *, workers: int
) -> TrainingSet:
    """Photometry by the survey of every object that has a label, in partition order.

    Fluxes are those that the earlier products write, or else those that the catalog holds; errors
    that nobody has are NaN. The bands are those of the survey, under the names that the model has
    for them.

    Raises
    ------
    ConfigError
        If the product has no training section, two bands get one name, or nobody has a flux.
    InputError
        If no label matches an object.
    """
    if section.training is None:
        raise ConfigError(f"products.{section.name}: add a [products.training] section to train it")
    labels = read_labels(section.training, config)
    catalog = read_catalog(store, config.survey.name)
    bands = _model_bands(section, config.images.bands)
    fluxes = [f"flux_{band}" for band in config.images.bands]
    errors = [f"flux_err_{band}" for band in config.images.bands]
    before = config.products[: config.products.index(section)]
    products = [build_product(one, config, store) for one in before]
    held = [column.name for column in catalog.columns]
    check_columns(products, held)
    known = {*held, *(column.name for product in products for column in product.columns)}
    absent = [name for name in fluxes if name not in known]
    if absent:
        raise ConfigError(
            f"products.{section.name}: training needs {', '.join(absent)}, which neither the "
            "catalog nor an earlier product has; list the product that writes them first"
        )
    parts: dict[int, pa.Table] = dict(
        cluster.stream(
            range(len(catalog.partitions)),
            LabelWorker,
            workers=workers,
            arguments=(config, section.name, labels, [*fluxes, *errors]),
        )
    )
    table = pa.concat_tables([parts[number] for number in sorted(parts)])
    if not table.num_rows:
        raise InputError(
            f"no object of catalog {config.survey.name} lies within {section.training.radius} "
            f"arcsec of a row of {section.training.source}: check its ra and dec columns"
        )
    return TrainingSet(
        flux=np.stack([_floats(table, name) for name in fluxes], axis=1),
        flux_err=np.stack([_floats(table, name) for name in errors], axis=1),
        redshift=table["redshift"].to_numpy(),
        ra=table["ra"].to_numpy(),
        dec=table["dec"].to_numpy(),
        bands=bands,
    )


def _model_bands(section: ProductSection, bands: Sequence[str]) -> tuple[str, ...]:
    """The survey's bands under the model's names: the inverse of `section.bands`.

    Raises
    ------
    ConfigError
        If two model bands are one survey band, or a model band is another survey band as well.
    """
    renamed = {survey: model for model, survey in section.bands.items()}
    names = tuple(renamed.get(band, band) for band in bands)
    if len(renamed) != len(section.bands) or len(set(names)) != len(names):
        raise ConfigError(
            f"products.{section.name}.bands: every band of the survey needs one name of its own in "
            f"the model; now they are {', '.join(names)}"
        )
    return names


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column as float64; null is NaN, and so is a column that is absent."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    values: NDArray[np.float64] = table[name].to_numpy().astype(np.float64)
    return values
