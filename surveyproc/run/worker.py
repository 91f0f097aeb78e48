"""The worker of a unit: its two sides, reading and computing, in one process or in two."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from surveyproc.errors import DIED, StoreError, SurveyError, UnreachableError
from surveyproc.places import Divided
from surveyproc.products.base import use_device
from surveyproc.run import stages, unit
from surveyproc.run.carry import Donor
from surveyproc.run.plan import make_plan
from surveyproc.run.stages import Held
from surveyproc.run.unit import Computation, Read
from surveyproc.survey import Survey


@dataclass(frozen=True)
class Task:
    """One attempt at a unit.

    Attributes
    ----------
    unit : str
        Its name.
    quarantine : str
        Why the unit is given up: its rows are then written with nulls. Empty to compute it.
    donors : tuple of Donor
        Leaves of other releases that have values of products for it.
    """

    unit: str
    quarantine: str = ""
    donors: tuple[Donor, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes
    ----------
    unit : str
        Its name.
    rows, nbytes : int
        Of the leaf; 0 if it failed.
    error : str
        Why it failed; empty if it did not.
    crowded : bool
        Whether it may succeed if it has the machine to itself: it died, or memory ran out.
    outside : bool
        Whether the store failed, not the unit: the next run may find it well.
    died : bool
        Whether its process died with it.
    """

    unit: str
    rows: int = 0
    nbytes: int = 0
    error: str = ""
    crowded: bool = False
    outside: bool = False
    died: bool = False

    @classmethod
    def of(cls, unit: str, error: Exception) -> Outcome:
        """What an error makes of the unit of that name."""
        return cls(
            unit,
            error=f"{error}" if isinstance(error, SurveyError) else traceback.format_exc(),
            crowded=isinstance(error, MemoryError),
            outside=isinstance(error, StoreError),
        )


@dataclass(frozen=True)
class Part:
    """What was read of a unit in one go, and the seconds it took; an outcome if it failed."""

    content: Held | Read | Outcome
    seconds: float = 0.0


class UnitWorker(Divided):
    """Lives in a worker process or thread: holds models and tile list, turns units into leaves.

    An error of the unit is reported, not raised, and the others go on.

    Parameters
    ----------
    survey : Survey
        The survey.
    run : str
        The run the driver planned; a worker that plans another one refuses to work.
    """

    def __init__(self, survey: Survey, run: str) -> None:
        self.store = survey.store
        self.plan = make_plan(survey)
        if self.plan.run != run:
            raise SurveyError(
                f"inputs changed while the run was under way (planned {run}, found "
                f"{self.plan.run}): repeat the command"
            )
        self.units = {planned.name: planned for planned in self.plan.units}
        self.reading = stages.Reading(self.store, self.plan, survey.config.images.bands)
        self._prepared: set[str] = set()

    def read(self, task: Task) -> Iterator[Part]:
        """What is held of the unit, then its batches, of which one that is given up has none."""
        started = time.monotonic()
        try:
            planned = self.units[task.unit]
            parts = self.reading(planned, () if task.quarantine else task.donors)
            for content in islice(parts, 1 if task.quarantine else None):
                yield Part(content, time.monotonic() - started)
                started = time.monotonic()
        except UnreachableError:
            raise  # every other unit would wait as long
        except Exception as error:
            yield Part(Outcome.of(task.unit, error), time.monotonic() - started)

    def begin(self, task: Task) -> Attempt:
        """The computing side of a task."""
        return Attempt(self, task)

    def prepare(self, held: Held) -> None:
        """Load, once each, the products that must be computed of a unit.

        Raises
        ------
        InputError
            If a model cannot be loaded: it ends the run, and no unit is to blame.
        """
        needed = [one for one in held.stale(self.plan) if one.name not in self._prepared]
        use_device(self.device)
        unit.prepare(needed)
        self._prepared |= {one.name for one in needed}

    @staticmethod
    def died(task: Task) -> Outcome:
        """What became of a task whose process died."""
        return Outcome(task.unit, error=DIED, crowded=True, died=True)


class Attempt:
    """Computes the parts of one unit, and writes its leaf and commit record.

    Parameters
    ----------
    worker : UnitWorker
        Whose plan and products are used.
    task : Task
        What is to be done.
    """

    def __init__(self, worker: UnitWorker, task: Task) -> None:
        self.worker, self.task = worker, task
        self.planned = worker.units[task.unit]
        self.held: Held | None = None
        self.computation: Computation | None = None
        self.failed: Outcome | None = None
        self.seconds = 0.0

    def take(self, part: Part) -> bool:
        """Compute a part; whether the others are wanted."""
        started = time.monotonic()
        if isinstance(part.content, Held) and not self.task.quarantine:
            self.worker.prepare(part.content)
        try:
            self._add(part.content)
        except UnreachableError:
            raise
        except Exception as error:
            self.failed = Outcome.of(self.task.unit, error)
        self.seconds += part.seconds + time.monotonic() - started
        return self.failed is None

    def _add(self, content: Held | Read | Outcome) -> None:
        if isinstance(content, Outcome):
            self.failed = content
        elif isinstance(content, Held):
            self.held = content
            if not self.task.quarantine:
                self.computation = stages.computation(self.worker.plan, content)
        else:
            assert self.computation is not None, "a batch before what is held of its unit"
            self.computation.add(content)

    def end(self) -> Outcome:
        """Write the leaf, when all parts were taken; what became of the task."""
        if self.failed is not None:
            return self.failed
        assert self.held is not None
        plan = self.worker.plan
        try:
            if self.computation is None:
                output = unit.quarantined(self.held.table.num_rows, plan.products)
            else:
                output = self.computation.output()
            done = stages.write(
                self.worker.store,
                plan,
                self.planned,
                self.held,
                output,
                seconds=self.seconds,
                quarantine=self.task.quarantine,
            )
        except UnreachableError:
            raise
        except Exception as error:
            return Outcome.of(self.task.unit, error)
        return Outcome(self.task.unit, done.leaf.rows, done.leaf.nbytes)
