"""The products of a survey, built from its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from surveyproc.config import ProductSection, SurveyConfig
from surveyproc.errors import ConfigError, InputError
from surveyproc.images.cube import finest_tile
from surveyproc.measure.aperture import AperturePhotometry, cutout_for
from surveyproc.models.package import load_package
from surveyproc.models.photoz import PhotozProduct
from surveyproc.product import Product
from surveyproc.storage import Store


def build_products(config: SurveyConfig, store: Store) -> tuple[Product, ...]:
    """Every product of `config`, in the order in which the file lists them.

    Raises
    ------
    ConfigError
        If a product is unknown or none is configured, or an aperture is too large for the pixels
        of some tile.
    InputError
        If a model package is missing; the message says how to train it.
    """
    if not config.products:
        raise ConfigError("products: none is configured; add a [[products]] section")
    return tuple(build_product(section, config, store) for section in config.products)


def build_product(section: ProductSection, config: SurveyConfig, store: Store) -> Product:
    """One product, its model loaded if it has one; photometry with cutouts that fit all tiles."""
    if section.name == "photometry":
        bands = tuple(config.images.bands)
        finest = finest_tile(store)
        if finest is None:
            return AperturePhotometry(bands, section.aperture)
        return AperturePhotometry(bands, section.aperture, cutout_for(section.aperture, *finest))
    if section.name == "photoz" or section.name.startswith("photoz_"):
        if section.model is None:
            raise ConfigError(f"key 'products.{section.name}.model' is missing: name a package")
        try:
            # Anything with a slash is a folder, relative to survey.toml.
            model = config.resolve(section.model) if "/" in section.model else section.model
            package = load_package(store, model)
        except InputError as error:
            hint = "" if "/" in section.model else "; `surveyproc train` makes it"
            raise InputError(f"products.{section.name}.model: {error}{hint}") from error
        return PhotozProduct(
            package,
            section.bands,
            name=section.name,
            reddening=config.catalog.reddening,
            survey_bands=config.images.bands,
        )
    raise ConfigError(
        f"products: {section.name!r} is not a product; known: photometry, photoz, photoz_<any>"
    )


def check_columns(products: Sequence[Product], catalog_columns: Iterable[str]) -> None:
    """Refuse a product that reads a column which is not there, or writes one that is, or one twice.

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
        once = set(written)
        if len(once) != len(written):
            names = ", ".join(sorted(name for name in once if written.count(name) > 1))
            raise ConfigError(
                f"products.{product.name} would write {names} twice: name a band in images.bands "
                "otherwise"
            )
        known.update(written)
