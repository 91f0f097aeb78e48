"""Where the objects lie, and where they are flagged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveyproc import sky
from surveyproc.report import figures
from surveyproc.report.sections.base import Pass, Section, Shown

MAX_BINS = 160
POSITION = ("ra", "dec")

Float = NDArray[np.float64]


class SkyMap(Section):
    """Objects a cell of the sky, and the share of those with any flag of any product."""

    template = "sky_map.html"

    def __init__(self, shown: Shown) -> None:
        self.flags = shown.flags
        self.rows = 0
        self.caps = list[tuple[float, float, float]]()
        self.centre = (0.0, 0.0)
        self.half_width = 0.0

    def gather(self) -> Iterator[Pass]:
        """Where the middle is; how far objects lie from it; how many lie in each cell."""
        yield POSITION, self._reach
        ra, dec, radius = (np.array(values) for values in zip(*self.caps, strict=True))
        *centre, reach = sky.cap(ra, dec)
        self.centre = (centre[0], centre[1])
        yield POSITION, self._widen
        bound = min(reach + float(radius.max()), 180.0)
        self.half_width = min(self.half_width, bound) * 1.02 or 1e-3
        # About eight objects a cell, so that a small survey still shows its shape.
        bins = int(np.clip(np.sqrt(self.rows / 8), 20, MAX_BINS))
        self.edges = np.linspace(-self.half_width, self.half_width, bins + 1)
        self.counts, self.flagged = np.zeros((2, bins, bins))
        yield (*POSITION, *self.flags), self._count

    def values(self) -> dict[str, Any]:
        """`sky_map`: the figure."""
        return {"sky_map": draw(self.counts, self.flagged, self.centre, self.half_width)}

    def _reach(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        self.caps.append(sky.cap(*_positions(table)))

    def _widen(self, table: pa.Table) -> None:
        offsets = _plane(*_positions(table), *self.centre)
        self.half_width = max(self.half_width, float(np.abs(offsets).max()))

    def _count(self, table: pa.Table) -> None:
        east, north = _plane(*_positions(table), *self.centre)
        flagged = np.any([table[name].to_numpy() != 0 for name in self.flags], axis=0)
        edges = [self.edges, self.edges]
        self.counts += np.histogram2d(north, east, edges)[0]
        self.flagged += np.histogram2d(north[flagged], east[flagged], edges)[0]


def draw(counts: Float, flagged: Float, centre: tuple[float, float], half_width: float) -> bytes:
    """Objects a cell beside the share of flagged objects, east to the left; a PNG.

    Parameters
    ----------
    counts, flagged : float64 ndarray, shape (k, k)
        Objects a cell, and those with a flag; (north, east) axes.
    centre : (ra, dec) of the map's middle, degrees.
    half_width : float
        Half of its side, degrees.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2))
    extent = (-half_width, half_width, -half_width, half_width)
    share = np.where(counts > 0, 100 * flagged / np.maximum(counts, 1), np.nan)
    for axis, values, label, colours, top in (
        (axes[0], np.where(counts > 0, counts, np.nan), "objects a cell", "viridis", None),
        (axes[1], share, "flagged objects, %", "magma", 100.0),
    ):
        image = axis.imshow(
            values, origin="lower", extent=extent, cmap=colours, vmin=0, vmax=top, aspect="equal"
        )
        axis.invert_xaxis()
        axis.set_xlabel(f"east of RA {centre[0]:.4f}, deg")
        axis.set_ylabel(f"north of Dec {centre[1]:.4f}, deg")
        figure.colorbar(image, ax=axis, label=label, shrink=0.85)
    return figures.png(figure)


def _positions(table: pa.Table) -> tuple[Float, Float]:
    return table["ra"].to_numpy(), table["dec"].to_numpy()


def _plane(ra: Float, dec: Float, ra0: float, dec0: float) -> tuple[Float, Float]:
    """Offsets (east, north) in degrees: RA difference wrapped to +-180 and scaled by cos(dec)."""
    difference = (ra - ra0 + 180.0) % 360.0 - 180.0
    return difference * np.cos(np.radians(dec)), dec - dec0
