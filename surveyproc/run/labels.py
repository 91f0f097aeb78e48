"""Training rows from the survey itself: labels matched to objects, their photometry measured."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

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
    """Measures the labelled objects of one partition with the products before the one to train."""

    def __init__(self, config: SurveyConfig, product: str, labels: Labels) -> None:
        unit.use_one_thread()
        self.store = Store(config.root)
        self.labels = labels
        self.catalog = read_catalog(self.store, config.survey.name)
        before = config.products[: [one.name for one in config.products].index(product)]
        self.products = [build_product(section, config, self.store) for section in before]
        bands, size = unit.image_needs(self.products, config.images.bands)
        self.reader = CutoutReader(self.store, read_tiles(self.store), bands) if size else None

    def __call__(self, number: int) -> tuple[int, pa.Table]:
        """The number of a partition, and those of its rows that match a label."""
        part = self.catalog.partitions[number]
        leaf = f"{self.catalog.key}/{hats.leaf_key(part.order, part.pixel)}"
        inputs = {name for product in self.products for name in product.inputs.columns}
        table = hats.read_leaf(self.store, leaf, sorted({"ra", "dec", *inputs}))
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
            **unit.compute(table, self.products, self.reader),
        }
        numbers = {name: values for name, values in columns.items() if values.dtype != object}
        return number, pa.table(numbers)


def measured_training_set(
    config: SurveyConfig, store: Store, section: ProductSection, *, workers: int
) -> TrainingSet:
    """Photometry by the survey of every object that has a label, in partition order.

    Raises
    ------
    InputError
        If no label matches an object.
    """
    if section.training is None:
        raise ConfigError(f"products.{section.name}: add a [products.training] section to train it")
    labels = read_labels(section.training, config)
    catalog = read_catalog(store, config.survey.name)
    bands = tuple(section.bands) or tuple(config.images.bands)
    fluxes = [f"flux_{section.bands.get(band, band)}" for band in bands]
    before = config.products[: config.products.index(section)]
    check_columns([build_product(one, config, store) for one in before], [])
    parts: dict[int, pa.Table] = dict(
        cluster.stream(
            range(len(catalog.partitions)),
            LabelWorker,
            workers=workers,
            arguments=(config, section.name, labels),
        )
    )
    table = pa.concat_tables([parts[number] for number in sorted(parts)])
    if not table.num_rows:
        raise InputError(
            f"no object of catalog {config.survey.name} lies within {section.training.radius} "
            f"arcsec of a row of {section.training.source}: check its ra and dec columns"
        )
    absent = [name for name in fluxes if name not in table.column_names]
    if absent:
        raise ConfigError(f"products.{section.name}: no earlier product writes {', '.join(absent)}")
    errors = [name.replace("flux_", "flux_err_", 1) for name in fluxes]
    return TrainingSet(
        flux=np.stack([table[name].to_numpy() for name in fluxes], axis=1),
        flux_err=np.stack([table[name].to_numpy() for name in errors], axis=1),
        redshift=table["redshift"].to_numpy(),
        ra=table["ra"].to_numpy(),
        dec=table["dec"].to_numpy(),
        bands=bands,
    )
