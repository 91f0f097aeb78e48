"""What images add to redshifts, and what modalities add to images, on a simulated survey.

    python benchmarks/photoz_images.py FOLDER [--objects N] [--width W] [--epochs E] [--device cuda]

(a) GaZNet-1 (the r image beside the catalog) against GaZNet-C9 (the catalog alone), all objects and
    in halves of redshift: Li et al. 2022, section 4.2.
(b) The multimodal network (pairs of adjacent bands, early fusion) against its baseline (one
    modality of all bands) with the first 5, 6, 7, 8 and 9 bands: Ait Ouahmed et al. 2023, Table 3.

(c) How much there is to gain at best: regression trees on the measured fluxes of as many bands,
    without and with the true radius, Sersic index and axis ratio, which is all that tells two
    simulated images of the same fluxes and redshift apart.

Networks train with the galaxies that have a spectroscopic redshift and are tested on all others
(somewhat fainter; their true redshifts are known). The two networks of a pair see the same rows and
have the same settings. p is that of the paired bootstrap test of `evaluate.compare`: the chance of
such a gain if there were none.

FOLDER keeps the survey, the cube and every network's predictions, so the command goes on where it
was stopped; another --width or --epochs needs another folder of predictions (--tag).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.evaluate.compare import paired_bootstrap
from surveyproc.evaluate.redshift import dz_bias, dz_nmad, dz_outlier_fraction, scaled_error
from surveyproc.images.augment import centre
from surveyproc.models.base import Network, build, count_parameters
from surveyproc.models.features import fit_scaling, network_inputs
from surveyproc.models.inference import predict
from surveyproc.places import opened
from surveyproc.simulate import simulate
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train.cube import TrainingCube
from surveyproc.train.data import TrainingSet, sky_split
from surveyproc.train.examples import BandDropout, Examples
from surveyproc.train.fit import FitSettings, fit
from surveyproc.train.labels import measured_training_set

PRODUCT = """
[[products]]
name = "photoz_cube"
model = "multimodal-9"

[products.training]
source = "truth.parquet"
redshift = "z"
radius = 0.5
"""
BINS = (150, 0.0, 1.5)
BATCH = 32
SHIFT = 2
ROWS = "rows.npz"
COLUMNS = ("flux", "flux_err", "ra", "dec", "cube_row", "no_image")
CATALOG = ("gaznet-c9", "gaznet-1")
THRESHOLDS = (0.05, 0.15)
"""Of outliers: the paper's (b) and (a)."""


@dataclass(frozen=True)
class PartOfCube(TrainingCube):
    """Some bands of another cube, cut down: what a cube of their own would hold."""

    whole: TrainingCube | None = None

    def read(self, shard: int) -> NDArray[np.float32]:
        planes = [self.whole.bands.index(band) for band in self.bands]
        return centre(torch.from_numpy(self.whole.read(shard)[:, planes]), self.cutout).numpy()


def pairs(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Names of the networks to compare."""
    return [CATALOG, *((f"baseline-{n}", f"multimodal-{n}") for n in options.bands)]


def survey(folder: Path, objects: int) -> None:
    """All galaxies of a simulated survey, with their cutouts, measured and kept in `folder`."""
    if not (folder / "survey.toml").exists():
        simulate(folder, objects=objects)
        with (folder / "survey.toml").open("a") as stream:
            stream.write(PRODUCT)
    if (folder / ROWS).exists():
        return
    config = load(folder / "survey.toml")
    product = config.product("photoz_cube")
    # The catalog's own product is not trained here, and must not stand before this one.
    alone = [one for one in config.products if one.name != "photoz"]
    config = config.model_copy(update={"products": alone})
    with opened(config.run) as places:
        verbs.ingest(Survey(config))
        found = measured_training_set(Survey(config), product, places)
    truth = pq.read_table(folder / "truth.parquet", columns=["object_id", "spec"]).to_pandas()
    spec = truth.set_index("object_id").spec[found.cube.index["object_id"].to_numpy()].to_numpy()
    keep = (
        np.isfinite(found.targets["redshift"])
        & ~found.no_image
        & (found.targets["redshift"] < BINS[2])
    )
    found = found.take(keep)
    columns = {key: getattr(found, key) for key in COLUMNS}
    columns["redshift"] = found.targets["redshift"]
    np.savez(folder / ROWS, **columns, bands=found.bands, spec=spec[keep], key=found.cube.key)


def rows_of(folder: Path) -> tuple[TrainingSet, NDArray[np.bool_]]:
    """The galaxies, and which of them have a spectroscopic redshift."""
    kept = dict(np.load(folder / ROWS))
    store = Store(load(folder / "survey.toml").root)
    cube = TrainingCube.open(store, str(kept["key"]))
    columns = {key: kept[key] for key in COLUMNS}
    columns |= {"targets": {"redshift": kept["redshift"]}, "bands": tuple(kept["bands"].tolist())}
    return TrainingSet(**columns, cube=cube), kept["spec"]


def network_of(name: str, bands: tuple[str, ...], options: argparse.Namespace) -> Network:
    kind, _, count = name.partition("-")
    if kind in ("baseline", "multimodal"):
        settings = {"bins": list(BINS), "width": options.width, "cutout": options.cutout}
        settings["size"] = 2 if kind == "multimodal" else 0
        return build("multimodal", bands[: int(count)], settings)
    if name == "gaznet-c9":
        return build(name, bands, {})
    widths = [max(4, round(options.image_width * n)) for n in (32, 64, 128, 256)]
    return build(name, bands, {"cutout": 40, "image_widths": widths})


def part_of(cube: TrainingCube, network: Network) -> TrainingCube | None:
    """What the network reads of the cube, with `SHIFT` pixels on each side to shift it by."""
    if not network.reads.cutout:
        return None
    known = {field.name: getattr(cube, field.name) for field in fields(TrainingCube)}
    known |= {"bands": network.reads.images, "cutout": network.reads.cutout + 2 * SHIFT}
    return PartOfCube(**known, whole=cube)


def run(name: str, folder: str, options: argparse.Namespace) -> str:
    """Train one network and keep its redshifts of the test rows."""
    path = Path(folder) / options.tag / f"{name}.npz"
    if path.exists():
        return name
    torch.set_num_threads(options.threads)
    os.nice(10)
    whole, spec = rows_of(Path(folder))
    rows = np.flatnonzero(spec)
    held = np.zeros(len(whole), bool)
    held[rows[sky_split(whole.ra[rows], whole.dec[rows], 1, 0.1)]] = True
    training = spec & ~held
    torch.manual_seed(options.seed)
    network = network_of(name, whole.bands, options)
    cube = part_of(whole.cube, network)
    tensors = {
        "reddening": torch.zeros(len(whole)),
        "cube_row": torch.from_numpy(whole.cube_row),
    }
    redshift = torch.from_numpy(whole.targets["redshift"].astype(np.float32))
    scaling = None
    if network.reads.features:
        scaling = fit_scaling(whole.flux[training], whole.flux_err[training], whole.bands)
        tensors["features"] = torch.from_numpy(network_inputs(whole.flux, scaling)[0])

    def examples(mask: NDArray[np.bool_], held_out: NDArray[np.bool_]) -> Examples:
        index = torch.from_numpy(np.flatnonzero(mask))
        return Examples(
            reads=network.reads,
            tensors={key: value[index] for key, value in tensors.items()},
            targets={"redshift": redshift[index]},
            held_out=torch.from_numpy(held_out[mask]),
            cube=cube,
            dropout=BandDropout(0.0, 0.0),
            seed=options.seed,
        )

    network.set_targets({"redshift": redshift[torch.from_numpy(training)]})
    if network.reads.cutout:
        some = examples(training, held)
        every = torch.ones(some.rows, dtype=torch.bool)
        network.scaling.fit(images for _, images in some.images(every, 256))
    catalog = name in CATALOG
    settings = FitSettings(
        epochs=options.catalog_epochs if catalog else options.epochs,
        batch_size=BATCH,
        seed=options.seed,
        rates=(1e-3,),
        schedule="cosine",
        ema=0.99,
        precision="bfloat16" if options.bfloat16 and not catalog else "float32",
    )
    started = time.perf_counter()
    for state in fit(network, examples(spec, held), settings, device=options.device):
        last = state.history[-1] if state.history else None
        print(name, f"{time.perf_counter() - started:.0f} s", last, flush=True)
    network.load_state_dict(state.best)
    network.eval()
    test = np.flatnonzero(~spec)
    found = {key: np.empty(len(test)) for key in ("point", "median", "mode")}
    if network.reads.cutout:
        of_test = examples(~spec, np.zeros(len(spec), bool))
        every = torch.ones(len(test), dtype=torch.bool)
        blocks = ((index.numpy(), images.numpy()) for index, images in of_test.images(every, 256))
    else:
        blocks = ((np.arange(len(test)), None),)
    for index, images in blocks:
        flux = whole.flux[test[index]] if scaling else None
        dust = np.zeros(len(index)) if network.reads.reddening else None
        values = predict(network, scaling, flux, images, dust)[0]
        for key in found:
            found[key][index] = values[f"z_{key}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = time.perf_counter() - started
    np.savez(path, **found, parameters=count_parameters(network), seconds=seconds)
    return name


def table(folder: Path, options: argparse.Namespace) -> None:
    whole, spec = rows_of(folder)
    true = whole.targets["redshift"][~spec]
    print(f"{int(spec.sum())} galaxies to train with, {len(true)} to test with\n")
    print("| rows | metric | first | second | gain | p |\n|---|---|---|---|---|---|")
    for first, second in pairs(options):
        found = [dict(np.load(folder / options.tag / f"{name}.npz")) for name in (first, second)]
        sizes = " / ".join(
            f"{name} ({int(one['parameters']):,} parameters, {float(one['seconds']):.0f} s)"
            for name, one in zip((first, second), found, strict=True)
        )
        print_pair(sizes, [one["median"] for one in found], true)
    for count in options.bands:
        title = f"trees, {count} bands: fluxes / fluxes and true shapes"
        print_pair(title, trees(folder, whole, spec, count), true)


def print_pair(title: str, redshifts: list[NDArray], true: NDArray) -> None:
    middle = float(np.median(true))
    parts = {
        "all": np.ones(len(true), bool),
        f"z < {middle:.2f}": true < middle,
        f"z >= {middle:.2f}": true >= middle,
    }
    print(f"| **{title}** | | | | | |")
    errors = [scaled_error(z, true) for z in redshifts]
    for label, mask in parts.items():
        for metric, of in metrics().items():
            got = paired_bootstrap(errors[0][mask], errors[1][mask], of, resamples=5000)
            print(
                f"| {label} | {metric} | {got.baseline:.5f} | {got.candidate:.5f} "
                f"| {100 * got.gain:+.1f} % | {got.p_value:.4f} |"
            )


def trees(folder: Path, whole: TrainingSet, spec: NDArray[np.bool_], bands: int) -> list[NDArray]:
    """Redshifts of the test rows from magnitudes in some bands, and with the true shapes."""
    truth = pq.read_table(folder / "truth.parquet").to_pandas().set_index("object_id")
    rows = truth.loc[whole.cube.index["object_id"].to_numpy()[whole.cube_row]]
    shapes = np.log(rows[["half_light_radius", "sersic_n", "axis_ratio"]].to_numpy(float))
    magnitudes = np.nan_to_num(np.arcsinh(whole.flux[:, :bands] / 100.0), nan=-9.0)
    fluxes = np.concatenate([magnitudes[:, 2:3], np.diff(magnitudes, axis=1)], axis=1)
    found = []
    for inputs in (fluxes, np.concatenate([fluxes, shapes], axis=1)):
        forest = ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0)
        forest.fit(inputs[spec], np.log1p(whole.targets["redshift"][spec]))
        found.append(np.expm1(forest.predict(inputs[~spec])))
    return found


def metrics() -> dict[str, object]:
    shares = {
        f"share beyond {limit}": lambda dz, limit=limit: dz_outlier_fraction(dz, limit)
        for limit in THRESHOLDS
    }
    return {"NMAD": dz_nmad, **shares, "bias": dz_bias}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, default=8000)
    parser.add_argument("--width", type=float, default=1.0, help="of the multimodal networks")
    parser.add_argument("--cutout", type=int, default=64, help="of the multimodal networks: 64, 32")
    parser.add_argument("--image-width", type=float, default=1.0, help="of GaZNet-1's image path")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--catalog-epochs", type=int, default=60, help="of GaZNet-C9 and GaZNet-1")
    parser.add_argument("--bands", type=int, nargs="*", default=[9, 8, 7, 6, 5], help="of (b)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="networks trained side by side")
    parser.add_argument("--tag", default="predictions", help="folder of the predictions")
    options = parser.parse_args()
    survey(options.folder, options.objects)
    names = [name for pair in pairs(options) for name in pair]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        tasks = [pool.submit(run, name, str(options.folder), options) for name in names]
        for task in tasks:
            task.result()
    table(options.folder, options)


if __name__ == "__main__":
    main()
