"""Failed attempts at units, kept in the store, so that they count whichever driver made them.

The record of a unit is a list of failures, gone as soon as an attempt succeeds. It stays beside the
commit record of a quarantined unit, whose rows hold nulls; the next run starts over with such a
unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surveyproc.errors import DIED
from surveyproc.run import commit
from surveyproc.run.plan import Plan
from surveyproc.store import layout
from surveyproc.store.documents import document
from surveyproc.store.storage import Store


@dataclass(frozen=True)
class Failure:
    """An attempt that failed.

    Attributes
    ----------
    error : str
        Why.
    died : bool
        Whether its process died with it.
    """

    error: str
    died: bool = False


def record(store: Store, run: str, unit: str, failures: Sequence[Failure]) -> None:
    """Keep why all attempts at a unit of the run in that folder failed, in order, if any did."""
    if failures:
        store.put_json(_key(run, unit), document(failures))
    else:
        store.remove(_key(run, unit))


def recorded(store: Store, run: str) -> dict[str, list[Failure]]:
    """Unit to its failed attempts. One listing if no unit has failed."""
    units = [name.removesuffix(".json") for name in store.names(f"{run}/attempts")]
    return {
        unit: [_failure(one) for one in store.read_json(_key(run, unit)) or ()] for unit in units
    }


def _failure(found: Any) -> Failure:
    # Records once held the errors alone.
    return Failure(found, found == DIED) if isinstance(found, str) else Failure(**found)


def release_quarantined(store: Store, plan: Plan) -> set[str]:
    """Take back the commit and attempt records of quarantined units, so that they are pending.

    Returns
    -------
    set of str
        Those of them whose processes died, and those of the releases with gaps that this run fills.
    """
    done = set(commit.recorded(store, plan.run_key))
    before = (recorded(store, layout.run(run)) for run in _editions_before(plan.run))
    killers = {unit for one in before for unit, failures in one.items() if _killed(failures)}
    for unit, failures in recorded(store, plan.run_key).items():
        if unit in done:
            if commit.read(store, plan.run_key, unit).quarantined:
                store.remove(commit.record_key(plan.run_key, unit))
                killers |= {unit} if _killed(failures) else set()
            record(store, plan.run_key, unit, [])
    return killers


def _killed(failures: Sequence[Failure]) -> bool:
    return any(one.died for one in failures)


def _editions_before(run: str) -> list[str]:
    """Runs of the same inputs whose gaps a run fills: `r7` and `r7.1` for `r7.2`, none for `r7`."""
    inputs, _, number = run.partition(".")
    return [f"{inputs}.{one}" if one else inputs for one in range(int(number or 0))]


def _key(run: str, unit: str) -> str:
    return f"{run}/attempts/{unit}.json"
