"""Objects like one: what the codes keep of a network's vectors, and how long a search takes.

    python benchmarks/similar.py train FOLDER --data DATA [--epochs E]
    python benchmarks/similar.py sheet FOLDER --data DATA [--package PACKAGE]
    python benchmarks/similar.py vectors FOLDER --data DATA [--package PACKAGE] [--objects N]
                                               [--seen M]
    python benchmarks/similar.py vectors FOLDER --given FILE.npy
    python benchmarks/similar.py recall FOLDER
    python benchmarks/similar.py time FOLDER

DATA is a folder with labels.csv (OBJID, class_name, file) and images_128px.zip, as of Galaxy Zoo 1.

`train` makes a small network of colour images (four convolutions, 256 numbers before the classes)
in FOLDER/store; half of the objects, by their id, are held out. PACKAGE is any other model package
whose network reads as many bands as the images have colours and has an embedding. `sheet` gives the
share of neighbours that have the class of their galaxy, and a contact sheet of ten. `vectors` makes
N vectors: those of turned, moved, zoomed, dimmed and noisy copies of all images, and after the
first M (--seen) means of the copies of a galaxy, moved by the difference of two copies of another
one over the root of two; or it takes those of a file, of shape (n, length). `recall` counts how
many of the ten nearest among these vectors are among the ten nearest codes, and among the ten
nearest vectors of 64 numbers before they are rounded. `time` lays the codes out as a release of
partitions of 100,000 rows and searches it, cold (its pages dropped from memory) and warm, as index
and as column of the leaves. `libraries` does so for one partition, as index and as HNSW graph of
usearch, faiss and hnswlib, those of them that are installed.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from surveyproc import schemas
from surveyproc.catalogs import hats, neighbours
from surveyproc.config import SurveyConfig
from surveyproc.models.base import Network, Reads, build, register
from surveyproc.models.inference import predict
from surveyproc.models.package import Package, load_package, save_package
from surveyproc.models.tasks.classes import ClassTask
from surveyproc.models.tasks.codes import Codes
from surveyproc.models.tasks.embedding import EmbeddingTask
from surveyproc.schemas import Column
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.verbs.similar import similar

COLOURS = ("g", "r", "i")
CLASSES = ("elliptical", "spiral", "edge_on", "merger")
SPIRALS = ("spiral_cw", "spiral_acw")
ROWS = 100_000
COLUMN = Column("vectors_embedding", "int8", length=64, searched=True)
Float = NDArray[np.float32]


class Galaxies(Network):
    """Four convolutions of stride two, their mean, and the classes."""

    def __init__(self, bands: tuple[str, ...], cutout: int = 40) -> None:
        super().__init__()
        self.reads = Reads(images=bands, cutout=cutout)
        self.tasks = (ClassTask(CLASSES), EmbeddingTask(256))
        layers: list[nn.Module] = []
        for before, after in ((len(bands), 24), (24, 48), (48, 96), (96, 256)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.classes = nn.Linear(256, len(CLASSES))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.layers(images.nan_to_num() / 64 - 1).mean(dim=(2, 3))
        return {"class": self.classes(maps), "embedding": maps}


@register("bench-galaxies")
def galaxies(name: str, bands: tuple[str, ...], settings: dict[str, Any]) -> Network:
    return Galaxies(tuple(bands), **settings)


def read_images(data: Path, side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Images (n, 3, side, side), their classes' places in CLASSES (-1: another), and their ids."""
    table = list(csv.DictReader((data / "labels.csv").open()))
    images, kinds = [], []
    with zipfile.ZipFile(data / "images_128px.zip") as archive:
        for row in table:
            with Image.open(io.BytesIO(archive.read(row["file"]))) as image:
                # The middle: galaxies fill a part of these stamps.
                middle = image.convert("RGB").crop((16, 16, 112, 112))
                images.append(np.asarray(middle.resize((side, side), Image.Resampling.BILINEAR)))
            kind = "spiral" if row["class_name"] in SPIRALS else row["class_name"]
            kinds.append(CLASSES.index(kind) if kind in CLASSES else -1)
    stacked = np.stack(images).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked), np.array(kinds), [row["OBJID"] for row in table]


def changed(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turned by any angle, mirrored, moved, zoomed, dimmed, with noise."""
    n = len(images)

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, zoom = draw(0, 2 * torch.pi), draw(0.85, 1.2)
    mirror = torch.where(draw(0, 1) < 0.5, 1.0, -1.0)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    grid = torch.stack(
        [cos * mirror, -sin, draw(-0.06, 0.06), sin * mirror, cos, draw(-0.06, 0.06)], dim=1
    ).view(n, 2, 3)
    places = functional.affine_grid(grid, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, places, padding_mode="border", align_corners=False)
    noise = torch.randn(moved.shape, generator=generator) * draw(0, 6)[:, None, None, None]
    return (moved * draw(0.8, 1.2)[:, None, None, None] + noise).clamp(0, 255)


def held_out(ids: list[str]) -> NDArray[np.bool_]:
    """Half of the objects, by the last digits of their ids."""
    return np.array([int(one[-3:]) % 2 == 1 for one in ids])


def train(folder: Path, data: Path, epochs: int) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network = build("bench-galaxies", COLOURS, {})
    images, kinds, ids = read_images(data, network.reads.cutout)
    test = held_out(ids)
    rows = np.flatnonzero(~test & (kinds >= 0))
    step = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    batches = len(rows) // 64
    rate = torch.optim.lr_scheduler.OneCycleLR(step, 4e-3, total_steps=epochs * batches)
    # Classes are uneven; a weight between none and that of equal classes.
    counts = np.bincount(kinds[rows], minlength=len(CLASSES))
    weight = torch.tensor((counts.mean() / counts) ** 0.5, dtype=torch.float32)
    started = time.monotonic()
    for epoch in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator).numpy()]
        for part in np.array_split(order, batches):
            given = changed(torch.from_numpy(images[part]).float(), generator)
            logits = network(images=given)["class"]
            loss = functional.cross_entropy(logits, torch.from_numpy(kinds[part]), weight=weight)
            step.zero_grad()
            loss.backward()
            step.step()
            rate.step()
        print(f"epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}", flush=True)
    network.eval()
    vectors, values = what_it_says(network, images)
    network.tasks[1].fit(vectors[~test])
    known = test & (kinds >= 0)
    p = np.stack([values[f"p_{one}"] for one in CLASSES], axis=1)
    right = p[known].argmax(axis=1) == kinds[known]
    print(
        f"{time.monotonic() - started:.0f} s; accuracy of {known.sum()} held out {right.mean():.3f}"
    )
    save_package(
        Store(str(folder / "store")), "bench-galaxies", architecture="bench-galaxies", settings={},
        bands=COLOURS, scaling=None, members=[network.state_dict()],
    )  # fmt: skip


def what_it_says(network: Network, images: NDArray[Any]) -> tuple[Float, dict[str, NDArray[Any]]]:
    """The vectors of the first embedding, and the values of all tasks, of images (n, 3, y, x)."""
    task = next(one for one in network.tasks if one.kind == "embedding")

    def raw(one: Any, output: Any) -> dict[str, NDArray[Any]]:
        return {"vector": output.numpy()} if one is task else one.values(output)

    found: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, len(images), 4096):
        part = images[start : start + 4096].astype(np.float32)
        for key, values in predict(network, None, None, part, read=raw)[0].items():
            found.setdefault(key, []).append(values)
    joined = {key: np.concatenate(parts) for key, parts in found.items()}
    return joined.pop("vector"), joined


def codes_of(network: Network) -> Codes:
    return next(one.fitted for one in network.tasks if isinstance(one, EmbeddingTask))


def package_of(folder: Path, reference: str | None) -> Package:
    return load_package(Store(str(folder / "store")), reference or "bench-galaxies")


def nearest_rows(codes: NDArray[np.int8], row: int, n: int) -> NDArray[np.int64]:
    """The rows of the n codes nearest to one, without it."""
    rows, squares = neighbours.nearest(codes, codes[row], n + 1)
    order = rows[np.lexsort((rows, squares))]
    return order[order != row][:n]


def sheet(folder: Path, data: Path, reference: str | None) -> None:
    """Neighbours of galaxies that were held out, among all that were."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    network = package_of(folder, reference).network()
    images, kinds, ids = read_images(data, network.reads.cutout)
    rows = np.flatnonzero(held_out(ids) & (kinds >= 0))
    vectors, _ = what_it_says(network, images[rows])
    codes = codes_of(network)(torch.from_numpy(vectors)).numpy()
    kinds, images = kinds[rows], images[rows]
    found = np.stack([nearest_rows(codes, row, 10) for row in range(len(rows))])
    same = (kinds[found] == kinds[:, None]).mean(axis=1)
    for number, name in enumerate(CLASSES):
        own = kinds == number
        print(
            f"{name}: {own.sum()} of {len(rows)} objects, {own.mean():.3f} by chance; "
            f"{same[own].mean():.3f} of their ten nearest"
        )
    # Ten of them: of each class as many as can be, drawn with a seed.
    random = np.random.default_rng(0)
    wanted = (("elliptical", 3), ("spiral", 3), ("edge_on", 3), ("merger", 1))
    chosen = np.concatenate(
        [
            random.choice(np.flatnonzero(kinds == CLASSES.index(name)), count, replace=False)
            for name, count in wanted
        ]
    )
    print(f"all: {same.mean():.3f}; the ten of the sheet: {same[chosen].mean():.3f}")
    figure, axes = pyplot.subplots(10, 11, figsize=(13, 12.4))
    for line, row in zip(axes, chosen, strict=True):
        for place, (axis, one) in enumerate(zip(line, (row, *found[row]), strict=True)):
            axis.imshow(images[one].transpose(1, 2, 0))
            axis.set_xticks([])
            axis.set_yticks([])
            colour = "black" if not place else "green" if kinds[one] == kinds[row] else "red"
            axis.set_title(CLASSES[kinds[one]], fontsize=7, color=colour, pad=2)
    figure.tight_layout(pad=0.3)
    figure.savefig(folder / "sheet.png", dpi=80)
    print(folder / "sheet.png")


def make_vectors(folder: Path, data: Path, reference: str | None, objects: int, seen: int) -> None:
    torch.set_num_threads(1)
    network = package_of(folder, reference).network()
    images = torch.from_numpy(read_images(data, network.reads.cutout)[0])
    generator = torch.Generator().manual_seed(2)
    out, started = None, time.monotonic()
    for start in range(0, seen, 4096):
        rows = torch.arange(start, min(start + 4096, seen)) % len(images)
        found = what_it_says(network, changed(images[rows].float(), generator).numpy())[0]
        if out is None:
            shape = objects, found.shape[1]
            out = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, shape)
        out[start : start + len(rows)] = found
        if start % (4096 * 25) == 0:
            print(f"{start} of {seen}, {time.monotonic() - started:.0f} s", flush=True)
    assert out is not None
    random = np.random.default_rng(7)
    mean = (
        out[: seen // len(images) * len(images)].reshape(-1, len(images), out.shape[1]).mean(axis=0)
    )
    for start in range(seen, objects, ROWS):
        galaxy = np.arange(start, min(start + ROWS, objects)) % len(images)
        other, views = random.permutation(galaxy), seen // len(images)
        first = random.integers(0, views, len(galaxy))
        second = (first + random.integers(1, views, len(galaxy))) % views
        away = out[first * len(images) + other] - out[second * len(images) + other]
        out[start : start + len(galaxy)] = mean[galaxy] + away / 2**0.5
    make_codes(folder, codes_of(network))


def take_vectors(folder: Path, given: Path) -> None:
    """Vectors of a file, whose codes are fitted to some of them."""
    vectors = np.load(given).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)
    codes = Codes(vectors.shape[1])
    codes.fit(vectors[:: max(1, len(vectors) // 16_384)])
    make_codes(folder, codes)


def make_codes(folder: Path, codes: Codes) -> None:
    """Codes of the vectors, in any order, so that copies of one image lie in all partitions."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    order = np.random.default_rng(3).permutation(len(vectors))
    parts = [
        codes(torch.from_numpy(vectors[order[start : start + ROWS]])).numpy()
        for start in range(0, len(vectors), ROWS)
    ]
    np.save(folder / "order.npy", order)
    np.save(folder / "codes.npy", np.concatenate(parts))


def recall(folder: Path, queries: int = 100) -> None:
    """Of the ten nearest vectors, how many are among the ten nearest when they are shortened."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    order, codes = np.load(folder / "order.npy"), np.load(folder / "codes.npy")
    rows = np.random.default_rng(4).choice(len(codes), queries, replace=False)
    # Distances do not know the turn, so the axes may be any that span the same.
    some = vectors[:: max(1, len(vectors) // 20_000)].astype(np.float64)
    axes = np.linalg.svd(some - some.mean(axis=0), full_matrices=False)[2][:64]

    def ten(turn: NDArray[Any] | None) -> list[set[int]]:
        def turned(part: NDArray[Any]) -> NDArray[np.float64]:
            wide = part.astype(np.float64)
            return wide if turn is None else wide @ turn.T

        wanted = turned(vectors[order[rows]])
        parts = []
        for start in range(0, len(vectors), ROWS):
            part = turned(vectors[start : start + ROWS])
            # Squared distances, less what is the same for all.
            parts.append((part**2).sum(axis=1)[:, None] - 2 * part @ wanted.T)
        return [
            set([one for one in np.argsort(away)[:11] if one != order[row]][:10])
            for row, away in zip(rows, np.concatenate(parts).T, strict=True)
        ]

    true, shortened = ten(None), ten(axes)
    coded = [set(order[nearest_rows(codes, row, 10)]) for row in rows]
    for name, one, other in (
        ("codes against 64 numbers before they are rounded", shortened, coded),
        ("64 numbers against whole vectors", true, shortened),
        ("codes against whole vectors", true, coded),
    ):
        shares = [len(a & b) / 10 for a, b in zip(one, other, strict=True)]
        error = np.std(shares) / len(shares) ** 0.5
        print(f"{name}: recall at 10 of {len(codes)}: {np.mean(shares):.4f} +- {error:.4f}")
    spectrum = np.linalg.eigvalsh(np.cov(some.T))[::-1]
    shares_of = ", ".join(f"{spectrum[:k].sum() / spectrum.sum():.4f}" for k in (1, 8, 64))
    print(f"variance in the first 1, 8, 64 of {vectors.shape[1]} axes: {shares_of}")


def lay_out(folder: Path) -> Survey:
    """The codes as a release of partitions of 100,000 rows, in FOLDER/release."""
    config = {
        "survey": {"name": "bench", "root": str(folder / "release")},
        "images": {"tiles": [], "bands": ["r"]},
        "catalog": {"source": "none.parquet"},
        "products": [],
    }
    survey = Survey(SurveyConfig.model_validate(config))
    if survey.store.exists(layout.pointer("bench")):
        return survey
    import cdshealpix

    codes = np.load(folder / "codes.npy")
    columns = (*schemas.load("object"), COLUMN)
    random = np.random.default_rng(5)
    key = layout.release("bench", "r1")
    for part, start in enumerate(range(0, len(codes), ROWS)):
        own = codes[start : start + ROWS]
        places = np.sort(random.integers(0, 1 << 2 * (hats.ORDER - 4), len(own)))
        places += (700 + part) << 2 * (hats.ORDER - 4)
        lon, lat = cdshealpix.healpix_to_lonlat(places.astype(np.uint64), 29)
        values = {
            "object_id": start + np.arange(len(own)),
            "ra": lon.deg,
            "dec": lat.deg,
            hats.SPATIAL: places,
            "catalog_flag": np.zeros(len(own), np.int32),
            COLUMN.name: pa.ListArray.from_arrays(
                np.arange(len(own) + 1, dtype=np.int32) * 64, own.ravel()
            ),
        }
        table = pa.table({column.name: values[column.name] for column in columns})
        hats.write_leaf(survey.store, f"{key}/{hats.leaf_key(4, 700 + part)}", table, columns)
        started = time.monotonic()
        data = neighbours.encode(table, COLUMN, "v1")
        survey.store.put(f"{key}/{neighbours.index_key(COLUMN.name, 4, 700 + part)}", data)
        print(f"index of {len(own)} rows: {time.monotonic() - started:.3f} s, {len(data)} bytes")
    current = {"release": "r1", "path": key, "rows": len(codes), "products": {"bench": "v1"}}
    survey.store.put_json(layout.pointer("bench"), {**current, "searched": {COLUMN.name: "bench"}})
    return survey


def drop(folder: Path) -> None:
    """Let the system forget the pages of all files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def core() -> float:
    """Seconds of a processor that this process and those that it started have used."""
    return time.process_time() + sum(os.times()[2:4])


def seconds(search: Callable[[int], object], folder: Path, rows: NDArray[np.int64]) -> str:
    """Medians of searches for these rows, cold and warm; of warm ones the processor's, too."""

    def timed(cold: bool) -> Iterator[tuple[float, float]]:
        for row in rows:
            if cold:
                drop(folder)
            started, before = time.monotonic(), core()
            search(int(row))
            yield time.monotonic() - started, core() - before

    (cold, _), (warm, cpu) = (np.median(list(timed(how)), axis=0) for how in (True, False))
    return f"cold {cold:.3f} s, warm {warm:.3f} s, {cpu:.3f} s of a core"


def measure_time(folder: Path) -> None:
    survey = lay_out(folder)
    place = folder / "release"
    codes = np.load(folder / "codes.npy")
    rows = np.random.default_rng(6).choice(len(codes), 9, replace=False)
    keys = hats.leaf_keys(survey.store, "releases/bench/r1")

    def index_alone(row: int) -> object:
        for key in keys:
            order, pixel = hats.pixel_of(key)
            index = f"releases/bench/r1/{neighbours.index_key(COLUMN.name, order, pixel)}"
            held = neighbours.read(survey.store, index, COLUMN.name, "v1")
            neighbours.nearest(held.codes, codes[row], 10)
        return None

    def column(row: int) -> object:
        for key in keys:
            leaf = hats.read_leaf(survey.store, f"releases/bench/r1/{key}", [COLUMN.name])
            held = leaf[COLUMN.name].combine_chunks().flatten().to_numpy().reshape(-1, 64)
            neighbours.nearest(held, codes[row], 10)
        return None

    searches = {
        "similar, by id, all of it": lambda row: similar(survey, object_id=row),
        "the scan of the indexes, one thread": index_alone,
        "the same of the leaves' column": column,
    }
    for name, search in searches.items():
        print(f"{name}: {seconds(search, place, rows)}", flush=True)
    toml = folder / "bench.toml"
    toml.write_text(
        f'[survey]\nname = "bench"\nroot = "{place.absolute()}"\n[images]\ntiles = []\n'
        'bands = ["r"]\n[catalog]\nsource = "none.parquet"\n'
    )

    def command(row: int) -> object:
        line = [sys.executable, "-m", "surveyproc", "similar", str(toml), "--id", str(row)]
        return subprocess.run(line, check=True, capture_output=True)

    print(f"the command, from start to exit: {seconds(command, place, rows[:5])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    steps = ("train", "sheet", "vectors", "recall", "time")
    parser.add_argument("step", choices=steps)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--package")
    parser.add_argument("--given", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--seen", type=int, default=100_000)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.step in steps[:3] and chosen.data is None and chosen.given is None:
        parser.error("--data is needed")
    if chosen.step == "train":
        train(chosen.folder, chosen.data, chosen.epochs)
    elif chosen.step == "sheet":
        sheet(chosen.folder, chosen.data, chosen.package)
    elif chosen.step == "vectors" and chosen.given is not None:
        take_vectors(chosen.folder, chosen.given)
    elif chosen.step == "vectors":
        make_vectors(chosen.folder, chosen.data, chosen.package, chosen.objects, chosen.seen)
    elif chosen.step == "recall":
        recall(chosen.folder)
    else:
        measure_time(chosen.folder)


if __name__ == "__main__":
    main()
