"""Orchestration: stream the pending units through worker processes, one commit record each."""

from __future__ import annotations

import datetime
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from surveyproc import cluster
from surveyproc.catalogs import hats
from surveyproc.config import SurveyConfig
from surveyproc.errors import StoreError, SurveyError, UnitsFailedError
from surveyproc.images.cutouts import CutoutReader
from surveyproc.progress import Meter
from surveyproc.run import commit, unit
from surveyproc.run.plan import Plan, Unit, make_plan
from surveyproc.storage import Store, digest, parse_table


@dataclass(frozen=True)
class Computed:
    """What `compute_pending` did: units found finished, units computed now, and the time."""

    resumed: int
    units: int
    rows: int
    seconds: float


class UnitWorker:
    """Lives in a worker process: holds models and tile list, turns units into leaves.

    Parameters
    ----------
    config : SurveyConfig
        The survey.
    run : str
        The run the driver planned; a worker that plans another one refuses to work.
    """

    def __init__(self, config: SurveyConfig, run: str) -> None:
        unit.use_one_thread()
        self.store = Store(config.root)
        self.plan = make_plan(config, self.store)
        if self.plan.run != run:
            raise SurveyError(
                f"inputs changed while the run was under way (planned {run}, found "
                f"{self.plan.run}): repeat the command"
            )
        self.units = {planned.name: planned for planned in self.plan.units}
        bands, size = unit.image_needs(self.plan.products, config.images.bands)
        self.reader = CutoutReader(self.store, list(self.plan.tiles), bands) if size else None

    def __call__(self, name: str) -> dict[str, Any]:
        """Compute the unit of that name; an error of the unit is reported, not raised."""
        try:
            done = self.process(self.units[name])
        except Exception as error:
            # The other units go on; the driver names this one and refuses to publish.
            return {
                "unit": name,
                "rows": 0,
                "nbytes": 0,
                "error": f"{error}" if isinstance(error, SurveyError) else traceback.format_exc(),
            }
        return {"unit": name, "rows": done.leaf.rows, "nbytes": done.leaf.nbytes, "error": ""}

    def process(self, planned: Unit) -> commit.Commit:
        """Leaf first, commit record after it."""
        started = time.monotonic()
        plan = self.plan
        source = hats.leaf_key(planned.order, planned.pixel)
        inputs = {name for product in plan.products for name in product.inputs.columns}
        own = {column.name for column in plan.catalog.columns}
        wanted = [column.name for column in plan.columns if column.name in own]
        wanted += sorted(inputs & own - set(wanted))
        table = self.read_source(f"{plan.catalog.key}/{source}", planned.source_sha256, wanted)
        output = unit.compute(table, plan.products, self.reader)
        result = unit.to_table(table, output, plan.columns)
        leaf = hats.write_leaf(self.store, f"{plan.release_key}/{source}", result, plan.columns)
        record = commit.Commit(
            unit=planned.name,
            leaf=leaf,
            stats=commit.column_stats(result, plan.columns),
            flags=commit.flag_counts(result, plan.products),
            seconds=time.monotonic() - started,
            provenance=plan.provenance,
        )
        commit.write(self.store, plan.run_key, record)
        return record

    def read_source(self, key: str, sha256: str, columns: list[str]) -> pa.Table:
        """Rows of a source leaf, if it is still the one that was planned with."""
        data = self.store.read(key)
        if digest(data) != sha256:
            raise StoreError(
                f"{self.store.url_of(key)} is not the leaf that was ingested: if an ingest is "
                "under way, repeat the command after it; else ingest again"
            )
        return parse_table(pa.BufferReader(data), columns).select(columns)


def compute_pending(config: SurveyConfig, store: Store, plan: Plan) -> Computed:
    """Compute every unit of `plan` that has no commit record yet.

    Raises
    ------
    UnitsFailedError
        Naming the units that failed and why, after all others were done.
    """
    started = time.monotonic()
    commit.forget_damaged(store, plan)
    todo = commit.pending(store, plan)
    resumed = len(plan.units) - len(todo)
    failed: list[str] = []
    if todo:
        write_plan(store, plan)
        with (
            cluster.session(config.run.address, config.run.workers) as workers,
            Meter("run", objects=sum(one.rows for one in todo), units=len(todo)) as meter,
        ):
            for done in cluster.stream(
                [one.name for one in todo],
                UnitWorker,
                workers=workers,
                arguments=(config, plan.run),
            ):
                meter.advance(objects=done["rows"], nbytes=done["nbytes"])
                if done["error"]:
                    failed.append(f"{done['unit']}: {done['error']}")
        write_log(store, plan, resumed, len(todo), failed, started)
    if failed:
        raise UnitsFailedError(
            f"{len(failed)} of {len(plan.units)} units failed; the others are kept and the same "
            "command resumes:\n" + "\n".join(failed)
        )
    return Computed(resumed, len(todo), sum(one.rows for one in todo), time.monotonic() - started)


def write_log(
    store: Store, plan: Plan, resumed: int, computed: int, failed: list[str], started: float
) -> None:
    """One document for every driver that computed units of this run."""
    now = datetime.datetime.now(datetime.UTC)
    store.put_json(
        f"{plan.run_key}/log/{now:%Y%m%dT%H%M%S.%f}.json",
        {
            "ended": now.isoformat(timespec="seconds"),
            "seconds": time.monotonic() - started,
            "units": {"resumed": resumed, "computed": computed - len(failed), "failed": failed},
            "provenance": plan.provenance,
        },
    )


def write_plan(store: Store, plan: Plan) -> None:
    """Put the plan beside the commit records, for people and for later comparison."""
    store.put_json(
        f"{plan.run_key}/plan.json",
        {
            "survey": plan.survey,
            "run": plan.run,
            "rows": plan.rows,
            "units": [asdict(one) for one in plan.units],
            "provenance": plan.provenance,
        },
    )
