"""Training sets of a folder of stamps and a table of what is known of them.

The stamps become a training cube, which all that follows reads like one of the survey's own
cutouts. They have no place on the sky that we know of: splits are by object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

import surveyproc
from surveyproc.catalogs.labels import Targets, any_known, read_targets
from surveyproc.catalogs.readers import open_table, truth
from surveyproc.config import SurveyConfig
from surveyproc.config.sections import ModelSection, TrainingSection
from surveyproc.errors import InputError, near
from surveyproc.images.stamp_kind import ENDINGS, KIND, Pixels, StampKind, is_colour
from surveyproc.images.stamps import DamagedStampError, decoded, window
from surveyproc.models.base import Reads
from surveyproc.store import layout
from surveyproc.store.storage import Store, fingerprint
from surveyproc.train import cube
from surveyproc.train.cube import SHARD, TrainingCube
from surveyproc.train.data import TrainingSet
from surveyproc.train.labels import untrained

TOLD = 5
"""Files that a message names at most."""


def stamp_training_set(store: Store, section: ModelSection, config: SurveyConfig) -> TrainingSet:
    """What `training.images` and the label table of a product hold.

    Parameters
    ----------
    store : Store
        The survey's root, which the training cube is written to.
    section : ModelSection
        The product, whose `training.images` is a folder of stamps.
    config : SurveyConfig
        Which knows what its paths are relative to.

    Raises
    ------
    ConfigError
        As `train.labels.untrained`.
    InputError
        If no row of the table has a label and a whole image, or an image is of another kind or
        size than the network reads.
    """
    training = section.training
    assert training is not None
    assert training.images is not None
    network = untrained(config, section)
    return read_stamps(
        store,
        section.name,
        training,
        network.reads,
        folder=config.resolve(training.images),
        table=config.resolve(training.source),
    )


def read_stamps(
    store: Store, name: str, training: TrainingSection, reads: Reads, *, folder: str, table: str
) -> TrainingSet:
    """As `stamp_training_set`, of a folder and a table given by their paths or URLs.

    Files that are damaged, or not there, are left out and counted in `dropped`, the first ones by
    name.
    """
    targets, columns = read_targets(training, table)
    files = _named_files(training, table)
    known = any_known(targets, len(files))
    chosen = np.ones(len(files), bool)
    if training.select:
        chosen = truth(columns[training.select], table, training.select)
    rows = [k for k in np.flatnonzero(known & chosen).tolist() if files[k]]
    dropped = {
        "not selected": int((~chosen).sum()),
        "no label or no file name": int(chosen.sum()) - len(rows),
    }
    source = Store(folder)
    paths = _paths(source, [files[row] for row in rows])
    row_of = {paths[files[row]]: row for row in rows if files[row] in paths}
    if not row_of:
        raise InputError(
            f"{table}: no row has a label and an image in {folder}: training.file = "
            f"{training.file!r} names the column with the files' names"
        )
    made = _cube(store, name, source, sorted(row_of, key=_draw), reads, training)
    missing = [files[row] for row in rows if files[row] not in paths]
    for why, some in (("no such image", missing), ("damaged image", made.record["damaged"])):
        if some:
            more = f" and {len(some) - TOLD} more" if len(some) > TOLD else ""
            dropped[f"{why}: {', '.join(some[:TOLD])}{more}"] = len(some)
    taken = np.array([row_of[path] for path in made.index["file"].to_pylist()], np.int64)
    known_rows = {one: values[taken] for one, values in targets.items()}
    return TrainingSet.of_cube(made, known_rows, group=taken, dropped=dropped)


def from_arrays(
    store: Store, name: str, images: Pixels, targets: Targets, bands: Sequence[str]
) -> TrainingSet:
    """Images in memory as a training set, split by object.

    Parameters
    ----------
    store : Store
        Which the training cube is written to.
    name : str
        Of the product, or whatever the cube is to be found by.
    images : float32 ndarray, shape (n, band, side, side)
        nJy a pixel or intensities 0 to 255; NaN where there is no pixel. Larger than the network's
        cutout by the shift on each side.
    targets : mapping of str to ndarray, first axis n
        What is known of them.
    bands : sequence of str
        Names of the planes.

    Raises
    ------
    InputError
        If the images are not square, or not of so many bands.
    """
    n, planes, height, side = images.shape
    if height != side or planes != len(bands):
        raise InputError(f"images: shape {images.shape} is not (n, {len(bands)}, side, side)")
    order = np.random.default_rng(0).permutation(n)
    content = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    key = layout.training_cube(name, fingerprint([cube.FORMAT, content, list(bands)]))
    for start in range(0, n, SHARD):
        cube.write_shard(store, key, start // SHARD, images[order[start : start + SHARD]])
    cube.write_header(store, key, n, planes, side)
    record = {"product": name, "bands": list(bands), "cutout": side, "pixel_scale": None}
    made = cube.finish(store, key, pa.table({"row": order}), record)
    known = {one: values[order] for one, values in targets.items()}
    return TrainingSet.of_cube(made, known, group=order)


def _named_files(training: TrainingSection, table: str) -> list[str]:
    """What the label table calls the file of each row; empty where it names none."""
    names: list[str] = []
    with open_table(table, training.table, [training.file]) as reader:
        if training.file not in reader.names:
            raise InputError(
                f"{table}: training.file: no column {training.file!r}"
                + near(training.file, reader.names)
            )
        for batch in reader.batches(4096, [training.file]):
            names += ["" if one is None else str(one).strip() for one in batch[0].to_pylist()]
    known = [name for name in names if name]
    if len(set(known)) < len(known):
        twice = next(name for number, name in enumerate(known) if name in known[:number])
        raise InputError(f"{table}: {training.file} names {twice!r} twice; one row is one image")
    return names


def _paths(source: Store, files: Sequence[str]) -> dict[str, str]:
    """Where the named files lie below the folder; those that do not are not in it.

    A name may be a path, or lack the ending.
    """
    there = source.sizes("")
    bare: dict[str, list[str]] = {}
    for path in there:
        end = next((end for end in ENDINGS if path.lower().endswith(end)), "")
        if end:
            bare.setdefault(path[: -len(end)], []).append(path)
    found: dict[str, str] = {}
    for file in files:
        paths = [file] if file in there else bare.get(file, [])
        if len(paths) > 1:
            raise InputError(
                f"{source.url}: {file!r} may be {' or '.join(sorted(paths))}: give its ending too"
            )
        if paths:
            found[file] = paths[0]
    return found


def _draw(path: str) -> bytes:
    """Puts files in an order of its own: tables are often sorted by class, and what is shuffled
    together must lie together in the cube."""
    return hashlib.sha256(path.encode()).digest()


def _cube(
    store: Store,
    name: str,
    source: Store,
    paths: Sequence[str],
    reads: Reads,
    training: TrainingSection,
) -> TrainingCube:
    """The training cube of the whole images among the files, in that order.

    Its name is a hash of all files: made before, it is returned at once.
    """
    cutout = reads.cutout + 2 * training.shift
    content = hashlib.sha256()
    for path in paths:
        content.update(path.encode() + hashlib.sha256(source.read(path)).digest())
    made_of = [cube.FORMAT, content.hexdigest(), training.resize, list(reads.images), cutout, KIND]
    key = layout.training_cube(name, fingerprint(made_of))
    if store.exists(f"{key}/{cube.RECORD}"):
        return TrainingCube.open(store, key)
    good: list[str] = []
    damaged: list[str] = []
    block: list[Pixels] = []
    kind: StampKind | None = None
    for path, pixels in zip(paths, decoded(source, paths, training.resize), strict=True):
        if isinstance(pixels, DamagedStampError):
            damaged.append(path)
            continue
        if isinstance(pixels, InputError):
            raise pixels
        if kind is None:
            if len(pixels) != len(reads.images):
                raise InputError(
                    f"{path} has {len(pixels)} bands, and the network reads "
                    f"{', '.join(reads.images)}: set training.bands"
                )
            kind = StampKind(is_colour(path), len(pixels), pixels.shape[1], training.resize)
        kind.check(pixels, path, good[0] if good else path)
        block.append(window(pixels, cutout, path))
        good.append(path)
        if len(block) == SHARD:
            cube.write_shard(store, key, len(good) // SHARD - 1, np.stack(block))
            block = []
    if kind is None:
        raise InputError(f"{source.url}: all {len(damaged)} images are damaged: {damaged[0]}")
    if block:
        cube.write_shard(store, key, len(good) // SHARD, np.stack(block))
    cube.write_header(store, key, len(good), len(reads.images), cutout)
    record = {
        "product": name,
        "bands": list(reads.images),
        "cutout": cutout,
        "pixel_scale": None,
        "damaged": damaged,
        KIND: asdict(kind),
        "provenance": {
            "surveyproc_version": surveyproc.__version__,
            "stamps": content.hexdigest(),
        },
    }
    return cube.finish(store, key, pa.table({"file": good}), record)
