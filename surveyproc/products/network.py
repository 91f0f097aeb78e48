"""A product around any packaged network: what it reads, its columns, its flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.config.sections import ModelSection, ProductSection, ScaledSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.images.stamp_kind import KIND
from surveyproc.models.package import Package, load_package
from surveyproc.models.tasks.columns import column_name
from surveyproc.products.base import Batch, Inputs, PixelArray, device
from surveyproc.products.fluxes import better_fluxes
from surveyproc.products.scaled import scaled_cutouts, window
from surveyproc.schemas import Column
from surveyproc.store.storage import fingerprint
from surveyproc.survey import Survey

# Planning needs a product's inputs and version, not torch.
if TYPE_CHECKING:
    from surveyproc.models.base import Network


ROUNDING = 2
"""Raised when networks of cutouts round otherwise than before: leaves never mix two ways."""


def column_prefix(model: str) -> str:
    """Column prefix of a model's name: `gaznet-c9` gives `gaznet_c9`.

    Examples
    --------
    >>> column_prefix("gaznet-c9"), column_prefix("9bands.v2")
    ('gaznet_c9', 'model_9bands_v2')
    """
    safe = column_name(model)
    return safe if safe[:1].isalpha() else f"model_{safe}"


class NetworkProduct:
    """The values of a network's tasks; satisfies `surveyproc.products.base.Product`.

    Reads what the model's network reads: `flux_<band>` and `flux_err_<band>` (nJy), cutouts,
    E(B - V).

    A band that the survey does not have at all is missing for every object, if the model was
    trained to do without bands (its package says `absent_bands: mask`).

    Flag bits it sets: `missing_band` where a flux is null or not finite, or a cutout has no pixel
    in a band; `non_finite_input` as well where a flux is infinite (it counts as missing);
    `outside_training_range` where a magnitude or colour (without fluxes: the brightness at the
    centre of a cutout) lies outside the range of the training set, or the tile's pixels have
    another size than those it was trained on; `no_image` where every band of the fluxes, or of
    the cutout, is missing, which leaves nothing to predict from: all outputs are NaN, text is
    empty; `model_failure` where the network gave a non-finite value from usable inputs. Bits that
    the batch brings are kept, and with `blends` so is that product's `unrecognised_blend`.

    Parameters
    ----------
    package : Package
        The model.
    bands : mapping of str to str, optional
        Model band to survey band, where the names differ; to "" where the survey has none.
    name : str, optional
        Name of the product, and of its flag column; that of its kind by default.
    reddening : str, optional
        Catalog column with E(B - V), for a network that reads it; 0 without.
    survey_bands : sequence of str, optional
        The bands that the survey has; by default all that the model wants.
    scaled : ScaledSection, optional
        What cutouts are as wide as; by default all have the pixels of the survey. Sets
        `outside_training_range` where an object is too large for it.
    fluxes : str, optional
        An earlier product whose `<product>_flux_<band>` are read where it has them in all bands
        that the model reads, and `flux_<band>` elsewhere.
    blends : str, optional
        An earlier product that flags blends which nobody recognised.

    Raises
    ------
    ConfigError
        If `bands` names a band that the model does not have, or one survey band twice; if the
        survey lacks a band and the model does not do without, or it lacks them all, or it has
        bands that the model does not know and `bands` does not say that there is none.
    InputError
        If the weights do not fit the architecture.
    """

    kind: ClassVar[str] = "network"
    Section: ClassVar[type[ProductSection]] = ModelSection
    reads = "what its model wants: fluxes and errors, cutouts, reddening"
    writes = "the columns of its model's tasks"
    tells_neighbours: ClassVar[bool] = False

    @classmethod
    def build(cls, section: ModelSection, survey: Survey) -> Self:
        """The product of the section's model.

        Raises
        ------
        InputError
            If there is no such model; the message says how to train it.
        ConfigError
            As the class, and if the model reads cutouts of a band that [images] does not have.
        """
        config = survey.config
        try:
            # Anything with a slash is a folder, relative to survey.toml.
            model = config.resolve(section.model) if "/" in section.model else section.model
            package = load_package(survey.store, model)
        except InputError as error:
            raise InputError(f"products.{section.name}.model: {error}") from error
        if (stamps := package.document["training"].get(KIND)) and stamps["colour"]:
            raise ConfigError(
                f"products.{section.name}: model {section.model!r} learned from colour images of 8 "
                "bits, and the survey's cutouts are fluxes: train it with FITS stamps or with the "
                "cutouts, or ask it about a folder (models.stamps.predict_stamps)"
            )
        product = cls(
            package,
            section.bands,
            name=section.name,
            reddening=config.catalog.reddening,
            survey_bands=config.bands,
            fluxes=section.fluxes,
            blends=section.blends,
            scaled=section.scaled,
            **cls._more(section, survey),
        )
        unseen = [band for band in product.inputs.bands if band not in config.images.bands]
        if unseen:
            raise ConfigError(
                f"products.{section.name}: model {section.model!r} reads cutouts of band "
                f"{unseen[0]!r}, which [images] does not have ({', '.join(config.images.bands)})"
            )
        return product

    def __init__(
        self,
        package: Package,
        bands: Mapping[str, str] | None = None,
        *,
        name: str = "",
        reddening: str | None = None,
        survey_bands: Sequence[str] | None = None,
        fluxes: str | None = None,
        blends: str | None = None,
        scaled: ScaledSection | None = None,
    ) -> None:
        self.package = package
        self._name = name = name or self.kind
        self._check([str(task["kind"]) for task in package.tasks])
        if package.reads.get("neighbours") and not self.tells_neighbours:
            raise ConfigError(
                f"products.{name}: model {package.name!r} is told the places of neighbours, which "
                "products of kind deblend do"
            )
        chosen = dict(bands or {})
        known = dict.fromkeys((*package.reads["features"], *package.reads["images"]))
        unknown = sorted(set(chosen) - set(package.bands))
        if unknown:
            raise ConfigError(
                f"products.{name}.bands: model {package.name!r} has no band {unknown[0]!r}: "
                + _both(package.bands, survey_bands or chosen.values())
            )
        self.band_map = {band: chosen.get(band, band) for band in known}
        own = [band for band in self.band_map.values() if band]
        if len(set(own)) != len(own):
            raise ConfigError(f"products.{name}.bands: two model bands read the same survey band")
        present = set(own if survey_bands is None else survey_bands)
        self.absent = tuple(band for band, own in self.band_map.items() if own not in present)
        # A band under another name must not be taken for one that is lacking.
        undeclared = [band for band in self.absent if self.band_map[band]]
        doubtful = undeclared and present - set(own) - set(package.bands)
        willing = package.absent_bands == "mask" and len(self.absent) < len(self.band_map)
        if self.absent and (doubtful or not willing):
            why = (
                f"there are bands that model {package.name!r} does not know"
                if willing
                else f"model {package.name!r} cannot do without"
            )
            first = self.band_map[(undeclared or self.absent)[0]]
            raise ConfigError(
                f"products.{name}: the survey has no band {first!r}, and {why}: "
                + _both(package.bands, survey_bands or ())
                + f"; products.{name}.bands says which band of the model is which of the survey, "
                'or "" for none'
            )
        self._reddening = reddening if package.reads["reddening"] else None
        self._features = tuple(package.reads["features"])
        self._fluxes = fluxes if self._features else None
        self._blends = blends
        self._images = tuple(package.reads["images"])
        self._scaled = scaled
        if scaled is not None and not self._images:
            raise ConfigError(
                f"products.{name}.scaled: model {package.name!r} reads no cutouts: leave it out"
            )
        self._prefix = column_prefix(package.name)

    @classmethod
    def _more(cls, section: Any, survey: Survey) -> dict[str, Any]:
        """What else of a section a kind is made with."""
        return {}

    def _check(self, tasks: Sequence[str]) -> None:
        """Raise ConfigError if a model with tasks of these kinds is no use for this product."""

    @property
    def name(self) -> str:
        """The name it was given."""
        return self._name

    @property
    def inputs(self) -> Inputs:
        """Cutouts and columns, in the model's band order under the survey's names."""
        kinds = ("flux", "flux_err") if self.package.reads["errors"] else ("flux",)
        bands = self._here(self._features)
        columns = [f"{kind}_{band}" for kind in kinds for band in bands]
        if self._fluxes:
            columns += [f"{self._fluxes}_{kind}_{band}" for kind in kinds for band in bands]
        if self._blends:
            columns.append(f"{self._blends}_flag")
        planes = self._here(self._images)
        cutout = int(self.package.reads["cutout"]) if planes else 0
        if self._scaled is not None and cutout:
            columns.append(self._scaled.column)
            cutout = window(self._scaled, cutout, cutout)
        return Inputs(
            bands=planes,
            cutout=cutout,
            columns=(*columns, *((self._reddening,) if self._reddening else ())),
        )

    def _here(self, bands: Sequence[str]) -> tuple[str, ...]:
        """Those bands that the survey has, under its names."""
        return tuple(self.band_map[band] for band in bands if band not in self.absent)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those of its tasks under the model's name, and the flag."""
        own = schemas.load("network", product=self._name)
        return (*self.package.columns(self._prefix), *own)

    @property
    def pixels(self) -> tuple[PixelArray, ...]:
        """Arrays beside the columns that `compute` gives."""
        return tuple(PixelArray(*one) for one in self.package.pixels(self._prefix))

    @property
    def version(self) -> str:
        """Package version and a hash of names, band map, and how networks of cutouts round."""
        settings: list[Any] = [self._name, self._prefix, self.band_map]
        settings += [ROUNDING] if self.wants_device else []
        settings += [self._reddening, self.absent, *([self._fluxes] if self._fluxes else [])]
        settings += [self._scaled.model_dump()] if self._scaled else []
        settings += [f"blends of {self._blends}"] if self._blends else []
        return f"{self.package.version}-{fingerprint(settings)[:8]}"

    @cached_property
    def _network(self) -> Network:
        return self.package.network()

    @property
    def wants_device(self) -> bool:
        """Whether it reads cutouts: of fluxes alone a core computes more than are read."""
        return bool(self.package.reads["cutout"])

    def prepare(self) -> None:
        """Build the network and load its weights; raises as `Package.network` does."""
        _ = self._network

    def compute(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """Columns and pixels of `batch`; NaN where nothing could be predicted.

        See the class for flags.
        """
        from surveyproc.models.inference import predict

        n = len(batch.flags)
        empty: Any = np.zeros(n, bool)
        missing: Any = np.zeros(n, bool)
        infinite: Any = np.zeros(n, bool)
        cut_off: Any = np.zeros(n, bool)
        flux = errors = reddening = images = None
        if self._features:
            flux = self._columns(batch, "flux")
            if self.package.reads["errors"]:
                errors = self._columns(batch, "flux_err")
            present = np.isfinite(flux)
            empty |= ~present.any(axis=1)
            missing |= ~present.all(axis=1)
            infinite = np.isinf(flux).any(axis=1)
        if self.package.reads["cutout"]:
            if self._scaled is not None:
                side = int(self.package.reads["cutout"])
                scaled, cut_off = scaled_cutouts(batch, self._scaled, side, side, self._name)
                batch = replace(batch, images=scaled)
            images = self._planes(batch)
            seen: Any = np.isfinite(images).any(axis=(2, 3))
            empty |= ~seen.any(axis=1)
            missing |= ~seen.all(axis=1)
        if self.package.reads["reddening"]:
            reddening = np.zeros(n)
            if self._reddening:
                reddening = np.asarray(batch.columns[self._reddening], np.float64)
        values, outside = predict(
            self._network,
            self.package.scaling,
            flux,
            images,
            reddening,
            errors,
            self._places(batch),
            device=device() if self.wants_device else "cpu",
        )
        outside |= cut_off | self._other_pixels(batch)
        failed = np.zeros(n, bool)
        for column in values.values():
            within = tuple(range(1, column.ndim))
            if column.dtype.kind == "f":
                failed |= ~np.isfinite(column).all(axis=within)
            elif column.dtype.kind == "i":
                failed |= (column == schemas.nothing(column.dtype)).all(axis=within)
        failed &= ~empty
        flags = np.asarray(batch.flags, np.int32).copy()
        for name, where in (
            ("missing_band", missing),
            ("non_finite_input", infinite),
            ("no_image", empty),
            ("outside_training_range", outside & ~empty),
            ("model_failure", failed),
        ):
            flags[where] |= schemas.flag(name)
        if self._blends:
            theirs = np.asarray(batch.columns[f"{self._blends}_flag"], np.int32)
            flags |= theirs & np.int32(schemas.flag("unrecognised_blend"))
        out: dict[str, NDArray[Any]] = {}
        for key, column in values.items():
            column[empty | failed] = schemas.nothing(column.dtype)
            out[f"{self._prefix}_{key}"] = column
        out[f"{self._name}_flag"] = flags
        return out

    def _columns(self, batch: Batch, kind: str) -> NDArray[np.float64]:
        """Fluxes or their errors, shape (n, band); NaN in a band that the survey does not have."""
        found = np.full((len(batch.flags), len(self._features)), np.nan)
        here = [number for number, band in enumerate(self._features) if band not in self.absent]
        if here:
            bands = self._here(self._features)
            found[:, here] = better_fluxes(batch.columns, kind, bands, self._fluxes)
        return found

    def _planes(self, batch: Batch) -> NDArray[np.float32]:
        """Cutouts of the model's bands; NaN in a band that the survey does not have."""
        here = [number for number, band in enumerate(self._images) if band not in self.absent]
        if here and batch.images is None:
            raise ConfigError(f"products.{self._name}: the survey has no images")
        if batch.images is not None and len(here) == len(self._images):
            return batch.images
        side = int(self.package.reads["cutout"])
        found = np.full((len(batch.flags), len(self._images), side, side), np.nan, np.float32)
        if batch.images is not None:
            found[:, here] = batch.images
        return found

    def _places(self, batch: Batch) -> NDArray[np.float64] | None:
        """(x, y) of neighbours on the cutouts, for a network that is told them."""
        return None

    def _other_pixels(self, batch: Batch) -> NDArray[np.bool_]:
        """Where the tile's pixels differ from those of the training by more than 2 %."""
        trained = self.package.pixel_scale
        if trained is None or self._scaled is not None or batch.pixel_scale is None:
            return np.zeros(len(batch.flags), bool)
        return np.abs(batch.pixel_scale / trained - 1.0) > 0.02


def _both(model: Iterable[str], survey: Iterable[str]) -> str:
    return f"the model has {', '.join(model)}; the survey {', '.join(survey) or 'none'}"
