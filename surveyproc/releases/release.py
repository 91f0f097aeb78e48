"""Releases: gates, publishing by pointer, rolling back, listing, removal, validation."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from surveyproc.catalogs import hats, metadata, neighbours
from surveyproc.config.sections import GatesSection
from surveyproc.errors import GateError, InputError, StoreError, UnreachableError
from surveyproc.releases.pointer import (
    point_to,
    pointed_to,
    read_pointer,
    refuse_removed,
    retire,
)
from surveyproc.releases.record import MEND, ListedRelease, Release, finished, finished_if_whole
from surveyproc.run import commit, stacks
from surveyproc.run.plan import POINT_ANEW, Plan, release_names, table_columns
from surveyproc.store import layout
from surveyproc.store.documents import sealed
from surveyproc.store.storage import Store, as_json, digest

OBJECT_COLUMNS = ("object_id", "ra", "dec", "_healpix_29", "catalog_flag")


@dataclass(frozen=True)
class Reason:
    """One gate that did not open: which, on what, the value found and the value allowed."""

    gate: str
    where: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.gate:<14} {self.where:<32} found {self.found}, allowed {self.allowed}"


def refusals(plan: Plan, commits: Sequence[commit.Commit], gates: GatesSection) -> list[Reason]:
    """Reasons not to publish; empty if the release is good.

    The gates are: every unit has the rows of its source partition; together they have the rows of
    the source catalog; nulls and out-of-range values of each column stay under the configured
    shares, and so do the objects of quarantined units; object columns hold no null at all, and
    sparse ones as many as they like.
    """
    reasons = []
    for unit, record in zip(plan.units, commits, strict=True):
        if record.leaf.rows != unit.rows:
            reasons.append(Reason("row count", unit.name, str(record.leaf.rows), str(unit.rows)))
    rows = sum(record.leaf.rows for record in commits)
    if rows != plan.catalog.rows_out:
        reasons.append(Reason("row count", "whole catalog", str(rows), str(plan.catalog.rows_out)))
    given_up = [record for record in commits if record.quarantined]
    share = sum(record.leaf.rows for record in given_up) / max(rows, 1)
    if share > gates.max_quarantined_share:
        most = f"{gates.max_quarantined_share:g}"
        reasons += [
            Reason("quarantined", one.unit, f"{share:.4f} of all objects: {_last_line(one)}", most)
            for one in given_up
        ]
    for column in plan.columns:
        stats = [record.stats[column.name] for record in commits]
        nulls = sum(one.nulls for one in stats) / max(rows, 1)
        allowed = 0.0 if column.name in OBJECT_COLUMNS else gates.max_null_share
        if nulls > allowed and not column.sparse:
            reasons.append(Reason("null share", column.name, f"{nulls:.4f}", f"{allowed:g}"))
        outside = sum(one.out_of_range for one in stats) / max(rows, 1)
        if outside > gates.max_out_of_range_share:
            lowest = min((one.minimum for one in stats if one.minimum is not None), default=None)
            highest = max((one.maximum for one in stats if one.maximum is not None), default=None)
            reasons.append(
                Reason(
                    "range",
                    column.name,
                    f"{outside:.4f} outside (values {lowest:g} to {highest:g})",
                    f"{gates.max_out_of_range_share:g} outside {column.range}",
                )
            )
    return reasons


def _last_line(record: commit.Commit) -> str:
    return record.quarantined.strip().splitlines()[-1]


def is_published(store: Store, plan: Plan) -> bool:
    """Whether readers are already sent to the release of this plan, and nothing of it is to do.

    Nothing is, unless a leaf, or what makes a catalog of them, is gone or empty, or `validate`
    found more. Listings only.
    """
    current = pointed_to(store, plan.survey)
    if current is None or current.release != plan.run:
        return False
    if store.exists(layout.damage(plan.run)) or finished_if_whole(store, plan.run) is None:
        return False
    leaves = (hats.leaf_key(unit.order, unit.pixel) for unit in plan.units)
    sizes = store.sizes(plan.release_key)
    return all(sizes.get(name) for name in (*leaves, *metadata.METADATA))


def published_before(store: Store, plan: Plan) -> Release | None:
    """The published release, if it is of the inputs of this plan; it may have gaps."""
    current = pointed_to(store, plan.survey)
    if current is None or current.release.partition(".")[0] != plan.run.partition(".")[0]:
        return None
    return current


def publish(
    store: Store,
    plan: Plan,
    commits: Sequence[commit.Commit],
    gates: GatesSection,
    more: Sequence[Reason] = (),
) -> Release:
    """Write the release's metadata beside its leaves, check it, and swap the pointer.

    Parameters
    ----------
    store, plan, commits, gates
        As `refusals` wants them.
    more : sequence of Reason
        What other gates found.

    Raises
    ------
    GateError
        If a gate refuses; the pointer stays where it is.
    """
    pointer = read_pointer(store, plan.survey)
    refuse_removed(store, plan.survey, pointer, plan.run)
    refuse_withdrawn(store, plan)
    reasons = [*refusals(plan, commits, gates), *more]
    if reasons:
        raise GateError(
            f"release {plan.run} is not published; gates refused:\n"
            + "\n".join(str(reason) for reason in reasons),
            reasons,
        )
    done = finished_if_whole(store, plan.run)
    marked = store.exists(layout.damage(plan.run))
    url = store.url_of(plan.release_key)
    if damaged := commit.forget_damaged(store, plan):
        raise StoreError(
            f"{damaged} leaves are gone or cut short since they were written: repeat the command "
            "to compute them anew"
        )
    leaves = [record.leaf for record in commits]
    if (
        done is not None
        and not marked
        and not hats.metadata_problems(store, plan.release_key, leaves)
    ):
        # Published before, and immutable since: only the pointer moves.
        point_to(store, plan.survey, pointer, done)
        return done
    drop_strangers(store, plan, commits)
    hats.finish_catalog(
        store,
        plan.release_key,
        leaves,
        name=plan.survey,
        columns=plan.leaf_columns,
        properties=plan.provenance,
    )
    tables = finish_tables(store, plan, commits)
    stacks.write_group(store, plan.release_key, plan.pixels)
    if problems := hats.metadata_problems(store, plan.release_key, leaves):
        listed = "; ".join(problems)
        raise GateError(
            f"release {plan.run} is not published: {url} is not a valid HATS catalog ({listed}): "
            "repeat the command"
        )
    made = Release(
        release=plan.run,
        url=url,
        path=plan.release_key,
        rows=plan.rows,
        rejected=plan.catalog.rejected,
        duplicates=plan.catalog.duplicates,
        partitions=len(plan.units),
        kinds=plan.kinds,
        tables=tables,
        pixels=sorted(plan.pixels),
        searched={column.name: product.name for column, product in plan.searched.items()},
        rows_per_second=_rate(commits),
        products={product.name: product.version for product in plan.products},
        flags=commit.total_flags(one.flags for one in commits),
        band_flags=commit.total_flags(one.band_flags for one in commits),
        quarantined=sorted(record.unit for record in commits if record.quarantined),
        damaged=sorted(record.unit for record in commits if record.damaged),
        # Small releases follow one another within a second, and their order counts.
        published=done.published
        if done is not None
        else datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    )
    made = replace(
        made,
        metadata={name: metadata.sums(store, key) for name, key in _catalogs(made).items()},
    )
    made = _record(store, made, mended=done is not None)
    point_to(store, plan.survey, pointer, made)
    if marked:
        store.remove(layout.damage(plan.run))
    return made


def _record(store: Store, made: Release, *, mended: bool) -> Release:
    """Write the record of a finished release; what it says then."""
    key, text = layout.done(made.release), as_json(sealed(made.record))
    if mended or not store.create(key, text):
        # Another driver of this run was first, and what it says of the release stands; unless that
        # is of a release that was mended, or damaged itself.
        found = None if mended else finished_if_whole(store, made.release)
        if found is not None:
            return found
        store.put(key, text)
    return made


def _rate(commits: Sequence[commit.Commit]) -> float:
    """Objects a second of one worker; of units that computed every product, if there are some."""
    whole = [one for one in commits if not one.carried] or commits
    return sum(one.leaf.rows for one in whole) / max(sum(one.seconds for one in whole), 1e-9)


def finish_tables(store: Store, plan: Plan, commits: Sequence[commit.Commit]) -> dict[str, int]:
    """Write the metadata of the tables beside the catalog; table to rows.

    A table without any row is no catalog.
    """
    rows = {}
    for name, table in plan.tables.items():
        leaves = [one.tables[name] for one in commits if name in one.tables]
        rows[name] = sum(leaf.rows for leaf in leaves)
        if leaves:
            hats.finish_catalog(
                store,
                layout.table(plan.release_key, name),
                leaves,
                name=f"{plan.survey}_{name}",
                columns=table_columns(table),
                properties=plan.provenance,
            )
    return rows


def rollback(store: Store, survey: str, release: str) -> Release:
    """Send readers to another finished release; what `current_release` then says.

    The release that they leave is withdrawn, whatever clocks said when either was published: its
    inputs do not publish it again until somebody rolls back to it.

    Raises
    ------
    InputError
        If there is no such release.
    StoreError
        If a file of it is gone or damaged. All are read.
    """
    pointer = read_pointer(store, survey, damaged_too=True)
    done = None if release in pointer.removed else finished(store, release)
    if done is None or done.path != layout.release(survey, release):
        known = ", ".join(one.release for one in list_releases(store, survey)) or "none"
        raise InputError(
            f"no finished release of {survey} is called {release!r} (there are: {known}); "
            "`surveyproc run`, with the settings that it would be made with, finishes one"
        )
    if found := problems(store, done):
        mark_damage(store, done, found)
        raise StoreError(
            f"release {release} is damaged ({found[0]}): roll back to another one, or let "
            "`surveyproc run` mend it with the settings that it was made with"
        )
    marks = store.read_if_there(layout.withdrawn(survey))
    try:
        withdrawn = store.parsed(layout.withdrawn(survey), marks) or {}
    except StoreError:
        withdrawn = {}  # damaged: it is written anew
    withdrawn.pop(release, None)
    if pointer.name not in ("", release):
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        withdrawn[pointer.name] = {"at": now, "for": release}
    if not store.swap(layout.withdrawn(survey), marks, as_json(sealed(withdrawn))):
        raise StoreError(
            f"{store.url_of(layout.withdrawn(survey))}: somebody else rolled back meanwhile: look "
            "at `surveyproc releases`, then repeat the command if it should be"
        )
    point_to(store, survey, pointer, done)
    return done


def read_withdrawn(store: Store, survey: str) -> dict[str, dict[str, str]]:
    """Release to when it was withdrawn (`at`) and for which other one (`for`)."""
    return store.read_json(layout.withdrawn(survey), POINT_ANEW) or {}


def refuse_withdrawn(store: Store, plan: Plan) -> None:
    """Raise a GateError if somebody rolled back from the release of this plan."""
    mark = read_withdrawn(store, plan.survey).get(plan.run)
    if mark is not None:
        raise GateError(
            f"release {plan.run} is not published: it was withdrawn at {mark['at']} by a rollback "
            f"to {mark['for']}, and the inputs are still the same. `surveyproc releases "
            f"--rollback {plan.run}` publishes it again",
            [Reason("withdrawn", plan.run, mark["at"], "never")],
        )


def prune(store: Store, survey: str, keep: int) -> list[str]:
    """Remove the oldest finished releases beyond `keep`, never the published one; their names.

    Unfinished ones (refused by a gate, interrupted) go when nobody has worked on them for a week;
    what somebody began to remove and did not, at once.
    """
    listed = [one.release for one in list_releases(store, survey)]
    week_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=7)
    removed = read_pointer(store, survey).removed
    unwanted = listed[:-keep]
    for name in release_names(store, survey):
        plan_key = f"{layout.run(name)}/plan.json"
        if name in removed or (
            name not in listed
            and store.exists(plan_key)
            and store.fs.modified(store.path(plan_key)) < week_ago
        ):
            unwanted.append(name)
    return retire(store, survey, unwanted)


def drop_strangers(store: Store, plan: Plan, commits: Sequence[commit.Commit]) -> None:
    """Remove files of no unit of the plan, which an interrupted copy could have left."""
    expected = {plan.release_key + file.key for record in commits for file in record.files}
    tables = (f"{layout.table(plan.release_key, name)}/dataset" for name in plan.tables)
    own = (f"{plan.release_key}/{one}" for one in ("dataset", stacks.FOLDER, neighbours.FOLDER))
    for folder in (*own, *tables):
        for name in store.sizes(folder):
            key = f"{folder}/{name}"
            if key not in expected and not is_metadata(key):
                store.remove(key)


def is_metadata(key: str) -> bool:
    """Whether a file of a release is that of a catalog or a group, not of one unit."""
    name = key.rpartition("/")[2]
    return name.startswith("_") or (name == "zarr.json" and "Norder=" not in key)


def is_valid(url: str) -> bool:
    """Whether `url` is a HATS catalog in every detail that the hats library checks."""
    # Importing hats takes over a second, which a run with nothing to do need not pay.
    from hats.io.validation import is_valid_catalog
    from upath import UPath

    try:
        # Told a plain `s3://` URL, hats takes the bucket for a public one.
        return bool(is_valid_catalog(UPath(url), strict=True))
    except Exception:
        return False  # whatever a library meets in damaged metadata


def current_release(store: Store, survey: str) -> Release:
    """The release that readers are sent to.

    Raises
    ------
    InputError
        If nothing was published yet.
    """
    current = pointed_to(store, survey)
    if current is None:
        known = ", ".join(one.release for one in list_releases(store, survey))
        if known:
            where = store.url_of(layout.pointer(survey))
            raise InputError(f"{where} is gone: {POINT_ANEW}; finished are {known}")
        raise InputError(
            f"no release of {survey} under {store.url}: `surveyproc run` makes the first one"
        )
    return current


def list_releases(store: Store, survey: str) -> list[ListedRelease]:
    """Every finished release, oldest first."""
    pointer = read_pointer(store, survey, damaged_too=True)
    names = (name for name in release_names(store, survey) if name not in pointer.removed)
    done = (finished_if_whole(store, name) for name in names)
    listed = (
        ListedRelease(**vars(one), current=one.release == pointer.name) for one in done if one
    )
    return sorted(listed, key=lambda one: (one.published, one.release))


def validate(store: Store, release: Release) -> list[str]:
    """Problems of a published release: HATS validity, and every file against its record.

    If there are some, a mark tells the next run of the release, which mends it.

    Returns
    -------
    list of str
        Empty if the release is intact.
    """
    found = problems(store, release)
    if not found:  # the library reads what may be damaged
        places = (store.url_of(key) for key in _catalogs(release).values())
        found += [
            f"{one} is not a valid HATS catalog (strict)" for one in places if not is_valid(one)
        ]
    if found:
        mark_damage(store, release, found)
    return found


def problems(store: Store, release: Release) -> list[str]:
    """The same without the hats library: what readers would miss, or read wrong."""
    found, records = list[str](), list[commit.Commit]()
    run_key = layout.run(release.release)
    for read in (partial(finished, store, release.release), partial(read_plan, store, release)):
        try:
            if read() is None:
                found.append(f"{store.url_of(run_key)}: a record of the release is missing")
        except UnreachableError:
            raise
        except StoreError as error:
            found.append(str(error))
    for name in commit.recorded(store, run_key):
        try:
            records.append(commit.read(store, run_key, name))
        except UnreachableError:
            raise
        except StoreError as error:
            found.append(str(error))
    for name, key in _catalogs(release).items():
        leaves = [one.tables.get(name) if name else one.leaf for one in records]
        sums = release.metadata.get(name, {})
        now = metadata.sums(store, key) if sums else {}
        wrong = [f"{file} is damaged" for file, told in sums.items() if now[file] != told]
        # Not before: one bit of a footer is enough for Arrow to end the process.
        wrong = wrong or hats.metadata_problems(store, key, [one for one in leaves if one])
        found += [f"{store.url_of(key)}: {one}" for one in wrong]
    for record in records:
        for file in record.files:
            place = release.path + file.key
            data = store.read_if_there(place)
            if data is None:
                found.append(f"{store.url_of(place)} is missing")
            elif digest(data) != file.sha256:
                found.append(f"{store.url_of(place)} differs from its commit record")
    rows = sum(record.leaf.rows for record in records)
    if rows != release.rows:
        found.append(f"commit records hold {rows} rows, the release says {release.rows}")
    return found


def read_plan(store: Store, release: Release) -> Any:
    """What is kept of the plan of a release; None if that is gone."""
    return store.read_json(f"{layout.run(release.release)}/plan.json", MEND)


def mark_damage(store: Store, release: Release, found: list[str]) -> None:
    """Leave word for the run of a release, which would find nothing to do."""
    store.put_json(layout.damage(release.release), {"found": found})


def _catalogs(release: Release) -> dict[str, str]:
    """Keys of the main catalog, which has no name, and of the tables beside it that have rows."""
    tables = {
        name: layout.table(release.path, name) for name, rows in release.tables.items() if rows
    }
    return {"": release.path, **tables}
