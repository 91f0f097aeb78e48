"""Whether the errors of deblended fluxes hold what they say, by separation and by contrast.

    python benchmarks/blends/coverage.py FOLDER [--parents 48000] [--blends 80000] [--epochs 8]
        [--unseen 40000] [--test 50000] [--width 32]

forced_blend2flux learns from artificial blends of the population, bands and noise of footprint.py
(magnitudes of a pair differ by 3 at most), its errors are scaled by the fifth of them that is held
out, and it is asked about blends of galaxies that another seed draws.

Printed: the share of fluxes within one error, before and after the calibration; of all in each
band, and of r by the magnitude less the other's and by the separation in the galaxy's half-light
radii. Errors by bootstrap over the galaxies, of which each is in several blends.

What was made is kept in FOLDER: a run that is repeated goes on. An hour of a core, 12 GB of disk, 8
GB of memory by default.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from contest import CONTRASTS, SEPARATIONS, of_network, pixels
from footprint import BANDS, PIXEL_SCALE, SIDE, parents

from surveyproc.config.sections import TrainingSection
from surveyproc.simulate.blends import Rule
from surveyproc.store.storage import Store
from surveyproc.train.blends import (
    BlendCounts,
    blend_training_set,
    blend_truth,
    open_blends,
    write_blends,
)
from surveyproc.train.cube import TrainingCube
from surveyproc.train.loop import train

RULE = Rule(magnitudes=3.0, least=0.0, most=100.0, within=9.0)
MAGNITUDES = (-RULE.magnitudes, *CONTRASTS, RULE.magnitudes)
RESAMPLES = 300


def blends(
    url: Path, part: str, galaxies: int, counts: BlendCounts, isolated: float, seed: int
) -> TrainingCube:
    """Blends of galaxies that a seed draws, made once."""
    store = Store(str(url))
    wanted = {"galaxies": galaxies, "train": counts.train, "test": counts.test}
    if store.read_json("options.json") != wanted:
        drawn = argparse.Namespace(parents=galaxies, seed=seed)
        found, noise = parents(drawn)
        more = {"isolated": isolated, "noise": noise, "pixel_scale": PIXEL_SCALE, "seed": seed}
        write_blends(store, found, counts, rule=RULE, **more)
        store.put_json("options.json", wanted)
    return open_blends(f"{url}/blends/{part}")


def resampled(good: np.ndarray, inside: np.ndarray, weights: np.ndarray) -> str:
    """A share and its error; `weights` (resample, blend)."""
    each = [((w[:, None] * inside) * good).sum() / (w[:, None] * inside).sum() for w in weights]
    return f"{good[inside].mean():.3f} +- {np.std(each):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parents", type=int, default=48_000, help="galaxies to learn from")
    parser.add_argument("--blends", type=int, default=80_000)
    parser.add_argument("--unseen", type=int, default=40_000, help="galaxies of the test")
    parser.add_argument("--test", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args()
    options.galaxies = 2
    torch.set_num_threads(1)
    learned = BlendCounts(options.blends, options.blends // 10)
    cube = blends(options.folder / "parts", "train", options.parents, learned, 0.1, 1)
    apart = BlendCounts(400, options.test, held_out_share=0.02, test_share=0.95)
    test = blends(options.folder / "unseen", "test", options.unseen, apart, 0.0, 2)
    package = train(
        blend_training_set(cube, told=True),
        settings=TrainingSection(
            source="", epochs=options.epochs, batch_size=32, learning_rates=[1e-3], shift=0
        ),
        store=cube.store,
        name="parts",
        architecture="forced_blend2flux",
        network={"cutout": SIDE, "width": options.width},
    )
    images, truth = pixels(test, np.arange(test.n)), blend_truth(test)
    first = images.shape[-1] // 2 - SIDE // 2
    images = np.ascontiguousarray(images[..., first : first + SIDE, first : first + SIDE])
    found = of_network(package, images, truth.places, options)
    off = np.abs(found["flux"] - truth.flux)
    print(f"MAPE of r, central and companion: {(100 * off / truth.flux)[..., 0].mean(axis=0)} %")
    random = np.random.default_rng(0)
    drawn = random.poisson(1.0, (RESAMPLES, truth.parent.max() + 1))
    weights = drawn[:, truth.parent].prod(axis=2).astype(np.float64)
    print(f"{test.n} blends of {len(np.unique(truth.parent))} galaxies; before, after calibration")
    ways = [off <= found[key] for key in ("raw", "error")]
    for number, band in enumerate(BANDS):
        shares = [f"{good[..., number].mean():.3f}" for good in ways]
        print(f"  {band}: {', '.join(shares)}")
    for what, by, edges in (
        ("magnitude less the other's", truth.contrast, MAGNITUDES),
        ("separation, radii", truth.separation, SEPARATIONS),
    ):
        print(f"  {what}")
        for low, high in pairwise(edges):
            inside = (by >= low) & (by < high)
            if inside.any():
                shares = [resampled(good[..., 0], inside, weights) for good in ways]
                count = f"{inside.sum()} of {len(np.unique(truth.parent[inside]))} galaxies"
                print(f"    {low:g} to {high:g}: {', '.join(shares)} ({count})", flush=True)


if __name__ == "__main__":
    main()
