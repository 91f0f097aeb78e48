"""survey.toml, loaded and checked. Every error names the file and the key.

Precedence: `--set section.key=value`, then the file, then `SURVEYPROC_SECTION_KEY` variables, then
defaults.
"""

from __future__ import annotations

import copy
import difflib
import glob
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import fsspec
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator
from pydantic.json_schema import models_json_schema

from surveyproc.config.inputs import CatalogSection, ImagesSection
from surveyproc.config.kinds import OWN, load_kind, section_class
from surveyproc.config.sections import (
    GatesSection,
    LabelsSection,
    ModelSection,
    NightlySection,
    ProductSection,
    RunSection,
    Section,
    SurveySection,
)
from surveyproc.errors import ConfigError, StoreError
from surveyproc.store.urls import is_web, public_url


def _of_its_kind(given: Any) -> Any:
    """The section of a product as its kind wants it; what names no product is left to pydantic."""
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        return given
    kind = given.get("kind")
    if kind is not None and not isinstance(kind, str):
        return given
    return section_class(given["name"], kind).model_validate(given)


AnyProduct = Annotated[SerializeAsAny[ProductSection], BeforeValidator(_of_its_kind)]


class SurveyConfig(Section):
    """The whole of survey.toml."""

    survey: SurveySection
    images: ImagesSection = Field(
        default_factory=ImagesSection,  # type: ignore[arg-type]
        description="Absent if the catalog brings the photometry.",
    )
    catalog: CatalogSection
    products: list[AnyProduct] = Field(default_factory=list)
    truth: LabelsSection | None = Field(None, description="Known redshifts for `evaluate`.")
    gates: GatesSection = Field(default_factory=GatesSection)  # type: ignore[arg-type]
    nightly: NightlySection = Field(default_factory=NightlySection)  # type: ignore[arg-type]
    run: RunSection = Field(default_factory=RunSection)  # type: ignore[arg-type]
    base: str = Field(".", exclude=True, description="Folder of survey.toml; set by the loader.")

    @model_validator(mode="after")
    def _bands_and_products(self) -> SurveyConfig:
        if len(set(self.images.bands)) != len(self.images.bands):
            raise ValueError("images.bands: a band is named twice")
        if not self.bands or (self.images.tiles and not self.images.bands):
            raise ValueError(
                "key 'images.bands' is missing: name the survey's bands, or the catalog's columns "
                "of each in [catalog.magnitudes] or [catalog.fluxes]"
            )
        if twice := sorted(set(self.catalog.magnitudes) & set(self.catalog.fluxes)):
            raise ValueError(f"catalog.fluxes: band {twice[0]!r} is in catalog.magnitudes too")
        names = [product.name for product in self.products]
        if len(set(names)) != len(names):
            raise ValueError("products: two products share a name")
        for product in self.networks:
            for band in product.bands.values():
                if band and band not in self.bands:
                    raise ValueError(
                        f"products.{product.name}.bands: {band!r} is not in images.bands "
                        f"({', '.join(self.bands)})"
                    )
        models = [product.model for product in self.networks]
        for model in models:
            if models.count(model) > 1:
                raise ValueError(
                    f"products: two of them have the model {model!r}, so their columns would have "
                    "the same names; give one network another name with `architecture`"
                )
        return self

    @property
    def bands(self) -> tuple[str, ...]:
        """The survey's bands: those of its images, then those of the catalog's own photometry."""
        own = (*self.catalog.magnitudes, *self.catalog.fluxes)
        return tuple(dict.fromkeys((*self.images.bands, *own)))

    @property
    def networks(self) -> list[ModelSection]:
        """The products that a network computes."""
        return [product for product in self.products if isinstance(product, ModelSection)]

    def trainable(self, name: str | None = None) -> list[ModelSection]:
        """The products whose network is to be trained, or the one called `name`.

        Raises
        ------
        ConfigError
            If there is none, or that one has no training section.
        """
        if name is not None:
            product = self.product(name)
            if not isinstance(product, ModelSection) or product.training is None:
                raise ConfigError(
                    f"products.{name}: training needs `model` and a [products.training] section"
                )
            return [product]
        found = [product for product in self.networks if product.training is not None]
        if not found:
            raise ConfigError("products: none has a [products.training] section; add one to train")
        return found

    @property
    def root(self) -> str:
        """The root as an absolute path or a URL."""
        return self.resolve(self.survey.root)

    def resolve(self, path: str) -> str:
        """A path of survey.toml, relative to the file's folder, as an absolute path or URL."""
        return path if "://" in path else str((Path(self.base) / path).absolute())

    def tile_files(self) -> list[str]:
        """The tile files, globs expanded, sorted, each once.

        Raises
        ------
        ConfigError
            If a pattern matches nothing.
        """
        found: set[str] = set()
        for pattern in self.images.tiles:
            # The folder of survey.toml is no pattern, whatever characters its name has.
            anchored = str(Path(glob.escape(str(Path(self.base).absolute()))) / pattern)
            remote = "://" in pattern
            matches = _url_glob(pattern) if remote else glob.glob(anchored, recursive=True)
            if not matches:
                where = "" if remote else f" in {self.base}"
                raise ConfigError(f"images.tiles: {public_url(pattern)!r} matches no file{where}")
            found.update(matches)
        return sorted(found)

    def product(self, name: str) -> ProductSection:
        """The product section called `name`.

        Raises
        ------
        ConfigError
            If there is none.
        """
        for product in self.products:
            if product.name == name:
                return product
        known = ", ".join(product.name for product in self.products) or "none"
        raise ConfigError(f"products: no product is called {name!r} (there are: {known})")


def _url_glob(pattern: str) -> list[str]:
    """URLs that match; a web address is taken as it is, since its query begins with `?`."""
    if is_web(pattern) or not re.search(r"[*?[]", pattern):
        return [pattern]
    fs, path = fsspec.core.url_to_fs(pattern)
    try:
        return [str(fs.unstrip_protocol(found)) for found in fs.glob(path)]
    except OSError as error:
        raise StoreError(f"images.tiles: cannot list {public_url(pattern)}: {error}") from error


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> SurveyConfig:
    """Read and validate survey.toml.

    Parameters
    ----------
    path : path
        The file.
    overrides : iterable of str
        `section.key=value` items, as given to `--set`.
    environment : mapping, optional
        Where `SURVEYPROC_*` variables are looked up; the process's environment by default.

    Raises
    ------
    ConfigError
        If the file is missing, is not TOML, or a key is unknown or has a wrong value.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of its syntax, its characters, huge numbers
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    env = os.environ if environment is None else environment
    merged = _from_environment(env)
    _merge(merged, document)
    for item in overrides:
        _override(merged, item)
    merged["base"] = str(path.parent.absolute())
    try:
        return SurveyConfig.model_validate(merged)
    except ValidationError as error:
        lines = [f"{path}: {_explain(dict(problem), merged)}" for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def json_schema() -> dict[str, Any]:
    """The JSON Schema of survey.toml with our own kinds of products."""
    document = SurveyConfig.model_json_schema()
    classes = {kind: load_kind(kind).Section for kind in OWN}
    _, found = models_json_schema(
        [(one, "validation") for one in dict.fromkeys(classes.values())],
        ref_template="#/$defs/{model}",
    )
    document["$defs"] |= found["$defs"]
    names = dict.fromkeys(one.__name__ for one in classes.values())
    document["properties"]["products"]["items"] = {
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in names]
    }
    return document


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, field in SurveyConfig.model_fields.items():
        prefix = f"SURVEYPROC_{section}_".upper()
        given = sorted(variable for variable in environment if variable.startswith(prefix))
        model = _section_of(field.annotation)
        if model is None:
            if given:
                raise ConfigError(f"{given[0]}: {section} cannot be set by a variable; use --set")
            continue
        known = {f"{prefix}{key.upper()}": key for key in model.model_fields}
        for variable in given:
            if variable not in known:
                close = difflib.get_close_matches(variable, known, n=1, cutoff=0.0)
                raise ConfigError(f"{variable}: unknown; the nearest known variable is {close[0]}")
            found.setdefault(section, {})[known[variable]] = _value(environment[variable])
    return found


def _section_of(annotation: Any) -> type[Section] | None:
    """The section model in `Section` or `Section | None`; None for anything else."""
    options = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _override(document: dict[str, Any], item: str) -> None:
    dotted, equals, text = item.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys) or len(keys) < 2:
        raise ConfigError(f"--set {item!r}: write section.key=value, for example run.workers=2")
    place: Any = document
    for key in keys[:-1]:
        if isinstance(place, list):
            tables = [entry for entry in place if isinstance(entry, dict)]
            named = [entry for entry in tables if entry.get("name") == key]
            if not named:
                raise ConfigError(f"--set {item!r}: no {keys[0]} entry is called {key!r}")
            place = named[0]
        else:
            place = place.setdefault(key, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"--set {item!r}: {key!r} is a value, not a section")
    if isinstance(place, list):
        raise ConfigError(
            f"--set {item!r}: name the entry too, for example products.photoz.model=x"
        )
    place[keys[-1]] = _value(text.strip())


def _explain(problem: dict[str, Any], document: Mapping[str, Any]) -> str:
    location = [part for part in problem["loc"] if not isinstance(part, int)]
    indexes = [part for part in problem["loc"] if isinstance(part, int)]
    if location[:1] == ["products"] and indexes:
        entry = document["products"][indexes[0]]
        name = entry.get("name") if isinstance(entry, dict) else None
        location.insert(1, name or str(indexes[0]))
    dotted = ".".join(str(part) for part in location) or "survey.toml"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1], document)
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        return f"unknown key {dotted!r}; the nearest known key is {close[0]!r}"
    if problem["type"] == "missing":
        return f"key {dotted!r} is missing"
    if problem["type"] == "model_type":
        return f"key {dotted!r}: must be a section (a table), not {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message if dotted == "survey.toml" else f"key {dotted!r}: {message}"
    return f"key {dotted!r}: {message}, not {problem['input']!r}"


def _known_keys(location: tuple[Any, ...], document: Mapping[str, Any]) -> list[str]:
    model: type[Section] = SurveyConfig
    if location[:1] == ("products",) and len(location) > 1:
        entry = document["products"][location[1]]
        model, location = section_class(entry["name"], entry.get("kind")), location[2:]
    for part in location:
        if isinstance(part, int):
            continue
        if part not in model.model_fields:
            continue  # the key of a table whose keys are free
        annotation = model.model_fields[part].annotation
        inner = typing.get_args(annotation)
        inside = (_section_of((typing.get_args(one) or (one,))[0]) for one in inner)
        found = _section_of(annotation) or next(filter(None, inside), None)
        model = found or model
    return [key for key in model.model_fields if key != "base"]
