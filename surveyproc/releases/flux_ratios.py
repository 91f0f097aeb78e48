"""By how much the fluxes of each tile differ between two releases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc.evaluate.ratio import bounds, counted, log_ratios, median
from surveyproc.schemas import flag

Int = NDArray[np.int64]


@dataclass(frozen=True)
class TileRatio:
    """How the fluxes of a tile's bright objects differ.

    Attributes
    ----------
    objects : int
        Bright ones.
    ratio : float
        The median of second over first.
    between : (float, float) or None
        Bounds of the true median; None of too few objects.
    """

    objects: int
    ratio: float
    between: tuple[float, float] | None


def flux_columns(names: Sequence[str]) -> list[str]:
    """What stands behind `flux_` in the names of fluxes that photometry measured.

    Examples
    --------
    >>> flux_columns(["photometry_tile", "flux_r", "flux_err_r", "photometry_flag_r", "flux_old"])
    ['r']
    """
    if "photometry_tile" not in names:
        return []
    ends = [name.removeprefix("photometry_flag_") for name in names if name.startswith("photo")]
    return [end for end in ends if {f"flux_{end}", f"flux_err_{end}"} <= set(names)]


class TileRatios:
    """Median ratios of the fluxes of two tables of the same objects, by column and tile.

    Parameters
    ----------
    ends : sequence of str
        What stands behind `flux_`, `flux_err_` and `photometry_flag_` in the names of the columns.
    """

    def __init__(self, ends: Sequence[str]) -> None:
        self.ends = tuple(ends)
        self.counts: dict[str, dict[str, Int]] = {end: {} for end in ends}

    def add(self, first: pa.Table, second: pa.Table) -> None:
        """Count the objects of two tables, row by row the same, by the tile of the second.

        Objects whose flux has a flag in one of them do not count; `background_errors` is none of
        the flux.
        """
        if not self.ends:
            return
        tiles = pc.dictionary_encode(second["photometry_tile"]).combine_chunks()
        number, names = tiles.indices.to_numpy(), tiles.dictionary.to_pylist()
        for end in self.ends:
            values = (
                table[f"{kind}_{end}"].to_numpy().astype(np.float64)
                for table in (first, second)
                for kind in ("flux", "flux_err")
            )
            ratios = log_ratios(*values)
            flags = (table[f"photometry_flag_{end}"].to_numpy() for table in (first, second))
            ratios[np.bitwise_or(*flags) & ~flag("background_errors") != 0] = np.nan
            for place, tile in enumerate(names):
                found = counted(ratios[number == place])
                if found.any():
                    self.counts[end][tile] = self.counts[end].get(tile, 0) + found

    def summary(self) -> dict[str, dict[str, TileRatio]]:
        """For every flux column, and every tile with bright objects in it."""
        return {
            f"flux_{end}": {
                tile: TileRatio(int(counts.sum()), median(counts), bounds(counts))
                for tile, counts in sorted(tiles.items())
            }
            for end, tiles in self.counts.items()
        }
