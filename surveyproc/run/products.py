"""The products of a survey, built from its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from surveyproc.config import ProductSection, SurveyConfig
from surveyproc.errors import ConfigError, InputError, near
from surveyproc.measure.aperture import AperturePhotometry
from surveyproc.models.package import load_package
from surveyproc.models.photoz import PhotozProduct
from surveyproc.product import Product
from surveyproc.storage import Store


def build_products(config: SurveyConfig, store: Store) -> tuple[Product, ...]:
    """Every product of `config`, in the order in which the file lists them.

    Raises
    ------
    ConfigError
        If a product is unknown or none is configured.
    InputError
        If a model package is missing; the message says how to train it.
    """
    if not config.products:
        raise ConfigError("products: none is configured; add a [[products]] section")
    return tuple(build_product(section, config, store) for section in config.products)


def check_kind(section: ProductSection) -> None:
    """Refuse a product of no kind, or one without the model that its kind needs.

    Raises
    ------
    ConfigError
        Naming the product.
    """
    kind = section.name.partition("_")[0]
    if section.name != "photometry" and kind != "photoz":
        raise ConfigError(
            f"products: {section.name!r} is not a product; known: photometry, photoz, photoz_<any>"
            + near(section.name, ["photometry", "photoz"])
        )
    if kind == "photoz" and section.model is None:
        raise ConfigError(f"key 'products.{section.name}.model' is missing: name a package")


def build_product(section: ProductSection, config: SurveyConfig, store: Store) -> Product:
    """One product, its model loaded if it has one."""
    check_kind(section)
    if section.name == "photometry":
        return AperturePhotometry(tuple(config.images.bands), section.aperture)
    assert section.model is not None
    try:
        # Anything with a slash is a folder, relative to survey.toml.
        model = config.resolve(section.model) if "/" in section.model else section.model
        package = load_package(store, model)
    except InputError as error:
        raise InputError(f"products.{section.name}.model: {error}") from error
    return PhotozProduct(
        package,
        section.bands,
        name=section.name,
        reddening=config.catalog.reddening,
        survey_bands=config.images.bands,
    )


def check_columns(products: Sequence[Product], catalog_columns: Iterable[str]) -> None:
    """Refuse a product that reads a column which is not there, or writes one that is.

    Raises
    ------
    ConfigError
        Naming the product, the columns, and what is there.
    """
    known = set(catalog_columns)
    for product in products:
        absent = [column for column in product.inputs.columns if column not in known]
        if absent:
            raise ConfigError(
                f"products.{product.name} reads {', '.join(absent)}, which neither the catalog nor "
                "an earlier product has; list the product that writes them first"
            )
        written = [column.name for column in product.columns]
        twice = sorted(known.intersection(written))
        if twice:
            raise ConfigError(
                f"products.{product.name} writes {', '.join(twice)}, which the catalog or an "
                "earlier product has already"
            )
        known.update(written)
