"""One night: find what changed, recompute only that, hold it against the last release, publish.

Whatever happens, the night leaves a summary for the scheduler under `runs/nightly/`.
"""

from __future__ import annotations

import datetime
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from surveyproc import interrupt, verbs
from surveyproc.catalogs.ingest import is_whole
from surveyproc.config.sections import TOLERANCE
from surveyproc.errors import GateError, InputError, StoreError, SurveyError, UnreachableError
from surveyproc.images.cube import is_ingested, read_tiles
from surveyproc.places import Placement, Places, opened, under_way
from surveyproc.releases import diff, drift, release
from surveyproc.releases.clean import clean
from surveyproc.releases.diff import Difference
from surveyproc.releases.drift import Change
from surveyproc.releases.pointer import pointed_to
from surveyproc.releases.record import finished
from surveyproc.releases.release import Reason
from surveyproc.run import commit
from surveyproc.run.plan import Plan, make_plan
from surveyproc.store import layout
from surveyproc.store.documents import document
from surveyproc.store.storage import fingerprint
from surveyproc.survey import Survey
from surveyproc.verbs import checks, sources


@dataclass(frozen=True)
class NightUnits:
    """Units of a night.

    Attributes
    ----------
    total, affected : int
        In all, and those that the last release does not have as they are now.
    computed, adopted, resumed, quarantined : int
        How they came by their leaves.
    """

    total: int
    affected: int
    computed: int = 0
    adopted: int = 0
    resumed: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class Swept:
    """Cubes and leftovers that nothing referred to, and that were removed."""

    folders: int
    bytes: int


@dataclass(kw_only=True)
class Night:
    """What a night did, filled in as it goes on; what it did not come to is None.

    Attributes
    ----------
    survey, started : str
        Its name, and when, ISO 8601, UTC.
    before, release : str or None
        The releases that were published before the night and after it.
    did : str
        `nothing`, `published`, `refused` or `failed`.
    exit_code : int
        For the scheduler. Problems alone make it 2, whatever was published.
    error : str
        What went wrong; empty if nothing did.
    seconds : float
        In all.
    summary : str
        Where this lies, as JSON.
    files, tiles : Changes, optional
        Input files, and tiles, that are new, changed or gone.
    kept, problems, notes : list of str, optional
        What stays as it was since its files are broken; what could not be used; what one should
        know.
    places : list of Placement, optional
        Where the work ran, and why.
    units : NightUnits, optional
        How many there are, and how they came by their leaves.
    products : dict of str to dict of str to int, optional
        Product to units whose values were `computed`, `carried` over from the last release, or
        `kept` as they are.
    damaged : list of str, optional
        Units of the published release that lack pixels of a damaged cube.
    quarantined : list of str, optional
        Units that the published release lacks.
    gates : list of Reason, optional
        Why a release was refused.
    compared : list of Change, optional
        Every quantity held against the last release.
    diff : Difference, optional
        From the last release to the new one.
    removed : list of str, optional
        Old releases.
    cleaned : Swept, optional
        Cubes that nothing refers to.
    unsaved : str, optional
        Why the store could not take the summary.
    """

    survey: str
    started: str
    before: str | None
    release: str | None
    did: str = "failed"
    exit_code: int = 1
    error: str = ""
    seconds: float = 0.0
    summary: str
    files: sources.Changes | None = None
    tiles: sources.Changes | None = None
    kept: list[str] | None = None
    problems: list[str] | None = None
    notes: list[str] | None = None
    places: list[Placement] | None = None
    units: NightUnits | None = None
    products: dict[str, dict[str, int]] | None = None
    quarantined: list[str] | None = None
    damaged: list[str] | None = None
    gates: list[Reason] | None = None
    compared: list[Change] | None = None
    diff: Difference | None = None
    removed: list[str] | None = None
    cleaned: Swept | None = None
    unsaved: str | None = None


def nightly(survey: Survey) -> Night:
    """Bring the published release up to date with the survey's files, models and configuration.

    A file that is broken tonight does not undo what it gave before: its tile keeps its last good
    cube, and a broken source catalog leaves the last one in place. Both are said in `kept`. Units
    that were quarantined, and published as a gap, are left alone until their inputs change, or
    somebody calls `run`.

    Returns
    -------
    Night
        What lies in `runs/nightly/<time>.json`. An error is in it, not raised, because the
        scheduler wants both.
    """
    started = time.monotonic()
    now = datetime.datetime.now(datetime.UTC)
    key = f"{layout.NIGHTLY}/{now:%Y%m%dT%H%M%S.%f}.json"
    night = Night(
        survey=survey.name,
        started=now.isoformat(timespec="seconds"),
        before=None,
        release=None,
        summary=survey.store.url_of(key),
    )
    try:
        night.before = _published(survey)
        checks.before_night(survey)
        with opened(survey.config.run) as places:
            _night(survey, night, places)
        # The night is done; a scheduler still has to learn that files could not be used.
        night.exit_code = InputError.exit_code if night.problems else 0
    except SurveyError as error:
        night.did = "refused" if isinstance(error, GateError) else "failed"
        night.exit_code, night.error = error.exit_code, str(error)
        if isinstance(error, GateError):
            night.gates = list(error.reasons)
    except KeyboardInterrupt:
        night.exit_code, night.error = interrupt.STATUS, "interrupted"
        raise
    except Exception:
        night.error = traceback.format_exc()
        raise
    finally:
        night.seconds = time.monotonic() - started
        try:
            night.release = _published(survey)
            survey.store.put_json(key, document(night))
        except StoreError as error:
            night.unsaved = str(error)
            night.exit_code = night.exit_code or error.exit_code
            night.error = night.error or str(error)
    return night


def _night(survey: Survey, night: Night, places: Places) -> None:
    record = _refresh(survey, night, places)
    night.places = places.told()
    plan = make_plan(survey)
    last = night.before
    known = set(commit.recorded(survey.store, layout.run(last))) if last else set()
    affected = sum(unit.name not in known for unit in plan.units)
    night.units = NightUnits(len(plan.units), affected)
    same = release.published_before(survey.store, plan)
    if same is not None and same.quarantined and not same.damaged:
        night.did, night.quarantined = "nothing", same.quarantined
        night.units = replace(night.units, affected=0)
    else:
        _publish(survey, plan, night)
    # Only a night that ended well sets what the next one is held against.
    key = layout.sources(survey.name)
    if _known_sources(survey) != record:
        survey.store.put_record(key, record)


def _publish(survey: Survey, plan: Plan, night: Night) -> None:
    """Compute what is pending, hold it against the last release, publish, remove old releases."""
    commit.forget_damaged(survey.store, plan, pixels=True)
    pending = {unit.name for unit in commit.pending(survey.store, plan)}

    def gates(plan: Plan, commits: list[commit.Commit]) -> list[Reason]:
        assert night.units is not None
        counts = Counter(_how(one, pending) for one in commits)
        night.units = replace(night.units, **counts)
        return _against_last(survey, plan, commits, night)

    done = verbs.run(survey, gates)
    night.did, night.quarantined, night.damaged = done.did, done.quarantined, done.damaged
    night.places = [*(night.places or []), *(done.places or [])]
    night.products = done.by_product or {}
    if done.did == "published":
        keep = survey.config.nightly.keep_releases
        night.removed = release.prune(survey.store, survey.name, keep)
        cleaned = clean(survey.store)
        night.cleaned = Swept(len(cleaned.removed), cleaned.bytes)


def _how(record: commit.Commit, pending: set[str]) -> str:
    """How a unit came by its leaf tonight."""
    if record.unit not in pending:
        return "resumed"
    if record.quarantined:
        return "quarantined"
    return "adopted" if record.adopted else "computed"


def _published(survey: Survey) -> str | None:
    try:
        return release.current_release(survey.store, survey.name).release
    except InputError:
        return None


def _void(survey: Survey) -> bool:
    """Whether a cube of the survey failed a checksum: it is to be built anew."""
    marks = {f"{layout.VOID}/{name}" for name in survey.store.names(layout.VOID)}
    return bool(marks) and any(
        layout.void(tile.key) in marks for tile in read_tiles(survey.store, survey.name)
    )


def _known_sources(survey: Survey) -> dict[str, Any] | None:
    """What this night is held against; None if there is nothing, or it is damaged."""
    try:
        found: dict[str, Any] | None = survey.store.read_json(layout.sources(survey.name))
    except UnreachableError:
        raise
    except StoreError:
        return None
    return found


def _refresh(survey: Survey, night: Night, places: Places) -> dict[str, Any]:
    """Ingest if a file changed; what the next night needs to know, in the summary what changed."""
    last = _known_sources(survey) or {"files": {}, "tiles": {}}
    seen = {
        name: sources.Source(entry["content"], tuple(entry["state"]))
        for name, entry in last["files"].items()
    }
    found = sources.look(survey.config, seen)
    changed = sources.compare(seen, found)
    settings = fingerprint(
        survey.config.model_dump(mode="json", include={"survey", "images", "catalog"})
    )
    ingested = is_ingested(survey.store, survey.name) and is_whole(survey.store, survey.name)
    same = last.get("settings") == settings and last["complete"]
    if not changed and ingested and same and not _void(survey):
        kept, problems, notes, complete = last["kept"], last["problems"], last["notes"], True
    else:
        kept, problems, notes, complete = _ingest(survey, places)
    tiles = {tile.id: tile.version for tile in read_tiles(survey.store, survey.name)}
    night.files, night.tiles = changed, _tile_changes(last["tiles"], tiles)
    night.kept, night.problems, night.notes = kept, problems, notes
    return {
        "settings": settings,
        "complete": complete,
        "files": {
            name: {"content": one.content, "state": list(one.state)} for name, one in found.items()
        },
        "tiles": tiles,
        "kept": kept,
        "problems": problems,
        "notes": notes,
    }


def _ingest(survey: Survey, places: Places) -> tuple[list[str], list[str], list[str], bool]:
    """What was kept, what was wrong, what one should know; and whether all could be read."""
    from surveyproc.catalogs.ingest import ingest_catalog
    from surveyproc.images.ingest import ingest_tiles

    survey.store.clear_staging()
    with under_way(survey.store, "ingest"):
        tiles = ingest_tiles(survey, places, keep_last=True)
    kept, notes = list(tiles.kept), list(tiles.notes)
    try:
        notes += ingest_catalog(survey, places).notes
    except InputError as error:
        if not is_whole(survey.store, survey.name):
            raise
        kept.append(f"catalog: {error}; the last one is kept")
    return kept, tiles.problems, notes, tiles.complete


def _last_finished(survey: Survey, plan: Plan) -> str | None:
    """The last release that was finished before, for a night that finds no pointer to one."""
    listed = release.list_releases(survey.store, survey.name)
    return next((one.release for one in reversed(listed) if one.release != plan.run), None)


def _tile_changes(last: dict[str, str], now: dict[str, str]) -> sources.Changes:
    both = last.keys() & now.keys()
    return sources.Changes(
        new=sorted(now.keys() - last.keys()),
        changed=sorted(tile for tile in both if last[tile] != now[tile]),
        gone=sorted(last.keys() - now.keys()),
    )


def _against_last(
    survey: Survey,
    plan: Plan,
    commits: list[commit.Commit],
    night: Night,
) -> list[Reason]:
    """Reasons of the [nightly] section; everything compared, and the difference, in the summary."""
    last = night.before or _last_finished(survey, plan)
    if last is None:
        return []
    limits = survey.config.nightly
    records = diff.records_of(survey.store, last)
    night.diff = diff.difference(
        survey.store, plan.survey, (last, plan.run), records, commits, TOLERANCE
    )
    known = pointed_to(survey.store, plan.survey) or finished(survey.store, last)
    assert known is not None
    before, after = drift.profile(records), drift.profile(commits)
    metrics, silent = drift.metric_changes(
        survey,
        layout.release(plan.survey, last),
        plan.release_key,
        before.columns.keys() & after.columns.keys(),
    )
    night.compared = [
        *drift.row_changes(
            (before.rows, after.rows),
            (known.duplicates, plan.catalog.duplicates),
            night.diff.removed,
            night.diff.added,
            limits,
        ),
        *drift.changes(before, after, limits),
        *metrics,
    ]
    return [
        *drift.refusals(night.compared),
        *silent,
        *drift.flux_shifts(night.diff.flux_ratios, limits),
        *drift.columns_gone(before, after),
    ]
