"""The product `photometry`: aperture photometry of every band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field

from surveyproc.config.sections import ProductSection
from surveyproc.errors import ConfigError
from surveyproc.images.cube import finest_tile
from surveyproc.images.cutouts import over_edge
from surveyproc.measure.aperture import (
    ANNULUS,
    WIDE_PX,
    annulus_for,
    aperture_photometry,
    cutout_for,
    side_of,
    with_photon_noise,
)
from surveyproc.products.base import Batch, Inputs
from surveyproc.schemas import Column, aperture_name, flag, load
from surveyproc.store.storage import fingerprint
from surveyproc.survey import Survey

# Raise it when the same cutouts give other numbers.
FORMAT = 2


def _as_floats(value: Any) -> Any:
    return [value] if isinstance(value, int | float) else value


def _distinct(radii: list[float]) -> list[float]:
    if len(set(radii)) != len(radii):
        raise ValueError("a radius is named twice")
    return radii


class PhotometrySection(ProductSection):
    """Aperture photometry."""

    aperture: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]],
        BeforeValidator(_as_floats, json_schema_input_type=float | list[float]),
        AfterValidator(_distinct),
    ] = Field(
        [1.0],
        min_length=1,
        description="Aperture radius, arcsec, or a list of them: the first is that of "
        "flux_<band>, the others have columns like flux_<band>_2p0.",
    )


class AperturePhotometry:
    """The product `photometry`: fluxes, errors and flags in every band, position and tile.

    Every aperture has a background annulus of its own, so that each is measured as if it were the
    only one. The first one's columns are `flux_<band>`, ...; those of the others end in the
    radius, `flux_<band>_2p0`.

    Flags of a flux: `no_image` and `corrupt_data` as the batch brings them; `edge` where aperture
    or annulus reach over the edge of the tile; `missing_band` where the band has no pixel at all
    there; `bad_pixels` where some pixel in the aperture, or half of the annulus, is of no use.
    `photometry_flag` has the bits of all of them. `background_errors`, where neither weights nor
    a gain tell the noise, concerns errors and not fluxes: the flags of bands alone have it.

    Parameters
    ----------
    bands : sequence of str
        The survey's bands.
    radii_arcsec : sequence of float
        Radii of the apertures.
    cutout : int
        Side of the cutouts in pixels, as `cutout_for` gives it for the tiles of the survey.

    Examples
    --------
    >>> AperturePhotometry(["g", "r"], [1.0]).inputs.cutout
    64
    """

    name = "photometry"

    Section: ClassVar[type[ProductSection]] = PhotometrySection
    reads = "cutouts of all bands"
    writes = "fluxes, errors and flags of every band and aperture; position and tile"

    @classmethod
    def build(cls, section: PhotometrySection, survey: Survey) -> Self:
        """Photometry with cutouts that fit all tiles; raises as `cutout_for`.

        Raises
        ------
        ConfigError
            If the survey has no images, or the product another name.
        """
        if section.name != "photometry":
            raise ConfigError(
                f"products.{section.name}: aperture photometry is called photometry, once a "
                "survey; its `aperture` may be a list"
            )
        bands = tuple(survey.config.images.bands)
        if not bands:
            raise ConfigError(
                "products.photometry measures images, and [images] names no band; take the product "
                "out: the catalog's own fluxes need none"
            )
        finest = finest_tile(survey.store, survey.name)
        if finest is None:
            return cls(bands, section.aperture)
        return cls(bands, section.aperture, cutout_for(section.aperture, *finest))

    def __init__(
        self, bands: Sequence[str], radii_arcsec: Sequence[float], cutout: int = 64
    ) -> None:
        self.bands, self.radii_arcsec, self.cutout = tuple(bands), tuple(radii_arcsec), cutout

    @property
    def inputs(self) -> Inputs:
        """All bands; no catalog columns."""
        return Inputs(bands=self.bands, cutout=self.cutout)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of schemas/photometry.toml."""
        return load("photometry", bands=self.bands, apertures=self.radii_arcsec)

    @property
    def version(self) -> str:
        """Hash of the settings and of this code's FORMAT."""
        return fingerprint([FORMAT, self.bands, self.radii_arcsec, ANNULUS, WIDE_PX])

    def prepare(self) -> None:
        """Nothing to load."""

    def compute(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """Measure a batch; tiles of different pixel scales may be in it. See the class for flags.

        Raises
        ------
        ValueError
            If aperture and annulus do not fit the cutout at some tile's pixel scale.
        """
        n, bands, radii = len(batch.flags), len(self.bands), len(self.radii_arcsec)
        flux, error = np.full((radii, n, bands), np.nan), np.full((radii, n, bands), np.nan)
        brought = batch.flags & flag("no_image", "corrupt_data")
        flags = np.tile(brought[:, None], (radii, 1, bands)).astype(np.int32)
        positions = np.full((n, 2), np.nan) if batch.positions is None else batch.positions
        tiles = np.full(n, None, object) if batch.tiles is None else batch.tiles
        if batch.images is not None and batch.offsets is not None and batch.pixel_scale is not None:
            scales = batch.pixel_scale
            for scale in np.unique(scales[np.isfinite(scales) & (brought == 0)]):
                mine = np.flatnonzero((scales == scale) & (brought == 0))
                # One scale for all is the rule: then a view will do.
                these: Any = slice(None) if mine.size == n else mine
                images, offsets = batch.images[these], batch.offsets[these]
                variance = None if batch.variance is None else batch.variance[these]
                for place, arcsec in enumerate(self.radii_arcsec):
                    radius = arcsec / float(scale)
                    annulus = annulus_for(radius)
                    flux[place, these], error[place, these], bad = aperture_photometry(
                        images, variance, offsets, radius, annulus
                    )
                    flags[place, these] |= _flags(images, bad, flux[place, these], annulus)
                    if variance is None or not np.isfinite(variance).all():
                        blind = _without_variance(images, variance, radius)
                        flags[place, these] |= np.where(blind, flag("background_errors"), 0)
                    if batch.tile_shape is not None:
                        x, y = positions[these].T
                        # The annulus is a pixel narrower on either side than its cutout.
                        cut = over_edge(x, y, batch.tile_shape[these], side_of(annulus) - 1)
                        flags[place, these] |= np.where(cut, flag("edge"), 0)[:, None]
        if batch.electron_flux is not None:
            error = with_photon_noise(flux, error, batch.electron_flux)
            flags[:, np.isfinite(batch.electron_flux)] &= ~flag("background_errors")
        columns: dict[str, NDArray[Any]] = {}
        for place, arcsec in enumerate(self.radii_arcsec):
            suffix = f"_{aperture_name(arcsec)}" if place else ""
            for number, band in enumerate(self.bands):
                at = place, slice(None), number
                columns[f"flux_{band}{suffix}"] = flux[at].astype(np.float32)
                columns[f"flux_err_{band}{suffix}"] = error[at].astype(np.float32)
                columns[f"photometry_flag_{band}{suffix}"] = flags[at]
        columns["photometry_x"] = positions[:, 0].astype(np.float32)
        columns["photometry_y"] = positions[:, 1].astype(np.float32)
        columns["photometry_tile"] = tiles
        together = np.bitwise_or.reduce(flags, axis=(0, 2))
        columns["photometry_flag"] = together & ~flag("background_errors")
        return columns


def _without_variance(
    images: NDArray[np.float32], variance: NDArray[np.float32] | None, radius_px: float
) -> NDArray[np.bool_]:
    """Where no pixel of the aperture that has a value has a variance; shape (n, band)."""
    middle, half = images.shape[-1] // 2, int(np.ceil(radius_px))
    box = np.s_[middle - half : middle + half + 1]
    measured = np.isfinite(images[:, :, box, box])
    if variance is None:
        return np.asarray(measured.any(axis=(2, 3)))
    known = np.isfinite(variance[:, :, box, box]) & measured
    return np.asarray(measured.any(axis=(2, 3)) & ~known.any(axis=(2, 3)))


def _flags(
    images: NDArray[np.float32],
    bad: NDArray[np.bool_],
    flux: NDArray[np.float64],
    annulus_px: tuple[float, float],
) -> NDArray[np.int32]:
    """bad_pixels and missing_band of each object and band."""
    middle, half = images.shape[-1] // 2, side_of(annulus_px) // 2
    box = np.s_[middle - half : middle + half]
    absent = np.zeros(bad.shape, bool)
    # Only a band without a flux can be empty; looking at all pixels of all would cost more.
    for i, band in zip(*np.nonzero(~np.isfinite(flux)), strict=True):
        absent[i, band] = not np.isfinite(images[i, band, box, box]).any()
    spoilt = (bad | ~np.isfinite(flux)) & ~absent
    found = np.where(absent, flag("missing_band"), np.where(spoilt, flag("bad_pixels"), 0))
    return np.asarray(found, np.int32)
