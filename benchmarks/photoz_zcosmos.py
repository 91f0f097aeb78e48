"""Photometric redshifts of zCOSMOS-bright: our network beside a random forest, same held-out rows.

    python benchmarks/photoz_zcosmos.py [--data PATH] [--epochs 60] [--seeds 3]

Both learn from `secure` redshifts outside the held-out HEALPix pixels, in u g r i z J K. The
forest gets the magnitudes and colours of the network, missing values at the training mean.
Rows without any magnitude and rows with z <= 0 (stars and failures) are no labels for either.

Three samples are reported:
- held out, secure: the comparison;
- held out, secure, off the walls: only redshifts that are rare among the training rows. The field
  is one degree wide, so a held-out pixel shares its redshift walls with the training pixels, and a
  method can gain by knowing where the walls are;
- held out, other classes: less certain redshifts. Most `secure` rows also agree with a photo-z,
  which flatters every photo-z method; these rows tell how much.

The settings were tuned on a part of the training pixels, never on the held-out ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import RandomForestRegressor

from surveyproc.config.sections import TrainingSection
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.models.features import fit_scaling, network_inputs
from surveyproc.models.inference import predict
from surveyproc.places import opened
from surveyproc.products.photoz import PhotozProduct
from surveyproc.store.storage import Store
from surveyproc.train.data import TrainingSet, from_labels, sky_split
from surveyproc.train.loop import train

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY.parent / "shared/data/zcosmos_bright/zcosmos_west.parquet"
COLUMNS = dict(zip(("u", "g", "r", "i", "z", "J", "K"), "ugrizjk", strict=True))
SPLIT_SEED, SPLIT_SHARE = 1000, 0.25
WALL_STEP = 0.005


def read(path: str, args: argparse.Namespace, select: str | None) -> TrainingSet:
    return from_labels(section(args, 0, select), path)


def section(args: argparse.Namespace, seed: int, select: str | None = None) -> TrainingSection:
    return TrainingSection(
        source=str(args.data),
        redshift="zpec",
        ra="alpha",
        dec="delta",
        select=select,
        magnitudes={band: f"{column}_photzi25" for band, column in COLUMNS.items()},
        magnitude_errors={band: f"e{column}_photzi25" for band, column in COLUMNS.items()},
        epochs=args.epochs,
        batch_size=args.batch,
        workers=2,
        seed=seed,
    )


def off_walls(train_z: np.ndarray, z: np.ndarray) -> np.ndarray:
    """True where the training redshifts within 0.0025 are fewer than in a smooth distribution.

    The smooth one is the running mean of the histogram over 0.1 in redshift.
    """
    edges = np.arange(0.0, 3.0 + WALL_STEP, WALL_STEP)
    counts, _ = np.histogram(train_z, edges)
    width = round(0.1 / WALL_STEP)
    smooth = np.convolve(counts, np.ones(width) / width, mode="same")
    index = np.clip(np.digitize(z, edges) - 1, 0, len(counts) - 1)
    return counts[index] < smooth[index]


def line(sample: str, method: str, found: dict[str, float]) -> str:
    return (
        f"| {sample} | {method} | {found['n']:.0f} | {found['n_missing']:.0f} | "
        f"{found['nmad']:.4f} | {100 * found['outlier_fraction']:.2f} | {found['bias']:+.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--epochs", type=int, default=60, help="of each of the two stages")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of both methods")
    args = parser.parse_args()
    torch.set_num_threads(1)

    everything, secure = read(args.data, args, None), read(args.data, args, "secure")
    # One map of held-out pixels, drawn from all rows, serves every sample.
    held = sky_split(everything.ra, everything.dec, SPLIT_SEED, SPLIT_SHARE)
    place = set(zip(everything.ra[held], everything.dec[held], strict=True))
    inside = np.array([spot in place for spot in zip(secure.ra, secure.dec, strict=True)])
    known = set(zip(secure.ra, secure.dec, strict=True))
    other_rows = held & np.array(
        [spot not in known for spot in zip(everything.ra, everything.dec, strict=True)]
    )
    training, test, other = secure.take(~inside), secure.take(inside), everything.take(other_rows)
    rare = off_walls(training.targets["redshift"], test.targets["redshift"])
    samples = {
        "held out, secure": test,
        "held out, secure, off the walls": test.take(rare),
        "held out, other classes": other,
    }
    print(f"{len(training)} training rows, {len(test)} held out; dropped: {secure.dropped}")
    print("| sample | method | n | missing | NMAD | outliers % | bias |")
    print("|---|---|---|---|---|---|---|")

    table: dict[tuple[str, str], list[dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {"network": [], "forest": []}
    scaling = fit_scaling(training.flux, training.flux_err, training.bands)
    features = 2 * len(training.bands) - 1
    with tempfile.TemporaryDirectory() as root, opened():
        for seed in range(args.seeds):
            started = time.monotonic()
            package = train(
                replace(training, dropped={}),
                settings=section(args, seed),
                store=Store(root),
                name="gaznet-c7",
            )
            seconds["network"].append(time.monotonic() - started)
            product = PhotozProduct(package)
            network = package.network()
            started = time.monotonic()
            forest = RandomForestRegressor(
                500, min_samples_leaf=2, max_features=0.5, random_state=seed, n_jobs=2
            ).fit(
                network_inputs(training.flux, scaling)[0][:, :features],
                training.targets["redshift"],
            )
            seconds["forest"].append(time.monotonic() - started)
            for name, sample in samples.items():
                values, _ = predict(network, product.package.scaling, sample.flux)
                inputs = network_inputs(sample.flux, scaling)[0][:, :features]
                for method, z in (
                    ("network, PDF median", values["z_median"]),
                    ("network, point", values["z_point"]),
                    ("random forest", forest.predict(inputs)),
                ):
                    table.setdefault((name, method), []).append(
                        redshift_metrics(z, sample.targets["redshift"])
                    )
    for (name, method), runs in table.items():
        mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        print(line(name, method, mean))
    spread = np.ptp([run["nmad"] for run in table["held out, secure", "network, PDF median"]])
    print(f"means over {args.seeds} seeds; network NMAD differs by {spread:.4f} between seeds")
    print(", ".join(f"{who}: {np.mean(took):.1f} s a training" for who, took in seconds.items()))


if __name__ == "__main__":
    main()
