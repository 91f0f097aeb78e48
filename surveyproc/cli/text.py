"""How results read: lines of text for people, made from what the verbs return."""

from __future__ import annotations

import math
from typing import Any

KEPT = {
    "ingest": "tiles that were finished are kept, and the last catalog until the new one is whole; "
    "the same command goes on from there",
    "train": "epochs that were finished are kept; the same command goes on from there",
    "run": "units that were finished are kept; the same command goes on from there",
    "nightly": "tiles and units that were finished are kept, and the published release; the same "
    "command goes on from there",
    "demo": "what was finished is kept; the same command goes on from there",
    "clean": "what was removed was not needed; the same command goes on from there",
    "blends": "the blends are not whole; the same command makes them anew",
    "simulate": "the survey is not whole; the same command draws it anew",
    "submit": "no job is followed; `ray job list` shows whether one was submitted",
}
"""What Ctrl-C says, verb by verb; the others change nothing before their last step."""


def rows(counts: dict[str, Any]) -> str:
    """Objects of a release, and rows that are not in it."""
    return f"{counts['rows']} objects, {counts['rejected']} rejected rows beside the catalog"


def metrics(metrics: dict[str, Any]) -> str:
    """Point redshifts against known ones."""
    return (
        f"NMAD {metrics['nmad']:.4f}, outliers {100 * metrics['outlier_fraction']:.2f} %, "
        f"bias {metrics['bias']:+.4f} (n = {metrics['n']})"
    )


def task_metrics(task: str, found: dict[str, Any]) -> str:
    """What a network's task is worth on labelled objects: its numbers, without tables of them."""
    if "point" in found:
        # A network without PDFs has point estimates only.
        return metrics(found.get("median") or found["point"])
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
    told = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in numbers.items())
    parts = [
        f"{key} ({task_metrics(key, value).partition(': ')[2]})"
        for key, value in found.items()
        if isinstance(value, dict) and "n" in value
    ]
    return f"{task}: " + ", ".join([*([told] if told else []), *parts])


def bin_header(thresholds: list[float]) -> str:
    """The header of the table of `bin_line`."""
    outliers = "".join(f"{f'> {one:g}, %':<15}" for one in thresholds)
    return f"{'':<20}{'n':>7}{'missing':>8}  {'NMAD':<17}{outliers}bias"


def bin_line(name: str, row: dict[str, Any]) -> str:
    """Metrics of one bin, with their standard errors."""
    both = zip(row["outlier_fractions"], row["outlier_fractions_err"], strict=True)
    shares = (f"{100 * share:.2f} ± {100 * error:.2f}" for share, error in both)
    return (
        f"{name:<20}{row['n']:>7}{row['n_missing']:>8}  {row['nmad']:.4f} ± {row['nmad_err']:.4f}  "
        + "".join(f"{share:<15}" for share in shares)
        + f"{row['bias']:+.4f} ± {row['bias_err']:.4f}"
    )


def gain_line(name: str, row: dict[str, Any]) -> str:
    """One metric of two columns, and whether chance could have made the difference."""
    return (
        f"  {name.replace('_', ' '):<20}{row['baseline']:+.4f} to {row['candidate']:+.4f}, gain "
        f"{100 * row['gain']:+.1f} %, p = {row['p_value']:.4f} ({row['n']} objects)"
    )


def pdf_metrics(metrics: dict[str, Any]) -> str:
    """PDFs against known redshifts."""
    tests = ", ".join(
        f"{label} {metrics[key]:.3g} (p = {metrics[key + '_p']:.2g})"
        for label, key in (("KS", "ks"), ("CvM", "cvm"), ("AD", "ad"))
    )
    return (
        f"n = {metrics['n']}, CRPS {metrics['crps']:.4f}, CDE loss {metrics['cde_loss']:.3f}, "
        f"68 % intervals hold {100 * metrics['coverage_68']:.1f} %, "
        f"95 % {100 * metrics['coverage_95']:.1f} %; uniform PIT: {tests}"
    )


def night_lines(done: dict[str, Any]) -> list[str]:
    """The summary of a night."""
    lines = []
    if done["did"] == "nothing":
        lines.append(f"nothing new: release {done['release']} is up to date")
    elif done["did"] == "published":
        lines.append(f"release {done['release']} published (before: {done['before'] or 'none'})")
    for name in ("files", "tiles"):
        changed = {how: what for how, what in done.get(name, {}).items() if what}
        lines += [f"  {name} {how}: {_some(what)}" for how, what in changed.items()]
    lines += [f"  kept: {one}" for one in done.get("kept", ())]
    lines += [f"  problem: {one}" for one in done.get("problems", ())]
    lines += [f"  note: {one}" for one in done.get("notes", ())]
    if "units" in done:
        lines.append("  units: " + ", ".join(f"{n} {what}" for what, n in done["units"].items()))
    lines += gap_lines(done)
    if "diff" in done:
        lines += [f"  {line}" for line in diff_lines(done["diff"])]
    if done.get("removed"):
        lines.append(f"  old releases removed: {', '.join(done['removed'])}")
    if done.get("cleaned", {}).get("folders"):
        cleaned = done["cleaned"]
        lines.append(f"  old cubes removed: {cleaned['folders']}, {cleaned['bytes'] / 1e6:.1f} MB")
    return [*lines, *place_lines(done), f"  {done['seconds']:.1f} s; {done['summary']}"]


def clean_lines(done: dict[str, Any]) -> list[str]:
    """What was removed, or would be, with its bytes."""
    how = "would be removed" if done["dry_run"] else "removed"
    return [
        *(f"  {nbytes / 1e6:10.1f} MB  {key}" for key, nbytes in sorted(done["removed"].items())),
        *(f"  left alone: {why}" for why in done["left"]),
        f"{len(done['removed'])} {how}, {done['bytes']} bytes",
    ]


def place_lines(done: dict[str, Any]) -> list[str]:
    """Where the work ran, and why."""
    where = {"here": "in this process", "ray": "on Ray", "apart": "on Ray, read and computed apart"}
    alike: dict[str, list[str]] = {}
    for one in done.get("places", ()):
        alike.setdefault(f"{where[one['place']]}: {one['why']}", []).append(one["what"])
    return [f"  {', '.join(what)} {how}" for how, what in alike.items()]


def gap_lines(done: dict[str, Any]) -> list[str]:
    """Units that were given up."""
    gaps = done.get("quarantined")
    return [f"  quarantined; `surveyproc run` tries them again: {_some(gaps)}"] if gaps else []


def _some(names: list[str], most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name.rsplit("/", 1)[-1] for name in names[:most]) + more


def diff_lines(done: dict[str, Any]) -> list[str]:
    """What changed from one release to another."""
    lines = [
        f"{done['first']} to {done['second']}: {done['added']} rows added, {done['removed']} "
        f"removed, {done['changed']} changed by more than {done['tolerance']:g} "
        f"({done['leaves_read']} leaves read)"
    ]
    lines += [
        f"  {name}: {one['changed']} changed ({one['lost']} to null, {one['gained']} from null)"
        + ("" if one["largest"] is None else f", by {one['largest']:.4g} at most")
        for name, one in done["columns"].items()
    ]
    lines += [f"  {ratio_line(*one)}" for one in done["flux_ratios"].items() if one[1]]
    for how in ("added", "removed"):
        if done[f"columns_{how}"]:
            lines.append(f"  columns {how}: {', '.join(done[f'columns_{how}'])}")
    return lines


def ratio_line(column: str, tiles: dict[str, Any]) -> str:
    """The tile whose fluxes differ most from those before."""
    tile = max(tiles, key=lambda name: abs(math.log(tiles[name]["ratio"])))
    one, more = tiles[tile], len(tiles) - 1
    rest = f", the {more} other tiles less" if more else ""
    return (
        f"{column}: median ratio {one['ratio']:.4f} in tile {tile} ({one['objects']} bright "
        f"objects){rest}"
    )


def flag_lines(flags: dict[str, dict[str, int]]) -> list[str]:
    """Flagged objects, product by product."""
    return [
        f"  {product}: {counts['any']} flagged"
        + "".join(f", {name} {count}" for name, count in counts.items() if name != "any")
        for product, counts in flags.items()
    ]


def why(done: dict[str, Any]) -> list[str]:
    """What a job that was cut off says of itself; one that failed by itself said it in its log."""
    code = done["exit_code"]
    if done["status"] != "FAILED" or (code is not None and code <= 128):
        return []
    return [done["message"], "what was finished is kept: submit it again"]
