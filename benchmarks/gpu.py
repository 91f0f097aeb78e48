"""A simulated survey through networks of images on CPUs and on a GPU: columns, rates, utilisation.

    python benchmarks/gpu.py FOLDER [--objects 10000] [--backbone resnet50] [--networks N]

Simulates a survey, trains GaZNet-1 (r cutouts beside the nine bands) on its spectroscopic objects,
and gives a morphology network of timm's backbone random weights: what it says means nothing, what
it takes does. `run` then computes both on Ray without a GPU and apart with it, and the columns
are compared value by value. Rates are those from the first commit record to
the last, without the start of processes; utilisation is what nvidia-smi tells, every 0.2 s, of the
same time. Without a GPU the networks of `apart` compute on CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from compare_leaves import rows_of
from stages import run

from surveyproc.config import load
from surveyproc.models.base import build
from surveyproc.models.package import save_package
from surveyproc.simulate import simulate
from surveyproc.survey import Survey

PRODUCTS = """
[[products]]
name = "photometry"

[[products]]
name = "photoz"
model = "gaznet-1"
[products.training]
source = "truth.parquet"
redshift = "z"
select = "spec"
radius = 0.5
epochs = 8

[[products]]
name = "morphology"
model = "morphology"
"""


class Utilisation:
    """Shares of time in which kernels ran, with their moments, while a block runs."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Utilisation:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while torch.cuda.is_available() and not self.over.wait(0.2):
            said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            self.found.append((time.time(), float(said.split()[0])))

    def mean(self, first: float, last: float) -> float:
        """Mean of what was read between two moments, per cent; NaN if nothing was."""
        values = [one for when, one in self.found if first <= when <= last]
        return float(np.mean(values)) if values else float("nan")


def prepare(folder: Path, objects: int, backbone: str) -> Path:
    """Survey, ingested, with a trained network and one of random weights."""
    config = simulate(folder, objects=objects).config
    text, _, _ = config.read_text().partition("[[products]]")
    config.write_text(text + PRODUCTS)
    survey = Survey(load(config))
    bands = list(survey.config.images.bands)
    settings = {
        "backbone": backbone,
        "cutout": 64,
        "classes": {"class": ["early", "late", "edge_on"]},
    }
    torch.manual_seed(5)
    network = build("morphology", bands, settings)
    # Pixels as a training would find them, so that activations keep their usual size.
    noise = torch.randn(256, len(bands), 64, 64, generator=torch.Generator().manual_seed(1))
    network.set_images([100 * noise])
    save_package(
        survey.store,
        "morphology",
        architecture="morphology",
        settings=settings,
        bands=bands,
        scaling=None,
        members=[network.state_dict()],
    )
    for verb in (["ingest"], ["train", "--product", "photoz"]):
        started = time.perf_counter()
        command = [sys.executable, "-m", "surveyproc", *verb, str(config)]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        print(f"{' '.join(verb)}: {time.perf_counter() - started:.1f} s", flush=True)
    return config


def compare(first: pa.Table, second: pa.Table) -> None:
    """Largest differences by kind of column, and the shares of equal values."""
    found: dict[str, list[float]] = {}
    for name in first.column_names:
        one, other = (
            np.stack(table[name].to_numpy())
            if pa.types.is_list(table[name].type)
            else table[name].to_numpy()
            for table in (first, second)
        )
        if not np.issubdtype(np.asarray(one).dtype, np.floating):
            equal = float(np.mean(one == other))
            if equal < 1:
                print(f"    {name}: {1 - equal:.2e} of the values differ")
            continue
        assert np.array_equal(np.isfinite(one), np.isfinite(other)), name
        scale = 1 + np.abs(one)
        difference = np.nan_to_num(np.abs(one - other) / scale)
        kind = name.split("_")[0]
        found.setdefault(kind, []).append(float(difference.max()))
    for kind, values in found.items():
        if max(values):
            print(f"    {kind}: {len(values)} columns, |GPU - CPU| / (1 + |CPU|) {max(values):.1e}")


def devices(folder: Path) -> dict[str, int]:
    """How many units computed where, as the commit records have it."""
    counts: dict[str, int] = {}
    for record in (folder / "store/runs").glob("r*/commits/*.json"):
        where = json.loads(record.read_text())["device"]
        counts[where] = counts.get(where, 0) + 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--networks", type=int)
    options = parser.parse_args()
    folder = options.folder.absolute()
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name(), "and", os.cpu_count(), "CPU cores", flush=True)
    config = prepare(folder, options.objects, options.backbone)
    networks = [f"run.networks={options.networks}"] if options.networks else []
    tables: dict[str, pa.Table] = {}
    for name, settings in {
        "on Ray, CPUs": ["run.place=ray"],
        "apart": ["run.place=apart", *networks],
    }.items():
        with Utilisation() as utilisation:
            found: dict[str, Any] = run(config, settings, dict(os.environ))
        busy = utilisation.mean(*found["between"])
        print(
            f"{name:<14} {found['rate']:8,.0f} objects/s, whole command {found['seconds']:6.1f} s, "
            f"GPU busy {busy:.0f} %   ({found['why']})",
            flush=True,
        )
        releases = next((folder / "store/releases").iterdir())
        tables[name] = rows_of(releases)
        print(f"    devices: {devices(folder)}")
    compare(tables["on Ray, CPUs"], tables["apart"])
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
