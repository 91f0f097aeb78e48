"""The verbs as functions: a survey in, a result with typed fields out. Nothing is printed.

What takes long to import is imported by the verbs that need it, so that the others answer at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surveyproc.catalogs.labels import read_labels
from surveyproc.config.sections import TOLERANCE, ModelSection
from surveyproc.errors import ConfigError, InputError, StoreError, UnreachableError
from surveyproc.evaluate.redshift import OUTLIER_THRESHOLD
from surveyproc.places import Placement, Places, opened, under_way
from surveyproc.releases import release
from surveyproc.releases.diff import Difference
from surveyproc.releases.diff import diff as compare_releases
from surveyproc.releases.pointer import retire
from surveyproc.releases.record import ListedRelease, Release
from surveyproc.run import commit
from surveyproc.run.adopt import adoptable
from surveyproc.run.plan import Plan
from surveyproc.survey import Survey
from surveyproc.verbs import checks

if TYPE_CHECKING:
    from surveyproc.catalogs.ingest import CatalogSummary
    from surveyproc.images.ingest import TilesSummary
    from surveyproc.releases.clean import Cleaned
    from surveyproc.verbs.evaluation import Evaluation


@dataclass(frozen=True)
class Ingested:
    """What an ingest did.

    Attributes
    ----------
    tiles : TilesSummary
        With the images.
    catalog : CatalogSummary
        With the source catalog.
    places : list of Placement
        Where the work ran, and why.
    """

    tiles: TilesSummary
    catalog: CatalogSummary
    places: list[Placement]


def ingest(survey: Survey) -> Ingested:
    """Tiles to cubes and the source catalog to HATS; what is there already is left alone.

    Raises
    ------
    InputError
        If the catalog cannot be used, or no tile at all.
    StoreError
        If a file could not be read now, or the store could not take a cube. In both cases, unless
        nobody answers, all else is done first: the other tiles, and the catalog.
    """
    from surveyproc.catalogs.ingest import ingest_catalog
    from surveyproc.images.ingest import ingest_tiles

    checks.before_ingest(survey)
    survey.store.clear_staging()
    with under_way(survey.store, "ingest"), opened(survey.config.run) as places:
        try:
            tiles = ingest_tiles(survey, places)
        except UnreachableError:
            raise
        except (InputError, StoreError):
            ingest_catalog(survey, places)
            raise
        catalog = ingest_catalog(survey, places)
    return Ingested(tiles, catalog, places.told())


@dataclass(frozen=True)
class Trained:
    """What a training made.

    Attributes
    ----------
    model, version : str
        The model package.
    metrics : dict
        Rows (`held_out` and others) to task to what the network is worth on them.
    places : list of Placement
        Where the work ran, and why.
    """

    model: str
    version: str
    metrics: dict[str, Any]
    places: list[Placement]


def train(survey: Survey, name: str | None = None) -> dict[str, Trained]:
    """Train the network of product `name`, or of every product with a training section.

    Returns
    -------
    dict of str to Trained
        By name of the product.

    Raises
    ------
    ConfigError
        If no such product is configured, or it has no training section, or a network refuses its
        bands or settings.
    """
    sections = survey.config.trainable(name)
    checks.before_training(survey, sections)
    with under_way(survey.store, "train"), opened(survey.config.run) as places:
        return {section.name: _train_one(survey, section, places) for section in sections}


def _train_one(survey: Survey, section: ModelSection, places: Places) -> Trained:
    from surveyproc.train.data import from_labels
    from surveyproc.train.labels import labelled_blends, measured_training_set
    from surveyproc.train.loop import train as train_network
    from surveyproc.train.stamps import stamp_training_set

    settings = section.training
    assert settings is not None
    if settings.start is not None and "/" in settings.start:
        settings = settings.model_copy(update={"start": survey.config.resolve(settings.start)})
    if settings.magnitudes:
        training_set = from_labels(settings, survey.config.resolve(settings.source))
    elif settings.of_blends:
        training_set = labelled_blends(survey.config, section)
    elif settings.images is not None:
        training_set = stamp_training_set(survey.store, section, survey.config)
    else:
        training_set = measured_training_set(survey, section, places)
    package = train_network(
        training_set,
        architecture=section.architecture or section.model,
        network=section.architecture_settings,
        settings=settings,
        store=survey.store,
        name=section.model,
        survey=survey.name,
        places=places,
    )
    return Trained(section.model, package.version, package.metrics, places.told())


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a run would do.

    Attributes
    ----------
    run : str
        Its name, which will be that of its release.
    rows, rejected : int
        Objects, and rows of the source that are none.
    units : int
        In all.
    adoptable_units : int
        Those to copy from other releases.
    pending_units, pending_rows : int
        Those to compute, and their objects.
    published : bool
        Whether there is nothing to do.
    """

    run: str
    rows: int
    rejected: int
    units: int
    adoptable_units: int
    pending_units: int
    pending_rows: int
    published: bool


def plan(survey: Survey) -> Planned:
    """What `run` would do: units in all, to copy from other releases, to compute. Reads no data."""
    planned = checks.planned(survey)
    copied = adoptable(survey.store, planned)
    stale = [unit for unit in commit.pending(survey.store, planned) if unit.name not in copied]
    return Planned(
        run=planned.run,
        rows=planned.rows,
        rejected=planned.catalog.rejected,
        units=len(planned.units),
        adoptable_units=len(copied),
        pending_units=len(stale),
        pending_rows=sum(unit.rows for unit in stale),
        published=release.is_published(survey.store, planned),
    )


MoreGates = Callable[[Plan, list[commit.Commit]], Sequence[release.Reason]]


@dataclass(frozen=True, kw_only=True)
class RunResult(Release):
    """The release that is published after a run, and what the run did.

    Attributes
    ----------
    did : str
        `published`, or `nothing`; then there is nothing more to tell than the seconds.
    seconds : float
        In all.
    places : list of Placement, optional
        Where the work ran, and why; None if nothing had to be computed.
    units, units_resumed, units_adopted, units_computed : int, optional
        Units in all, found finished, copied from other releases, and computed.
    rows_computed : int, optional
        Objects of those that were computed.
    by_product : dict of str to dict of str to int, optional
        Product to units whose values were `computed`, `carried` over, or `kept`.
    seconds_computing : float, optional
        Without planning and publishing.
    """

    did: str
    seconds: float
    places: list[Placement] | None = None
    units: int | None = None
    units_resumed: int | None = None
    units_adopted: int | None = None
    units_computed: int | None = None
    rows_computed: int | None = None
    by_product: dict[str, dict[str, int]] | None = None
    seconds_computing: float | None = None


def run(survey: Survey, more_gates: MoreGates | None = None) -> RunResult:
    """Plan, infer, check and publish; resume what was interrupted; do nothing if all is done.

    Parameters
    ----------
    survey : Survey
        The survey.
    more_gates : callable, optional
        Reasons not to publish beside those of the [gates] section.
    """
    started = time.monotonic()
    planned = checks.planned(survey)
    if release.is_published(survey.store, planned):
        current = release.current_release(survey.store, planned.survey)
        return RunResult(**vars(current), did="nothing", seconds=time.monotonic() - started)
    release.refuse_withdrawn(survey.store, planned)
    checks.writable(survey.store)
    survey.store.clear_staging()
    from surveyproc.run.pipeline import compute_pending

    with opened(survey.config.run) as places:
        computed = compute_pending(survey, planned, places)
    commits = list(commit.read_all(survey.store, planned))
    gaps = sorted(record.unit for record in commits if not record.final)
    before = release.published_before(survey.store, planned)
    if gaps and before is not None and gaps == before.gaps:
        # What was lacking is lacking still: there is nothing that the published release lacks.
        retire(survey.store, planned.survey, [planned.run])
        current = release.current_release(survey.store, planned.survey)
        seconds = time.monotonic() - started
        return RunResult(**vars(current), did="nothing", places=places.told(), seconds=seconds)
    more = more_gates(planned, commits) if more_gates is not None else ()
    current = release.publish(survey.store, planned, commits, survey.config.gates, more)
    return RunResult(
        **vars(current),
        did="published",
        units=len(planned.units),
        units_resumed=computed.resumed,
        units_adopted=computed.adopted,
        units_computed=computed.units,
        rows_computed=computed.rows,
        by_product=commit.by_product(commits, computed.todo),
        seconds_computing=computed.seconds,
        places=places.told(),
        seconds=time.monotonic() - started,
    )


def evaluate(
    survey: Survey,
    catalog: str | None = None,
    outlier: float = OUTLIER_THRESHOLD,
    column: str | None = None,
    baseline: str | None = None,
    magnitude: str | None = None,
) -> Evaluation:
    """Redshift metrics of a published catalog against the table of the [truth] section.

    Point estimates are by default the medians of the first PDFs, `*_z_median`. Metrics are binned
    in true and in predicted redshift, and in AB magnitude. If the catalog tells unrecognised blends
    (`blend_probability_flag`), there are metrics without them too.

    Parameters
    ----------
    survey : Survey
        Names the table, and the bands in order of wavelength.
    catalog : str, optional
        Path or URL of any HATS catalog, or of a collection, whose main catalog counts; the
        survey's published release by default.
    outlier : float
        |dz| above which an object is an outlier; reported beside 0.15 and 0.05.
    column : str, optional
        Redshift column of any name; of ours, `<model>_z_<estimate>`, the PDFs are judged too if
        their quantiles are those of schemas/photoz.toml.
    baseline : str, optional
        Another redshift column: is the first one better, and could chance have made it so?
    magnitude : str, optional
        Column to bin in: AB magnitudes, or `flux_<band>` in nJy; by default the flux of the
        reddest band that has one.

    Raises
    ------
    ConfigError
        If there is no [truth] section, or the catalog lacks a column, or holds no redshifts of
        ours and no column is named.
    InputError
        If there is no such catalog, or it holds no object of the table.
    """
    from surveyproc.verbs import evaluation as steps

    config = survey.config
    if config.truth is None:
        raise ConfigError("evaluate needs a [truth] section: source, redshift, ra, dec")
    judged = steps.find_catalog(survey, catalog)
    labels = read_labels(config.truth, config)
    names = steps.column_names(judged)
    columns = steps.choose_columns(names, judged.url, config.bands, column, baseline, magnitude)
    values, redshift = steps.matched(judged, labels, columns, config.truth.source)
    published = judged.release
    return steps.Evaluation(
        **vars(steps.metrics(columns, values, redshift, outlier)),
        catalog=judged.url,
        release=published.release if published else None,
        rows=published.rows if published else None,
        rejected=published.rejected if published else None,
        against=steps.gains_over_baseline(columns, values, redshift, outlier),
        column=columns.point,
        labels=len(labels),
        labels_dropped=labels.dropped,
        matched=len(redshift),
    )


@dataclass(frozen=True, kw_only=True)
class Validated(Release):
    """The published release, and whether it is what was committed.

    Attributes
    ----------
    problems : list of str
        What is wrong with it; empty if nothing is.
    """

    problems: list[str]


def validate(survey: Survey) -> Validated:
    """Problems of the published release; none if it is what was committed."""
    current = release.current_release(survey.store, survey.name)
    return Validated(**vars(current), problems=release.validate(survey.store, current))


@dataclass(frozen=True)
class Releases:
    """The releases of a survey.

    Attributes
    ----------
    current : Release
        The published one.
    releases : list of ListedRelease
        All that are finished, oldest first.
    """

    current: Release
    releases: list[ListedRelease]


def releases(survey: Survey) -> Releases:
    """Every release and the published one."""
    return Releases(
        current=release.current_release(survey.store, survey.name),
        releases=release.list_releases(survey.store, survey.name),
    )


def clean(survey: Survey, *, dry_run: bool = False) -> Cleaned:
    """Remove cubes that nothing refers to, of all surveys under the root: `releases.clean`."""
    from surveyproc.releases.clean import clean as remove_unwanted

    return remove_unwanted(survey.store, dry_run=dry_run)


def diff(survey: Survey, first: str, second: str, tolerance: float | None = None) -> Difference:
    """Rows added, removed and changed between two releases; see `surveyproc.releases.diff.diff`."""
    least = TOLERANCE if tolerance is None else tolerance
    return compare_releases(survey.store, survey.name, first, second, least)


def rollback(survey: Survey, to: str) -> Release:
    """Send readers to an earlier release; see `surveyproc.releases.release.rollback`."""
    return release.rollback(survey.store, survey.name, to)
