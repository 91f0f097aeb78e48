"""The objects of the published release that are most like one: the verb `similar`."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from surveyproc import sky
from surveyproc.catalogs import crossmatch, hats, ids, neighbours
from surveyproc.errors import ConfigError, InputError, near_or_all
from surveyproc.images.stamps import read_stamp
from surveyproc.models.stamps import stamp_kind
from surveyproc.products.base import Batch
from surveyproc.products.network import NetworkProduct
from surveyproc.products.registry import build_products
from surveyproc.releases.release import current_release
from surveyproc.run.commit import READERS
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

NEAR_ARCSEC = 2.0
"""How far from a position the object may be that is meant by it."""


@dataclass(frozen=True)
class Sought:
    """What neighbours are sought of: an object, or an image.

    Attributes
    ----------
    object_id, ra, dec : int, float, float, optional
        The object; degrees, ICRS.
    image : str, optional
        The image.
    """

    object_id: int | None = None
    ra: float | None = None
    dec: float | None = None
    image: str | None = None


@dataclass(frozen=True)
class Neighbour:
    """An object that is like another.

    Attributes
    ----------
    object_id, ra, dec : int, float, float
        Which; degrees, ICRS.
    distance : float
        Euclidean, in steps of the embedding's numbers.
    """

    object_id: int
    ra: float
    dec: float
    distance: float


@dataclass(frozen=True)
class Similar:
    """What `similar` found.

    Attributes
    ----------
    release, column : str
        Where it was looked for.
    of : Sought
        The object, or the image.
    neighbours : list of Neighbour
        Nearest first.
    """

    release: str
    column: str
    of: Sought
    neighbours: list[Neighbour]


@dataclass(frozen=True)
class Searched:
    """A column of a release that has an index.

    Attributes
    ----------
    store, release, partitions : Store, str, list of (int, int)
        The release's name is `release`, its folder `key`; order and pixel of every leaf.
    column, product, version : str
        The column, and the product that wrote it.
    """

    store: Store
    release: str
    key: str
    partitions: list[tuple[int, int]]
    column: str
    product: str
    version: str


def similar(
    survey: Survey,
    *,
    object_id: int | str | None = None,
    position: tuple[float, float] | None = None,
    image: str | Path | None = None,
    n: int = 10,
    column: str | None = None,
) -> Similar:
    """The objects whose embeddings are nearest to that of an object or an image.

    Parameters
    ----------
    survey : Survey
        With a published release.
    object_id : int or str, optional
        `object_id` of an object, or its id in the source if that is text.
    position : (float, float), optional
        Right ascension and declination, degrees, ICRS, of an object within 2 arcsec.
    image : str or Path, optional
        An image as `images.stamps.read_stamp` reads it, for a model that reads images alone: of
        the kind and size that the model learned from, or, if that were the survey's cutouts, FITS
        with the fluxes of its bands in the survey's pixels.
    n : int
        How many; the object itself is not among them.
    column : str, optional
        The embedding; needed if the release has several.

    Raises
    ------
    ConfigError
        If not one of object, position and image is given, `n` is below 1, or the column has none
        or the release several; for an image if the model does not read images alone.
    InputError
        If there is no such object or it has no embedding, the release has none at all, or the
        model that would read the image is not the one that the release was made with.
    StoreError
        If an index is missing, damaged, or not that of the release.
    """
    if sum(one is not None for one in (object_id, position, image)) != 1:
        raise ConfigError("similar needs one of: --id, --ra and --dec together, --image")
    if n < 1:
        raise ConfigError(f"similar: {n} objects were asked for; 1 is the least")
    searched = _searched(survey, column)
    own = None
    if image is not None:
        of = Sought(image=str(image))
        code = _code_of_image(survey, searched, image)
    else:
        row = _by_id(searched, object_id) if position is None else _at(searched, *position)
        if row[searched.column] is None:
            raise InputError(
                f"object {row['object_id']} has no {searched.column} in release "
                f"{searched.release}: its flag {searched.product}_flag says why"
            )
        code, own = np.array(row[searched.column], np.int16), int(row["object_id"])
        of = Sought(**{name: row[name] for name in neighbours.IDENTIFYING})
    return Similar(searched.release, searched.column, of, _nearest(searched, code, n, own))


def _searched(survey: Survey, column: str | None) -> Searched:
    current = current_release(survey.store, survey.name)
    columns = current.searched
    if not columns:
        raise InputError(
            f"release {current.release} has no embeddings: add a product whose network has an "
            "EmbeddingTask, and run (docs/networks.md)"
        )
    if column is None and len(columns) > 1:
        raise ConfigError(
            f"release {current.release} has several embeddings: choose one with --column "
            f"({', '.join(columns)})"
        )
    chosen = column or next(iter(columns))
    if chosen not in columns:
        raise ConfigError(
            f"release {current.release} has no embedding {chosen!r}" + near_or_all(chosen, columns)
        )
    key = current.path
    return Searched(
        survey.store,
        current.release,
        key,
        [hats.pixel_of(leaf) for leaf in hats.leaf_keys(survey.store, key)],
        chosen,
        columns[chosen],
        current.products[columns[chosen]],
    )


def _by_id(searched: Searched, wanted: int | str | None) -> dict[str, Any]:
    """The row of an object."""
    text = str(wanted)
    known = [int(ids.read(pa.array([text]))[0][0])]
    if re.fullmatch(r"\s*-?\d+\s*", text, re.ASCII):
        # Unsigned numbers from 2^63 on were stored less 2^64.
        known.insert(0, (int(text) + 2**63) % 2**64 - 2**63)

    def find(order: int, pixel: int) -> list[tuple[int, int, int]]:
        key = f"{searched.key}/{hats.leaf_key(order, pixel)}"
        held = hats.read_leaf(searched.store, key, ["object_id"])["object_id"].to_numpy()
        rows = np.flatnonzero(np.isin(held, known))
        return [(order, pixel, int(row)) for row in rows]

    if found := [one for part in _everywhere(searched, find) for one in part]:
        return _row(searched, *found[0])
    raise InputError(f"release {searched.release} has no object {text!r}")


def _at(searched: Searched, ra: float, dec: float) -> dict[str, Any]:
    """The row of the object nearest to a position."""
    if not (np.isfinite([ra, dec]).all() and abs(dec) <= 90):
        raise ConfigError(f"similar: ({ra:g}, {dec:g}) is no position in degrees")
    around = sky.healpix29(*sky.around(ra, dec, 2 * NEAR_ARCSEC / 3600))
    found = list[tuple[float, int, int, int]]()
    for order, pixel in searched.partitions:
        if (around >> 2 * (hats.ORDER - order) == pixel).any():
            key = f"{searched.key}/{hats.leaf_key(order, pixel)}"
            held = hats.read_leaf(searched.store, key, ["ra", "dec"])
            positions = held["ra"].to_numpy(), held["dec"].to_numpy()
            (row,), (away,) = crossmatch.nearest([ra], [dec], *positions, NEAR_ARCSEC)
            if row >= 0:
                found.append((float(away), order, pixel, int(row)))
    if not found:
        raise InputError(
            f"release {searched.release} has no object within {NEAR_ARCSEC:g} arcsec of "
            f"({ra:g}, {dec:g})"
        )
    return _row(searched, *min(found)[1:])


def _row(searched: Searched, order: int, pixel: int, row: int) -> dict[str, Any]:
    key = f"{searched.key}/{hats.leaf_key(order, pixel)}"
    wanted = [*neighbours.IDENTIFYING, searched.column]
    (found,) = hats.read_leaf(searched.store, key, wanted).slice(row, 1).to_pylist()
    return dict(found)


def _code_of_image(survey: Survey, searched: Searched, image: str | Path) -> neighbours.Codes:
    """What the model that the release was made with says of an image."""
    product = next((one for one in build_products(survey) if one.name == searched.product), None)
    version = "none" if product is None else product.version
    if product is None or version != searched.version:
        raise InputError(
            f"{searched.column} of release {searched.release} is of version {searched.version} of "
            f"product {searched.product}, and survey.toml has version {version}: "
            "`surveyproc run` makes a release with it"
        )
    if not product.inputs.cutout or product.inputs.columns:
        reads = ", ".join(product.inputs.columns) or "no images"
        raise ConfigError(
            f"similar --image: the model of {searched.product} must read images and nothing else; "
            f"it reads {reads}: name an object with --id"
        )
    kind = stamp_kind(product.package) if isinstance(product, NetworkProduct) else None
    pixels = read_stamp(image, product.inputs.bands, product.inputs.cutout, kind)
    product.prepare()
    batch = Batch(columns={}, flags=np.zeros(1, np.int32), images=pixels[None])
    code: neighbours.Codes = product.compute(batch)[searched.column][0]
    if (code == np.iinfo(code.dtype).min).all():
        raise InputError(f"{image}: the model makes no embedding of it: it has no usable pixel")
    return code


def _nearest(
    searched: Searched, code: neighbours.Codes, n: int, own: int | None
) -> list[Neighbour]:
    """The nearest objects of all partitions but `own`; of equal ones those of smaller id."""

    def find(order: int, pixel: int) -> list[tuple[float, int, float, float]]:
        key = f"{searched.key}/{neighbours.index_key(searched.column, order, pixel)}"
        index = neighbours.read(searched.store, key, searched.column, searched.version)
        rows, squares = neighbours.nearest(index.codes, code, n + 1)
        parts = (squares, index.object_id[rows], index.ra[rows], index.dec[rows])
        return list(zip(*(part.tolist() for part in parts), strict=True))

    found = sorted(one for part in _everywhere(searched, find) for one in part if one[1] != own)
    return [Neighbour(number, ra, dec, square**0.5) for square, number, ra, dec in found[:n]]


def _everywhere(searched: Searched, find: Callable[[int, int], list[Any]]) -> list[list[Any]]:
    """What a function finds in every partition, several at once."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(find, *zip(*searched.partitions, strict=True)))
