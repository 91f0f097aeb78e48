"""What morphology networks learn from few labels, and from bright galaxies for faint ones.

Usage:
    python benchmarks/morphology.py classes DATA WORK [--backbone NAME ...] [--set NAME ...]
        [--share S ...] [--fold K ...] [--cutout 48] [--epochs N] [--turning DEGREES]
        [--batch 64] [--zoom 1.2] [--member M ...] [--widths W ...] [--plain | --start]
    python benchmarks/morphology.py unlabelled DATA WORK [--set NAME] [--cutout 48] [--epochs N]
    python benchmarks/morphology.py faint DATA WORK [--seed N ...] [--cutout 48] [--epochs N]
    python benchmarks/morphology.py tell DATA WORK

classes: gz1_images and gz2_spirals in five folds by object, with all, half and a tenth of the
labels, `--plain` without zoom, running mean and turns, `--start` from what `unlabelled` learned
from all stamps of a set without their labels; faint: a faint survey made of the bright one, with
and without the adversarial augmentation; tell: the figures so far. DATA holds both sets. Every
training appends a line to WORK/<part>.jsonl and is not repeated if its line is there, so a part can
be stopped at any time; without the line, but with its weights, it is only judged again. One thread
a process: start two with different arguments for two cores, or more where there is a GPU, which is
used.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
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
from surveyproc.images.augment import Distortion, centre, recede
from surveyproc.images.stamps import decode_stamp, window
from surveyproc.models.base import Network, build
from surveyproc.models.inference import predict
from surveyproc.store.storage import Store
from surveyproc.train.adversarial import tell_apart
from surveyproc.train.data import TrainingSet
from surveyproc.train.examples import BandDropout, Examples
from surveyproc.train.fit import FitSettings, fit
from surveyproc.train.stamps import read_stamps

SHIFT, FOLDS, SEED = 4, 5, 3
BANDS = ("r", "g", "b")
GZ1 = {
    "elliptical": "elliptical",
    "spiral_cw": "spiral",
    "spiral_acw": "spiral",
    "edge_on": "edge_on",
}
SURE = 0.9
"""Probability of the most probable class above which a network is called sure."""

EPOCHS = {1.0: 12, 0.5: 14, 0.1: 30}
"""Of trainings with all, half and a tenth of the labels."""


def stamps(data: Path, work: Path, name: str, cutout: int) -> TrainingSet:
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
    reads = network("residual", ("a", "b"), cutout=cutout).reads
    return read_stamps(
        Store(str(work / f"store-{cutout}")),
        name,
        section,
        reads,
        folder=str(folder),
        table=str(work / f"{name}.csv"),
    )


def network(backbone: str, classes: Sequence[str], **settings: Any) -> Network:
    told = {"classes": {"class": list(classes)}, "pixels": "eight_bit"}
    return build("morphology", BANDS, {**told, "backbone": backbone, **settings})


def trained(
    chosen: TrainingSet, index: np.ndarray, made: Network, epochs: int, seed: int, **options: Any
) -> Network:
    """A network trained with all rows of a set; the last weights count."""
    settings = FitSettings(
        epochs=epochs,
        batch_size=options.pop("batch_size", 64),
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
    made.set_images(images for _, images, _ in examples.images(~examples.held_out, 256))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for state in fit(made, examples, settings, device=device):
        last = state.history[-1]
        print(f"  epoch {state.epoch}: loss {last['loss']:.3f}", flush=True)
    made.load_state_dict(state.best)
    return made.eval()


def unlabelled(options: argparse.Namespace) -> None:
    """A contrastive network of all stamps of each set, for backbones to start from."""
    for name in options.set:
        for backbone in options.backbone:
            whole = stamps(options.data, options.work, name, options.cutout)
            torch.manual_seed(SEED)
            told = {"cutout": options.cutout, "pixels": "eight_bit", "backbone": backbone}
            made = trained(
                whole,
                np.zeros(len(whole)),
                build("contrastive", BANDS, told),
                options.epochs or 20,
                SEED,
                batch_size=options.batch,
            )
            torch.save(made.state_dict(), start_of(options, name, backbone))


def start_of(options: argparse.Namespace, name: str, backbone: str) -> Path:
    return Path(options.work / f"unlabelled-{name}-{backbone}-{options.cutout}.pt")


def begin(made: Network, start: Path) -> None:
    """The weights that a contrastive network has under the same names."""
    own, other = made.state_dict(), torch.load(start, map_location="cpu")
    shared = {key: value for key, value in other.items() if key in own}
    assert any(key.startswith("backbone") for key in shared)
    made.load_state_dict({**own, **shared})


def pixels_of(chosen: TrainingSet) -> np.ndarray:
    """Stamps as they lie in the cube, shape (n, 3, cutout + 2 SHIFT, ...)."""
    whole = np.concatenate([chosen.cube.read(shard) for shard in range(chosen.cube.shards)])
    return whole[chosen.cube_row]


def probabilities(made: Network, images: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values, _ = predict(made, None, images=np.ascontiguousarray(images), device=device)
    return np.stack([values[f"p_{one}"] for one in classes], axis=1)


def both_ways(
    made: Network, backbone: str, images: np.ndarray, classes: Any, **sizes: Any
) -> dict[str, Any]:
    """Probabilities of one look at each stamp, and as means over turns and mirror images."""
    seen = {key: getattr(made.config, key) for key in ("zoom", "turned")}
    averaged = network(backbone, classes, average=True, cutout=images.shape[-1], **seen, **sizes)
    averaged.load_state_dict(made.state_dict())
    return {
        "plain": probabilities(made, images, classes),
        "averaged": probabilities(averaged.eval(), images, classes),
    }


def suited(zoom: float, turning: float = 0.0) -> dict[str, Any]:
    """Settings of a network that is trained with a zoom, and turned."""
    return dict(network("residual", ("a", "b")).suited(Distortion(zoom, turning=turning)))


def done(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def classes(options: argparse.Namespace) -> None:
    """Five-fold by object: probabilities of all rows by networks that have not seen them."""
    work, cutout = options.work, options.cutout
    path = work / "classes.jsonl"
    sets = {name: stamps(options.data, work, name, cutout) for name in options.set}
    plan = itertools.product(options.backbone, options.member, options.share, sets, options.fold)
    for backbone, member, share, name, part in plan:
        key = {"set": name, "share": share, "backbone": backbone, "cutout": cutout}
        key |= {"epochs": options.epochs or EPOCHS[share], "turning": options.turning}
        key |= {"how": "plain" if options.plain else "start" if options.start else ""}
        zoom = 1.0 if options.plain else options.zoom
        key |= {"zoom": zoom, "member": member, "part": part}
        sizes = {"widths": options.widths} if options.widths else {}
        key |= sizes
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
        seed = part + 100 * member
        torch.manual_seed(seed)
        made = network(backbone, names, cutout=cutout, **sizes, **suited(zoom, options.turning))
        weights = work / f"{weights_of(key)}.pt"
        if weights.exists():
            made.load_state_dict(torch.load(weights, map_location="cpu"))
            made.eval()
        else:
            if options.start:
                begin(made, start_of(options, name, backbone))
            made = trained(
                whole.take(rows),
                index[rows],
                made,
                key["epochs"],
                seed,
                turning=options.turning,
                batch_size=options.batch,
                zoom=zoom,
                **({"ema": 0.0} if options.plain else {}),
            )
            torch.save(made.state_dict(), weights)
        seconds = time.time() - started
        test = np.flatnonzero(fold == part)
        seen = centre(torch.from_numpy(pixels_of(whole.take(test))), cutout).numpy()
        p = both_ways(made, backbone, seen, names, **sizes)
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


def weights_of(key: dict[str, Any]) -> str:
    """Name of the file with a network's weights."""
    return "-".join(str(value) for value in key.values())


FAINT = {"k": 0.45, "m": 0.4}
"""Outside of what the augmentation draws: 0.6 to 1 and 0.5 to 1."""

NOISE = 2.5
"""Of the faint survey, in steps of 8 bits, beside what the stamps have."""

DRAWN = {"dimming": (0.6, 1.0), "shrinking": (0.5, 1.0)}


def faint_stamps(work: Path, files: Sequence[str], seed: int, cutout: int) -> np.ndarray:
    """Stamps as eq. 2 and noise make them, from the whole 128 pixels, which have sky about them."""
    draws = torch.Generator().manual_seed(seed)
    made = []
    for name in files:
        whole = decode_stamp((work / "gz1_images" / name).read_bytes(), name)
        image = torch.from_numpy(whole)[None]
        small = recede(image, torch.tensor([FAINT["k"]]), torch.tensor([FAINT["m"]]))[0].numpy()
        small = window(small, cutout + 2 * SHIFT, name)
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


def faint(options: argparse.Namespace) -> None:
    """Half of gz1 with labels, a quarter to test with, a quarter made the faint survey."""
    work, cutout = options.work, options.cutout
    path = work / "faint.jsonl"
    whole = stamps(options.data, work, "gz1_images", cutout)
    names = sorted(set(whole.targets["class"]))
    index = np.array([names.index(one) for one in whole.targets["class"]])
    files = np.array(whole.cube.index["file"].to_pylist())[whole.cube_row]
    for seed in options.seed:
        order = np.random.default_rng(seed).permutation(len(whole))
        labelled, bright, dim = np.split(order, [len(order) // 2, 3 * len(order) // 4])
        labelled = np.sort(labelled)
        dimmed = faint_stamps(work, files[dim], seed, cutout)
        plain = pixels_of(whole.take(bright))
        seen = {"bright": (plain, index[bright]), "faint": (dimmed, index[dim])}
        for kind, distortion in (("without", {}), ("with", DRAWN)):
            if any((one["seed"], one["part"]) == (seed, kind) for one in done(path)):
                continue
            print(seed, kind, len(labelled), flush=True)
            torch.manual_seed(seed)
            made = trained(
                whole.take(labelled),
                index[labelled],
                network("residual", names, cutout=cutout, **suited(options.zoom)),
                options.epochs or 8,
                seed,
                zoom=options.zoom,
                **distortion,
            )
            entry: dict[str, Any] = {"seed": seed, "part": kind}
            for where, (images, true) in seen.items():
                cut = centre(torch.from_numpy(images), cutout).numpy()
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
                Store(str(work / f"store-{cutout}")),
                f"adversary-{seed}-{kind}",
                images,
                dimmed,
                bands=BANDS,
                network={"cutout": cutout, "pixels": "eight_bit"},
                settings={"epochs": 3, "seed": seed, "precision": "bfloat16"},
            )
            entry[f"adversarial accuracy, {kind}"] = told.accuracy
            entry[f"adversarial area, {kind}"] = told.area
            if kind == "before":
                adversary = told.package.network()
                entry["score of bright"] = float(told.training.mean())
                entry["score of faint"] = float(told.inference.mean())
                cut = centre(torch.from_numpy(receded(plain, seed)), cutout).numpy()
                moved = probabilities(adversary, cut, ["training"])
                entry["score of bright, distorted by eq. 2"] = float(moved.mean())
        append(path, entry)


def judged(p: np.ndarray, index: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, areas and calibration of probabilities."""
    early = 0 if len(names) == 2 else list(names).index("elliptical")
    areas = [roc_area(p[:, k], index == k) for k in range(len(names))]
    metrics = class_metrics(p, index, names)
    # Of all classes together, and of the most probable one alone.
    top = p.max(axis=1)
    sure = top >= SURE
    return {
        "n": len(index),
        "accuracy": metrics["accuracy"],
        "balanced": float(np.mean(list(metrics["completeness"].values()))),
        "early_late_area": roc_area(p[:, early], index == early),
        "mean_area": float(np.mean(areas)),
        "calibration": calibration_error(top, (p.argmax(axis=1) == index).astype(float)),
        "sure": float(sure.mean()),
        "accuracy of the sure": float((p.argmax(axis=1) == index)[sure].mean()),
        "confusion": metrics["confusion"],
        "purity": metrics["purity"],
    }


def shown(what: str, some: Sequence[dict[str, Any]], way: str) -> None:
    """Metrics of the probabilities of all folds of one kind of network."""
    p = [np.array(one[way]) for one in some]
    result = judged(
        np.concatenate(p), np.concatenate([one["true"] for one in some]), some[0]["classes"]
    )
    each = [
        judged(q, np.array(one["true"]), one["classes"]) for q, one in zip(p, some, strict=True)
    ]
    seconds = sum(one["seconds"] for one in some)
    print(what, way, f"{len(some)} folds, {seconds} s", some[0]["classes"])
    print("   ", {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()})
    error = {
        key: round(np.std([one[key] for one in each], ddof=1) / len(each) ** 0.5, 4)
        for key in ("accuracy", "early_late_area")
        if len(each) > 1
    }
    print("    standard errors over folds", error)


def tell(options: argparse.Namespace) -> None:
    kinds: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in done(options.work / "classes.jsonl"):
        task = f"{line['set']}, {line['share']} of the labels"
        what = " ".join(
            str(line.get(key, ""))
            for key in ("backbone", "widths", "cutout", "epochs", "turning", "how", "member")
        )
        kinds.setdefault(task, {}).setdefault(what, []).append(line)
    for task, of_task in kinds.items():
        for what, some in of_task.items():
            some.sort(key=lambda one: one["part"])
            for way in ("plain", "averaged"):
                shown(f"{task}: {what},", some, way)
        whole = [some for some in of_task.values() if len(some) == FOLDS]
        if len(whole) > 1:
            mean = [
                {**same[0], "averaged": np.mean([one["averaged"] for one in same], axis=0)}
                for same in zip(*whole, strict=True)
            ]
            shown(f"{task}: mean of {len(whole)} networks,", mean, "averaged")
    lines = done(options.work / "faint.jsonl")
    for key in sorted({key for one in lines for key in one} - {"seed", "part"}):
        values = [one[key] for one in lines if key in one]
        error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{key}: {np.mean(values):.4f} +- {error:.4f} ({len(values)} seeds)")


PARTS = {"classes": classes, "unlabelled": unlabelled, "faint": faint, "tell": tell}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--backbone", nargs="+", default=["residual", "equivariant"])
    parser.add_argument("--widths", nargs="+", type=int, help="of our own backbones' blocks")
    parser.add_argument("--set", nargs="+", default=["gz1_images", "gz2_spirals"])
    parser.add_argument("--share", nargs="+", type=float, default=[1.0, 0.1, 0.5])
    parser.add_argument("--fold", nargs="*", type=int, default=list(range(FOLDS)))
    parser.add_argument("--seed", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--cutout", type=int, default=48)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--turning", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--zoom", type=float, default=1.2)
    parser.add_argument("--member", nargs="+", type=int, default=[0], help="other random weights")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--start", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
