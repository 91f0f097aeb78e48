"""Chunks of a cube on an object store, read by Zarr through s3fs and through obstore.

Point the AWS_* variables at a store and name a bucket on it: `python benchmarks/objectstore.py
s3://bucket/folder`. The two take turns; printed are the median seconds and the CPU seconds.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from typing import Any

import numpy as np
import zarr
from zarr.storage import FsspecStore

from surveyproc.images.build import create_cube, write_rows
from surveyproc.images.cube import chunk_grid, zarr_store
from surveyproc.store.storage import Store

SIDE, BANDS, REPEATS = 2048, 9, 9
WINDOWS = (300, 1000, SIDE)


def main() -> None:
    warnings.simplefilter("ignore")
    store, shape = Store(sys.argv[1]), (BANDS, SIDE, SIDE)
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=shape).astype(np.float32)
    create_cube(store, "cube", shape, {"has_weight": False, "has_mask": False})
    strip = chunk_grid(shape[1:])[1][0]
    started = time.perf_counter()
    for y in range(0, SIDE, strip):
        write_rows(store, "cube", "image", y, pixels[:, y : y + strip], shape[1:])
    print(f"written: {pixels.nbytes / 1e6 / (time.perf_counter() - started):.0f} MB/s")
    ways: dict[str, Any] = {
        "s3fs": FsspecStore.from_url(store.url_of("cube/image"), read_only=True),
        "obstore": zarr_store(store, "cube/image"),
    }
    arrays = {name: zarr.open_array(way, mode="r", zarr_format=3) for name, way in ways.items()}
    seconds: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for repeat in range(REPEATS):
        for name in sorted(ways, reverse=bool(repeat % 2)):
            for side in WINDOWS:
                y, x = rng.integers(0, SIDE - side + 1, 2)
                wall, cpu = time.perf_counter(), time.process_time()
                arrays[name][:, y : y + side, x : x + side]
                spent = time.perf_counter() - wall, time.process_time() - cpu
                seconds.setdefault((side, name), []).append(spent)
    for (side, name), spent in sorted(seconds.items()):
        wall, cpu = (statistics.median(values) for values in zip(*spent, strict=True))
        megabytes = BANDS * side * side * 4e-6
        print(
            f"{side:>5} px  {name:<8} {1e3 * wall:6.0f} ms, {1e3 * cpu:4.0f} ms of CPU, "
            f"{megabytes / wall:4.0f} MB/s"
        )
    store.remove("cube")


if __name__ == "__main__":
    main()
