"""The files of a simulated survey, drawn by several processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from astropy.io import fits
from numpy.typing import NDArray
from pydantic import ValidationError

from surveyproc.config.sections import SurveySection
from surveyproc.errors import ConfigError, InputError
from surveyproc.progress import Meter
from surveyproc.simulate import draw, tables
from surveyproc.simulate.bands import DEFAULT_BANDS, PIXEL_SCALE, Band, choose
from surveyproc.simulate.population import Pairs, Population, populate
from surveyproc.simulate.tiles import Tile, field_side, layout, sky
from surveyproc.store.storage import Store

Float = NDArray[np.float64]
MISSING_BAND = "H"
"""The last tile was never observed in this band."""
# The second entry of every seed: which draws a generator serves.
_PEOPLE, _CATALOG, _NOISE = range(3)


@dataclass(frozen=True)
class SimulatedSurvey:
    """Where a simulated survey lies, and how much is in it.

    Attributes
    ----------
    config, catalog, truth : Path
        survey.toml, sources.fits and truth.parquet.
    objects, stars, spec, test : int
        Rows of the catalog; stars; galaxies with a spectroscopic redshift; galaxies without.
    tiles, images : int
        Tiles; images (one a tile and band, weights not counted).
    """

    config: Path
    catalog: Path
    truth: Path
    objects: int
    stars: int
    spec: int
    test: int
    tiles: int
    images: int


@dataclass(frozen=True)
class _Image:
    """One image to draw, and the rows of the objects that put light into it."""

    tile: Tile
    band: Band
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class _Task:
    """Everything a worker needs to draw one image."""

    out: str
    tile: Tile
    band: Band
    seed: int
    x: Float
    y: Float
    mag: Float
    shapes: Float


def simulate(
    out: Path,
    *,
    objects: int = 3000,
    seed: int = 1,
    workers: int | None = None,
    bands: Sequence[str] = DEFAULT_BANDS,
    pixel_scale: float = PIXEL_SCALE,
    pairs: Pairs | None = None,
    root: str = "./store",
) -> SimulatedSurvey:
    """Draw a survey with known truth into the folder `out`.

    Parameters
    ----------
    out : Path
        Folder; made if absent. Files of an earlier simulation with the same tiles are replaced.
    objects : int
        Stars and galaxies to draw. The area grows with them: 50 a square arcmin.
    seed : int
        The same seed gives the same bytes in every file, whatever `workers` is.
    workers : int, optional
        Processes; all usable CPUs by default. More than one are spawned, so a script that calls
        this needs the usual ``if __name__ == "__main__"``.
    bands : sequence of str
        Any of u g r i z y J H K. Objects, and images of the bands left, do not depend on it.
    pixel_scale : float
        Arcsec a pixel, of all images; 0.1 to 0.5, so that the PSF is sampled.
    pairs : Pairs, optional
        How many objects have a companion near them, and how near.
    root : str
        Path or URL of the products, as survey.toml has it; a relative path starts in `out`.

    Returns
    -------
    SimulatedSurvey
        `tiles/<tile>_<band>.fits` (counts, sky subtracted) and `.weight.fits` (inverse variance),
        `sources.fits`, `truth.parquet` and `survey.toml`, which is written last.

    Raises
    ------
    ConfigError
        If an argument has no sense.
    InputError
        If `out/tiles` holds files that this survey would not write: they would be taken for its.
    StoreError
        If the disk does not take the files.

    Notes
    -----
    Galaxies look the same in all bands, PSF and noise are constant over an image, images carry no
    shot noise of the objects, and there are no artefacts: the redshifts measured here are better
    than a real survey's.
    """
    chosen = choose(bands, pixel_scale)
    if objects < 1 or seed < 0 or (workers is not None and workers < 1):
        raise ConfigError("simulate: objects and workers must be at least 1, seed at least 0")
    if not 0.1 <= pixel_scale <= 0.5:
        raise ConfigError(f"simulate: a pixel scale of {pixel_scale} is not in 0.1 to 0.5 arcsec")
    try:
        SurveySection(name=tables.NAME, root=root)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"simulate: root: {message}") from None
    side = field_side(objects)
    tiles = layout(side, pixel_scale)
    planned = [
        (tile, band)
        for tile in tiles
        for band in chosen
        if tile is not tiles[-1] or band.name != MISSING_BAND
    ]
    store = Store(str(out))
    _refuse_strangers(out / "tiles", {name for pair in planned for name in _names(*pair)})
    # Gone until all else is there: a survey.toml means a whole survey.
    store.remove("survey.toml")

    people = populate(objects, side, chosen, np.random.default_rng([seed, _PEOPLE]), pairs)
    ra, dec = sky(people.east, people.north)
    sources = tables.source_table(ra, dec, np.random.default_rng([seed, _CATALOG]))
    store.put("sources.fits", _fits_bytes([fits.PrimaryHDU(), sources]))
    with store.writing("truth.parquet") as stream:
        pq.write_table(tables.truth_table(people, ra, dec, chosen), stream)

    near = {tile: _near(tile, ra, dec) for tile in tiles}
    images = [_Image(tile, band, near[tile]) for tile, band in planned]
    tasks = _tasks(str(out), seed, images, people, (ra, dec), chosen)
    count = min(workers or len(os.sched_getaffinity(0)), len(images))
    total = sum(len(image.rows) for image in images)
    with Meter("simulate", objects=total, units=len(images)) as meter:
        for drawn, size in _drawn(tasks, count):
            meter.advance(objects=drawn, nbytes=size)
    store.put("survey.toml", tables.config_text(objects, chosen, root).encode())
    store.clear_staging()
    return SimulatedSurvey(
        config=out / "survey.toml",
        catalog=out / "sources.fits",
        truth=out / "truth.parquet",
        objects=objects,
        stars=int(people.star.sum()),
        spec=int(people.spec.sum()),
        test=int((~people.spec & ~people.star).sum()),
        tiles=len(tiles),
        images=len(planned),
    )


def _near(tile: Tile, ra: Float, dec: Float) -> NDArray[np.int64]:
    """Rows of the objects that may put light into the tile."""
    x, y = tile.positions(ra, dec)
    reach = draw.REACH / tile.scale
    inside = (np.minimum(x, y) > -reach) & (np.maximum(x, y) < tile.pixels + reach)
    return np.flatnonzero(inside)


def _tasks(
    out: str,
    seed: int,
    images: Sequence[_Image],
    people: Population,
    position: tuple[Float, Float],
    bands: Sequence[Band],
) -> Iterator[_Task]:
    shapes = np.stack([people.radius, people.sersic, people.axis_ratio, people.angle], axis=1)
    ra, dec = position
    for image in images:
        rows = image.rows
        x, y = image.tile.positions(ra[rows], dec[rows])
        mag = people.mag[rows, bands.index(image.band)]
        yield _Task(out, image.tile, image.band, seed, x, y, mag, shapes[rows])


def _drawn(tasks: Iterable[_Task], workers: int) -> Iterator[tuple[int, int]]:
    if workers == 1:
        yield from map(_draw_image, tasks)
        return
    # Spawned, not forked: the caller may hold threads (Ray, torch) that a fork would deadlock on.
    context = multiprocessing.get_context("spawn")
    # A terminal tells all processes of Ctrl-C; this one ends the others.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, context, signal.signal, quiet) as pool:
        yield from pool.map(_draw_image, tasks)


def _draw_image(task: _Task) -> tuple[int, int]:
    """Draw and write one image and its weight; the objects drawn and the bytes written."""
    tile, band = task.tile, task.band
    # Tile and band choose the noise, so it is the same whoever draws the image, and when.
    rng = np.random.default_rng([task.seed, _NOISE, tile.index, band.index])
    flux = 10 ** (-0.4 * (task.mag - band.zeropoint))
    image = draw.draw(tile.pixels, band, task.x, task.y, flux, task.shapes, rng)
    weight = np.full_like(image, 1 / band.sky_sigma**2)
    store, written = Store(task.out), 0
    for name, data, unit in zip(_names(tile, band), (image, weight), ("adu", "adu-2"), strict=True):
        hdu = fits.PrimaryHDU(data)
        hdu.header.update(tile.wcs.to_header())
        # astropy adds it to every header; there is no observation whose date would refer to it.
        hdu.header.remove("MJDREF", ignore_missing=True)
        hdu.header["OBJECT"] = (tile.name, "Tile")
        hdu.header["FILTER"] = (band.name, "Band")
        hdu.header["MAGZERO"] = (band.zeropoint, "AB magnitude of one count")
        hdu.header["BUNIT"] = (unit, "Counts" if data is image else "Inverse variance")
        content = _fits_bytes([hdu])
        store.put(f"tiles/{name}", content)
        written += len(content)
    return len(task.x), written


def _names(tile: Tile, band: Band) -> tuple[str, str]:
    """File names of an image and of its weight."""
    stem = f"{tile.name}_{band.name}"
    return f"{stem}.fits", f"{stem}.weight.fits"


def _fits_bytes(hdus: list[fits.PrimaryHDU | fits.BinTableHDU]) -> bytes:
    stream = io.BytesIO()
    fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()


def _refuse_strangers(folder: Path, ours: set[str]) -> None:
    found = sorted(path.name for path in folder.glob("*") if path.name not in ours)
    if found:
        raise InputError(
            f"{folder / found[0]} is not of this survey, whose images would lie beside it; "
            "choose an empty folder"
        )
