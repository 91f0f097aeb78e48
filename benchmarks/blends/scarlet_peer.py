"""scarlet2 on blends: fluxes of galaxies whose centres are known. Wants an environment of its own.

    python -m venv /somewhere && /somewhere/bin/pip install scarlet2

`contest.py` calls it with that environment's Python; it imports nothing of surveyproc.

    python scarlet_peer.py blends.npz fluxes.npz

blends.npz: `images` (n, band, side, side), `sigma` (n, band), `centres` (n, k, 2) as y, x in
pixels, `psf` (band, odd side, side) of flux 1. fluxes.npz: `flux` (n, k, band), `seconds` (n,),
those of one core.

As in scarlet2's own quickstart: a Gaussian start from the moments about each centre, a free
spectrum and a free, positive morphology of each source, Adam until nothing changes by more than
1e-4. The neural prior of morphologies needs weights from the network and is left out.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro.distributions.constraints as constraints
import scarlet2
from scarlet2 import (
    ArrayPSF,
    Frame,
    GaussianPSF,
    Observation,
    Parameter,
    Parameters,
    Scene,
    Source,
    init,
    measure,
    relative_step,
)
from scarlet2.validation_utils import set_validation

STEPS = 200
BOXES = [15, 23, 35, 53]
"""Few sizes of boxes: jax compiles every combination anew."""


def fluxes(image: np.ndarray, sigma: np.ndarray, centres: np.ndarray, psf: ArrayPSF) -> np.ndarray:
    """Fluxes of one blend, shape (k, band)."""
    channels = [str(k) for k in range(len(image))]
    weights = jnp.asarray(np.broadcast_to(1 / sigma[:, None, None] ** 2, image.shape))
    seen = Observation(jnp.asarray(image), weights, psf=psf, channels=channels)
    frame = Frame(seen.frame.bbox, psf=GaussianPSF(0.7), channels=channels)
    boxes = [size for size in BOXES if size < image.shape[-1]]
    with Scene(frame) as scene:
        for centre in centres:
            middle = jnp.asarray(centre, dtype=float)
            try:
                spectrum, morphology = init.from_gaussian_moments(seen, middle, box_sizes=boxes)
                good = np.isfinite(spectrum).all() and np.isfinite(morphology).all()
                good &= bool((np.asarray(spectrum) > 0).all())
            except (ValueError, AssertionError):
                good = False
            if not good:
                spectrum = jnp.maximum(init.pixel_spectrum(seen, middle), 1e-3)
                morphology = init.compact_morphology()
            Source(middle, spectrum, morphology)
    with Parameters(scene):
        for k, source in enumerate(scene.sources):
            Parameter(
                source.spectrum,
                name=f"spectrum.{k}",
                constraint=constraints.positive,
                stepsize=partial(relative_step, factor=0.05),
            )
            Parameter(
                source.morphology,
                name=f"morphology.{k}",
                constraint=constraints.unit_interval,
                stepsize=0.1,
            )
    fitted = scene.fit(seen, max_iter=STEPS, e_rel=1e-4, progress_bar=False)
    return np.stack([np.asarray(measure.flux(source)) for source in fitted.sources])


def main() -> None:
    set_validation(False)
    with np.load(sys.argv[1]) as held:
        images, sigma, centres = (held[key] for key in ("images", "sigma", "centres"))
        psf = ArrayPSF(jnp.asarray(held["psf"]))
    found, seconds = [], []
    for image, own, centre in zip(images, sigma, centres, strict=True):
        started = time.process_time()
        found.append(fluxes(image, own, centre, psf))
        seconds.append(time.process_time() - started)
    version = getattr(scarlet2, "__version__", "")
    np.savez(sys.argv[2], flux=np.stack(found), seconds=np.array(seconds), version=version)


if __name__ == "__main__":
    main()
