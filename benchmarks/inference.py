"""A catalog-only network over a footprint, read to published release, beside its limits.

One run prints objects/s of: the bare network on arrays in memory (one process, one thread),
pyarrow reading and rewriting the same columns, and `run` with one worker and with two. Process
start-up is inside `run`; it is also printed apart, since a survey pays it once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from surveyproc import verbs
from surveyproc.catalogs.ingest import ingest_catalog
from surveyproc.config import load
from surveyproc.models.inference import predict
from surveyproc.models.package import load_package
from surveyproc.places import opened
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train.data import TrainingSet
from surveyproc.train.loop import train

BANDS = "ugriz"


def write_survey(folder: Path, rows: int, partition_rows: int) -> Path:
    rng = np.random.default_rng(3)
    redshift = rng.uniform(0.1, 1.2, rows)
    columns = {
        "object_id": np.arange(rows),
        "ra": rng.uniform(150, 170, rows),
        "dec": rng.uniform(-5, 5, rows),
    }
    for number, band in enumerate(BANDS):
        magnitude = 22.0 - number * redshift + rng.normal(0, 0.1, rows)
        columns[f"flux_{band}"] = (10 ** (0.4 * (31.4 - magnitude))).astype(np.float32)
    pq.write_table(pa.table(columns), folder / "sources.parquet")
    labels = rng.choice(rows, 4000, replace=False)
    picked = {name: values[labels] for name, values in columns.items()}
    np.savez(folder / "labels.npz", redshift=redshift[labels], **picked)
    survey = folder / "survey.toml"
    survey.write_text(
        '[survey]\nname = "bench"\nroot = "./store"\n[images]\ntiles = []\n'
        f'bands = {list(BANDS)}\n[catalog]\nsource = "sources.parquet"\n'.replace("'", '"')
        + f"partition_rows = {partition_rows}\n"
        '[[products]]\nname = "photoz"\nmodel = "gaznet-c5"\n'
        '[products.training]\nsource = "labels.npz"\nredshift = "redshift"\nepochs = 1\n'
    )
    return survey


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--partition-rows", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = load(write_survey(folder, options.rows, options.partition_rows))
        store = Store(config.root)
        with opened() as places:
            started = time.perf_counter()
            ingest_catalog(Survey(config), places)
            show("ingest of the catalog", options.rows, time.perf_counter() - started)
            labels = np.load(folder / "labels.npz")
            settings = config.product("photoz").training
            assert settings is not None
            flux = np.stack([labels[f"flux_{band}"] for band in BANDS], axis=1).astype(float)
            train(
                TrainingSet(
                    flux=flux, flux_err=flux * 0.05, targets={"redshift": labels["redshift"]},
                    ra=labels["ra"], dec=labels["dec"], bands=tuple(BANDS),
                ),
                architecture="gaznet-c5", settings=settings, store=store, name="gaznet-c5",
            )  # fmt: skip
        package = load_package(store, "gaznet-c5")
        source = pq.read_table(folder / "sources.parquet")
        arrays = np.stack([source[f"flux_{band}"].to_numpy() for band in BANDS], axis=1)
        few = arrays[:200_000].astype(float)
        started = time.perf_counter()
        predict(package.network(), package.scaling, few)
        show("network alone, one thread", len(few), time.perf_counter() - started)
        started = time.perf_counter()
        pq.write_table(pq.read_table(folder / "sources.parquet"), folder / "rewritten.parquet")
        show("pyarrow read and rewrite", options.rows, time.perf_counter() - started)
        for count in (1, 2):
            one = config.model_copy(
                update={
                    "run": config.run.model_copy(update={"workers": count}),
                    "survey": config.survey.model_copy(update={"name": f"bench{count}"}),
                }
            )
            (folder / "store/catalogs" / f"bench{count}").symlink_to(
                folder / "store/catalogs/bench"
            )
            done = verbs.run(Survey(one))
            show(f"run, {count} worker(s), all in", options.rows, done.seconds)
            inside = options.rows / done.rows_per_second
            show("  work of the units alone", options.rows, inside / count)
        started = time.perf_counter()
        again = verbs.run(Survey(one))
        print(f"{'the same run again':<32} {again.did} in {time.perf_counter() - started:.2f} s")


def show(what: str, rows: int, seconds: float) -> None:
    print(f"{what:<32} {rows / seconds:12,.0f} objects/s   ({seconds:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
