"""FITS tiles to cubes, beside `cp` of the same bytes: ratio of the times, both in one run.

Both write to the same disk; the page cache is warm for both. Goal: at least 0.33 of cp's rate.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.io import fits

from surveyproc.config import load
from surveyproc.images.ingest import ingest_tiles
from surveyproc.places import opened
from surveyproc.store.storage import Store
from surveyproc.survey import Survey


def write_tiles(folder: Path, tiles: int, side: int, bands: str) -> Path:
    rng = np.random.default_rng(1)
    (folder / "tiles").mkdir()
    for number in range(tiles):
        for band in bands:
            header = fits.Header(
                {
                    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
                    "CRPIX1": side / 2, "CRPIX2": side / 2, "CRVAL1": 10.0 + number, "CRVAL2": 0.0,
                    "CDELT1": -5e-5, "CDELT2": 5e-5, "RADESYS": "ICRS",
                    "FILTER": band, "OBJECT": f"t{number:03d}", "MAGZERO": 30.0,
                }
            )  # fmt: skip
            data = rng.normal(size=(side, side)).astype(np.float32)
            fits.PrimaryHDU(data, header).writeto(folder / "tiles" / f"t{number:03d}_{band}.fits")
    survey = folder / "survey.toml"
    survey.write_text(
        '[survey]\nname = "bench"\nroot = "./store"\n[images]\ntiles = ["tiles/*.fits"]\n'
        f"bands = {list(bands)}\n".replace("'", '"')
        + '[catalog]\nsource = "none.fits"\n'
    )
    return survey


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", type=int, default=6)
    parser.add_argument("--side", type=int, default=4000)
    parser.add_argument("--bands", default="ugriz")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        survey = write_tiles(folder, options.tiles, options.side, options.bands)
        config = load(survey)
        nbytes = sum(path.stat().st_size for path in (folder / "tiles").iterdir())
        print(f"{nbytes / 1e6:.0f} MB in {options.tiles} tiles of {len(options.bands)} bands")
        print("   cp MB/s  ingest MB/s  again MB/s  ratio")
        with opened() as places:
            # Processes start and import once; a survey has thousands of tiles.
            ingest_tiles(config, Store(str(folder / "warm")), places)
            for _ in range(options.repeats):
                shutil.rmtree(folder / "copy", ignore_errors=True)
                shutil.rmtree(folder / "store", ignore_errors=True)
                subprocess.run(["sync"], check=True)
                started = time.perf_counter()
                subprocess.run(["cp", "-r", folder / "tiles", folder / "copy"], check=True)
                copying = time.perf_counter() - started
                subprocess.run(["sync"], check=True)
                started = time.perf_counter()
                ingest_tiles(Survey(config), places)
                ingesting = time.perf_counter() - started
                started = time.perf_counter()
                ingest_tiles(Survey(config), places)
                again = time.perf_counter() - started
                copied, made, repeated = (nbytes / 1e6 / s for s in (copying, ingesting, again))
                print(
                    f"{copied:10.0f} {made:12.0f} {repeated:11.0f} {made / copied:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
