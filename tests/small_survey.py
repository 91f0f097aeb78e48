"""A survey of 2 tiles in one band and 60 stars, photometry alone: made and run in a second."""

from pathlib import Path

import numpy as np
from astropy.io import fits

SIDE, DEGREES = 300, 1e-4
OTHER = "products.photometry.aperture=1.5"
"""A setting that makes another release of it."""


def make(folder: Path, partition_rows: int = 10, objects: int = 60, bands: str = "r") -> Path:
    """Files and survey.toml in `folder`; the latter."""
    (folder / "tiles").mkdir(parents=True)
    rng = np.random.default_rng(1)
    rows = ["object_id,ra,dec"]
    for tile in range(2):
        x, y = rng.uniform(30, SIDE - 30, (2, objects // 2))
        for band in bands:
            write_tile(folder / f"tiles/t{tile}_{band}.fits", tile, x, y, band=band)
        ra, dec = middle(tile) - (x - SIDE / 2) * DEGREES, (y - SIDE / 2) * DEGREES
        places = enumerate(zip(ra.tolist(), dec.tolist(), strict=True))
        rows += [f"{1000 * tile + number},{one!r},{other!r}" for number, (one, other) in places]
    (folder / "sources.csv").write_text("\n".join(rows) + "\n")
    survey = folder / "survey.toml"
    survey.write_text(
        '[survey]\nname = "small"\nroot = "./store"\n'
        f'[images]\nbands = {list(bands)}\ntiles = ["tiles/*.fits"]\n'
        f'[catalog]\nsource = "sources.csv"\npartition_rows = {partition_rows}\n'
        '[[products]]\nname = "photometry"\naperture = 1.2\n[run]\nworkers = 1\nplace = "here"\n'
    )
    return survey


def middle(tile: int) -> float:
    """Right ascension of the middle of a tile, degrees."""
    return 10.0 + 0.05 * tile


def write_tile(path: Path, tile: int, x, y, scale: float = 1.0, band: str = "r") -> None:
    """Stars of one brightness at these pixels, times `scale`, in noise of one."""
    rng = np.random.default_rng(100 + tile)
    image = rng.normal(0, 1, (SIDE, SIDE))
    row, column = np.mgrid[:SIDE, :SIDE]
    for one, other in zip(x, y, strict=True):
        image += 40 * np.exp(-((column - one) ** 2 + (row - other) ** 2) / 8)
    header = fits.Header(
        {
            "CTYPE1": "RA---TAN",
            "CTYPE2": "DEC--TAN",
            "CRVAL1": middle(tile),
            "CRVAL2": 0.0,
            "CRPIX1": SIDE / 2 + 1,
            "CRPIX2": SIDE / 2 + 1,
            "CD1_1": -DEGREES,
            "CD2_2": DEGREES,
            "OBJECT": f"t{tile}",
            "FILTER": band,
            "MAGZERO": 25.0,
        }
    )
    fits.PrimaryHDU((image * scale).astype(np.float32), header).writeto(path, overwrite=True)
