"""Training throughput, samples/s: from a cube on disk, beside a plain loop over tensors in memory.

The same network, batches, optimiser and augmentation for both, one process, one thread (or one
GPU). The difference is what reading, shuffling and the state after each epoch cost. On a GPU the
share of the bf16 rate of a large matrix product is printed as well. Goal: 0.90 of the plain loop.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import pyarrow as pa
import torch
from torch.utils.flop_counter import FlopCounterMode

from surveyproc.images.augment import augment
from surveyproc.models.base import Network, build, count_parameters
from surveyproc.store.storage import Store
from surveyproc.train import cube as cubes
from surveyproc.train.examples import BandDropout, Examples, generator
from surveyproc.train.fit import FitSettings, fit

BANDS = ("u", "g", "r", "i", "z", "y", "J", "H", "K")
SHIFT = 2


def network_of(options: argparse.Namespace) -> Network:
    torch.manual_seed(0)
    settings = {"width": options.width, "size": options.size}
    network = build("multimodal", BANDS, settings).to(options.device)
    if options.compile:
        network.compile()
    return network


def write_cube(store: Store, n: int, side: int) -> cubes.TrainingCube:
    rng = np.random.default_rng(0)
    cubes.write_header(store, "training/bench/1", n, len(BANDS), side)
    for number, first in enumerate(range(0, n, cubes.SHARD)):
        shape = (min(cubes.SHARD, n - first), len(BANDS), side, side)
        images = rng.normal(0, 10, shape).astype(np.float32)
        cubes.write_shard(store, "training/bench/1", number, images)
    record = {"bands": list(BANDS), "cutout": side, "pixel_scale": 0.2}
    return cubes.finish(store, "training/bench/1", pa.table({"object_id": np.arange(n)}), record)


def plain(images: torch.Tensor, redshift: torch.Tensor, options: argparse.Namespace) -> float:
    """Samples/s of an epoch over tensors in memory."""
    network = network_of(options).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0)
    dust = torch.zeros(options.batch, device=options.device)
    started = time.perf_counter()
    done = 0
    for step in range(len(images) // options.batch):
        rows = slice(step * options.batch, (step + 1) * options.batch)
        part = augment(images[rows].to(options.device), generator(0, step), 64)
        part = part.contiguous(memory_format=torch.channels_last)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bfloat16):
            outputs = network(images=part, reddening=dust)
        targets = {"redshift": redshift[rows].to(options.device)}
        loss = network.loss(outputs, targets).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        done += options.batch
    if options.device == "cuda":
        torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def ours(cube: cubes.TrainingCube, redshift: torch.Tensor, options: argparse.Namespace) -> float:
    """Samples/s of an epoch of `fit`, from the cube, nothing held out."""
    network = network_of(options)
    n = len(redshift)
    tensors = {
        "reddening": torch.zeros(n),
        "cube_row": torch.arange(n),
    }
    examples = Examples(
        network.reads,
        tensors,
        {"redshift": redshift},
        torch.zeros(n, dtype=torch.bool),
        cube,
        BandDropout(0.0, 0.0),
        0,
    )
    precision = "bfloat16" if options.bfloat16 else "float32"
    settings = FitSettings(1, options.batch, 0, rates=(1e-4,), precision=precision)
    started = time.perf_counter()
    for _ in fit(network, examples, settings, device=options.device):
        pass
    return n / (time.perf_counter() - started)


def matrix_rate(device: str) -> float:
    """Operations/s of large bf16 matrix products."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--objects", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=float, default=0.1)
    parser.add_argument("--size", type=int, default=2, help="bands a modality; 0 = baseline")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = options.objects // options.batch * options.batch
    redshift = torch.rand(n)
    with tempfile.TemporaryDirectory() as place:
        cube = write_cube(Store(place), n, 64 + 2 * SHIFT)
        images = torch.from_numpy(np.concatenate([cube.read(k) for k in range(cube.shards)]))
        print(f"{count_parameters(network_of(options)):,} parameters, batch {options.batch}")
        print("plain loop/s  from cube/s  ratio")
        for _ in range(options.repeats):
            rates = plain(images, redshift, options), ours(cube, redshift, options)
            print(f"{rates[0]:12.1f} {rates[1]:12.1f} {rates[1] / rates[0]:6.2f}", flush=True)
    if options.device == "cuda":
        network = network_of(options)
        part = torch.zeros(options.batch, len(BANDS), 64, 64, device="cuda")
        with FlopCounterMode(display=False) as counter:
            dust = torch.zeros(options.batch, device="cuda")
            outputs = network(images=part, reddening=dust)
            targets = {"redshift": torch.rand(options.batch, device="cuda")}
            network.loss(outputs, targets).mean().backward()
        share = counter.get_total_flops() / options.batch * rates[1] / matrix_rate("cuda")
        print(f"share of the bf16 matrix rate: {share:.3f}")


if __name__ == "__main__":
    main()
