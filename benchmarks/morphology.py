"""What morphology networks learn from few labels, and from bright galaxies for faint ones.

Usage:
    python benchmarks/morphology.py classes DATA WORK [backbone ...]   classes of gz1, gz2; five folds
    python benchmarks/morphology.py faint DATA WORK [seed ...]    eq. 2: a faint survey, with and without
    python benchmarks/morphology.py sheet DATA WORK           a contact sheet of the KiDS+VIKING field
    python benchmarks/morphology.py tell WORK                 the figures so far

DATA holds gz1_images, gz2_spirals and kids_viking_field. Every training appends a line to
WORK/<part>.jsonl and is not repeated if its line is there, so a part can be stopped at any time. One
thread a process: start two with different arguments for two cores.
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

import numpy as np
import torch

from surveyproc.config.sections import TrainingSection
from surveyproc.evaluate.classes import class_metrics
from surveyproc.evaluate.votes import calibration_error, roc_area
from surveyproc.images.augment import centre, recede
from surveyproc.models.base import Network, build
from surveyproc.models.inference import predict
from surveyproc.store.storage import Store
from surveyproc.train.cube import SHARD, finish, write_header, write_shard
from surveyproc.train.data import TrainingSet
from surveyproc.train.examples import BandDropout, Examples
from surveyproc.train.fit import FitSettings, fit
from surveyproc.train.stamps import read_stamps

CUTOUT, SHIFT, FOLDS, SEED = 48, 4, 5, 3
BANDS = ("r", "g", "b")
GZ1 = {"elliptical": "elliptical", "spiral_cw": "spiral", "spiral_acw": "spiral", "edge_on": "edge_on"}
EPOCHS = {1.0: 16, 0.5: 20, 0.1: 40}
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
    # What the aims are about comes first.
    plan.sort(key=lambda one: (one[1] != 1.0, one[0], one[1] == 0.5, one[2]))
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
            rows = np.sort(np.random.default_rng(part).permutation(rows)[: round(share * len(rows))])
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
            each = [judged(np.array(one[way]), np.array(one["true"]), one["classes"]) for one in some]
            error = {
                key: np.std([one[key] for one in each], ddof=1) / len(each) ** 0.5
                for key in ("accuracy", "early_late_area")
                if len(each) > 1
            }
            print(*kind, way, f"{len(some)} folds, {seconds} s", some[0]["classes"])
            print("   ", {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()})
            print("    standard errors over folds", {k: round(v, 4) for k, v in error.items()})
    lines = done(work / "faint.jsonl")
    for key in sorted({key for one in lines for key in one if key != "seed"}):
        values = [one[key] for one in lines if key in one]
        error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{key}: {np.mean(values):.4f} +- {error:.4f} ({len(values)} seeds)")


def main() -> None:
    part, *more = sys.argv[1:]
    torch.set_num_threads(1)
    work = Path(more[-1] if part == "tell" else more[1])
    work.mkdir(parents=True, exist_ok=True)
    if part == "tell":
        tell(work)
    elif part == "classes":
        classes(Path(more[0]), work, more[2:])


if __name__ == "__main__":
    main()
