"""Failed attempts at units, kept in the store, so that they count whichever driver made them.

The record of a unit is a list of errors, gone as soon as an attempt succeeds. It stays beside the
commit record of a quarantined unit, whose rows hold nulls; the next run starts over with such a
unit.
"""

from __future__ import annotations

from surveyproc.places import DIED
from surveyproc.run import commit
from surveyproc.run.plan import Plan
from surveyproc.store import layout
from surveyproc.store.storage import Store


def record(store: Store, run: str, unit: str, errors: list[str]) -> None:
    """Keep why all attempts at a unit of the run in that folder failed, in order, if any did."""
    if errors:
        store.put_json(_key(run, unit), errors)
    else:
        store.remove(_key(run, unit))


def recorded(store: Store, run: str) -> dict[str, list[str]]:
    """Unit to the errors of its attempts. One listing if no unit has failed."""
    units = [name.removesuffix(".json") for name in store.names(f"{run}/attempts")]
    return {unit: list(store.read_json(_key(run, unit)) or []) for unit in units}


def release_quarantined(store: Store, plan: Plan) -> set[str]:
    """Take back the commit and attempt records of quarantined units, so that they are pending.

    Returns
    -------
    set of str
        Those of them whose processes died, and those of the release with gaps that this run fills.
    """
    done = set(commit.recorded(store, plan.run_key))
    filled = _edition_before(plan.run)
    before = recorded(store, layout.run(filled)) if filled else {}
    killers = {unit for unit, errors in before.items() if DIED in errors}
    for unit, errors in recorded(store, plan.run_key).items():
        if unit in done:
            if commit.read(store, plan.run_key, unit).quarantined:
                store.remove(commit.record_key(plan.run_key, unit))
                killers |= {unit} if DIED in errors else set()
            record(store, plan.run_key, unit, [])
    return killers


def _edition_before(run: str) -> str:
    """The run whose gaps a run fills: `r7.1` for `r7.2`, `r7` for `r7.1`, "" for `r7`."""
    inputs, _, number = run.partition(".")
    if not number:
        return ""
    return f"{inputs}.{int(number) - 1}" if int(number) > 1 else inputs


def _key(run: str, unit: str) -> str:
    return f"{run}/attempts/{unit}.json"
