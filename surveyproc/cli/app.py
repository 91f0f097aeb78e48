"""The front door: one thin function a verb. Exit status: 0 done, 2 bad input, 3 a gate refused."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from surveyproc.cli import simulated, text
from surveyproc.cli.common import (
    AsJson,
    Overrides,
    Survey,
    begin_reader,
    load_survey,
    ray_aside,
    show,
)
from surveyproc.errors import ConfigError, InputError, SurveyError
from surveyproc.interrupt import hint, watched

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Survey images and source catalogs in, science-ready value-added catalogs out.",
)

Verb = Literal["run", "ingest", "train", "nightly"]


@app.command()
def ingest(survey: Survey, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read tiles and the source catalog into the survey's store."""
    begin_reader()
    from surveyproc import verbs

    with ray_aside():
        done = verbs.ingest(load_survey(survey, overrides))
    tiles, catalog = done.tiles, done.catalog
    lines = [
        f"tiles: {tiles.tiles} in all, {tiles.written} written, {tiles.unchanged} unchanged",
        *(f"  {note}" for note in tiles.notes),
        *(f"  problem: {problem}" for problem in tiles.problems),
        f"catalog: {catalog.rows_in} rows in, {catalog.rows_out} in {catalog.partitions} "
        f"partitions, {catalog.rejected} rejected, {catalog.duplicates} with a duplicate id"
        + (" (unchanged)" if catalog.skipped else ""),
        *(f"  note: {note}" for note in catalog.notes),
        *text.place_lines(done.places),
    ]
    show(done, as_json, lines)
    if tiles.problems:
        raise typer.Exit(InputError.exit_code)


@app.command()
def train(
    survey: Survey,
    product: Annotated[str | None, typer.Option(help="Only this product.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the networks that have a [products.training] section and save model packages."""
    begin_reader()
    from surveyproc import verbs

    with ray_aside():
        done = verbs.train(load_survey(survey, overrides), product)
    lines = []
    for name, one in done.items():
        lines.append(f"{name}: model {one.model} version {one.version}")
        for rows, tasks in one.metrics.items():
            lines += [
                f"  {rows.replace('_', ' ')}: {text.task_metrics(task, found)}"
                for task, found in tasks.items()
            ]
        lines += text.place_lines(one.places)
    show(done, as_json, lines)


@app.command()
def plan(survey: Survey, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what `run` would compute. Reads no data."""
    from surveyproc import verbs

    done = verbs.plan(load_survey(survey, overrides))
    lines = [
        f"run {done.run}: {done.units} units, {text.rows(done)}; "
        f"{done.adoptable_units} units to copy from other releases; "
        f"{done.pending_units} units, {done.pending_rows} objects to compute"
        + ("; published" if done.published else "")
    ]
    show(done, as_json, lines)


@app.command()
def products(as_json: AsJson = False) -> None:
    """List the installed kinds of products: what each reads and writes."""
    from surveyproc.config.kinds import listing

    kinds = listing()
    lines = []
    for one in kinds:
        lines.append(f"{one.kind} ({one.package})")
        told = {"error": one.error, "reads": one.reads, "writes": one.writes}
        lines += [f"  {key}: {value}" for key, value in told.items() if value]
    show({"kinds": kinds}, as_json, lines)


@app.command()
def run(survey: Survey, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Plan, infer, check and publish; repeated, it resumes, or does nothing."""
    from surveyproc import verbs

    with ray_aside():
        done = verbs.run(load_survey(survey, overrides))
    if done.did == "nothing":
        lines = [
            f"nothing to do: release {done.release} is published and up to date; " + text.rows(done)
        ]
    else:
        lines = [
            f"release {done.release} published: {text.rows(done)}, {done.units} partitions "
            f"({done.units_resumed} resumed, {done.units_adopted} copied from earlier releases), "
            f"{done.rows_per_second:.0f} objects/s a worker",
            *text.flag_lines(done.flags),
        ]
    lines += [*text.place_lines(done.places), *text.gap_lines(done.quarantined, done.damaged)]
    lines.append(done.url)
    show(done, as_json, lines)


@app.command()
def nightly(survey: Survey, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Ingest and recompute what changed, hold it against the last release, publish."""
    from surveyproc.verbs.nightly import nightly as work

    with ray_aside():
        done = work(load_survey(survey, overrides))
    show(done, as_json, text.night_lines(done))
    if done.error:
        text.complain(done.error)
    if done.exit_code:
        raise typer.Exit(done.exit_code)


@app.command()
def report(
    survey: Survey,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it here, and nothing under the root.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write the published release's report, one self-contained HTML page."""
    from surveyproc.report.page import write_report

    done = write_report(load_survey(survey, overrides), out)
    show(done, as_json, [done.report, text.rows(done)])


@app.command()
def evaluate(
    survey: Survey,
    catalog: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Any HATS catalog or collection instead of the release."),
    ] = None,
    outlier: Annotated[
        float, typer.Option(min=0.0, help="Limit of outliers to report beside 0.15 and 0.05.")
    ] = 0.15,
    column: Annotated[
        str | None, typer.Option(help="Redshift column; by default the first *_z_median.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Test the column against this one on equal objects."),
    ] = None,
    magnitude: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="AB magnitudes, or flux_BAND in nJy, to bin in."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Hold the published redshifts against the table of the [truth] section."""
    from surveyproc import verbs

    opened = load_survey(survey, overrides)
    done = verbs.evaluate(opened, catalog, outlier, column, baseline, magnitude)
    where = f"release {done.release} ({text.rows(done)})" if done.release else done.catalog
    lines = [
        f"{done.column} of {where} against {done.matched} of {done.labels} known redshifts; "
        f"outliers: |dz| > {', '.join(f'{one:g}' for one in done.thresholds)}",
        *(f"  left out: {count} {why}" for why, count in done.labels_dropped.items()),
        "",
        text.bin_header(done.thresholds),
        *(text.bin_line(name, found) for name, found in done.samples.items()),
    ]
    for quantity, rows in done.bins.items():
        lines += [quantity.replace("_", " ")]
        lines += [text.bin_line(f"  {row['low']:.4g} to {row['high']:.4g}", row) for row in rows]
    if done.pdf is not None:
        judged = {name: text.pdf_metrics(done.pdf[name]) for name in done.samples}
        lines += ["", *(f"PDFs, {name}: {told}" for name, told in judged.items())]
    if done.against is not None:
        lines += ["", f"against {done.against.column}, outliers: |dz| > {outlier:g}:"]
        lines += [text.gain_line(*one) for one in done.against.gains.items()]
    show(done, as_json, lines)


@app.command()
def similar(
    survey: Survey,
    object_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The object, by object_id or text id.")
    ] = None,
    ra: Annotated[float | None, typer.Option(help="Or its position, degrees, ICRS.")] = None,
    dec: Annotated[float | None, typer.Option(help="Within 2 arcsec.")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or an image: FITS, PNG or JPEG.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 10,
    column: Annotated[
        str | None, typer.Option(help="The embedding, if the release has several.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Find the objects of the published release that are most like one, or like an image."""
    from surveyproc.verbs.similar import similar as find

    if (ra is None) != (dec is None):
        raise ConfigError("similar: --ra and --dec go together")
    position = None if ra is None or dec is None else (ra, dec)
    opened = load_survey(survey, overrides)
    done = find(opened, object_id=object_id, position=position, image=image, n=n, column=column)
    show(done, as_json, text.similar_lines(done))


@app.command()
def validate(survey: Survey, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check the published release: HATS validity, every file against its record."""
    from surveyproc import verbs
    from surveyproc.releases.record import MEND

    done = verbs.validate(load_survey(survey, overrides))
    lines = [f"release {done.release}: {text.rows(done)}; {len(done.problems)} problems"]
    lines += [f"  {problem}" for problem in done.problems]
    if done.problems:
        lines.append(MEND)
    show(done, as_json, lines)
    if done.problems:
        raise typer.Exit(1)


@app.command()
def releases(
    survey: Survey,
    current: Annotated[
        bool, typer.Option("--current", help="Print only the published catalog's URL.")
    ] = False,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Rows added, removed and changed from A to B."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="With --diff: relative change that counts as none; 1e-6."),
    ] = None,
    rollback: Annotated[
        str | None,
        typer.Option(metavar="RELEASE", help="Send readers to this release instead."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """List the releases, print where the published one is, compare two, or roll back."""
    from surveyproc import verbs

    opened = load_survey(survey, overrides)
    if rollback is not None:
        done = verbs.rollback(opened, rollback)
        show(done, as_json, [f"release {done.release} is published again", done.url])
        return
    if diff is not None:
        changes = verbs.diff(opened, *diff, tolerance)
        show(changes, as_json, text.diff_lines(changes))
        return
    found = verbs.releases(opened)
    if current:
        show({"url": found.current.url}, as_json, [found.current.url])
        return
    lines = [
        f"{'*' if one.current else ' '} {one.release}  {one.published}  {text.rows(one)}  {one.url}"
        for one in found.releases
    ]
    show(found, as_json, lines)


@app.command()
def clean(
    survey: Survey,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove old cubes, training cubes and leftovers that no release under the root refers to."""
    from surveyproc import verbs

    done = verbs.clean(load_survey(survey, overrides), dry_run=dry_run)
    show(done, as_json, text.clean_lines(done))


@app.command()
def submit(
    survey: Survey,
    verb: Annotated[Verb, typer.Option(help="What the job does.")] = "run",
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="The Ray cluster's dashboard.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the log.")] = False,
    stop: Annotated[
        str | None, typer.Option(metavar="JOB_ID", help="Stop this job and submit nothing.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Install our dependencies on the nodes first.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run a verb as a job on a Ray cluster and follow its log; Ctrl-C leaves the job running."""
    from surveyproc.verbs.submit import Cluster

    config = load_survey(survey, overrides).config
    cluster = Cluster(address)
    if stop is not None:
        done = cluster.stop(stop)
        show(done, as_json, [f"job {stop}: {done.status}"])
        return
    job = cluster.submit(config, survey, verb, overrides or (), install)
    log = sys.stderr if as_json else sys.stdout
    how = f"job {job} at {cluster.address}"
    leave = f"stop it: surveyproc submit {survey} --address {cluster.address} --stop {job}"
    if detach:
        show({"job": job, "address": cluster.address}, as_json, [how, leave])
        return
    print(how, file=log, flush=True)
    hint(f"{how} goes on; {leave}")
    done = cluster.follow(job, lambda part: print(part, end="", file=log, flush=True))
    show(done, as_json, [f"job {job}: {done.status}", *text.why(done)])
    if done.status != "SUCCEEDED":
        raise typer.Exit(done.exit_code or 1)


for verb in (simulated.simulate, simulated.blends, simulated.demo):
    app.command()(verb)


def main() -> None:
    """Entry point: a SurveyError becomes one clear message and its exit status."""
    # At exit the interpreter else looks for cycles in all that torch made, for half a second.
    atexit.register(gc.freeze)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(text.Printable())
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    hint(text.KEPT.get(verb, "nothing was changed; repeat the command"))
    with watched():
        try:
            app()
        except SurveyError as error:
            if os.environ.get("SURVEYPROC_TRACEBACK"):
                raise
            text.complain(str(error))
            sys.exit(error.exit_code)
