"""Photometric redshifts from public tables: our network beside its peers, on the same test rows.

    python benchmarks/photoz_tables/contest.py [TASK ...] [--rail PYTHON] [--data DIR] [--cache DIR]

Prints a table of scores, and the ratios of ours to the best peer with bootstrap errors.

Tasks: mgs boss zcosmos vvds deep transfer (all by default). Test rows are fixed by tables.py: whole
sky pixels or hash cells, the same for every method, none of which learns from them. PYTHON is an
interpreter with pz-rail-flexzboost and pz-rail-sklearn; without it RAIL's methods are left out, and
a line below the table says so. With --cache, what was predicted once is read again.

The peers (peers.py) are tried with two settings each, the regressors with two kinds of errors as
well, and with the median, mean and mode of their PDFs and the point of their own, if they have one.
What is reported is the best of these ON THE TEST ROWS, for each score by itself: the choice is in
the peers' favour. Nothing of ours is chosen there: architecture, inputs and training were fixed on
a fifth of the training rows (`Task.development`) and are the same for all tasks, and mode and
median of the mean PDF of five members are both shown (`transfer` and `boss` leave out the
errors; tables.py says where that was chosen).

Scores: NMAD of dz / (1 + z), rows beyond 0.15 as outliers, mean, and the continuous ranked
probability score of the PDF in z. Errors of the ratios are standard deviations over resamples of
the test rows; they hold no scatter of splits, nor of seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from ours import ours
from peers import RAIL, SKLEARN
from score import crps, points
from tables import TASKS, Task

from surveyproc.evaluate.bootstrap import bootstrap
from surveyproc.evaluate.redshift import dz_bias, dz_nmad, dz_outlier_fraction, scaled_error

ROOT = Path(__file__).resolve().parents[2]
RESAMPLES = 1000


@dataclass
class Result:
    """Scores of a method with one setting, one for each test row.

    `errors` holds dz / (1 + z) for each kind of point; `seconds` is what training and prediction
    took of the processor, of ours alone.
    """

    label: str
    crps: NDArray
    errors: dict[str, NDArray]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=" ".join(TASKS))
    parser.add_argument("--rail", metavar="PYTHON", help="interpreter with RAIL's methods")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--cache", type=Path, help="folder of what was predicted before")
    options = parser.parse_args()
    unknown = sorted(set(options.tasks) - set(TASKS))
    if unknown:
        parser.error(f"unknown task {unknown[0]!r}; known are {', '.join(TASKS)}")
    torch.set_num_threads(1)

    rows, ratios, left_out = [ROWS], [RATIOS], []
    for key in options.tasks or TASKS:
        task = TASKS[key](options.data)
        test = task.part == 1
        rivals: dict[str, list[Result]] = {}
        for method, setting, make in contestants(options.rail):
            found = result(key, task, setting, make, options.cache)
            if found is None:
                left_out.append(f"{setting} of {key}")
            else:
                rivals.setdefault(method, []).append(found)
        (mine,) = rivals.pop("ours")
        for stratum, chosen in (task.strata or {"": test}).items():
            title = f"| {task.name} {stratum}".rstrip()
            count = f"{(~test).sum():,} / {chosen.sum():,}"
            rows += [f"{title} | {count} | {row}" for row in score_rows(mine, rivals, chosen[test])]
            ratios.append(f"{title} | {ratio_row(mine, rivals, chosen[test])}")
    print("\n".join(rows))
    if left_out:
        print(f"\nLeft out, for want of --rail: {', '.join(left_out)}.")
    print("\n" + "\n".join(ratios))


ROWS = """\
| table | rows: training / test | method (settings: best NMAD, best CRPS) | point | NMAD | > 0.15 \
| mean | CRPS |
|---|---|---|---|---|---|---|---|"""
RATIOS = """\
| table | NMAD of our mode / best peer | of our median | that peer | CRPS / best peer | that peer \
| our CPU, s |
|---|---|---|---|---|---|---|"""


def contestants(python: str | None) -> Iterator[tuple[str, str, Callable | None]]:
    """Method, setting and how it predicts; None if that needs RAIL and there is none."""
    for method, settings in SKLEARN.items():
        for setting, make in settings.items():
            yield method, setting, make
    for method, settings in RAIL.items():
        for setting, make in settings.items():
            yield method, setting, python and (lambda task, make=make: make(task, python))
    yield "ours", "ours", ours


def result(
    key: str, task: Task, setting: str, make: Callable | None, cache: Path | None
) -> Result | None:
    """Scores from the cache, or of what `make` predicts."""
    path = cache and cache / f"{key}_{setting}.npz"
    if path and path.exists():
        found = dict(np.load(path))
    elif make is None:
        return None
    else:
        print(f"{key}: {setting}", file=sys.stderr)
        started = time.process_time()
        cdf, own = make(task)
        found = {"cdf": cdf.astype(np.float32), "seconds": np.array(time.process_time() - started)}
        found |= own if isinstance(own, dict) else {} if own is None else {"own": own}
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **found)
    z = task.z[task.part == 1]
    cdf, seconds = found.pop("cdf"), float(found.pop("seconds"))
    known = found if setting == "ours" else points(cdf, task.grid) | found
    errors = {kind: scaled_error(point, z) for kind, point in known.items()}
    return Result(setting, crps(cdf, task.grid, z), errors, seconds)


def score_rows(mine: Result, rivals: dict[str, list[Result]], mask: NDArray) -> Iterator[str]:
    """Each peer at its best, then our mode and median."""
    for method, tried in rivals.items():
        by_crps, by_nmad, kind = best(tried, mask)
        settings = f"{by_nmad.label}, {by_crps.label}"
        yield f"{method} ({settings}) | {kind} | {scores(by_nmad, kind, by_crps, mask)}"
    for kind in ("mode", "median"):
        yield f"ours | {kind} | {scores(mine, kind, mine, mask)}"


def ratio_row(mine: Result, rivals: dict[str, list[Result]], mask: NDArray) -> str:
    """Ours over the best of all peers."""
    by_crps, by_nmad, kind = best([one for tried in rivals.values() for one in tried], mask)
    dz = by_nmad.errors[kind][mask]
    mode, median = (ratio(dz_nmad, mine.errors[k][mask], dz) for k in ("mode", "median"))
    score = ratio(mean, mine.crps[mask], by_crps.crps[mask])
    peer = f"{by_nmad.label}, {kind}"
    return f"{mode} | {median} | {peer} | {score} | {by_crps.label} | {mine.seconds:.0f} |"


def best(tried: list[Result], mask: NDArray) -> tuple[Result, Result, str]:
    """The ones with the lowest CRPS and the lowest NMAD, and the point estimate of the latter."""
    by_crps = min(tried, key=lambda one: one.crps[mask].mean())
    pairs = [(one, kind) for one in tried for kind in one.errors]
    by_nmad, kind = min(pairs, key=lambda pair: dz_nmad(pair[0].errors[pair[1]][mask]))
    return by_crps, by_nmad, kind


def scores(of_point: Result, kind: str, of_pdf: Result, mask: NDArray) -> str:
    dz = of_point.errors[kind][mask]
    outliers = 100 * float(dz_outlier_fraction(dz))
    return (
        f"{float(dz_nmad(dz)):.5f} | {outliers:.2f} % | {float(dz_bias(dz)):+.4f} "
        f"| {of_pdf.crps[mask].mean():.5f} |"
    )


def mean(values: NDArray) -> NDArray:
    return values.mean(axis=-1)


def ratio(statistic: Callable, mine: NDArray, theirs: NDArray) -> str:
    """Ours over theirs, with the scatter over resamples of the rows."""
    drawn = bootstrap(lambda a, b: statistic(a) / statistic(b), [mine, theirs], RESAMPLES, 1)
    return f"{float(statistic(mine) / statistic(theirs)):.3f} +- {drawn.std():.3f}"


if __name__ == "__main__":
    main()
