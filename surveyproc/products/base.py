"""What a product is: the inputs it declares, the batch it is given, the columns it writes.

Anything with these attributes can be run over a footprint: aperture photometry on the images, a
network of ours, or one of a third party.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from surveyproc.config.sections import ProductSection
from surveyproc.schemas import Column
from surveyproc.survey import Survey


@dataclass(frozen=True)
class Inputs:
    """What a product reads.

    Attributes
    ----------
    bands : tuple of str
        Bands in the order in which the product wants them, under the survey's names.
    cutout : int
        Side of the square cutout in pixels; 0 if the product reads no images.
    columns : tuple of str
        Columns of the source catalog or of an earlier product of the same run.
    neighbours : int
        Other objects of the source catalog that it wants to know of, the nearest ones.
    radius : float
        Arcsec within which they are looked for.
    """

    bands: tuple[str, ...] = ()
    cutout: int = 0
    columns: tuple[str, ...] = ()
    neighbours: int = 0
    radius: float = 0.0


@dataclass(frozen=True)
class RowTable:
    """Rows that a product writes beside the catalog, none or several an object.

    It becomes a HATS catalog of the release with the partitions of the main one, keyed by
    object_id; object_id, ra, dec and _healpix_29 are those of the object and are added.

    Attributes
    ----------
    name : str
        Letters, digits and _.
    columns : tuple of Column
        The others.
    """

    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class PixelArray:
    """Pixels that a product writes of every object: masks, models.

    They become arrays of a Zarr group of the release, one a partition, in the order of its rows.

    Attributes
    ----------
    name : str
        Letters, digits and _.
    shape : tuple of int
        Of one object; (y, x), or (band, y, x).
    dtype : str
        A numpy type. Where nothing was computed floats are NaN, others 0.
    unit, description : str
        Of the values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    unit: str = ""
    description: str = ""


@dataclass(frozen=True)
class Batch:
    """Objects handed to a product, all arrays with the same first axis n.

    The arrays are to be read only: they serve other products too, and may lie in memory that
    processes share.

    Attributes
    ----------
    columns : mapping of str to ndarray, shape (n,)
        The columns the product asked for; floats hold NaN where the catalog holds null.
    flags : int32 ndarray, shape (n,)
        Bits already known for each object (no_image, missing_band, ...; edge if a cutout of this
        size reaches over the edge of its tile).
    images : float32 ndarray, shape (n, band, y, x), or None
        Cutouts in nanojansky a pixel; NaN where no pixel exists, is masked, or a band is absent.
    variance : float32 ndarray, shape (n, band, y, x), or None
        Variance in nanojansky squared; NaN where unknown. None if no tile of the batch has weights.
    offsets : float32 ndarray, shape (n, 2), or None
        (x, y) of the object minus the cutout's central pixel (index cutout // 2), in pixels,
        within [-0.5, 0.5].
    positions : float64 ndarray, shape (n, 2), or None
        (x, y) of the object on its tile in pixels, zero-based, pixel centres at integers.
    tiles : object ndarray of str, shape (n,), or None
        Tile each object was taken from; None entries where no tile covers the object.
    tile_shape : int32 ndarray, shape (n, 2), or None
        (y, x) pixels of that tile.
    pixel_scale : float64 ndarray, shape (n,), or None
        Arcsec a pixel of that tile.
    electron_flux : float64 ndarray, shape (n, band), or None
        Nanojansky of one electron; NaN where the gain is unknown.
    neighbour_ids : int64 ndarray, shape (n, m), or None
        The nearest other objects of the source catalog, as many as the product wants, nearest
        first; 0 where there are fewer within its radius.
    neighbour_offsets : float64 ndarray, shape (n, m, 2), or None
        How far they are to the east and to the north, arcsec; NaN where there are fewer.
    neighbour_pixels : float64 ndarray, shape (n, m, 2), or None
        The same on the tile: (x, y) minus the cutout's central pixel, pixels. None without images.
    """

    columns: Mapping[str, NDArray[Any]]
    flags: NDArray[np.int32]
    images: NDArray[np.float32] | None = None
    variance: NDArray[np.float32] | None = None
    offsets: NDArray[np.float32] | None = None
    positions: NDArray[np.float64] | None = None
    tiles: NDArray[np.object_] | None = None
    tile_shape: NDArray[np.int32] | None = None
    pixel_scale: NDArray[np.float64] | None = None
    electron_flux: NDArray[np.float64] | None = None
    neighbour_ids: NDArray[np.int64] | None = None
    neighbour_offsets: NDArray[np.float64] | None = None
    neighbour_pixels: NDArray[np.float64] | None = None


@runtime_checkable
class Product(Protocol):
    """One product of a run.

    Attributes
    ----------
    name : str
        `photometry`, `photoz`, ...; its flag column is `<name>_flag`, that of a single band, if it
        has some, `<name>_flag_<band>`.
    inputs : Inputs
        What it reads.
    columns : tuple of Column
        What it writes, from schemas/, the flag column last.
    version : str
        Hash of everything of the product that can change its output (weights, settings).
    """

    @property
    def name(self) -> str:
        """Name of the product."""

    @property
    def inputs(self) -> Inputs:
        """Bands, cutout and columns that `compute` wants."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns that `compute` returns, the flag column last."""

    @property
    def version(self) -> str:
        """Hash of everything that can change the output."""

    def prepare(self) -> None:
        """Load what `compute` needs, once in each process before its first batch.

        Raises
        ------
        InputError
            If it cannot be loaded: the run ends, where an error of `compute` would be held against
            the unit.
        """

    def compute(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """One array for every column in `columns`, each with the batch's first axis.

        List columns are (n, length). NaN in a float column is written as null. The result is a
        pure function of the batch.

        A table's name is given a mapping of its columns to arrays of shape (rows,), and of `row` to
        the index of each row's object in the batch, ascending. An array of pixels is given as
        (n, *shape).
        """


def tables_of(product: Product) -> tuple[RowTable, ...]:
    """The tables that a product writes: its `tables`, which it may leave out."""
    return tuple(getattr(product, "tables", ()))


def pixels_of(product: Product) -> tuple[PixelArray, ...]:
    """The arrays of pixels that a product writes: its `pixels`, which it may leave out."""
    return tuple(getattr(product, "pixels", ()))


def wants_device(product: Product) -> bool:
    """Whether a GPU makes a product faster: its `wants_device`, which it may leave out."""
    return bool(getattr(product, "wants_device", False))


_device = "cpu"


def device() -> str:
    """Where this process computes, as torch names it: `cuda`, or `cpu` where no GPU is held.

    A product that wants a device asks in `prepare` and in `compute`; it is the same all the time.
    """
    return _device


def use_device(name: str) -> None:
    """Say what `device` answers in this process, before a product is prepared."""
    global _device
    _device = name


class Kind(Product, Protocol):
    """A kind of product: a class whose instances are products, made from survey.toml.

    It is known by the entry-point group `surveyproc.products`: the entry's name is the kind, its
    object the class. Its module should import no more than planning needs; what takes long belongs
    into `prepare`.

    Attributes
    ----------
    Section : type of ProductSection
        Its section of survey.toml, which may add keys; unknown ones are errors.
    reads, writes : str
        For people: what it reads and writes, in a few words.
    """

    Section: ClassVar[type[ProductSection]]
    reads: ClassVar[str]
    writes: ClassVar[str]

    @classmethod
    def build(cls, section: Any, survey: Survey) -> Self:
        """The product that a section asks for.

        Parameters
        ----------
        section : ProductSection
            An instance of `Section`.
        survey : Survey
            The survey, ingested.

        Raises
        ------
        ConfigError
            If the survey lacks what it needs.
        InputError
            If a file that it needs cannot be used.
        """
