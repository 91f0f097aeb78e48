"""The whole way on a simulated survey: simulate, ingest, train, run, publish, evaluate, report."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.places import opened
from surveyproc.report.page import write_report
from surveyproc.simulate import simulate
from surveyproc.survey import Survey
from surveyproc.verbs.evaluation import Evaluation

IMAGES = """
# GaZNet-1 with few channels: the r image beside the catalog.
[[products]]
name = "photoz_images"
model = "gaznet-1"
[products.architecture_settings]
cutout = 32
image_widths = [8, 16, 16, 32]
joint_widths = [64, 64, 64, 64]

[products.training]
source = "truth.parquet"
redshift = "z"
select = "spec"
radius = 0.5
epochs = 8
"""
COLUMNS = ("gaznet_c9_z_median", "gaznet_1_z_median")


@dataclass(frozen=True)
class Demonstrated:
    """Where the results of a demo are.

    Attributes
    ----------
    catalog, report : str
        The published catalog, and the page about it.
    metrics : list of Evaluation
        Of the catalog's network and of the one that sees images too.
    seconds : float
        In all.
    """

    catalog: str
    report: str
    metrics: list[Evaluation]
    seconds: float


def demo(out: Path, *, objects: int, seed: int, root: str) -> Demonstrated:
    """Run every verb once and say where the results are.

    Parameters
    ----------
    out : Path
        Folder of the survey.
    objects, seed, root : int, int, str
        As for `simulate`.
    """
    started = time.monotonic()

    def say(step: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {step}", file=sys.stderr, flush=True)

    say(f"simulate {objects} objects")
    simulated = simulate(out, objects=objects, seed=seed, root=root)
    with simulated.config.open("a") as stream:
        stream.write(IMAGES)
    survey = Survey(load(simulated.config))
    with opened(survey.config.run):
        say("ingest tiles and catalog")
        verbs.ingest(survey)
        say("train the redshift networks")
        verbs.train(survey)
        say("run")
        done = verbs.run(survey)
    say("evaluate and report")
    metrics = [verbs.evaluate(survey, column=column) for column in COLUMNS]
    page = write_report(survey)
    say("done")
    return Demonstrated(done.url, page.report, metrics, time.monotonic() - started)
