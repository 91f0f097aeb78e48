"""How many blends that the catalog took for one galaxy a network finds, for how many others lost.

    python benchmarks/blends/unrecognised.py FOLDER --stamps isolated_galaxies_9band_64px_uJy.npz
        [--bands r ...] [--rows 8000] [--epochs 15] [--sets real drawn]

Half of the rows are galaxies alone, half are pairs whose centres are 1 to `within` pixels apart:
real stamps (KiDS and VIKING, PSF of 2.2 pixels in r) and drawn galaxies (one band, PSF of 3).
No galaxy is both trained with and tested. What is printed: the share of the pairs found when 10 %
of the lone galaxies are rejected, by separation in widths of the PSF; the aim is 80 % above half of
one. A training that is repeated is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from contest import OTHER_FWHM, REAL_FWHM, pixels

from surveyproc.config.sections import TrainingSection
from surveyproc.evaluate.blends import KINDS, REJECTED, found_blends
from surveyproc.evaluate.votes import calibration_error, roc_area
from surveyproc.models.inference import device_here, predict
from surveyproc.simulate.blends import Rule
from surveyproc.simulate.galaxies import Sky, drawn
from surveyproc.simulate.parents import Parents, from_stamps
from surveyproc.store.storage import Store
from surveyproc.train.blends import (
    BlendCounts,
    blend_training_set,
    blend_truth,
    open_blends,
    write_blends,
)
from surveyproc.train.loop import train

SIDE = 64
EDGES = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 100.0)
AIM, ALLOWED = 0.5, 0.1


def parents_of(name: str, options: argparse.Namespace) -> tuple[Parents, np.ndarray | None, float]:
    """Galaxies, levels of noise to add, and the width of the PSF in pixels."""
    if name == "drawn":
        sky = Sky()
        return drawn(2000, side=SIDE, seed=options.seed), np.array([[sky.sigma]]), sky.fwhm
    with np.load(options.stamps) as held:
        names = [str(band) for band in held["bands"]]
        images = held["images"][:, [names.index(band) for band in options.bands]] * 1e3
    parents = from_stamps(images, tuple(options.bands), options.bands[0], seed=options.seed)
    return parents, None, REAL_FWHM.get(options.bands[0], OTHER_FWHM)


def told(name: str, options: argparse.Namespace) -> None:
    parents, noise, width = parents_of(name, options)
    folder = options.folder / f"{name}-{'-'.join(options.bands) if name == 'real' else 'one'}"
    store = Store(str(folder.absolute()))
    wanted = {key: getattr(options, key) for key in ("rows", "within", "seed")}
    if store.read_json("options.json") != wanted:
        rule = Rule(least=0.0, most=100.0, turn=name == "real", within=options.within * width)
        counts = BlendCounts(options.rows, options.rows // 4)
        write_blends(
            store, parents, counts, rule=rule, isolated=0.5, noise=noise, seed=options.seed
        )
        store.put_json("options.json", wanted)
    cubes = [open_blends(store.url_of(f"blends/{part}")) for part in ("train", "test")]
    section = TrainingSection(
        source="", epochs=options.epochs, batch_size=64, seed=options.seed, shift=0,
        precision="bfloat16", zoom=1.0,
    )  # fmt: skip
    package = train(
        blend_training_set(cubes[0], fluxes=False, classes=True),
        settings=section,
        store=store,
        name="blend_probability",
        architecture="morphology",
        network={"cutout": SIDE, "average": True},
    )
    test = cubes[1]
    values, _ = predict(
        package.network(), None, images=pixels(test, np.arange(test.n)), device=device_here()
    )
    p = values[f"p_{KINDS[0]}"]
    truth = blend_truth(test)
    is_blend = test.index["target_class"].to_numpy().astype(object) == KINDS[0]
    apart = np.hypot(*(truth.shift[:, 1] - truth.shift[:, 0]).T) / width
    found = found_blends(p, is_blend, apart, EDGES)
    place = REJECTED.index(ALLOWED)
    print(
        f"{name}, {len(parents)} galaxies, {cubes[0].n} rows to train with; test {found['n']} "
        f"rows, {found['blends']} blends; area {roc_area(p, is_blend):.3f}, calibration error "
        f"{calibration_error(p, is_blend):.3f}"
    )
    print(f"  rejected {found['rejected']}: found {np.round(found['completeness'], 3).tolist()}")
    for row in found["by_separation"]:
        print(
            f"  {row['low']:g} to {row['high']:g} widths of the PSF, {row['n']} blends: "
            f"{row['completeness'][place]:.3f} found at {ALLOWED:.0%} rejected"
        )
    far = is_blend & (apart >= AIM)
    above = found_blends(p[far | ~is_blend], is_blend[far | ~is_blend])["completeness"][place]
    print(f"  above {AIM} widths: {above:.3f} (aim 0.80)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=["real", "drawn"], choices=["real", "drawn"])
    parser.add_argument("--stamps", type=Path, help="npz of real galaxies, for the set `real`")
    parser.add_argument("--bands", nargs="+", default=["r"], help="of the stamps")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--within", type=float, default=2.0, help="widths of the PSF")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.sets:
        told(name, options)


if __name__ == "__main__":
    main()
