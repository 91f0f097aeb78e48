"""Orchestration: stream the pending units through worker processes, one commit record each."""

from __future__ import annotations

import datetime
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from surveyproc.errors import ClusterError, StoreError, UnitsFailedError, UnreachableError
from surveyproc.places import Item, Ledger, Places, Stage
from surveyproc.products.base import wants_device
from surveyproc.progress import Meter
from surveyproc.run import attempts, carry, commit
from surveyproc.run.adopt import adopt
from surveyproc.run.attempts import Failure
from surveyproc.run.carry import Donor
from surveyproc.run.cost import COLUMNS_S, expected_seconds, seconds_per_object
from surveyproc.run.plan import Plan
from surveyproc.run.worker import Outcome, Task, UnitWorker
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

DEATHS = 8
"""Units in a row, or three a worker if that is more, whose processes die: it is not the units."""


@dataclass(frozen=True)
class Computed:
    """What `compute_pending` did.

    Attributes
    ----------
    resumed, adopted, units, quarantined : int
        Units found finished; copied from earlier releases; computed now; given up now.
    rows : int
        Objects computed now.
    todo : frozenset of str
        Units that were neither found finished nor copied.
    seconds : float
        Time it took.
    """

    resumed: int
    adopted: int
    units: int
    quarantined: int
    rows: int
    todo: frozenset[str]
    seconds: float


def compute_pending(survey: Survey, plan: Plan, places: Places) -> Computed:
    """Give every unit of `plan` a leaf and a commit record.

    Units that an earlier release has are copied; the rest are computed. A unit that fails is tried
    again, `run.attempts` times in all, then quarantined. Units that an earlier run quarantined are
    pending again.

    Raises
    ------
    UnitsFailedError
        Naming the units for which the store failed, after all others were done.
    """
    started = time.monotonic()
    commit.forget_damaged(survey.store, plan, pixels=True)
    killers = attempts.release_quarantined(survey.store, plan)
    pending = commit.pending(survey.store, plan)
    if pending or not plan_is_there(survey.store, plan):
        write_plan(survey.store, plan)
    adopted = adopt(survey.store, plan)
    todo = commit.pending(survey.store, plan)
    donors = carry.find(survey.store, plan, todo)
    work = Work(survey, plan, places, killers, donors)
    if todo:
        with Meter("run", objects=sum(one.rows for one in todo), units=len(todo)) as meter:
            work.finish([one.name for one in todo], meter)
        work.ledger.clear()
    done = Computed(
        resumed=len(plan.units) - len(pending),
        adopted=adopted,
        units=len(todo) - len(work.quarantined) - len(work.failed),
        quarantined=len(work.quarantined),
        rows=work.rows,
        todo=frozenset(one.name for one in todo),
        seconds=time.monotonic() - started,
    )
    if pending:
        write_log(survey.store, plan, done, work)
    if work.failed:
        raise UnitsFailedError(
            f"{len(work.failed)} of {len(plan.units)} units failed; the others are kept and the "
            "same command resumes:\n" + "\n".join(work.failed)
        )
    return done


class Work:
    """The pending units of one run, until each is done, quarantined or failed.

    Parameters
    ----------
    survey, plan, places
        The survey, the run, and where it may run.
    killers : collection of str
        Units that killed a process in an earlier run; they get one of their own.
    donors : mapping of str to tuple of Donor
        Unit to leaves of other releases that have values of products for it.

    Attributes
    ----------
    rows : int
        Objects computed.
    quarantined, failed : list of str
        Units given up, and units for which the store failed, with the reason.
    failures : dict of str to list of Failure
        Unit to its failed attempts, of units that are not done.
    """

    def __init__(
        self,
        survey: Survey,
        plan: Plan,
        places: Places,
        killers: Collection[str] = (),
        donors: Mapping[str, tuple[Donor, ...]] | None = None,
    ) -> None:
        self.survey, self.store, self.plan, self.places = survey, survey.store, plan, places
        self.killers = set(killers)
        self.ledger = Ledger(self.store, f"{plan.run_key}/begun")
        self.donors = donors or {}
        self.seconds = self._expected()
        self.rows = 0
        self.quarantined: list[str] = []
        self.failed: list[str] = []
        self.failures = attempts.recorded(self.store, plan.run_key)

    def _expected(self) -> dict[str, float]:
        """Seconds of one core that each unit is expected to need."""
        whole = seconds_per_object(self.store, self.plan)
        seconds = {one.name: one.rows * whole for one in self.plan.units}
        for one in self.plan.units:
            if given := self.donors.get(one.name):
                carried = {name for donor in given for name in donor.products}
                stale = [product for product in self.plan.products if product.name not in carried]
                an_object = sum(map(expected_seconds, stale)) + COLUMNS_S
                seconds[one.name] = one.rows * min(an_object, whole)
        return seconds

    def finish(self, units: list[str], meter: Meter) -> None:
        """All attempts at these units: together first, what died of it one by one after that."""
        together, alone = self.tasks(units), list[Task]()
        while together or alone:
            again = [
                *self.attempt(together, meter),
                *self.attempt(alone, meter, alone=True),
            ]
            crowded = {outcome.unit for outcome in again if outcome.crowded}
            tasks = self.tasks([outcome.unit for outcome in again])
            together = [task for task in tasks if task.unit not in crowded]
            alone = [task for task in tasks if task.unit in crowded]

    def tasks(self, units: list[str]) -> list[Task]:
        """The next attempt at each unit, or its quarantine if it has had them all."""
        most = self.survey.config.run.attempts
        return [
            Task(name, _reason(self.failures.get(name, ()), most), self.donors.get(name, ()))
            for name in units
        ]

    def item(self, task: Task) -> Item:
        """The task as work to be done somewhere."""
        failures = self.failures.get(task.unit, ())
        apart = task.unit in self.killers or any(one.died for one in failures)
        return Item(task.unit, task, self.seconds[task.unit], apart)

    def attempt(self, tasks: list[Task], meter: Meter, *, alone: bool = False) -> list[Outcome]:
        """Do all tasks once, `alone` one after the other; those that are to be tried again."""
        given_up = {task.unit: task.quarantine for task in tasks if task.quarantine}
        again, dead = [], list[str]()
        stage = Stage(
            "units",
            UnitWorker,
            (self.survey, self.plan.run),
            died=UnitWorker.died,
            deaths=1,
            device=any(map(wants_device, self.plan.products)),
            ledger=self.ledger,
        )
        for outcome in self.places.stream([*map(self.item, tasks)], stage, alone=alone):
            reason = given_up.get(outcome.unit, "")
            dead = [*dead, outcome.unit] if outcome.died else []
            if outcome.error and not reason:
                self.note_failure(outcome)
            workers = 1 if alone else self.places.workers
            if len(dead) >= max(DEATHS, 3 * workers):
                self.forgive([name for name in dead if name not in given_up])
                raise ClusterError(
                    f"the processes of {len(dead)} units in a row died, the last at unit "
                    f"{outcome.unit}: is there memory for {workers} of them (run.workers)? What "
                    "was finished is kept: repeat the command"
                )
            if not outcome.error:
                self.note_done(outcome, reason)
                meter.advance(objects=outcome.rows, nbytes=outcome.nbytes)
            elif outcome.outside or reason:
                self.failed.append(f"{outcome.unit}: {outcome.error}")
                meter.advance(objects=0)
            else:
                again.append(outcome)
        return again

    def note_failure(self, outcome: Outcome) -> None:
        """Count a failed attempt."""
        failures = self.failures.setdefault(outcome.unit, [])
        failures.append(Failure(outcome.error, outcome.died))
        attempts.record(self.store, self.plan.run_key, outcome.unit, failures)

    def forgive(self, units: list[str]) -> None:
        """Take back the last failure of units that are not to blame for it."""
        for name in units:
            del self.failures[name][-1]
            attempts.record(self.store, self.plan.run_key, name, self.failures[name])

    def note_done(self, outcome: Outcome, reason: str) -> None:
        """Count a unit that has its leaf; `reason` is why it was given up, if it was."""
        if reason:
            self.quarantined.append(f"{outcome.unit}: {reason}")
            return
        self.rows += outcome.rows
        if self.failures.pop(outcome.unit, None):
            attempts.record(self.store, self.plan.run_key, outcome.unit, [])


def _reason(failures: Sequence[Failure], most: int) -> str:
    """Why a unit that failed so is given up; empty if it has attempts left."""
    if len(failures) < most:
        return ""
    return f"{len(failures)} attempts failed, the last: {failures[-1].error}"


def write_log(store: Store, plan: Plan, done: Computed, work: Work) -> None:
    """One document for every driver that worked on this run."""
    now = datetime.datetime.now(datetime.UTC)
    store.put_json(
        f"{plan.run_key}/log/{now:%Y%m%dT%H%M%S.%f}.json",
        {
            "ended": now.isoformat(timespec="seconds"),
            "seconds": done.seconds,
            "units": {
                "resumed": done.resumed,
                "adopted": done.adopted,
                "computed": done.units,
                "quarantined": work.quarantined,
                "failed": work.failed,
            },
            "provenance": plan.provenance,
        },
    )


def plan_is_there(store: Store, plan: Plan) -> bool:
    """Whether the plan lies, whole, beside the commit records."""
    try:
        return store.read_json(f"{plan.run_key}/plan.json") is not None
    except UnreachableError:
        raise
    except StoreError:
        return False


def write_plan(store: Store, plan: Plan) -> None:
    """Put the plan beside the commit records, for people and for later comparison."""
    store.put_record(
        f"{plan.run_key}/plan.json",
        {
            "survey": plan.survey,
            "run": plan.run,
            "rows": plan.rows,
            "units": [asdict(one) for one in plan.units],
            "tiles": [[tile.id, tile.version] for tile in plan.tiles],
            "provenance": plan.provenance,
        },
    )
