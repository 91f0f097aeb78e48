"""Many small networks at once, beside one after the other and a process each.

python benchmarks/type_redshift_speed.py [--fits 64]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from type_redshift import AT_ONCE, DATA, Sample, combo17, fitted, inputs_of, started

from surveyproc.models.families.otelo import PAPER
from surveyproc.train.many import ManySettings


def speed(sample: Sample, fits: int, data: Path) -> None:
    """Leave one out of 370, 40 epochs of the paper's network: batched, in turn, a process each."""
    chosen = np.random.default_rng(5).permutation(len(sample.index))[:370]
    training = [np.delete(chosen, k) for k in range(fits)]
    fit = ManySettings(40)
    began = time.perf_counter()
    fitted(sample, training, PAPER, fit)
    together = (time.perf_counter() - began) / fits
    began = time.perf_counter()
    for _ in range(4):
        plain(sample, training[0], fit)
    alone = (time.perf_counter() - began) / 4
    began = time.perf_counter()
    for _ in range(3):
        subprocess.run([sys.executable, __file__, "--one", "--data", str(data)], check=True)
    process = (time.perf_counter() - began) / 3
    print(
        f"{fits} fits at once, {AT_ONCE} a batch: {together:.2f} s a fit; in turn, a loop of "
        f"torch: {alone:.2f} s; one process a fit: {process:.2f} s; "
        f"gain {process / together:.1f} and {alone / together:.1f}"
    )


def plain(sample: Sample, rows: np.ndarray, fit: ManySettings) -> None:
    """The same training as an ordinary loop."""
    network = started(sample, rows, PAPER, 0).train()
    features = inputs_of(sample, rows, False)
    targets = {
        "class": torch.from_numpy(sample.index).float(),
        "redshift": torch.from_numpy(sample.redshift).float(),
    }
    optimiser = torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
    own = torch.from_numpy(rows)
    for _ in range(fit.epochs):
        for part in own[torch.randperm(len(own))].split(fit.batch_size):
            optimiser.zero_grad()
            known = {name: one[part] for name, one in targets.items()}
            network.loss(network(features[part]), known).mean().backward()
            optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--fits", type=int, default=64)
    parser.add_argument("--one", action="store_true", help="what a process of its own does")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sample = combo17(args.data)
    if args.one:
        plain(sample, np.arange(369), ManySettings(40))
    else:
        speed(sample, args.fits, args.data)


if __name__ == "__main__":
    main()
