"""Types with redshifts, cross-validated beside forests, boosted trees and plain networks.

    python benchmarks/type_redshift.py peers combo17     or sdss
    python benchmarks/type_redshift.py ours combo17 --bands UFS BFS VFD RFS IFD    or sdss
    python benchmarks/type_redshift.py curve combo17     from ever more of the training rows
    python benchmarks/type_redshift.py paper [--figure FILE]   the paper's tables, on combo17

`peers` and `ours` share ten folds, stratified by class. Everything that is fitted, scales of inputs
as well, sees the training rows of a fold alone; calibrations are fitted to the predictions of other
rows than those that they are judged on. Early types of combo17 are those of Bell et al. 2004, the
redshift is COMBO-17's own, from the same fluxes.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from surveyproc.evaluate import weights as layer_weights
from surveyproc.evaluate.calibration import calibration_error, cross_calibrated
from surveyproc.evaluate.classes import class_metrics
from surveyproc.evaluate.compare import gains
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.evaluate.roc import (
    Roc,
    accuracy_at,
    area,
    contingency,
    iso_accuracy,
    mean_area,
    roc,
    youden,
)
from surveyproc.measure.magnitudes import fluxes_of_magnitudes
from surveyproc.models.base import Network, build
from surveyproc.models.families.otelo import ALTERNATIVES, PAPER
from surveyproc.models.features import fit_scaling, network_inputs
from surveyproc.train.many import ManySettings, Record, fit_many
from surveyproc.train.schedules import fit_logistic, logistic

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY.parent / "shared/data"
FOLDS, AT_ONCE = 10, 32
# In order of wavelength.
COMBO = [
    "UFS",
    "W420FE",
    "BFS",
    "W462FE",
    "W485FD",
    "W518FE",
    "VFD",
    "W571FS",
    "W604FE",
    "W646FD",
    "RFS",
    "W696FE",
    "W753FE",
    "W815FS",
    "W856FD",
    "IFD",
    "W914FD",
    "W914FE",
]
TUNED = {"base": [128, 128], "base_dropout": 0.3, "errors": False, "components": 0}
SETTINGS = {"combo17": TUNED, "sdss": {**TUNED, "base": [128, 128, 128], "base_dropout": 0.1}}
RATIOS = -3.0, 6.0  # limits of flux ratios, as inputs of trees
FIT = {"combo17": (80, 64, 0.1), "sdss": (40, 64, 0.1)}
"""Epochs, batch, decay of weights: chosen on other folds (of seed 0) than those that are shown."""


@dataclass(frozen=True)
class Sample:
    """Objects with fluxes in units that do not matter, classes and redshifts."""

    bands: tuple[str, ...]
    flux: np.ndarray
    flux_err: np.ndarray | None
    classes: tuple[str, ...]
    index: np.ndarray
    redshift: np.ndarray


def combo17(data: Path) -> Sample:
    table = pq.read_table(data / "combo17/combo17_half.parquet")
    column = {name: table[name].to_numpy().astype(float) for name in table.column_names}
    flux = np.stack([column[band] for band in COMBO], axis=1)
    error = np.stack([column[f"e.{band}"] for band in COMBO], axis=1)
    flux[flux[:, 1] < 0, 1] = np.nan
    z, v = column["Mcz"], column["VjMAG"]
    late = column["UjMAG"] - v <= 1.15 - 0.31 * z - 0.08 * (v + 20)
    # 1000 photons/m2/s/nm are not nanojanskys; the zero point drops out of all inputs.
    return Sample(tuple(COMBO), 1e3 * flux, 1e3 * error, ("early", "late"), late.astype(int), z)


def sdss(data: Path) -> Sample:
    table = pq.read_table(data / "sdss_dr17/star_galaxy_qso_half.parquet")
    magnitudes = np.stack([table[band].to_numpy() for band in "ugriz"], axis=1)
    flux, _ = fluxes_of_magnitudes(magnitudes, np.full_like(magnitudes, np.nan))
    names, index = np.unique(table["class"].to_pylist(), return_inverse=True)
    z = table["redshift"].to_numpy().copy()
    z[(names[index] == "STAR") | (z <= 0)] = np.nan
    return Sample(tuple("ugriz"), flux, None, tuple(map(str, names)), index, z)


SAMPLES = {"combo17": combo17, "sdss": sdss}


def of_bands(sample: Sample, bands: Sequence[str]) -> Sample:
    """A sample with some of its bands."""
    chosen = [sample.bands.index(band) for band in bands]
    error = None if sample.flux_err is None else sample.flux_err[:, chosen]
    return replace(sample, bands=tuple(bands), flux=sample.flux[:, chosen], flux_err=error)


def folds_of(index: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each object: those of a class are dealt out in random order."""
    random, found = np.random.default_rng(seed), np.empty(len(index), int)
    for number in np.unique(index):
        own = random.permutation(np.flatnonzero(index == number))
        found[own] = np.arange(len(own)) % folds
    return found


def inputs_of(sample: Sample, rows: np.ndarray, errors: bool) -> torch.Tensor:
    """Features of all objects, scaled by the training rows."""
    error = None if sample.flux_err is None else sample.flux_err[rows]
    scaling = fit_scaling(sample.flux[rows], error, sample.bands, errors=errors)
    return torch.from_numpy(network_inputs(sample.flux, scaling, sample.flux_err)[0])


def started(sample: Sample, rows: np.ndarray, settings: dict[str, Any], seed: int) -> Network:
    torch.manual_seed(seed)
    named = {**settings, "classes": {"class": list(sample.classes)}}
    network = build("otelo", sample.bands, named)
    network.set_targets({"redshift": torch.from_numpy(sample.redshift[rows])})
    return network


def fitted(
    sample: Sample,
    training: list[np.ndarray],
    settings: dict[str, Any],
    fit: ManySettings,
    *,
    members: int = 1,
    validation: list[np.ndarray] | None = None,
) -> tuple[list[Network], list[torch.Tensor], Record]:
    """A network, or several, for each set of rows, `AT_ONCE` at a time, and their features."""
    size = min(map(len, training))
    targets = {
        "class": torch.from_numpy(sample.index).float(),
        "redshift": torch.from_numpy(sample.redshift).float(),
    }
    jobs = [number for number in range(len(training)) for _ in range(members)]
    networks, features, records = [], [], []
    for start in range(0, len(jobs), AT_ONCE):
        part = jobs[start : start + AT_ONCE]
        made = [
            started(sample, training[k], settings, 1000 * start + place)
            for place, k in enumerate(part)
        ]
        scaled = {k: inputs_of(sample, training[k], settings["errors"]) for k in set(part)}
        own = torch.stack([scaled[k] for k in part])
        chosen, held = (
            None if rows is None else torch.from_numpy(np.stack([rows[k][:size] for k in part]))
            for rows in (training, validation)
        )
        records.append(fit_many(made, own, targets, chosen, held, settings=fit))
        networks += made
        features += list(own)
    record = Record(
        np.concatenate([one.epochs for one in records]),
        np.concatenate([one.rates for one in records]),
        {},
    )
    return networks, features, record


@torch.no_grad()
def said(network: Network, features: torch.Tensor, rows: np.ndarray) -> tuple[Any, Any]:
    """Probabilities of the classes and point estimates of the redshift."""
    out = network(features[torch.from_numpy(rows)])
    return out["class"].double().softmax(dim=1).numpy(), out["redshift"].point.double().numpy()


def crossed(
    sample: Sample,
    settings: dict[str, Any],
    fit: ManySettings,
    members: int,
    seed: int,
    share: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and redshifts of every object by networks that have not seen it.

    They have seen a share of the others.
    """
    fold = folds_of(sample.index, FOLDS, seed)
    training = [np.flatnonzero(fold != k) for k in range(FOLDS)]
    random = np.random.default_rng(seed)
    training = [random.permutation(rows)[: round(share * len(rows))] for rows in training]
    networks, features, _ = fitted(sample, training, settings, fit, members=members)
    p, z = np.zeros((len(fold), len(sample.classes))), np.zeros(len(fold))
    for number, (network, own) in enumerate(zip(networks, features, strict=True)):
        rows = np.flatnonzero(fold == number // members)
        found = said(network, own, rows)
        p[rows] += found[0] / members
        z[rows] += found[1] / members
    return p, z


def cosine(epochs: int, rate: float = 1e-3) -> tuple[float, ...]:
    return tuple(rate * 0.5 * (1 + np.cos(np.pi * np.arange(epochs) / epochs)))


def judged(name: str, sample: Sample, p: np.ndarray, began: float) -> None:
    """One line: what probabilities are worth, as they are, by Platt's sigmoid, isotonic."""
    measured = class_metrics(p, sample.index, sample.classes)
    errors = [calibration_error(p, sample.index)] + [
        calibration_error(cross_calibrated(p, sample.index, kind), sample.index)
        for kind in ("platt", "isotonic")
    ]
    print(
        f"{name:24} accuracy {measured['accuracy']:.4f} area {mean_area(p, sample.index):.4f} "
        f"log loss {measured['log_loss']:.4f} calibration error "
        + " ".join(f"{error:.4f}" for error in errors)
        + f" ({time.perf_counter() - began:.0f} s)",
        flush=True,
    )


def peers(sample: Sample, seed: int) -> None:
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        RandomForestClassifier,
        VotingClassifier,
    )
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")
    networks = [
        (str(k), MLPClassifier((64, 64), alpha=0.1, max_iter=60, random_state=k)) for k in range(5)
    ]
    models = {
        "random forest": RandomForestClassifier(500, random_state=0, n_jobs=1),
        "histogram boosting": HistGradientBoostingClassifier(
            learning_rate=0.05, max_iter=200, random_state=0
        ),
        "gradient boosting": GradientBoostingClassifier(random_state=0),
        "five plain networks": VotingClassifier(networks, voting="soft"),
    }
    fold = folds_of(sample.index, FOLDS, seed)
    features = [inputs_of(sample, np.flatnonzero(fold != k), False).numpy() for k in range(FOLDS)]
    # Trees see fluxes near zero better as ratios than as magnitudes with gaps. All features at
    # each split: with the usual square root of their number most of those seen are noise.
    trees = ExtraTreesClassifier(500, min_samples_leaf=2, max_features=1.0, random_state=0)
    reference = sample.flux[:, [sample.bands.index("RFS" if "RFS" in sample.bands else "r")]]
    ratio = np.clip(np.nan_to_num(sample.flux / reference), *RATIOS)
    ratios = np.c_[ratio, np.log(reference)]
    runs = [(name, model, features) for name, model in models.items()]
    runs.append(("extra trees of flux ratios", trees, [ratios] * FOLDS))
    if np.isfinite(sample.redshift).all():
        told = np.c_[ratios, sample.redshift]
        runs.append(("the same, told the redshift", trees, [told] * FOLDS))
    for name, model, inputs in runs:
        began, p = time.perf_counter(), np.zeros((len(fold), len(sample.classes)))
        for k, x in enumerate(inputs):
            model.fit(x[fold != k], sample.index[fold != k])
            p[fold == k] = model.predict_proba(x[fold == k])
        judged(name, sample, p, began)


def ours(name: str, sample: Sample, seed: int, members: int) -> None:
    epochs, batch, decay = FIT[name]
    fit = ManySettings(epochs, batch_size=batch, rates=cosine(epochs), weight_decay=decay)
    found = {}
    for passed in (True, False):
        began = time.perf_counter()
        settings = {**SETTINGS[name], "pass_class": passed}
        p, z = crossed(sample, settings, fit, members, seed)
        judged(
            f"otelo, {members} a fold" + ("" if passed else ", class not passed"), sample, p, began
        )
        found[passed] = z
    known = np.isfinite(sample.redshift)
    for passed, z in found.items():
        measured = redshift_metrics(z[known], sample.redshift[known])
        print(f"redshift, class passed {passed}:", json.dumps(measured))
    tests = gains(found[False][known], found[True][known], sample.redshift[known])
    for metric, one in tests.items():
        print(
            f"passing the class: {metric} {one.baseline:.4f} -> {one.candidate:.4f}, "
            f"gain {100 * one.gain:+.1f} %, p {one.p_value:.4f}"
        )


def curve(name: str, sample: Sample, seed: int, members: int) -> None:
    """What another doubling of the training rows gives; all trainings take as many steps."""
    epochs, batch, decay = FIT[name]
    for share in (0.125, 0.25, 0.5, 1.0):
        began, longer = time.perf_counter(), round(epochs / share)
        fit = ManySettings(longer, batch_size=batch, rates=cosine(longer), weight_decay=decay)
        p, _ = crossed(sample, SETTINGS[name], fit, members, seed, share)
        rows = round(share * len(sample.index) * (FOLDS - 1) / FOLDS)
        judged(f"otelo, {rows} rows", sample, p, began)


def paper(
    sample: Sample, trials: int, bootstraps: int, leave_out: int, figure: Path | None
) -> None:
    """Tables 2 to 6, the schedule, and figures 5 and 8, on combo17; early types are positive."""
    random, n = np.random.default_rng(5), len(sample.index)
    drawn = [random.permutation(n) for _ in range(trials)]
    for number, settings in ALTERNATIVES.items():
        began = time.perf_counter()
        networks, features, record = fitted(
            sample,
            [rows[:128] for rows in drawn],
            settings,
            ManySettings(150),
            validation=[rows[128:192] for rows in drawn],
        )
        told = [
            [*measured_trial(sample, *said(network, own, rows[192:370]), rows[192:370])]
            for network, own, rows in zip(networks, features, drawn, strict=True)
        ]
        middle, spread = np.median(told, axis=0), np.std(told, axis=0)
        names = ("mean square error", "mean absolute error", "cross entropy", "area")
        print(f"architecture {number}, {trials} trials, {time.perf_counter() - began:.0f} s:")
        for what, value, error in zip(names, middle, spread, strict=True):
            print(f"  {what} {value:.3f} +- {error:.3f}")
        if number == 1:
            epochs = int(np.median(record.epochs))
            known = np.isfinite(record.rates)
            when = np.broadcast_to(np.arange(150), known.shape)[known]
            shape = fit_logistic(when, record.rates[known])
            print(f"  {epochs} epochs; high, low, middle, width of the rate: {np.array(shape)}")
    fit = ManySettings(epochs, rates=tuple(logistic(np.arange(epochs), shape)))
    chosen = random.permutation(n)[:leave_out]
    began = time.perf_counter()
    training = [np.delete(chosen, k) for k in range(leave_out)]
    networks, features, _ = fitted(sample, training, PAPER, fit)
    found = [
        said(network, own, chosen[k : k + 1])
        for k, (network, own) in enumerate(zip(networks, features, strict=True))
    ]
    early = np.array([p[0, 0] for p, _ in found])
    z = np.array([one[0] for _, one in found])
    true = sample.index[chosen] == 0
    seconds = time.perf_counter() - began
    print(f"leave one out, {leave_out} objects, {true.sum()} early, {seconds:.0f} s")
    print(f"area {area(early, true):.4f}", json.dumps(redshift_metrics(z, sample.redshift[chosen])))
    curve_of = roc(early, true)
    gain, threshold = youden(curve_of)
    for name, limit in (("0.5", 0.5), (f"Youden's, J = {gain:.3f}", threshold)):
        table = contingency(early, true, limit)
        print(f"threshold {name} ({limit:.3f}):", json.dumps(table))
        rates = table["true_positive"]["value"], table["true_negative"]["value"]
        mixed = accuracy_at(*rates, np.array([0.08, 0.15, 0.3, 0.5, 0.7]))
        print("  accuracy at 8, 15, 30, 50, 70 % early types:", mixed.round(4))
    began = time.perf_counter()
    again = [random.choice(chosen, leave_out) for _ in range(bootstraps)]
    networks, _, _ = fitted(sample, again, PAPER, fit)
    layers = np.stack([network.redshift_weights.numpy() for network in networks])
    others = random.integers(0, layers.shape[1] - 1, len(layers))
    # The sign of a weight of the base depends on its neuron; that of the class has a meaning.
    quantiles = {}
    for name, which in (("class", layers.shape[1] - 1), ("random neuron", others)):
        weights = layer_weights.standardised(layers, which)
        print(f"weight of the {name}:", json.dumps(layer_weights.weight_summary(weights)))
        quantiles[name] = normal, held = layer_weights.normal_quantiles(weights)
        places = np.searchsorted(normal, [-2, -1, 0, 1, 2]).clip(0, len(held) - 1)
        print("  Q-Q at -2, -1, 0, 1, 2:", held[places].round(2))
    print(f"{bootstraps} bootstraps, {time.perf_counter() - began:.0f} s")
    if figure is not None:
        draw(curve_of, float(true.mean()), quantiles, figure)


def draw(
    curve_of: Roc, early: float, quantiles: dict[str, tuple[np.ndarray, np.ndarray]], path: Path
) -> None:
    """The ROC curve with lines of one accuracy, and the weights against a normal distribution."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5))
    left.plot(curve_of.false_positive, curve_of.true_positive, "k")
    false = np.linspace(0, 1, 101)
    for accuracy in (0.80, 0.85, 0.90, 0.95):
        left.plot(false, iso_accuracy(accuracy, early, 1 - false), label=f"accuracy {accuracy}")
    left.set(xlabel="late called early", ylabel="early called early", xlim=(0, 1), ylim=(0, 1))
    left.legend(loc="lower right")
    for name, (normal, held) in quantiles.items():
        right.plot(normal, held, ".", label=name)
    right.axline((0, 0), slope=1, color="grey")
    right.set(xlabel="standard normal quantile", ylabel="weight in units of its layer's scatter")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def measured_trial(
    sample: Sample, p: np.ndarray, z: np.ndarray, rows: np.ndarray
) -> tuple[float, float, float, float]:
    """Errors of the redshift, cross entropy and area of one trial."""
    miss = z - sample.redshift[rows]
    true = sample.index[rows]
    measured = class_metrics(p, true, sample.classes)
    return (
        float(np.mean(miss**2)),
        float(np.mean(np.abs(miss))),
        measured["log_loss"],
        mean_area(p, true),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["peers", "ours", "curve", "paper"])
    parser.add_argument("sample", nargs="?", choices=list(SAMPLES), default="combo17")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--bands", nargs="+", help="some of the sample's, in its order")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--bootstraps", type=int, default=1000)
    parser.add_argument("--leave-out", type=int, default=370)
    parser.add_argument("--figure", type=Path, help="PNG with the ROC curve and the weights")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sample = SAMPLES[args.sample](args.data)
    if args.bands:
        sample = of_bands(sample, args.bands)
    if args.what == "peers":
        peers(sample, args.seed)
    elif args.what == "ours":
        ours(args.sample, sample, args.seed, args.members)
    elif args.what == "curve":
        curve(args.sample, sample, args.seed, args.members)
    else:
        paper(sample, args.trials, args.bootstraps, args.leave_out, args.figure)


if __name__ == "__main__":
    main()
