"""Training rows from the survey itself: the photometry of objects that have a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveyproc.catalogs.ingest import read_catalog
from surveyproc.catalogs.labels import TARGET, target_columns
from surveyproc.config import SurveyConfig
from surveyproc.config.sections import ModelSection
from surveyproc.errors import ConfigError
from surveyproc.images.stamp_kind import COLOURS
from surveyproc.models.base import Network, build
from surveyproc.models.tasks.base import check_targets
from surveyproc.places import Places
from surveyproc.products.fluxes import better_fluxes
from surveyproc.products.registry import build_products, check_fluxes
from surveyproc.survey import Survey
from surveyproc.train.blends import CLASS, FLUXES, MASKS, blend_training_set, open_blends
from surveyproc.train.cube import TrainingCube
from surveyproc.train.data import TrainingSet
from surveyproc.train.training_cube import build_training_cube


def untrained(config: SurveyConfig, section: ModelSection) -> Network:
    """The network that a product is to train, with fresh weights.

    Raises
    ------
    ConfigError
        If the product has no training section or no model, a band is unknown, two bands get one
        name, the network refuses its bands or settings, or a task has no label column; the product
        is named.
    InputError
        If the images are to be blends, and are none.
    """
    if section.training is None:
        raise ConfigError(
            f"products.{section.name}: training needs `model` and a [products.training] section"
        )
    if section.training.magnitudes and section.training.id:
        raise ConfigError(
            f"products.{section.name}.training: id matches labels to the survey's objects, and "
            "magnitudes are the label table's own: leave one of them out"
        )
    stamps = section.training.images is not None
    if stamps and (section.training.magnitudes or section.training.id):
        raise ConfigError(
            f"products.{section.name}.training: images names a folder of stamps, which need "
            "neither magnitudes nor id: leave them out"
        )
    bands = tuple(section.training.magnitudes)
    if section.training.of_blends:
        bands = _blends(config, section).bands
    elif stamps:
        bands = tuple(section.training.bands) or COLOURS
    if not bands:
        bands = _model_bands(section, _survey_bands(config, section, section.training.bands))
    try:
        settings = section.architecture_settings
        network = build(section.architecture or section.model, bands, settings)
        if section.training.of_blends:
            check_targets(network.tasks, _of_blends(network))
        else:
            check_targets(network.tasks, target_columns(section.training))
        if stamps and not network.reads.cutout:
            raise ConfigError("training.images: this network reads no images")
    except ConfigError as error:
        raise ConfigError(f"products.{section.name}: {error}") from error
    return network


def labelled_blends(config: SurveyConfig, section: ModelSection) -> TrainingSet:
    """The blends that `training.images` of a product names, with what its network learns of them.

    Raises
    ------
    ConfigError, InputError
        As `untrained`.
    """
    network = untrained(config, section)
    learned = _of_blends(network)
    return blend_training_set(
        _blends(config, section),
        fluxes=FLUXES in learned,
        classes=CLASS in learned,
        told=bool(network.reads.neighbours),
    )


def _blends(config: SurveyConfig, section: ModelSection) -> TrainingCube:
    """The cube of blends of a product; ConfigError if other keys name labels or bands."""
    training = section.training
    assert training is not None
    assert training.images is not None
    others = [key for key in ("redshift", "targets", "bands") if getattr(training, key)]
    if others:
        raise ConfigError(
            f"products.{section.name}.training: images without a source are a cube of blends, "
            f"which has its own truth and bands: leave out {', '.join(others)}, or name the source"
        )
    return open_blends(config.resolve(training.images))


def _of_blends(network: Network) -> list[str]:
    """The targets of a network that a cube of blends holds."""
    names = [target.name for task in network.tasks for target in task.targets]
    return [name for name in names if name in (FLUXES, MASKS, CLASS)]


def measured_training_set(survey: Survey, section: ModelSection, places: Places) -> TrainingSet:
    """What the survey holds of every object that has a label, sorted by position on the sky.

    Fluxes are those that the earlier products write, or else those that the catalog holds; errors
    that nobody has are NaN. Cutouts are there if the network reads them, larger by the shift on
    each side. The bands are those of the survey, or `training.bands` of them, under the names that
    the model has for them. A training cube keeps it all for the next time.

    Raises
    ------
    ConfigError
        As `untrained`, and if nobody has a flux that the network reads.
    InputError
        If no label matches an object.
    """
    reads = untrained(survey.config, section).reads
    assert section.training is not None
    chosen = _survey_bands(survey.config, section, section.training.bands)
    bands = _model_bands(section, chosen)
    own = dict(zip(bands, chosen, strict=True))
    read = [own[band] for band in reads.features]
    _check_fluxes(survey, section, read)
    cube = build_training_cube(
        survey,
        section,
        places,
        bands=[own[band] for band in reads.images],
        cutout=reads.cutout + 2 * section.training.shift if reads.cutout else 0,
    )
    table = cube.index
    lone = cube.record["labels"] - table.num_rows
    return TrainingSet(
        flux=_fluxes(table, "flux", chosen, read, section.fluxes),
        flux_err=_fluxes(table, "flux_err", chosen, read, section.fluxes),
        targets={
            name.removeprefix(TARGET): _target(table[name])
            for name in table.column_names
            if name.startswith(TARGET)
        },
        ra=table["ra"].to_numpy(),
        dec=table["dec"].to_numpy(),
        bands=bands,
        dropped={
            **cube.record["labels_dropped"],
            **({"labels without an object of their own": lone} if lone else {}),
        },
        reddening=table["ebv"].to_numpy(),
        cube=cube if reads.cutout else None,
        cube_row=np.arange(table.num_rows) if reads.cutout else None,
        no_image=table["no_image"].to_numpy() if reads.cutout else None,
    )


def _fluxes(
    table: pa.Table, kind: str, bands: Sequence[str], read: Sequence[str], product: str | None
) -> NDArray[np.float64]:
    """Fluxes or errors of the bands, shape (n, band); as a run gives them to the network."""
    found = np.stack([_floats(table, f"{kind}_{band}") for band in bands], axis=1)
    if product is not None and read:
        starts = (kind, f"{product}_{kind}", f"{product}_flux")
        names = [f"{start}_{band}" for start in starts for band in read]
        columns = {name: _floats(table, name) for name in names}
        places = [list(bands).index(band) for band in read]
        found[:, places] = better_fluxes(columns, kind, read, product)
    return found


def _check_fluxes(survey: Survey, section: ModelSection, bands: Sequence[str]) -> None:
    starts = ["flux", *([f"{section.fluxes}_flux"] if section.fluxes else [])]
    fluxes = [f"{start}_{band}" for start in starts for band in bands]
    held = {column.name: column for column in read_catalog(survey.store, survey.name).columns}
    before = build_products(survey, section)
    written = {column.name for product in before for column in product.columns}
    check_fluxes(section.name, [held[name] for name in fluxes if name in held.keys() - written])
    absent = [name for name in fluxes if name not in held.keys() | written]
    if absent:
        raise ConfigError(
            f"products.{section.name}: training needs {', '.join(absent)}, which neither the "
            "catalog nor an earlier product has; list the product that writes them first"
        )


def _survey_bands(
    config: SurveyConfig, section: ModelSection, wanted: Sequence[str]
) -> tuple[str, ...]:
    """The wanted bands in the survey's order; all of them if none is named."""
    unknown = sorted(set(wanted) - set(config.bands))
    if unknown:
        raise ConfigError(
            f"products.{section.name}.training.bands: the survey has no band {unknown[0]!r}, only "
            + ", ".join(config.bands)
        )
    return tuple(band for band in config.bands if not wanted or band in wanted)


def _model_bands(section: ModelSection, bands: Sequence[str]) -> tuple[str, ...]:
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


def _target(column: pa.ChunkedArray) -> NDArray[Any]:
    """Text as objects, lists as (n, k), numbers as they are."""
    if pa.types.is_fixed_size_list(column.type):
        flat = np.asarray(column.combine_chunks().flatten())
        return flat.reshape(len(column), column.type.list_size)
    return np.asarray(column)


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column as float64; NaN if it is absent."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    values: NDArray[np.float64] = table[name].to_numpy()
    return values
