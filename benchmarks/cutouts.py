"""Cutouts from cubes, one core: beside a memory copy of the same cutouts, and `Cutout2D`.

The limit is the time to read the shards' bytes once plus to copy the same pixels from memory to
memory. Goal: 0.70 of that rate, and 10 times `Cutout2D`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.nddata import Cutout2D
from ingest import write_tiles

from surveyproc import sky
from surveyproc.config import load
from surveyproc.images.cube import read_tiles
from surveyproc.images.cutouts import CutoutReader
from surveyproc.images.ingest import ingest_tiles
from surveyproc.places import opened
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

SIZE = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as name:
        config = load(write_tiles(Path(name), 1, options.side, "ugriz"))
        store = Store(config.root)
        with opened() as places:
            ingest_tiles(Survey(config), places)
        tiles = read_tiles(store)
        pixels = rng.uniform(SIZE, options.side - SIZE, size=(options.objects, 2))
        ra, dec = sky.wcs_from_header(tiles[0].wcs).all_pix2world(pixels, 0).T
        shards = [path for path in Path(store.root).glob("images/**/c/**/*") if path.is_file()]
        image = rng.normal(size=(5, options.side, options.side)).astype(np.float32)
        corners = np.round(pixels).astype(int) - SIZE // 2
        out = np.empty((256, 5, SIZE, SIZE), np.float32)

        def limit() -> None:
            for shard in shards:
                shard.read_bytes()
            for number, (x, y) in enumerate(corners):
                out[number % 256] = image[:, y : y + SIZE, x : x + SIZE]

        def ours() -> None:
            got = sum(
                len(batch.index)
                for batch in CutoutReader(store, tiles, list("ugriz")).batches(ra, dec, SIZE, 256)
            )
            assert got == options.objects

        few = pixels[: options.objects // 20]

        def astropy() -> None:
            for position in few:
                for plane in image:
                    Cutout2D(plane, position, SIZE, mode="partial", copy=True)

        print("objects/s:    limit      ours  Cutout2D   ours/limit  ours/Cutout2D")
        for _ in range(options.repeats):
            rates = []
            for action, count in ((limit, len(ra)), (ours, len(ra)), (astropy, len(few))):
                started = time.perf_counter()
                action()
                rates.append(count / (time.perf_counter() - started))
            print(
                f"          {rates[0]:9.0f} {rates[1]:9.0f} {rates[2]:9.0f} "
                f"{rates[1] / rates[0]:12.2f} {rates[1] / rates[2]:14.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
