"""One night: find what changed, recompute only that, hold it against the last release, publish.

Whatever happens, the night leaves a summary for the scheduler under `runs/nightly/`.
"""

from __future__ import annotations

import datetime
import time
import traceback
from dataclasses import asdict
from typing import Any

from surveyproc import interrupt, verbs
from surveyproc.catalogs.ingest import record_key
from surveyproc.config.sections import TOLERANCE
from surveyproc.errors import GateError, InputError, StoreError, SurveyError
from surveyproc.images.cube import is_ingested, read_tiles
from surveyproc.places import Places, opened, under_way
from surveyproc.releases import diff, drift, release
from surveyproc.releases.clean import clean
from surveyproc.run import commit
from surveyproc.run.plan import Plan, make_plan
from surveyproc.store import layout
from surveyproc.store.storage import fingerprint
from surveyproc.survey import Survey
from surveyproc.verbs import checks, sources


def nightly(survey: Survey) -> dict[str, Any]:
    """Bring the published release up to date with the survey's files, models and configuration.

    A file that is broken tonight does not undo what it gave before: its tile keeps its last good
    cube, and a broken source catalog leaves the last one in place. Both are said in `kept`. Units
    that were quarantined, and published as a gap, are left alone until their inputs change, or
    somebody calls `run`.

    Returns
    -------
    dict
        What lies in `runs/nightly/<time>.json`: `did` (`nothing`, `published`, `refused` or
        `failed`), `exit_code`, `error`, `seconds`, `release` and `before` (published after and
        before the night), `files` and `tiles` (new, changed, gone), `kept`, `problems`, `notes`,
        `units` (in all, affected, adopted, computed, resumed, quarantined), `products` (units whose
        values were computed, carried over from the last release, or kept as they are), `places`
        (where the work ran, and why), `quarantined` (names of the units that the published release
        lacks), `gates` (reasons), `compared` (every quantity held against the last release),
        `diff`, `removed` (old releases),
        `cleaned` (cubes that nothing refers to: how many `folders`, and their `bytes`).
        An error is in it, not raised, because the scheduler wants both. Problems alone give the
        exit code 2, whatever was published. If the store cannot take
        the summary, `unsaved` says why.
    """
    started = time.monotonic()
    now = datetime.datetime.now(datetime.UTC)
    summary: dict[str, Any] = {
        "survey": survey.name,
        "did": "failed",
        "started": now.isoformat(timespec="seconds"),
        "exit_code": 1,
        "error": "",
        "before": None,
        "release": None,
    }
    try:
        summary["before"] = _published(survey)
        checks.before_night(survey)
        with opened(survey.config.run) as places:
            _night(survey, summary, places)
        # The night is done; a scheduler still has to learn that files could not be used.
        summary["exit_code"] = InputError.exit_code if summary["problems"] else 0
    except SurveyError as error:
        summary["did"] = "refused" if isinstance(error, GateError) else "failed"
        summary["exit_code"], summary["error"] = error.exit_code, str(error)
        if isinstance(error, GateError):
            summary["gates"] = [asdict(reason) for reason in error.reasons]
    except KeyboardInterrupt:
        summary["exit_code"], summary["error"] = interrupt.STATUS, "interrupted"
        raise
    except Exception:
        summary["error"] = traceback.format_exc()
        raise
    finally:
        key = f"{layout.NIGHTLY}/{now:%Y%m%dT%H%M%S.%f}.json"
        summary["summary"] = survey.store.url_of(key)
        summary["seconds"] = time.monotonic() - started
        try:
            summary["release"] = _published(survey)
            survey.store.put_json(key, summary)
        except StoreError as error:
            summary["unsaved"] = str(error)
            summary["exit_code"] = summary["exit_code"] or error.exit_code
            summary["error"] = summary["error"] or str(error)
    return summary


def _night(survey: Survey, summary: dict[str, Any], places: Places) -> None:
    record = _refresh(survey, summary, places)
    summary["places"] = places.told()
    plan = make_plan(survey)
    last = summary["before"]
    known = set(commit.recorded(survey.store, layout.run(last))) if last else set()
    summary["units"] = {
        "total": len(plan.units),
        "affected": sum(unit.name not in known for unit in plan.units),
        **{name: 0 for name in ("computed", "adopted", "resumed", "quarantined")},
    }
    if gaps := release.published_gaps(survey.store, plan):
        summary["did"], summary["quarantined"], summary["units"]["affected"] = "nothing", gaps, 0
    else:
        _publish(survey, plan, summary)
    # Only a night that ended well sets what the next one is held against.
    key = layout.sources(survey.name)
    if survey.store.read_json(key) != record:
        survey.store.put_json(key, record)


def _publish(survey: Survey, plan: Plan, summary: dict[str, Any]) -> None:
    """Compute what is pending, hold it against the last release, publish, remove old releases."""
    pending = {unit.name for unit in commit.pending(survey.store, plan)}

    def gates(plan: Plan, commits: list[commit.Commit]) -> list[release.Reason]:
        for one in commits:
            summary["units"][_how(one, pending)] += 1
        return _against_last(survey, plan, commits, summary)

    done = verbs.run(survey, gates)
    summary["did"], summary["quarantined"] = done["did"], done.get("quarantined", [])
    summary["places"] += done.get("places", [])
    summary["products"] = done.get("by_product", {})
    if done["did"] == "published":
        keep = survey.config.nightly.keep_releases
        summary["removed"] = release.prune(survey.store, survey.name, keep)
        cleaned = clean(survey.store)
        summary["cleaned"] = {"folders": len(cleaned.removed), "bytes": cleaned.nbytes}


def _how(record: commit.Commit, pending: set[str]) -> str:
    """How a unit came by its leaf tonight."""
    if record.unit not in pending:
        return "resumed"
    if record.quarantined:
        return "quarantined"
    return "adopted" if record.adopted else "computed"


def _published(survey: Survey) -> str | None:
    try:
        return str(release.current_release(survey.store, survey.name)["release"])
    except InputError:
        return None


def _refresh(survey: Survey, summary: dict[str, Any], places: Places) -> dict[str, Any]:
    """Ingest if a file changed; what the next night needs to know, in the summary what changed."""
    last = survey.store.read_json(layout.sources(survey.name)) or {"files": {}, "tiles": {}}
    seen = {
        name: sources.Source(entry["content"], tuple(entry["state"]))
        for name, entry in last["files"].items()
    }
    found = sources.look(survey.config, seen)
    changed = sources.compare(seen, found)
    settings = fingerprint(
        survey.config.model_dump(mode="json", include={"survey", "images", "catalog"})
    )
    cataloged = survey.store.exists(record_key(survey.name))
    ingested = is_ingested(survey.store, survey.name) and cataloged
    if not changed and ingested and last.get("settings") == settings and last["complete"]:
        kept, problems, notes, complete = last["kept"], last["problems"], last["notes"], True
    else:
        kept, problems, notes, complete = _ingest(survey, places)
    tiles = {tile.id: tile.version for tile in read_tiles(survey.store, survey.name)}
    summary["files"] = asdict(changed)
    summary["tiles"] = _tile_changes(last["tiles"], tiles)
    summary["kept"], summary["problems"], summary["notes"] = kept, problems, notes
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
        if not survey.store.exists(record_key(survey.name)):
            raise
        kept.append(f"catalog: {error}; the last one is kept")
    return kept, tiles.problems, notes, tiles.complete


def _tile_changes(last: dict[str, str], now: dict[str, str]) -> dict[str, list[str]]:
    both = last.keys() & now.keys()
    return {
        "new": sorted(now.keys() - last.keys()),
        "changed": sorted(tile for tile in both if last[tile] != now[tile]),
        "gone": sorted(last.keys() - now.keys()),
    }


def _against_last(
    survey: Survey,
    plan: Plan,
    commits: list[commit.Commit],
    summary: dict[str, Any],
) -> list[release.Reason]:
    """Reasons of the [nightly] section; everything compared, and the difference, in the summary."""
    last = summary["before"]
    if last is None:
        return []
    records = diff.records_of(survey.store, plan.survey, last)
    summary["diff"] = diff.difference(
        survey.store, plan.survey, (last, plan.run), records, commits, TOLERANCE
    )
    before, after = drift.profile(records), drift.profile(commits)
    found = drift.changes(before, after, survey.config.nightly)
    found += drift.metric_changes(
        survey,
        layout.release(plan.survey, last),
        plan.release_key,
        before.columns.keys() & after.columns.keys(),
    )
    summary["compared"] = [asdict(one) for one in found]
    return [
        *drift.refusals((before.rows, after.rows), found, survey.config.nightly),
        *drift.flux_shifts(summary["diff"]["flux_ratios"], survey.config.nightly),
        *drift.columns_gone(before, after),
    ]
