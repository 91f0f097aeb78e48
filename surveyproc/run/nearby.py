"""The nearest other objects of the catalog, as products are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveyproc.catalogs.around import Around, displaced
from surveyproc.images.cutouts import CutoutReader, nearest_pixel
from surveyproc.products.base import Batch, Inputs, Product
from surveyproc.sky import pixel_positions, wcs_from_header


def neighbour_needs(products: Sequence[Product]) -> tuple[float, int]:
    """Arcsec and number of neighbours that serve all `products`; 0 of them if none reads any."""
    return (
        max((product.inputs.radius for product in products), default=0.0),
        max((product.inputs.neighbours for product in products), default=0),
    )


def with_neighbours(
    batch: Batch,
    index: NDArray[np.int64],
    table: pa.Table,
    around: Around,
    reader: CutoutReader | None,
) -> Batch:
    """A batch of the rows `index` of a table, with what is around them."""
    offsets = around.offsets[index]
    pixels = None
    if reader is not None and batch.tiles is not None and batch.positions is not None:
        ra, dec = (table[name].to_numpy()[index] for name in ("ra", "dec"))
        pixels = np.full(offsets.shape, np.nan)
        names = set(batch.tiles.tolist())
        for tile in (one for one in reader.tiles if one.id in names):
            row, place = np.nonzero(
                (batch.tiles == tile.id)[:, None] & np.isfinite(offsets).all(axis=2)
            )
            if not len(row):
                continue
            there = displaced(ra[row], dec[row], offsets[row, place])
            found = np.stack(pixel_positions(wcs_from_header(tile.wcs), *there), axis=1)
            x, y = batch.positions[row].T
            centre = np.stack(nearest_pixel(x, y, tile.shape), axis=1)
            pixels[row, place] = found - centre
    return replace(
        batch,
        neighbour_ids=around.ids[index],
        neighbour_offsets=offsets,
        neighbour_pixels=pixels,
    )


def neighbours_of(batch: Batch, inputs: Inputs) -> dict[str, Any]:
    """As many neighbours as a product wants, within its own radius."""
    if not inputs.neighbours or batch.neighbour_ids is None or batch.neighbour_offsets is None:
        return dict.fromkeys(("neighbour_ids", "neighbour_offsets", "neighbour_pixels"))
    offsets = batch.neighbour_offsets[:, : inputs.neighbours]
    # They come by distance: those that are too far are the last ones.
    far = ~(np.linalg.norm(offsets, axis=2) <= inputs.radius)
    pixels = batch.neighbour_pixels
    if pixels is not None:
        pixels = np.where(far[..., None], np.nan, pixels[:, : inputs.neighbours])
    return {
        "neighbour_pixels": pixels,
        "neighbour_ids": np.where(far, 0, batch.neighbour_ids[:, : inputs.neighbours]),
        "neighbour_offsets": np.where(far[..., None], np.nan, offsets),
    }
