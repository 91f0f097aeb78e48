"""What the report shows, gathered leaf by leaf in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surveyproc import sky
from surveyproc.catalogs import hats
from surveyproc.schemas import AB_ZEROPOINT_NJY
from surveyproc.store.storage import Store

MAX_SKY_BINS = 160
Z_BINS = 80
MAG_EDGES = np.arange(14.0, 28.01, 0.2)


@dataclass
class Summary:
    """Histograms of a published catalog.

    Attributes
    ----------
    rows : int
        Objects.
    sky : float64 ndarray, shape (k, k)
        Objects a cell, (north, east) axes, on a tangent-like plane about `centre`.
    sky_flagged : float64 ndarray
        The same for objects with any flag of any product.
    centre, half_width : (ra, dec) and extent of the map, degrees.
    redshifts : dict of str to float64 ndarray, shape (Z_BINS,)
        Column of redshifts to objects a bin; edges in `z_edges`.
    magnitudes : dict of str to ndarray
        Band to objects a magnitude bin (edges MAG_EDGES).
    """

    rows: int
    centre: tuple[float, float]
    half_width: float
    sky: NDArray[np.float64]
    sky_flagged: NDArray[np.float64]
    z_edges: NDArray[np.float64]
    redshifts: dict[str, NDArray[np.float64]]
    magnitudes: dict[str, NDArray[np.float64]]


def summarise(
    store: Store, key: str, redshifts: list[str], bands: list[str], flags: list[str]
) -> Summary:
    """Histograms of the catalog under `key`: of its columns of redshifts, and of its bands."""
    parts = hats.leaf_keys(store, key)
    caps = []
    rows = 0
    z_max = 0.0
    positions = ["ra", "dec"]
    for leaf in parts:
        table = hats.read_leaf(store, f"{key}/{leaf}", positions + redshifts)
        rows += table.num_rows
        caps.append(sky.cap(table["ra"].to_numpy(), table["dec"].to_numpy()))
        for name in redshifts:
            z_max = max(z_max, float(np.nanmax(_floats(table, name), initial=0.0)))
    ra, dec, radius = (np.array(values) for values in zip(*caps, strict=True))
    centre_ra, centre_dec, reach = sky.cap(ra, dec)
    bound = min(reach + float(radius.max()), 180.0)
    half = _half_width(store, key, parts, (centre_ra, centre_dec), bound)
    # About eight objects a cell, so that a small survey still shows its shape.
    bins = int(np.clip(np.sqrt(rows / 8), 20, MAX_SKY_BINS))
    edges = np.linspace(-half, half, bins + 1)
    z_edges = np.linspace(0.0, max(z_max, 0.1), Z_BINS + 1)
    out = Summary(
        rows=0,
        centre=(centre_ra, centre_dec),
        half_width=half,
        sky=np.zeros((bins, bins)),
        sky_flagged=np.zeros((bins, bins)),
        z_edges=z_edges,
        redshifts={name: np.zeros(Z_BINS) for name in redshifts},
        magnitudes={band: np.zeros(len(MAG_EDGES) - 1) for band in bands},
    )
    for leaf in parts:
        fluxes = [f"flux_{band}" for band in bands]
        table = hats.read_leaf(store, f"{key}/{leaf}", positions + flags + fluxes + redshifts)
        out.rows += table.num_rows
        east, north = _plane(table["ra"].to_numpy(), table["dec"].to_numpy(), centre_ra, centre_dec)
        flagged = np.any([table[name].to_numpy() != 0 for name in flags], axis=0)
        out.sky += np.histogram2d(north, east, [edges, edges])[0]
        out.sky_flagged += np.histogram2d(north[flagged], east[flagged], [edges, edges])[0]
        for name in redshifts:
            out.redshifts[name] += np.histogram(_floats(table, name), z_edges)[0]
        for band in bands:
            flux = _floats(table, f"flux_{band}")
            magnitude = AB_ZEROPOINT_NJY - 2.5 * np.log10(flux[flux > 0])
            out.magnitudes[band] += np.histogram(magnitude, MAG_EDGES)[0]
    return out


def _half_width(
    store: Store, key: str, parts: list[str], centre: tuple[float, float], bound: float
) -> float:
    """Half the side of the smallest square about `centre` that holds all objects, degrees."""
    half = 0.0
    for leaf in parts:
        table = hats.read_leaf(store, f"{key}/{leaf}", ["ra", "dec"])
        east, north = _plane(table["ra"].to_numpy(), table["dec"].to_numpy(), *centre)
        half = max(half, float(np.abs(east).max()), float(np.abs(north).max()))
    return min(half, bound) * 1.02 or 1e-3


def _floats(table: object, name: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = table[name].to_numpy().astype(float)  # type: ignore[index]
    return values


def _plane(
    ra: NDArray[np.float64], dec: NDArray[np.float64], ra0: float, dec0: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offsets (east, north) in degrees: RA difference wrapped to +-180 and scaled by cos(dec)."""
    difference = (ra - ra0 + 180.0) % 360.0 - 180.0
    return difference * np.cos(np.radians(dec)), dec - dec0
