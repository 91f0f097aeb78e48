"""What no deblending can know of blends of real stamps: the noise of the other galaxy's stamp.

    python benchmarks/blends/floor.py FOLDER --stamps isolated_galaxies_9band_64px_uJy.npz --seed 1

The pairs of a contest's test (FOLDER/real, made if it is not there), but with the companion taken
out of its stamp before the sum, and its place filled with the stamp's own background: nothing is
blended, only the noise of both stamps is there. Two answers to how bright the galaxy left is,
beside the truth, which is its Kron flux in its own stamp: the sum of the pixels in the ellipse in
which the truth was measured, which nobody is told; and the Kron flux measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import contest
import numpy as np
from scipy.ndimage import binary_dilation

from surveyproc.evaluate.blends import blend_metrics
from surveyproc.simulate.parents import DILATION, isolate
from surveyproc.store.storage import Store
from surveyproc.train.blends import blend_truth


def without(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stamp whose galaxy is filled with background half a stamp away, else with any of it."""
    left = binary_dilation(mask, iterations=DILATION)
    galaxy, filled, half = left.copy(), image.copy(), image.shape[-1] // 2
    for move in ((half, 0), (0, half), (half, half)):
        usable = left & ~np.roll(galaxy, move, (0, 1))
        filled[usable] = np.roll(image, move, (0, 1))[usable]
        left &= ~usable
    filled[left] = rng.choice(image[~galaxy], int(left.sum()))
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blends", type=int, default=6000)
    parser.add_argument("--test", type=int, default=600)
    options = parser.parse_args()
    options.galaxies, options.bands = 2, ["r"]
    folder = options.folder / "real"
    folder.mkdir(parents=True, exist_ok=True)
    _, test = contest.blends_of("real", Store(str(folder)), options)
    truth = blend_truth(test)
    with np.load(options.stamps) as held:
        stamps = held["images"][:, [list(held["bands"]).index("r")]].astype(np.float64) * 1e3
    # As `from_stamps` does it, in its order, so that the parents are those of the blends.
    rng = np.random.default_rng(options.seed)
    parents = [found for one in stamps if (found := isolate(one, 0, rng)) is not None]
    own = np.array([one.flux[0] for one in parents])
    np.testing.assert_allclose(own[truth.parent], truth.flux[..., 0], rtol=1e-3)
    empty = [without(one.image[0], one.mask, rng) for one in parents]
    told, again = np.full((2, *truth.parent.shape), np.nan)
    for row, pair in enumerate(truth.parent):
        for k, (galaxy, other) in enumerate(((pair[0], pair[1]), (pair[1], pair[0]))):
            move = (1 - 2 * k) * (truth.shift[row, 1] - truth.shift[row, 0])
            seen = parents[galaxy].image[0] + np.roll(empty[other], move, (0, 1))
            told[row, k] = parents[galaxy].ellipse.flux(seen)
            if (measured := isolate(seen[None], 0, rng)) is not None:
                again[row, k] = measured.flux[0]
    true = truth.flux[..., 0]
    again /= np.nanmedian(again / true)
    for name, flux in (("told the true ellipse", told), ("Kron flux again, scaled", again)):
        found = blend_metrics(flux.ravel(), true.ravel())
        print(
            f"{name:24s} n {found['n']} MAPE on flux {found['mape_flux']:.2f} % std "
            f"{found['std']:.3f} outliers {100 * found['outliers']:.2f} %"
        )


if __name__ == "__main__":
    main()
