"""The products of a survey, built from its configuration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from surveyproc import schemas
from surveyproc.catalogs import neighbours, rows
from surveyproc.catalogs.ingest import open_source, read_catalog
from surveyproc.config import SurveyConfig
from surveyproc.config.inputs import CatalogSection
from surveyproc.config.kinds import kind_of, load_kind
from surveyproc.config.sections import ProductSection
from surveyproc.errors import ConfigError, near_or_all
from surveyproc.products.base import Kind, Product, pixels_of, tables_of
from surveyproc.products.catalog_photometry import CatalogPhotometry, check_number
from surveyproc.schemas import Column
from surveyproc.survey import Survey


def build_products(survey: Survey, before: ProductSection | None = None) -> tuple[Product, ...]:
    """Every product of `config`: the catalog's own photometry, then as the file lists them.

    Parameters
    ----------
    config : SurveyConfig
        The survey.
    store : Store
        Its root, with the ingested catalog.
    before : ProductSection, optional
        Only products before this one.

    Raises
    ------
    ConfigError
        If a product is unknown or none is configured, an aperture is too large for the pixels of
        some tile, or the catalog's photometry has no columns.
    InputError
        If a model package is missing; the message says how to train it.
    """
    sections = survey.config.products
    if before is not None:
        sections = sections[: sections.index(before)]
    own: list[Product] = []
    if survey.config.catalog.magnitudes or survey.config.catalog.fluxes:
        catalog = read_catalog(survey.store, survey.name)
        own.append(CatalogPhotometry(survey.config.catalog, catalog.columns))
    if not (survey.config.products or own):
        raise ConfigError("products: none is configured; add a [[products]] section")
    return (*own, *(build_product(section, survey) for section in sections))


def build_product(section: ProductSection, survey: Survey) -> Product:
    """One product, as its kind builds it."""
    kind: type[Kind] = load_kind(kind_of(section.name, section.kind))
    return kind.build(section, survey)


def check_columns(products: Sequence[Product], catalog_columns: Sequence[Column]) -> None:
    """Refuse a product that reads a column which is not there, or writes one that another writes.

    A column of the source may have a name that a product writes too: see `carried_columns`.

    Raises
    ------
    ConfigError
        Naming the product, the columns, and what is there; also if it reads fluxes of the catalog
        that are not in nJy.
    """
    held = {column.name: column for column in catalog_columns}
    known = {column.name for column in schemas.load("object")}
    for product in products:
        read = product.inputs.columns
        check_fluxes(product.name, [held[name] for name in read if name in held.keys() - known])
        absent = [name for name in read if name not in known | held.keys()]
        if absent:
            raise ConfigError(
                f"products.{product.name} reads {', '.join(absent)}, which neither the catalog nor "
                "an earlier product has; list the product that writes them first"
            )
        written = [column.name for column in product.columns]
        for column in product.columns:
            if column.searched and not neighbours.can_index(column):
                raise ConfigError(
                    f"products.{product.name}: {column.name} is to have an index, and is no list "
                    f"of int8 or int16 of {neighbours.LONGEST} bytes at most"
                )
        twice = sorted(known.intersection(written))
        if twice:
            raise ConfigError(
                f"products.{product.name} writes {', '.join(twice)}, which an earlier product "
                "writes already"
            )
        once = set(written)
        if len(once) != len(written):
            names = ", ".join(sorted(name for name in once if written.count(name) > 1))
            raise ConfigError(
                f"products.{product.name} would write {names} twice: name a band in images.bands "
                "otherwise"
            )
        known.update(written)
    tables = [table.name for product in products for table in tables_of(product)]
    arrays = [array.name for product in products for array in pixels_of(product)]
    beside = Counter([*tables, *arrays])
    for name, times in beside.items():
        if times > 1 or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            why = "two products write it" if times > 1 else "letters, digits and _ make a name"
            raise ConfigError(f"products: a table or array of pixels is called {name!r}: {why}")


def check_fluxes(product: str, columns: Iterable[Column]) -> None:
    """Refuse fluxes of the catalog, read as they are, that say another unit than ours.

    Raises
    ------
    ConfigError
        Naming the column and its unit.
    """
    for column in columns:
        if column.name.startswith("flux_") and column.unit not in ("", "nJy"):
            raise ConfigError(
                f"products.{product} reads {column.name} in nJy, and the catalog has it in "
                f"{column.unit}: name it in [catalog.fluxes], which converts it"
            )


def carried_columns(
    section: CatalogSection, catalog_columns: Sequence[Column], products: Sequence[Product]
) -> dict[str, Column]:
    """The source's columns that the release carries, by their names in the ingested catalog.

    One whose name a product writes gets another, see `schemas.source_name`.

    Raises
    ------
    ConfigError
        If `catalog.columns` names what the catalog does not have, or a new name is taken.
    """
    written = {column.name for product in products for column in product.columns}
    held = {column.name: column for column in catalog_columns[len(schemas.load("object")) :]}
    chosen = check_chosen(section, held)
    carried = {}
    for name in chosen:
        column = held[name]
        if name in written:
            column = replace(column, name=schemas.source_name(name))
            if column.name in held or column.name in written:
                raise ConfigError(
                    f"the catalog's column {name!r} has the name of a product's, and "
                    f"{column.name!r} is taken: leave it out of catalog.columns"
                )
        carried[name] = column
    return carried


def check_chosen(section: CatalogSection, held: Mapping[str, Column]) -> list[str]:
    """Names of the source's columns that `catalog.columns` chooses, of those that are held.

    Raises
    ------
    ConfigError
        Naming a column that is not there.
    """
    if isinstance(section.columns, str):
        return list(held) if section.columns == "all" else []
    # Ids and positions are carried in any case, under our names.
    ours = {section.id or "object_id", section.ra, section.dec}
    chosen = [name for name in dict.fromkeys(section.columns) if name in held or name not in ours]
    for name in chosen:
        if name not in held:
            raise ConfigError(
                f"catalog.columns: the catalog has no column {name!r}" + near_or_all(name, held)
            )
    return chosen


def check_source(config: SurveyConfig) -> None:
    """Hold what [catalog] says against the source's own columns; reads no row.

    Raises
    ------
    InputError
        If the source cannot be opened, or id or positions are no columns of it.
    ConfigError
        If another key names a column that is not there or has no numbers, or a flux has no unit.
    """
    section = config.catalog
    with open_source(config) as reader:
        names = rows.roles(reader, section)
        carried = rows.stored_columns(reader, names)[1]
    held = {column.name: column for column in carried.values()}
    if section.reddening:
        check_number("catalog.reddening", section.reddening, held)
    check_chosen(section, held)
    CatalogPhotometry(section, tuple(held.values()))
