"""How often a unit was begun: written before its work, so that the death of its process counts.

The record of a unit is a list of attempts, gone as soon as one succeeds. It stays beside the commit
record of a quarantined unit, whose rows hold nulls; the next run starts over with such a unit.
"""

from __future__ import annotations

from collections.abc import Iterable

from surveyproc.run import commit
from surveyproc.run.plan import Plan
from surveyproc.storage import Store

DIED = "its process died (killed for memory, or a crash outside Python)"
"""What an attempt is said to have failed of that left no error."""


def begin(store: Store, run_key: str, unit: str, turn: str) -> bool:
    """Note that the unit is begun in `turn`, a name no other attempt of the unit has.

    Returns
    -------
    bool
        False if it was begun in this turn before: the process that did so died.
    """
    known = errors(store, run_key, unit)
    if turn in known:
        return False
    _put(store, run_key, unit, {**known, turn: DIED})
    return True


def fail(store: Store, run_key: str, unit: str, turn: str, error: str) -> None:
    """Note why the attempt of that turn failed."""
    _put(store, run_key, unit, {**errors(store, run_key, unit), turn: error})


def errors(store: Store, run_key: str, unit: str) -> dict[str, str]:
    """Turn to error of every failed attempt, in order; one that is under way counts as failed."""
    return dict(store.read_json(_key(run_key, unit)) or [])


def forget(store: Store, run_key: str, unit: str) -> None:
    """Drop the record of a unit that is done."""
    store.remove(_key(run_key, unit))


def release_quarantined(store: Store, plan: Plan) -> None:
    """Take back the commit and attempt records of quarantined units, so that they are pending."""
    done = set(commit.recorded(store, plan.run_key))
    for unit in _recorded(store, plan.run_key):
        if unit in done:
            if commit.read(store, plan.run_key, unit).quarantined:
                store.remove(commit.record_key(plan.run_key, unit))
            forget(store, plan.run_key, unit)


def failures(store: Store, run_key: str, units: Iterable[str]) -> dict[str, list[str]]:
    """Errors of those of the units that failed before. One listing if none did."""
    known = set(_recorded(store, run_key))
    return {unit: list(errors(store, run_key, unit).values()) for unit in units if unit in known}


def _put(store: Store, run_key: str, unit: str, known: dict[str, str]) -> None:
    # A list: documents are written with sorted keys, and the order of attempts matters.
    store.put_json(_key(run_key, unit), [list(entry) for entry in known.items()])


def _recorded(store: Store, run_key: str) -> list[str]:
    return [name.removesuffix(".json") for name in store.names(f"{run_key}/attempts")]


def _key(run_key: str, unit: str) -> str:
    return f"{run_key}/attempts/{unit}.json"
