"""Leaves of earlier releases whose inputs have not changed are copied, not computed.

A unit's name holds the hash of all that its leaf depends on, so a record of the same name in
another run is the record of the same bytes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from surveyproc.errors import StoreError, UnreachableError
from surveyproc.run import commit
from surveyproc.run.plan import Plan, Unit, pointer_document, release_names
from surveyproc.store import layout
from surveyproc.store.storage import Store


def adopt(store: Store, plan: Plan) -> int:
    """Copy the leaf and the record of every pending unit that another release has; how many.

    Leaves are compared with their record by size; those of a release that `validate` found damaged
    by checksum.
    """
    todo = {unit.name: unit for unit in commit.pending(store, plan)}
    pending = len(todo)
    for run in donors(store, plan):
        if not todo:
            break
        shared = [todo[name] for name in commit.recorded(store, layout.run(run)) if name in todo]
        closely = store.exists(layout.damage(run))
        with ThreadPoolExecutor(commit.READERS) as pool:
            copied = list(pool.map(partial(_copy, store, plan, run, closely), shared))
        for unit in (unit for unit, done in zip(shared, copied, strict=True) if done):
            del todo[unit.name]
    return pending - len(todo)


def adoptable(store: Store, plan: Plan) -> set[str]:
    """Names of the pending units that another release has a record of. Listings only."""
    todo = {unit.name for unit in commit.pending(store, plan)}
    return {
        unit
        for run in (donors(store, plan) if todo else ())
        for unit in commit.recorded(store, layout.run(run))
        if unit in todo
    }


def donors(store: Store, plan: Plan) -> list[str]:
    """Runs of this survey that have leaves, the published one first."""
    current = pointer_document(store, plan.survey)
    runs = [name for name in release_names(store, plan.survey) if name != plan.run]
    return sorted(runs, key=lambda run: run != current.get("release"))


def _copy(store: Store, plan: Plan, run: str, closely: bool, unit: Unit) -> bool:
    """Files first, record after them, as if computed; False if the other one is no use."""
    source = layout.release(plan.survey, run)
    try:
        record = commit.read(store, layout.run(run), unit.name)
        if not record.final or not commit.intact(store, source, record, closely):
            return False
        for file in record.files:
            store.copy(source + file.key, plan.release_key + file.key)
    except UnreachableError:
        raise
    except StoreError:
        # Damaged, or removed by another driver while we looked: then it is computed.
        return False
    origin = record.adopted or run
    commit.write(store, plan.run_key, replace(record, adopted=origin, provenance=plan.provenance))
    return True
