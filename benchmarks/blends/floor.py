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
import sep
from scipy.ndimage import binary_dilation

from surveyproc.evaluate.blends import blend_metrics
from surveyproc.simulate.parents import DETECTION, DILATION, KRON, LEAST_PIXELS
from surveyproc.store.storage import Store
from surveyproc.train.blends import blend_truth

Ellipse = tuple[float, float, float, float, float, float]


def kron(image: np.ndarray) -> tuple[Ellipse, float] | None:
    """Ellipse and flux of the galaxy nearest to the centre, as `simulate.parents` measures it."""
    plane = np.ascontiguousarray(image, dtype=np.float64)
    found = sep.extract(
        plane, DETECTION, err=float(sep.Background(plane).globalrms), minarea=LEAST_PIXELS
    )
    middle = image.shape[-1] // 2
    if not len(found):
        return None
    one = found[np.hypot(found["x"] - middle, found["y"] - middle).argmin()]
    x, y, a, b, theta = (float(one[key]) for key in ("x", "y", "a", "b", "theta"))
    radius, _ = sep.kron_radius(plane, [x], [y], [a], [b], [theta], 6.0)
    ellipse = (x, y, a, b, theta, max(float(KRON * radius[0]), 3.5))
    return ellipse, summed(plane, ellipse)


def summed(image: np.ndarray, ellipse: Ellipse) -> float:
    x, y, a, b, theta, reach = ellipse
    plane = np.ascontiguousarray(image, dtype=np.float64)
    return float(sep.sum_ellipse(plane, [x], [y], [a], [b], [theta], reach)[0][0])


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
    parents, _ = contest.parents_of("real", options)
    folder = options.folder / "real"
    folder.mkdir(parents=True, exist_ok=True)
    _, test = contest.blends_of("real", Store(str(folder)), options)
    truth = blend_truth(test)
    rng = np.random.default_rng(options.seed)
    images = parents.images[:, 0].astype(np.float64)
    empty = [without(*one, rng) for one in zip(images, parents.mask, strict=True)]
    own = [kron(image) for image in images]
    told, again = np.full((2, *truth.parent.shape), np.nan)
    for row, pair in enumerate(truth.parent):
        for k, (galaxy, other) in enumerate(((pair[0], pair[1]), (pair[1], pair[0]))):
            move = (1 - 2 * k) * (truth.shift[row, 1] - truth.shift[row, 0])
            seen = images[galaxy] + np.roll(empty[other], move, (0, 1))
            if (known := own[galaxy]) is not None:
                told[row, k] = summed(seen, known[0])
            if (measured := kron(seen)) is not None:
                again[row, k] = measured[1]
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
