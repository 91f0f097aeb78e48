"""Where everything lies under a survey's root: the one module that spells the paths.

    images/
        tiles.parquet                       one row a tile of each survey
        <tile>/<version>/                   a cube: Zarr, and tile.json, written last
    catalogs/<survey>/                      the source catalog, HATS
    models/<name>/
        <version>/                          weights.safetensors, model.json
        current.json                        the version in use
    training/<product>/<version>/           a training cube; cube.json is written last
    blends/train/, blends/test/             training cubes of artificial blends
    releases/<survey>/
        <release>/                          a HATS catalog; pixels/<array>/ in it, a Zarr group,
                                            and neighbours/<column>/, indexes
        <release>-<table>/                  rows that a product wrote beside it, HATS
        current.json                        the release that readers follow
        withdrawn.json                      releases that somebody rolled back from
    runs/
        <run>/                              plan.json, commits/, attempts/, begun/, log/, done.json
        <run>/report.html                   the report of its release
        <run>/damage.json                   what `validate` found wrong, until `run` has mended it
        train-<model>/<hash>/               a training while it goes on; its logs afterwards
        ingest/begun/, begun-headers/       tiles and headers under way
        ingest/void/<tile>@<version>        cubes that failed a checksum, to be built anew
        ingest/void/<survey>@               the same of a survey's catalog
        nightly/                            summaries; <survey>/sources.json
        under-way/<verb>/                   notes of ingests and trainings that go on
    .staging/                               files that are being written

A run and its release have the same name.
"""

from __future__ import annotations

TILES = "images/tiles.parquet"
IMAGES, MODELS, TRAINING, RELEASES = "images", "models", "training", "releases"
NIGHTLY, UNDER_WAY = "runs/nightly", "runs/under-way"
TILES_BEGUN, HEADERS_BEGUN = "runs/ingest/begun", "runs/ingest/begun-headers"
VOID = "runs/ingest/void"


def cube(tile: str, version: str) -> str:
    """Folder of a cube."""
    return f"{IMAGES}/{tile}/{version}"


def void(cube: str) -> str:
    """The mark of a cube that failed a checksum; `cube` is its folder.

    Examples
    --------
    >>> void("images/t00/5f2c")
    'runs/ingest/void/t00@5f2c'
    """
    return f"{VOID}/{cube.removeprefix(f'{IMAGES}/').replace('/', '@')}"


def void_catalog(survey: str) -> str:
    """The mark of an ingested catalog of which a leaf is damaged."""
    return f"{VOID}/{survey}@"


def catalog(survey: str) -> str:
    """Folder of the ingested source catalog."""
    return f"catalogs/{survey}"


def model(name: str, version: str = "") -> str:
    """Folder of a version of a model, or of all of them."""
    return f"{MODELS}/{name}/{version}".rstrip("/")


def training_cube(product: str, version: str = "") -> str:
    """Folder of a training cube, or of all of a product."""
    return f"{TRAINING}/{product}/{version}".rstrip("/")


def blends(part: str) -> str:
    """Folder of a training cube of artificial blends: `train` or `test`."""
    return f"blends/{part}"


def training(name: str, version: str) -> str:
    """Folder of a training of the model `name`, while it goes on."""
    return f"runs/train-{name}/{version}"


def releases(survey: str) -> str:
    """Folder of a survey's releases."""
    return f"{RELEASES}/{survey}"


def release(survey: str, name: str) -> str:
    """Folder of a release, a HATS catalog."""
    return f"{releases(survey)}/{name}"


def table(release: str, name: str) -> str:
    """Folder of a table of a release, a HATS catalog; `release` is the release's folder.

    It lies beside the release: below it, its leaves would be taken for those of the main catalog.

    Examples
    --------
    >>> table("releases/deep/r7", "peaks")
    'releases/deep/r7-peaks'
    """
    return f"{release}-{name}"


def pointer(survey: str) -> str:
    """The one object that readers follow."""
    return f"{releases(survey)}/current.json"


def withdrawn(survey: str) -> str:
    """The list of releases that somebody rolled back from."""
    return f"{releases(survey)}/withdrawn.json"


def run(name: str) -> str:
    """Folder of a run's plan, commit records, log and report."""
    return f"runs/{name}"


def done(name: str) -> str:
    """The record of a run's finished release, as it was published."""
    return f"{run(name)}/done.json"


def damage(name: str) -> str:
    """The mark of a release that was found damaged: its run looks at every byte, and mends it."""
    return f"{run(name)}/damage.json"


def report(name: str) -> str:
    """The report of a release."""
    return f"{run(name)}/report.html"


def sources(survey: str) -> str:
    """What the next night of a survey is held against: its files and tiles as they were."""
    return f"{NIGHTLY}/{survey}/sources.json"
