"""Failed attempts at units, kept in the store, so that they count whichever driver made them.

The record of a unit is a list of errors, gone as soon as an attempt succeeds. It stays beside the
commit record of a quarantined unit, whose rows hold nulls; the next run starts over with such a
unit.
"""

from __future__ import annotations

from surveyproc.run import commit
from surveyproc.run.plan import Plan
from surveyproc.storage import Store


def record(store: Store, run_key: str, unit: str, errors: list[str]) -> None:
    """Keep why all attempts at the unit so far failed, in order; nothing if none did."""
    if errors:
        store.put_json(_key(run_key, unit), errors)
    else:
        store.remove(_key(run_key, unit))


def recorded(store: Store, run_key: str) -> dict[str, list[str]]:
    """Unit to the errors of its attempts. One listing if no unit has failed."""
    units = [name.removesuffix(".json") for name in store.names(f"{run_key}/attempts")]
    return {unit: list(store.read_json(_key(run_key, unit)) or []) for unit in units}


def release_quarantined(store: Store, plan: Plan) -> None:
    """Take back the commit and attempt records of quarantined units, so that they are pending."""
    done = set(commit.recorded(store, plan.run_key))
    for unit in recorded(store, plan.run_key):
        if unit in done:
            if commit.read(store, plan.run_key, unit).quarantined:
                store.remove(commit.record_key(plan.run_key, unit))
            record(store, plan.run_key, unit, [])


def _key(run_key: str, unit: str) -> str:
    return f"{run_key}/attempts/{unit}.json"
