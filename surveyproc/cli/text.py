"""How results read: lines of text for people, made from what the verbs return."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from surveyproc.store.documents import document

if TYPE_CHECKING:
    from surveyproc.evaluate.compare import Gain
    from surveyproc.places import Placement
    from surveyproc.releases.clean import Cleaned
    from surveyproc.releases.diff import Difference
    from surveyproc.releases.flux_ratios import TileRatio
    from surveyproc.verbs.blends import Blended
    from surveyproc.verbs.nightly import Night
    from surveyproc.verbs.similar import Similar
    from surveyproc.verbs.submit import JobEnd

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


def as_json(result: Any) -> str:
    """The result of a verb as one JSON document."""
    return json.dumps(_strict(document(result)), default=_plain, indent=1, sort_keys=True)


def _strict(value: Any) -> Any:
    """NaN and infinities as null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Text with control characters written as such: a file's name, or a header, may hold some.

    A terminal would do what they say: change its title, or hide what comes before.

    Examples
    --------
    >>> print(printable(chr(27) + "[31mred.fits"))
    \x1b[31mred.fits
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Printable(logging.Formatter):
    """Of warnings, which name files too."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, printable."""
        return printable(super().format(record))


def rows(counted: Any) -> str:
    """Objects of a release, and rows that are not in it."""
    return f"{counted.rows} objects, {counted.rejected} rejected rows beside the catalog"


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


def gain_line(name: str, one: Gain) -> str:
    """One metric of two columns, and whether chance could have made the difference."""
    return (
        f"  {name.replace('_', ' '):<20}{one.baseline:+.4f} to {one.candidate:+.4f}, gain "
        f"{100 * one.gain:+.1f} %, p = {one.p_value:.4f} ({one.n} objects)"
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


def night_lines(night: Night) -> list[str]:
    """The summary of a night."""
    lines = []
    if night.did == "nothing":
        lines.append(f"nothing new: release {night.release} is up to date")
    elif night.did == "published":
        lines.append(f"release {night.release} published (before: {night.before or 'none'})")
    for name, changes in (("files", night.files), ("tiles", night.tiles)):
        changed = {how: what for how, what in vars(changes).items() if what} if changes else {}
        lines += [f"  {name} {how}: {_some(what)}" for how, what in changed.items()]
    lines += [f"  kept: {one}" for one in night.kept or ()]
    lines += [f"  problem: {one}" for one in night.problems or ()]
    lines += [f"  note: {one}" for one in night.notes or ()]
    if night.units:
        lines.append(
            "  units: " + ", ".join(f"{count} {what}" for what, count in vars(night.units).items())
        )
    lines += gap_lines(night.quarantined, night.damaged)
    if night.diff:
        lines += [f"  {line}" for line in diff_lines(night.diff)]
    if night.removed:
        lines.append(f"  old releases removed: {', '.join(night.removed)}")
    if night.cleaned and night.cleaned.folders:
        swept = night.cleaned
        lines.append(f"  old cubes removed: {swept.folders}, {swept.bytes / 1e6:.1f} MB")
    return [*lines, *place_lines(night.places), f"  {night.seconds:.1f} s; {night.summary}"]


def clean_lines(done: Cleaned) -> list[str]:
    """What was removed, or would be, with its bytes."""
    how = "would be removed" if done.dry_run else "removed"
    return [
        *(f"  {nbytes / 1e6:10.1f} MB  {key}" for key, nbytes in sorted(done.removed.items())),
        *(f"  left alone: {why}" for why in done.left),
        f"{len(done.removed)} {how}, {done.bytes} bytes",
    ]


def place_lines(places: Sequence[Placement] | None) -> list[str]:
    """Where the work ran, and why."""
    where = {"here": "in this process", "ray": "on Ray", "apart": "on Ray, read and computed apart"}
    alike: dict[str, list[str]] = {}
    for one in places or ():
        alike.setdefault(f"{where[one.place]}: {one.why}", []).append(one.what)
    return [f"  {', '.join(what)} {how}" for how, what in alike.items()]


def gap_lines(quarantined: list[str] | None, damaged: list[str] | None) -> list[str]:
    """Units that were given up, and those that lack pixels of a damaged cube."""
    lines = []
    if quarantined:
        lines.append(f"  quarantined; `surveyproc run` tries them again: {_some(quarantined)}")
    if damaged:
        lines.append(
            "  made of damaged cubes; `surveyproc ingest` builds these anew, and `surveyproc run` "
            f"then the units: {_some(damaged)}"
        )
    return lines


def _some(names: list[str], most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name.rsplit("/", 1)[-1] for name in names[:most]) + more


def diff_lines(done: Difference) -> list[str]:
    """What changed from one release to another."""
    lines = [
        f"{done.first} to {done.second}: {done.added} rows added, {done.removed} removed, "
        f"{done.changed} changed by more than {done.tolerance:g} ({done.leaves_read} leaves read)"
    ]
    lines += [
        f"  {name}: {one.changed} changed ({one.lost} to null, {one.gained} from null)"
        + ("" if one.largest is None else f", by {one.largest:.4g} at most")
        for name, one in done.columns.items()
    ]
    lines += [f"  {ratio_line(*one)}" for one in done.flux_ratios.items() if one[1]]
    for how, names in (("added", done.columns_added), ("removed", done.columns_removed)):
        if names:
            lines.append(f"  columns {how}: {', '.join(names)}")
    return lines


def ratio_line(column: str, tiles: Mapping[str, TileRatio]) -> str:
    """The tile whose fluxes differ most from those before."""
    tile = max(tiles, key=lambda name: abs(math.log(tiles[name].ratio)))
    one, more = tiles[tile], len(tiles) - 1
    rest = f", the {more} other tiles less" if more else ""
    return (
        f"{column}: median ratio {one.ratio:.4f} in tile {tile} ({one.objects} bright "
        f"objects){rest}"
    )


def flag_lines(flags: dict[str, dict[str, int]]) -> list[str]:
    """Flagged objects, product by product."""
    return [
        f"  {product}: {counts['any']} flagged"
        + "".join(f", {name} {count}" for name, count in counts.items() if name != "any")
        for product, counts in flags.items()
    ]


def why(job: JobEnd) -> list[str]:
    """What a job that was cut off says of itself; one that failed by itself said it in its log."""
    code = job.exit_code
    if job.status != "FAILED" or (code is not None and code <= 128):
        return []
    return [job.message, "what was finished is kept: submit it again"]


def similar_lines(done: Similar) -> list[str]:
    """The neighbours of an object or an image, nearest first."""
    return [
        f"nearest in {done.column} of release {done.release} to "
        + (done.of.image or _object_line(done.of)),
        *(f"{_object_line(one)}  distance {one.distance:.2f}" for one in done.neighbours),
    ]


def _object_line(one: Any) -> str:
    return f"{one.object_id:>20}  {one.ra:11.6f} {one.dec:+11.6f}"


def blend_lines(done: Blended) -> list[str]:
    """The two cubes of blends, and which stamps are in neither."""
    parts = {"train": done.train, "test": done.test}
    return [
        *(
            f"{name}: {part.blends} blends of {part.galaxies} galaxies, {part.url}"
            for name, part in parts.items()
        ),
        *(f"  left out: {count} stamps {why}" for why, count in done.dropped.items()),
    ]


def complain(message: str) -> None:
    """An error's message on standard error, escape sequences of the input made visible."""
    from rich.console import Console

    shown = printable(message).replace("[", r"\[")
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {shown}")
