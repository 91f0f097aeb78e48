"""How a release differs as a whole from the last one, and whether that is too much for a night.

Everything but the redshift metrics and the ratios of fluxes, which come from the difference of the
two (`surveyproc.releases.diff`), comes from the commit records: no leaf is read. Values are held
against each other by the Kolmogorov-Smirnov distance of their histograms
(`surveyproc.evaluate.histogram`), nulls and flags by their shares. A column of text, a new one, or
one whose records hold no histogram, is not compared; one that is gone is a reason by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from surveyproc import schemas
from surveyproc.catalogs.labels import match_catalog, read_labels
from surveyproc.config.sections import NightlySection
from surveyproc.evaluate.histogram import add, distance, unpack
from surveyproc.evaluate.redshift import bootstrap_errors, redshift_metrics
from surveyproc.releases.flux_ratios import TileRatio
from surveyproc.releases.release import Reason
from surveyproc.run.commit import Commit
from surveyproc.survey import Survey

METRICS = ("nmad", "outlier_fraction")


@dataclass
class ColumnProfile:
    """One product column of a whole release.

    Attributes
    ----------
    nulls : int
        Rows without a value.
    values : dict of int to int
        Histogram of the values.
    comparable : bool
        Whether all leaves with values have one.
    """

    nulls: int = 0
    values: dict[int, int] = field(default_factory=dict)
    comparable: bool = True


@dataclass
class Profile:
    """What the commit records of a release say together.

    Attributes
    ----------
    rows : int
        Objects.
    columns : dict
        Product column to its profile.
    flags : dict
        (flag column, flag) to objects.
    """

    rows: int = 0
    columns: dict[str, ColumnProfile] = field(default_factory=dict)
    flags: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One quantity in the last release and in the new one.

    Attributes
    ----------
    what : str
        `null share`, `flag share`, `drift`, `rows lost`, `rows gained`, `duplicate ids`, or a
        metric's name.
    where : str
        Column, flag column and flag, or `whole catalog`.
    before, after : float
        Its values; a drift is 0 before, and so are rows lost and gained.
    allowed : float
        Largest value after that lets the release pass.
    """

    what: str
    where: str
    before: float
    after: float
    allowed: float


def profile(commits: Iterable[Commit]) -> Profile:
    """Add up the records of a release."""
    total = Profile()
    objects = {column.name for column in schemas.load("object")}
    for record in commits:
        total.rows += record.leaf.rows
        flags = {f"{product}_flag": counts for product, counts in record.flags.items()}
        flags |= record.band_flags
        for name in record.stats.keys() - objects - flags.keys():
            stats = record.stats[name]
            column = total.columns.setdefault(name, ColumnProfile())
            column.nulls += stats.nulls
            if stats.histogram:
                add(column.values, unpack(stats.histogram))
            elif stats.nulls < record.leaf.rows:
                column.comparable = False
        for name, counts in flags.items():
            for flag, count in counts.items():
                total.flags[name, flag] = total.flags.get((name, flag), 0) + count
    return total


def changes(last: Profile, new: Profile, limits: NightlySection) -> list[Change]:
    """Shares of nulls and flags, and drift, of every column and flag that both releases have."""
    rows = max(last.rows, 1), max(new.rows, 1)
    found = []
    for name in sorted(last.columns.keys() & new.columns.keys()):
        one, other = last.columns[name], new.columns[name]
        before, after = one.nulls / rows[0], other.nulls / rows[1]
        found.append(Change("null share", name, before, after, before + limits.max_share_growth))
        if one.comparable and other.comparable:
            far = distance(one.values, other.values)
            found.append(Change("drift", name, 0.0, far, limits.max_drift))
    both = {name for name, _ in last.flags} & {name for name, _ in new.flags}
    for name, flag in sorted(last.flags.keys() | new.flags.keys()):
        if name in both and flag != "any":
            before = last.flags.get((name, flag), 0) / rows[0]
            after = new.flags.get((name, flag), 0) / rows[1]
            allowed = before + limits.max_share_growth
            found.append(Change("flag share", f"{name}: {flag}", before, after, allowed))
    return found


def metric_changes(
    survey: Survey, last: str, new: str, columns: Iterable[str]
) -> tuple[list[Change], list[Reason]]:
    """NMAD and outlier fraction of both releases against the [truth] table, as it is now.

    With them the reasons of `labels_lost`, once a column.

    Parameters
    ----------
    last, new : str
        Keys of the two catalogs.
    columns : iterable of str
        Columns of both; the redshifts of their models are held against the truth.
    """
    redshifts = sorted(schemas.redshift_columns(columns))
    if survey.config.truth is None or not redshifts:
        return [], []
    labels = read_labels(survey.config.truth, survey.config)
    before, known_before = match_catalog(survey.store, last, labels, redshifts)
    after, known_after = match_catalog(survey.store, new, labels, redshifts)
    true_before, true_after = known_before["redshift"], known_after["redshift"]
    found, silent = list[Change](), list[Reason]()
    for name in redshifts:
        one = redshift_metrics(before[name], true_before)
        other = redshift_metrics(after[name], true_after)
        silent += labels_lost((int(one["n"]), int(other["n"])), survey.config.nightly, name)
        if not (one["n"] and other["n"]):
            continue
        errors = bootstrap_errors(before[name], true_before)
        for metric in METRICS:
            slack = max(
                survey.config.nightly.max_metric_growth * one[metric], 2 * errors[f"{metric}_err"]
            )
            found.append(Change(metric, name, one[metric], other[metric], one[metric] + slack))
    return found, silent


def columns_gone(last: Profile, new: Profile) -> list[Reason]:
    """Reasons not to publish: readers would look in vain for a column, or for a flag column."""
    gone = last.columns.keys() - new.columns.keys()
    gone |= {name for name, _ in last.flags} - {name for name, _ in new.flags}
    allowed = "none; `surveyproc run` publishes without asking"
    return [Reason("columns gone", name, "no such column", allowed) for name in sorted(gone)]


def flux_shifts(
    ratios: Mapping[str, Mapping[str, TileRatio]], limits: NightlySection
) -> list[Reason]:
    """Reasons not to publish: the fluxes of a tile differ from those of the last release.

    A median ratio beyond the limit is a reason only where its bounds are beyond it as well, so that
    noise is none (`surveyproc.evaluate.ratio` says how rarely).

    Parameters
    ----------
    ratios : mapping
        `flux_ratios` of `surveyproc.releases.diff.difference`.
    """
    most = 1 + limits.max_flux_shift
    reasons = []
    for column, tiles in ratios.items():
        for tile, one in tiles.items():
            low, high = one.between or (1.0, 1.0)
            if low > most or high < 1 / most:
                found = f"{one.ratio:.4f} of {one.objects} bright objects"
                allowed = f"{1 / most:.4f} to {most:.4f}"
                reasons.append(Reason("flux ratio", f"{column} of tile {tile}", found, allowed))
    return reasons


def refusals(found: Iterable[Change]) -> list[Reason]:
    """Reasons not to publish: changes over their limits."""
    reasons = []
    for one in found:
        if one.after > one.allowed:
            was = f" (was {one.before:.4f})" if one.before else ""
            reasons.append(
                Reason(one.what, one.where, f"{one.after:.4f}{was}", f"{one.allowed:.4f}")
            )
    return reasons


def row_changes(
    rows: tuple[int, int],
    duplicates: tuple[int, int],
    lost: int,
    gained: int,
    limits: NightlySection,
) -> list[Change]:
    """Shares of rows that are gone, new, or whose id another one carries too.

    Parameters
    ----------
    rows, duplicates : (int, int)
        Of the last release and of the new one.
    lost, gained : int
        Rows of one of them alone, told apart by their ids.
    """
    where, before = "whole catalog", max(rows[0], 1)
    shared = duplicates[0] / before
    return [
        Change("rows lost", where, 0.0, lost / before, limits.max_rows_lost),
        Change("rows gained", where, 0.0, gained / before, limits.max_rows_gained),
        Change(
            "duplicate ids",
            where,
            shared,
            duplicates[1] / max(rows[1], 1),
            shared + limits.max_share_growth,
        ),
    ]


def labels_lost(matched: tuple[int, int], limits: NightlySection, column: str) -> list[Reason]:
    """Reasons not to publish: the redshifts can no longer be held against the truth.

    Who has a [truth] table wants to be told if the redshifts became worse. Without a match nobody
    can tell, so that is a reason, too; two of few labels may always go.

    Parameters
    ----------
    matched : (int, int)
        Labels with an object, and a redshift for it, in the last release and in the new one.
    column : str
        Of the redshifts.
    """
    least = max(1, math.ceil(matched[0] * (1 - limits.max_rows_lost)) - 2)
    if matched[1] >= least:
        return []
    found = f"{matched[1]} (were {matched[0]})"
    return [Reason("matched labels", column, found, f"{least} at least")]
