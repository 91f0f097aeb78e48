"""What can be known before any work is done: asked first, and told all at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from surveyproc.catalogs.ingest import read_catalog, record_key
from surveyproc.catalogs.readers import open_table
from surveyproc.config import SurveyConfig
from surveyproc.config.sections import LabelsSection, ModelSection, ProductSection, TrainingSection
from surveyproc.errors import ConfigError, InputError, StoreError, near
from surveyproc.images.cube import read_tiles
from surveyproc.models.package import trained_by
from surveyproc.products.registry import build_product, check_source
from surveyproc.run.plan import Plan, make_plan
from surveyproc.store.storage import Store
from surveyproc.store.urls import public_url
from surveyproc.survey import Survey

Check = Callable[[], Any]


def told(checks: Iterable[Check]) -> None:
    """Do all checks; what they find wrong in one error, one line each.

    Raises
    ------
    ConfigError, InputError
        If one of them found something: what it raised, or several together.
    """
    found: dict[str, ConfigError | InputError] = {}
    for check in checks:
        try:
            check()
        except (ConfigError, InputError) as error:
            found.setdefault(str(error), error)
    if not found:
        return
    first, *others = found.values()
    if others:
        lines = "\n".join(f"- {message}" for message in found)
        raise type(first)(f"{len(found)} things to mend before anything is done:\n{lines}")
    raise first


def before_ingest(survey: Survey) -> None:
    """What an ingest needs, and what later verbs need of survey.toml and of the label tables.

    Reads the headers of tables and no FITS file of images; loads no model.

    Raises
    ------
    ConfigError, InputError
        With everything that was found.
    StoreError
        If nothing can be written under the root.
    """
    told(
        [
            *_settings(survey.config),
            survey.config.tile_files,
            partial(check_source, survey.config),
            *_labels(survey.config),
        ]
    )
    writable(survey.store)


def before_night(survey: Survey) -> None:
    """As `before_ingest`, and that models are there; a broken catalog has a last good one."""
    checks = [
        *_settings(survey.config),
        survey.config.tile_files,
        *_models(survey),
        *_truth(survey.config),
    ]
    if not survey.store.exists(record_key(survey.name)):
        checks.append(partial(check_source, survey.config))
    told(checks)
    writable(survey.store)


def before_training(survey: Survey, sections: Sequence[ModelSection]) -> None:
    """That networks can be built, label tables have their columns, and the survey what it needs.

    Raises
    ------
    ConfigError, InputError
        With everything that was found.
    StoreError
        If nothing can be written under the root.
    """
    from surveyproc.train.labels import untrained  # which takes torch

    checks = list(_settings(survey.config))
    for section in sections:
        checks.append(partial(untrained, survey.config, section))
        assert section.training is not None
        checks.append(partial(_own_model, survey, section))
        checks += _table(survey.config, f"products.{section.name}.training", section.training)
        if not section.training.magnitudes and section.training.images is None:
            checks.append(partial(read_catalog, survey.store, survey.name))
            before = survey.config.products[: survey.config.products.index(section)]
            # Those that are trained now will be there when they are wanted.
            checks += _models(survey, [one for one in before if one not in sections])
    told(checks)
    writable(survey.store)


def planned(survey: Survey) -> Plan:
    """The plan of a run; if there is none, all that stands in its way.

    Raises
    ------
    ConfigError, InputError
        With everything that was found.
    """
    told(_settings(survey.config))
    try:
        return make_plan(survey)
    except (ConfigError, InputError) as error:
        first = error

    def again() -> None:
        raise first

    name = survey.name
    told(
        [
            again,
            partial(read_catalog, survey.store, name),
            *([partial(read_tiles, survey.store, name)] if survey.config.images.tiles else []),
            *_models(survey),
        ]
    )
    raise first


def writable(store: Store) -> None:
    """Write something under the root and remove it.

    Raises
    ------
    StoreError
        If that cannot be done.
    """
    try:
        store.probe()
    except StoreError as error:
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
        raise StoreError(
            f"survey.root: nothing can be written under {public_url(store.url)} "
            f"({reason or error}): name another place, in survey.toml or with "
            "--set survey.root=PLACE"
        ) from error


def _settings(config: SurveyConfig) -> Iterator[Check]:
    """Names in survey.toml that must be those of something else in it."""
    yield partial(_bands, config)
    yield partial(_file_pattern, config)


def _bands(config: SurveyConfig) -> None:
    bands, gain = config.images.bands, config.images.gain
    for key, names in (("zeropoints", config.images.zeropoints), ("gain", gain)):
        for name in names if isinstance(names, dict) else ():
            if name not in bands:
                raise ConfigError(
                    f"images.{key}: {name!r} is not in images.bands ({', '.join(bands)})"
                    + near(name, bands)
                )


def _file_pattern(config: SurveyConfig) -> None:
    pattern = config.images.file_pattern
    try:
        groups = re.compile(pattern or "").groupindex
    except re.error as error:
        raise ConfigError(f"images.file_pattern: {pattern!r} is no pattern: {error}") from error
    if pattern is not None and not groups.keys() & {"tile", "band", "kind"}:
        raise ConfigError(
            f"images.file_pattern: {pattern!r} has no group named tile, band or kind, as "
            "(?P<band>...) is one"
        )


def _own_model(survey: Survey, section: ModelSection) -> None:
    """A training makes its model the current one of that name for all surveys under the root."""
    other = trained_by(survey.store, section.model)
    if other not in ("", survey.name):
        network = section.architecture or section.model
        raise ConfigError(
            f"products.{section.name}.model: {section.model!r} was trained by survey {other!r}, "
            "which lies under the same root and would be given this one: name it otherwise, with "
            f'architecture = "{network}"'
        )


def _models(survey: Survey, sections: Iterable[ProductSection] | None = None) -> Iterator[Check]:
    for section in survey.config.products if sections is None else sections:
        yield partial(build_product, section, survey)


def _labels(config: SurveyConfig) -> Iterator[Check]:
    for section in config.networks:
        if section.training is not None:
            yield from _table(config, f"products.{section.name}.training", section.training)
    yield from _truth(config)


def _truth(config: SurveyConfig) -> Iterator[Check]:
    if config.truth is not None:
        yield from _table(config, "truth", config.truth)


def _table(config: SurveyConfig, key: str, section: LabelsSection | TrainingSection) -> list[Check]:
    """Every configured column of a label table, by the key that names it."""
    wanted = {name: getattr(section, name) for name in ("ra", "dec", "redshift", "select")}
    if isinstance(section, TrainingSection):
        if section.id or section.images is not None:
            del wanted["ra"], wanted["dec"]
            wanted["id" if section.id else "file"] = section.id or section.file
        for target, names in section.targets.items():
            for number, name in enumerate(names):
                place = f"[{number}]" if len(names) > 1 else ""
                wanted[f"targets.{target}{place}"] = name
        for kind in ("magnitudes", "magnitude_errors"):
            wanted |= {f"{kind}.{band}": name for band, name in getattr(section, kind).items()}

    def check() -> None:
        if isinstance(section, TrainingSection) and section.of_blends:
            return
        url = config.resolve(section.source)
        wanted_here = [name for name in wanted.values() if name]
        with open_table(url, section.table, wanted_here) as table:
            names = list(table.names)
        absent = {
            f"{key}.{one}": name for one, name in wanted.items() if name not in (None, *names)
        }
        if absent:
            each = ", ".join(f"{name!r} ({one})" for one, name in absent.items())
            raise InputError(f"{public_url(url)}: no column {each}; there are {', '.join(names)}")

    return [check]
