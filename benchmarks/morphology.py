"""What morphology networks learn from few labels, and from bright galaxies for faint ones.

Usage:
    python benchmarks/morphology.py classes DATA WORK [backbone ...]
    python benchmarks/morphology.py faint DATA WORK [seed ...]
    python benchmarks/morphology.py sheet DATA WORK
    python benchmarks/morphology.py tell WORK

classes: gz1_images and gz2_spirals in five folds by object, with all, half and a tenth of the
labels; faint: a faint survey made of the bright one, with and without the adversarial augmentation;
sheet: a contact sheet of kids_viking_field; tell: the figures so far. DATA holds the three. Every
training appends a line to WORK/<part>.jsonl and is not repeated if its line is there, so a part can
be stopped at any time. One thread a process: start two with different arguments for two cores.
"""

from __future__ import annotations

import csv
import json
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from astropy.table import Table
from astropy.visualization import make_lupton_rgb
from PIL import Image

import surveyproc
from surveyproc import verbs
from surveyproc.config.sections import TrainingSection
from surveyproc.evaluate.classes import class_metrics
from surveyproc.evaluate.votes import calibration_error, roc_area
from surveyproc.images.augment import centre, recede
from surveyproc.images.stamps import decode_stamp, window
from surveyproc.models.base import Network, build
from surveyproc.models.inference import predict
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train.adversarial import tell_apart
from surveyproc.train.data import TrainingSet
from surveyproc.train.examples import BandDropout, Examples
from surveyproc.train.fit import FitSettings, fit
from surveyproc.train.stamps import read_stamps

CUTOUT, SHIFT, FOLDS, SEED = 48, 4, 5, 3
BANDS = ("r", "g", "b")
GZ1 = {
    "elliptical": "elliptical",
    "spiral_cw": "spiral",
    "spiral_acw": "spiral",
    "edge_on": "edge_on",
}
EPOCHS = {1.0: 12, 0.5: 14, 0.1: 30}
"""Of trainings with all, half and a tenth of the labels."""


def stamps(data: Path, work: Path, name: str) -> TrainingSet:
    """One of the two sets of stamps as a training set of three planes."""
    folder = work / name
    if not folder.exists():
        with zipfile.ZipFile(data / name / "images_128px.zip") as archive:
            archive.extractall(folder)
        with (data / name / "labels.csv").open() as file:
            rows = list(csv.DictReader(file))
        lines = ["file,class"]
        for row in rows:
            made = GZ1.get(row["class_name"], "") if name == "gz1_images" else row["label"]
            lines.append(f"{row['file']},{made}")
        (work / f"{name}.csv").write_text("\n".join(lines) + "\n")
    section = TrainingSection(
        source=f"{name}.csv", images=name, targets={"class": ["class"]}, shift=SHIFT
    )
    reads = network("residual", ("a", "b")).reads
    return read_stamps(
        Store(str(work / "store")),
        name,
        section,
        reads,
        folder=str(folder),
        table=str(work / f"{name}.csv"),
    )


def network(backbone: str, classes: Sequence[str], **settings: Any) -> Network:
    told = {"classes": {"class": list(classes)}, "cutout": CUTOUT, "pixels": "eight_bit"}
    return build("morphology", BANDS, {**told, "backbone": backbone, **settings})


def trained(
    chosen: TrainingSet, index: np.ndarray, made: Network, epochs: int, seed: int, **options: Any
) -> Network:
    """A network trained with all rows of a set; the last weights count."""
    settings = FitSettings(
        epochs=epochs,
        batch_size=64,
        seed=seed,
        **{**made.fit_options, "precision": "bfloat16", **options},
    )
    examples = Examples(
        reads=made.reads,
        tensors={"cube_row": torch.from_numpy(chosen.cube_row)},
        targets={"class": torch.from_numpy(index.astype(np.float32))},
        held_out=torch.zeros(len(chosen), dtype=torch.bool),
        cube=chosen.cube,
        dropout=BandDropout(0.0, 0.0),
        seed=seed,
        distortion=settings.distortion,
    )
    made.set_images(images for _, images in examples.images(~examples.held_out, 256))
    for state in fit(made, examples, settings):
        last = state.history[-1]
        print(f"  epoch {state.epoch}: loss {last['loss']:.3f}", flush=True)
    made.load_state_dict(state.best)
    return made.eval()


def pixels_of(chosen: TrainingSet) -> np.ndarray:
    """Stamps as they lie in the cube, shape (n, 3, CUTOUT + 2 SHIFT, ...)."""
    whole = np.concatenate([chosen.cube.read(shard) for shard in range(chosen.cube.shards)])
    return whole[chosen.cube_row]


def probabilities(made: Network, images: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    values, _ = predict(made, None, images=np.ascontiguousarray(images))
    return np.stack([values[f"p_{one}"] for one in classes], axis=1)


def both_ways(made: Network, settings: Any, images: np.ndarray, classes: Any) -> dict[str, Any]:
    """Probabilities as they are, and as means over the eight symmetries."""
    averaged = network(settings, classes, average=True)
    averaged.load_state_dict(made.state_dict())
    return {
        "plain": probabilities(made, images, classes),
        "averaged": probabilities(averaged.eval(), images, classes),
    }


def done(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def classes(data: Path, work: Path, backbones: Sequence[str]) -> None:
    """Five-fold by object: probabilities of all rows by networks that have not seen them."""
    path = work / "classes.jsonl"
    sets = {name: stamps(data, work, name) for name in ("gz1_images", "gz2_spirals")}
    plan = [(name, share, part) for share in EPOCHS for name in sets for part in range(FOLDS)]
    # What the aims are about comes first, then what is cheap.
    plan.sort(key=lambda one: ([1.0, 0.1, 0.5].index(one[1]) + 2 * (one[0] != "gz1_images"), one))
    for backbone in backbones or ("residual", "equivariant"):
        for name, share, part in plan:
            key = {"set": name, "backbone": backbone, "share": share, "part": part}
            if any(key.items() <= one.items() for one in done(path)):
                continue
            whole = sets[name]
            names = sorted(set(whole.targets["class"]))
            index = np.array([names.index(one) for one in whole.targets["class"]])
            fold = whole.folds(SEED, FOLDS)
            rows = np.flatnonzero(fold != part)
            rows = np.sort(
                np.random.default_rng(part).permutation(rows)[: round(share * len(rows))]
            )
            started = time.time()
            print(key, len(rows), flush=True)
            torch.manual_seed(part)
            made = trained(
                whole.take(rows), index[rows], network(backbone, names), EPOCHS[share], part
            )
            seconds = time.time() - started
            test = np.flatnonzero(fold == part)
            seen = centre(torch.from_numpy(pixels_of(whole.take(test))), CUTOUT).numpy()
            p = both_ways(made, backbone, seen, names)
            torch.save(made.state_dict(), work / f"{name}-{backbone}-{share}-{part}.pt")
            append(
                path,
                {
                    **key,
                    "seconds": round(seconds),
                    "classes": names,
                    "true": index[test].tolist(),
                    **{way: np.round(one, 5).tolist() for way, one in p.items()},
                },
            )


FAINT = {"k": 0.45, "m": 0.4}
"""Outside of what the augmentation draws: 0.6 to 1 and 0.5 to 1."""

NOISE = 2.5
"""Of the faint survey, in steps of 8 bits, beside what the stamps have."""

DRAWN = {"dimming": (0.6, 1.0), "shrinking": (0.5, 1.0)}


def faint_stamps(work: Path, files: Sequence[str], seed: int) -> np.ndarray:
    """Stamps as eq. 2 and noise make them, from the whole 128 pixels, which have sky about them."""
    draws = torch.Generator().manual_seed(seed)
    made = []
    for name in files:
        whole = decode_stamp((work / "gz1_images" / name).read_bytes(), name)
        image = torch.from_numpy(whole)[None]
        small = recede(image, torch.tensor([FAINT["k"]]), torch.tensor([FAINT["m"]]))[0].numpy()
        small = window(small, CUTOUT + 2 * SHIFT, name)
        noise = torch.randn(small.shape, generator=draws).numpy()
        made.append(np.clip(np.rint(small + NOISE * noise), 0, 255))
    return np.stack(made).astype(np.float32)


def receded(images: np.ndarray, seed: int) -> np.ndarray:
    """Images as the augmentation distorts them."""
    draws = torch.rand(2, len(images), generator=torch.Generator().manual_seed(seed))
    (k0, k1), (m0, m1) = DRAWN["dimming"], DRAWN["shrinking"]
    return recede(
        torch.from_numpy(images), k0 + (k1 - k0) * draws[0], m0 + (m1 - m0) * draws[1]
    ).numpy()


def faint(data: Path, work: Path, seeds: Sequence[int]) -> None:
    """Half of gz1 with labels, a quarter to test with, a quarter made the faint survey."""
    path = work / "faint.jsonl"
    whole = stamps(data, work, "gz1_images")
    names = sorted(set(whole.targets["class"]))
    index = np.array([names.index(one) for one in whole.targets["class"]])
    files = np.array(whole.cube.index["file"].to_pylist())[whole.cube_row]
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(whole))
        labelled, bright, dim = np.split(order, [len(order) // 2, 3 * len(order) // 4])
        labelled = np.sort(labelled)
        dimmed = faint_stamps(work, files[dim], seed)
        plain = pixels_of(whole.take(bright))
        seen = {"bright": (plain, index[bright]), "faint": (dimmed, index[dim])}
        for kind, options in (("without", {}), ("with", DRAWN)):
            if any((one["seed"], one["part"]) == (seed, kind) for one in done(path)):
                continue
            print(seed, kind, len(labelled), flush=True)
            torch.manual_seed(seed)
            made = trained(
                whole.take(labelled),
                index[labelled],
                network("residual", names),
                8,
                seed,
                **options,
            )
            entry: dict[str, Any] = {"seed": seed, "part": kind}
            for where, (images, true) in seen.items():
                cut = centre(torch.from_numpy(images), CUTOUT).numpy()
                result = judged(probabilities(made, cut, names), true, names)
                for key in ("accuracy", "balanced", "early_late_area", "mean_area"):
                    entry[f"{key}, {where}, {kind}"] = result[key]
            append(path, entry)
        if any((one["seed"], one["part"]) == (seed, "adversary") for one in done(path)):
            continue
        entry = {"seed": seed, "part": "adversary"}
        for kind, images in (("before", plain), ("after", receded(plain, seed))):
            print(seed, "adversarial", kind, flush=True)
            told = tell_apart(
                Store(str(work / "store")),
                f"adversary-{seed}-{kind}",
                images,
                dimmed,
                bands=BANDS,
                network={"cutout": CUTOUT, "pixels": "eight_bit"},
                settings={"epochs": 3, "seed": seed, "precision": "bfloat16"},
            )
            entry[f"adversarial accuracy, {kind}"] = told.accuracy
            entry[f"adversarial area, {kind}"] = told.area
            if kind == "before":
                adversary = told.package.network()
                entry["score of bright"] = float(told.training.mean())
                entry["score of faint"] = float(told.inference.mean())
                cut = centre(torch.from_numpy(receded(plain, seed)), CUTOUT).numpy()
                moved = probabilities(adversary, cut, ["training"])
                entry["score of bright, distorted by eq. 2"] = float(moved.mean())
        append(path, entry)


KIDS = """
[survey]
name = "kids"
root = "{root}"
[images]
tiles = ["{data}/kids_viking_field/tiles/*.fits.fz"]
bands = ["u", "g", "r", "i", "Z", "Y", "J", "H", "Ks"]
zeropoint_range = [0.0, 45.0]
[catalog]
source = "{data}/kids_viking_field/sources.fits"
[[products]]
name = "photometry"
"""
GZ_R50 = 5.0
"""About the half-light radius of a galaxy in a stamp of gz1, pixels."""


def composites(data: Path, work: Path) -> tuple[np.ndarray, Any]:
    """gri composites of the field's galaxies on the scale of the stamps of gz1, and their rows.

    Brighter than r = 21.5, extended (half-light radius of 2.2 pixels or more; stars have 1.7), not
    flagged, and away from the edge. The cutout's side is as many half-light radii as a stamp's.
    """
    (work / "kids.toml").write_text(KIDS.format(root=work / "kids", data=data.absolute()))
    survey = surveyproc.open(work / "kids.toml")
    if not (work / "kids").exists():
        verbs.ingest(Survey(survey.config))
    table = Table.read(data / "kids_viking_field/sources.fits")
    table = table[(table["mag_r"] < 21.5) & (table["r50_r"] > 2.2) & (table["flag"] == 0)]
    batch = survey.cutouts(table["ra"], table["dec"], 128, ["g", "r", "i"])
    whole = np.isfinite(batch.images[:, :, 34:94, 34:94]).all(axis=(1, 2, 3))
    made, table = [], table[whole]
    for planes, r50 in zip(batch.images[whole], table["r50_r"], strict=True):
        # The weights of SDSS, i.e. of the stamps of Galaxy Zoo.
        g, r, i = np.array([7.8, 5.7, 4.9])[:, None, None] / 5.7 * np.nan_to_num(planes)
        core = np.mean([g, r, i], axis=0)[61:68, 61:68].max()
        rgb = make_lupton_rgb(i, r, g, stretch=0.25 * core, Q=8)
        half = CUTOUT / 2 * r50 / GZ_R50
        box = (64.5 - half, 64.5 - half, 64.5 + half, 64.5 + half)
        image = Image.fromarray(rgb).resize((CUTOUT, CUTOUT), Image.Resampling.LANCZOS, box)
        made.append(np.asarray(image, np.float32).transpose(2, 0, 1))
    return np.stack(made), table


def sheet(data: Path, work: Path) -> None:
    """The ten most confident of each class of gz1, by the mean of the networks that there are."""
    images, table = composites(data, work)
    names = sorted(set(GZ1.values()))
    each = []
    for weights in sorted(work.glob("gz1_images-residual-1.0-*.pt")):
        made = network("residual", names, average=True)
        made.load_state_dict(torch.load(weights))
        each.append(probabilities(made.eval(), images, names))
    p = np.mean(each, axis=0)
    print(len(each), "networks,", len(images), "galaxies; most probable classes:")
    print(dict(zip(names, np.bincount(p.argmax(axis=1), minlength=len(names)), strict=True)))
    axis_ratio = np.asarray(table["b"] / table["a"])
    figure, axes = plt.subplots(len(names), 10, figsize=(15, 5.4))
    for k, name in enumerate(names):
        best = np.argsort(-p[:, k])[:10]
        print(name, "b/a of the ten", np.round(np.sort(axis_ratio[best]), 2))
        for place, row in zip(axes[k], best, strict=True):
            place.imshow(images[row].transpose(1, 2, 0).astype(np.uint8), origin="lower")
            place.set_title(f"{name} {p[row, k]:.2f}\nr = {table['mag_r'][row]:.1f}", fontsize=8)
            place.axis("off")
    figure.tight_layout()
    figure.savefig(work / "sheet.png", dpi=100)


def judged(p: np.ndarray, index: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, areas and calibration of probabilities."""
    early = 0 if len(names) == 2 else list(names).index("elliptical")
    areas = [roc_area(p[:, k], index == k) for k in range(len(names))]
    metrics = class_metrics(p, index, names)
    # Of all classes together, and of the most probable one alone.
    top = p.max(axis=1)
    return {
        "n": len(index),
        "accuracy": metrics["accuracy"],
        "balanced": float(np.mean(list(metrics["completeness"].values()))),
        "early_late_area": roc_area(p[:, early], index == early),
        "mean_area": float(np.mean(areas)),
        "calibration": calibration_error(top, (p.argmax(axis=1) == index).astype(float)),
        "confusion": metrics["confusion"],
        "purity": metrics["purity"],
    }


def tell(work: Path) -> None:
    lines = done(work / "classes.jsonl")
    kinds = sorted({(one["set"], one["share"], one["backbone"]) for one in lines}, reverse=True)
    for kind in kinds:
        some = [one for one in lines if (one["set"], one["share"], one["backbone"]) == kind]
        index = np.concatenate([one["true"] for one in some])
        seconds = sum(one["seconds"] for one in some)
        for way in ("plain", "averaged"):
            p = np.concatenate([one[way] for one in some])
            result = judged(p, index, some[0]["classes"])
            each = [
                judged(np.array(one[way]), np.array(one["true"]), one["classes"]) for one in some
            ]
            error = {
                key: np.std([one[key] for one in each], ddof=1) / len(each) ** 0.5
                for key in ("accuracy", "early_late_area")
                if len(each) > 1
            }
            print(*kind, way, f"{len(some)} folds, {seconds} s", some[0]["classes"])
            print("   ", {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()})
            print("    standard errors over folds", {k: round(v, 4) for k, v in error.items()})
    lines = done(work / "faint.jsonl")
    for key in sorted({key for one in lines for key in one} - {"seed", "part"}):
        values = [one[key] for one in lines if key in one]
        error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{key}: {np.mean(values):.4f} +- {error:.4f} ({len(values)} seeds)")


def main() -> None:
    part, *more = sys.argv[1:]
    torch.set_num_threads(1)
    work = Path(more[-1] if part == "tell" else more[1]).absolute()
    work.mkdir(parents=True, exist_ok=True)
    if part == "tell":
        tell(work)
    elif part == "classes":
        classes(Path(more[0]), work, more[2:])
    elif part == "sheet":
        sheet(Path(more[0]), work)
    elif part == "faint":
        faint(Path(more[0]), work, [int(one) for one in more[2:] or "123"])


if __name__ == "__main__":
    main()
