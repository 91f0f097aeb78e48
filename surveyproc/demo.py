"""The whole way on a simulated survey: simulate, ingest, train, run, publish, evaluate, report."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from surveyproc import cluster, verbs
from surveyproc.config import load
from surveyproc.report.page import write_report
from surveyproc.simulate import simulate


def demo(out: Path, *, objects: int, seed: int) -> dict[str, Any]:
    """Run every verb once and say where the results are.

    Returns
    -------
    dict
        `catalog`, `report` (where they are), `metrics` (as `evaluate` gives them), `seconds`.
    """
    started = time.monotonic()

    def say(step: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {step}", file=sys.stderr, flush=True)

    say(f"simulate {objects} objects")
    survey = simulate(out, objects=objects, seed=seed)
    config = load(survey.config)
    with cluster.session(config.run.address, config.run.workers):
        say("ingest tiles and catalog")
        verbs.ingest(config)
        say("train the redshift network")
        verbs.train(config)
        say("run")
        done = verbs.run(config)
    say("evaluate and report")
    metrics = verbs.evaluate(config)
    page = write_report(config)
    say("done")
    return {
        "catalog": done["url"],
        "report": page["report"],
        "metrics": metrics,
        "seconds": time.monotonic() - started,
    }
