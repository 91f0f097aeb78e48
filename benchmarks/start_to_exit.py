"""A survey from start to exit, process by process, beside a plain script in two processes.

    python benchmarks/start_to_exit.py FOLDER [--objects 10 1000 10000 200000] [--repeat 3]
                                       [--code OTHER_CHECKOUT]

Four tiles of 2,048 pixels in five bands, objects spread evenly over them, a small CNN brought in as
a network of somebody else's (entry point `surveyproc.models`). Each repetition runs, in turn, the
plain script (reads the tiles, slices, runs the CNN, writes Parquet), then `ingest`, `run`,
`nightly` with nothing new, and `report`, each as a process of its own on an empty store. Printed
are all times, and the medians. `--code` runs the same with the code of another checkout (which
must have an environment at `.venv`), alternating with this one's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BANDS = "grizy"
SIDE, OVERLAP, CUTOUT, PIXEL = 2048, 128, 64, 0.2
PLUGIN = """
from types import SimpleNamespace

import torch
from torch import nn

from surveyproc.models.base import Network, Reads, register
from surveyproc.models.tasks.redshift import RedshiftTask


class Output:
    def __init__(self, value):
        self.value = value

    def redshift(self):
        return self.value

    def summarise(self):
        z = self.value
        levels = z[:, None].expand(-1, 21)
        return SimpleNamespace(median=z, mean=z, mode=z, low=z, high=z, quantiles=levels)


def layers():
    return nn.Sequential(
        nn.Conv2d(5, 16, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1),
    )


class PlainCnn(Network):
    tasks = (RedshiftTask(lambda output, redshift: (output.value - redshift).abs(), pdf=False),)

    def __init__(self, bands):
        super().__init__()
        self.reads = Reads(images=tuple(bands), cutout=64)
        self.net = layers()

    def forward(self, images):
        return {"redshift": Output(self.net(images)[:, 0])}


@register("plaincnn")
def build(name, bands, settings):
    return PlainCnn(bands)
"""


def write_survey(folder: Path) -> None:
    """Tiles, weights and the plug-in; the same whenever asked for."""
    import torch
    from astropy.io import fits
    from astropy.wcs import WCS

    package = folder / "plugin" / "plaincnn-0.1.dist-info"
    package.mkdir(parents=True)
    (folder / "plugin/plaincnn.py").write_text(PLUGIN)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plaincnn\nVersion: 0.1\n")
    (package / "entry_points.txt").write_text("[surveyproc.models]\nplaincnn = plaincnn:build\n")
    sys.path.insert(0, str(folder / "plugin"))
    import plaincnn

    torch.manual_seed(7)
    torch.save(plaincnn.layers().state_dict(), folder / "weights.pt")
    rng = np.random.default_rng(1)
    (folder / "tiles").mkdir()
    step = (SIDE - OVERLAP) * PIXEL / 3600
    for tile in range(4):
        sky = WCS(naxis=2)
        sky.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        sky.wcs.crpix = [SIDE / 2 + 0.5] * 2
        sky.wcs.crval = [150 + (tile % 2 - 0.5) * step, (tile // 2 - 0.5) * step]
        sky.wcs.cdelt = [-PIXEL / 3600, PIXEL / 3600]
        for band in BANDS:
            header = sky.to_header()
            header["MAGZERO"], header["FILTER"], header["OBJECT"] = 31.4, band, f"tile{tile}"
            pixels = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
            fits.writeto(folder / "tiles" / f"tile{tile}_{band}.fits", pixels, header)


def write_objects(folder: Path, objects: int) -> Path:
    """survey.toml and catalog of so many objects, and the model package in its store."""
    rng = np.random.default_rng(2)
    half = (SIDE - OVERLAP / 2 - CUTOUT) * PIXEL / 3600
    place = folder / f"survey-{objects}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    columns = {
        "object_id": np.arange(objects),
        "ra": 150 + rng.uniform(-half, half, objects),
        "dec": rng.uniform(-half, half, objects),
    }
    pq.write_table(pa.table(columns), place / "sources.parquet")
    survey = place / "survey.toml"
    survey.write_text(
        f'[survey]\nname = "bench"\nroot = "./store"\n[images]\ntiles = ["{folder}/tiles/*.fits"]\n'
        f'bands = {json.dumps(list(BANDS))}\n[catalog]\nsource = "sources.parquet"\n'
        f"partition_rows = {max(250, objects // 16)}\n"
        '[run]\nworkers = 2\n[[products]]\nname = "photoz"\nmodel = "plaincnn"\n'
    )
    return survey


SAVE = """
import sys, torch
from surveyproc.models.package import save_package
from surveyproc.store.storage import Store
weights = torch.load(sys.argv[1], weights_only=True)
save_package(Store(sys.argv[2]), "plaincnn", architecture="plaincnn", settings={},
             bands=list("grizy"), scaling=None,
             members=[{f"net.{name}": value for name, value in weights.items()}])
"""


def plain(folder: Path, survey: Path) -> None:
    """What a good user would write: two processes, a tile at a time."""
    import multiprocessing

    import fitsio
    import torch
    from astropy.wcs import WCS

    sys.path.insert(0, str(folder / "plugin"))
    table = pq.read_table(survey.parent / "sources.parquet")
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    deepest = np.full(len(ra), -np.inf)
    tile_of, corner = np.zeros(len(ra), int), np.zeros((len(ra), 2), int)
    for tile in range(4):
        header = fitsio.read_header(str(folder / "tiles" / f"tile{tile}_g.fits"))
        x, y = WCS(dict(header)).all_world2pix(ra, dec, 0)
        depth = np.minimum.reduce([x, y, SIDE - 1 - x, SIDE - 1 - y])
        here = depth > deepest
        deepest[here], tile_of[here] = depth[here], tile
        corner[here] = np.rint(np.stack([x, y], axis=1)[here]).astype(int) - CUTOUT // 2

    def work(tile: int) -> tuple[np.ndarray, np.ndarray]:
        import plaincnn

        torch.set_num_threads(1)
        network = plaincnn.layers().eval()
        network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
        cube = np.stack(
            [fitsio.read(str(folder / "tiles" / f"tile{tile}_{band}.fits")) for band in BANDS]
        )
        index = np.flatnonzero(tile_of == tile)
        values = np.empty(len(index), np.float32)
        with torch.inference_mode():
            for start in range(0, len(index), 256):
                some = corner[index[start : start + 256]]
                cut = [cube[:, y : y + CUTOUT, x : x + CUTOUT] for x, y in some]
                values[start : start + 256] = network(torch.from_numpy(np.stack(cut)))[:, 0]
        return index, values

    globals()["_work"] = work  # a forked process finds it; a closure cannot be sent
    redshift = np.empty(len(ra), np.float32)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for index, values in pool.imap_unordered(_call, range(4)):
            redshift[index] = values
    pq.write_table(table.append_column("z", pa.array(redshift)), survey.parent / "plain.parquet")


def _call(tile: int) -> tuple[np.ndarray, np.ndarray]:
    return globals()["_work"](tile)


def timed(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    # With -m, Python imports from where it is started before it looks into the environment.
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return seconds


def check(survey: Path) -> None:
    """Every object once, with the plain script's value where both cut the same window."""
    plain = pq.read_table(survey.parent / "plain.parquet").to_pandas().set_index("object_id")
    leaves = [*(survey.parent / "store/releases").glob("**/Npix=*.parquet")]
    ours = pa.concat_tables(
        pq.ParquetFile(leaf).read(["object_id", "plaincnn_z_point"]) for leaf in leaves
    )
    ours = ours.to_pandas().set_index("object_id")["plaincnn_z_point"]
    assert len(ours) == len(plain), (len(ours), len(plain))
    assert ours.index.is_unique
    same = np.isclose(ours.loc[plain.index], plain["z"], atol=1e-5)
    assert same.mean() > 0.9, same.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, nargs="+", default=[10, 1000, 10_000, 200_000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--code", type=Path, help="another checkout, with .venv")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.plain:
        plain(folder, options.plain)
        return
    if not (folder / "tiles").exists():
        write_survey(folder)
    codes = {"here": Path(sys.executable)}
    if options.code:
        codes["other"] = options.code.absolute() / ".venv/bin/python"
    path = os.pathsep.join(filter(None, [str(folder / "plugin"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    print(f"torch {importlib.metadata.version('torch')}, ray {importlib.metadata.version('ray')}")
    for objects in options.objects:
        found: dict[str, list[float]] = {}
        for _ in range(options.repeat):
            survey = write_objects(folder, objects)
            script = [sys.executable, __file__, str(folder), "--plain", str(survey)]
            found.setdefault("plain script", []).append(timed(script, environment))
            for name, python in codes.items():
                store = survey.parent / "store"
                shutil.rmtree(store, ignore_errors=True)
                command = [str(python), "-c", SAVE, str(folder / "weights.pt"), str(store)]
                timed(command, environment)
                for verb in ("ingest", "run", "nightly", "nightly", "report"):
                    command = [str(python), "-m", "surveyproc", verb, str(survey)]
                    seconds = timed(command, environment)
                    found.setdefault(f"{name}: {verb}", []).append(seconds)
                check(survey)
        for name, seconds in found.items():
            # The first nightly has its files to look at; the second one is the one with no news.
            if "nightly" in name:
                seconds = seconds[1::2]
            each = " ".join(f"{one:6.2f}" for one in seconds)
            print(f"{objects:>7} {name:<16} median {statistics.median(seconds):6.2f} s   ({each})")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
