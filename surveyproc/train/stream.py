"""Batches of a training cube, shard by shard: shuffled for training, in order for validation.

The order of an epoch is drawn from (seed, epoch) alone: shards in random order, a window of a few
of them at a time, the rows within a window in random order. Batches are cut from that order, and
every worker takes its slice of each. A batch therefore mixes the objects of a few random pieces of
the sky, and no worker holds more than two windows: the one in use and the one read ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import InputError
from surveyproc.train.cube import SHARD, TrainingCube

Index = NDArray[np.int64]
Batch = tuple[Index, NDArray[np.float32]]

WINDOW = 4


def shuffled(
    cube: TrainingCube,
    rows: NDArray[np.bool_],
    *,
    seed: int,
    epoch: int,
    batch: int,
    rank: int,
    world: int,
    first_step: int = 0,
    window: int = WINDOW,
) -> Iterator[Batch]:
    """This worker's batches of one epoch.

    Every row comes once, on one worker; the last step is filled up from the beginning of the order,
    so that all workers make the same number of steps with batches of the same size.

    Parameters
    ----------
    cube : TrainingCube
        With cutouts.
    rows : bool ndarray, shape (cube.n,)
        Rows to train on.
    seed, epoch : int
        Both decide the order.
    batch : int
        Objects a step over all workers; each takes batch // world, at least one.
    rank, world : int
        This worker and the number of workers.
    first_step : int
        Steps of the epoch to leave out: the batches that follow are those of the undisturbed
        epoch. Shards that none of them needs are not read.
    window : int
        Shards that are shuffled together.

    Yields
    ------
    index : int64 ndarray, shape (batch // world,)
        Rows of the cube.
    images : float32 ndarray, shape (batch // world, plane, y, x)
        Nanojansky; NaN where there is no pixel.

    Raises
    ------
    InputError
        If `rows` chooses no row.
    StoreError
        If a shard cannot be read.
    """
    order, ends = _order(rows, seed, epoch, window)
    if not len(order):
        raise InputError(f"{cube.store.url_of(cube.key)}: no row is left to train on")
    share = max(1, batch // world)
    steps = -(-len(order) // (share * world))
    places = np.arange(first_step * share * world, steps * share * world, dtype=np.int64)
    lap, place = np.divmod(places.reshape(-1, world, share)[:, rank].ravel(), len(order))
    group = lap * len(ends) + np.searchsorted(ends, place, side="right")
    yield from _deliver(cube, _split(order[place], group), share)


def in_order(
    cube: TrainingCube, rows: NDArray[np.bool_], *, batch: int, rank: int, world: int
) -> Iterator[Batch]:
    """This worker's part of the chosen rows, each once, in the cube's order.

    A part is one run of rows, so that workers read different shards; the numbers of batches of two
    workers may differ by one, and a worker's last batch is shorter.

    Parameters
    ----------
    cube, rows, batch, rank, world
        As for `shuffled`.

    Yields
    ------
    index, images
        As for `shuffled`.

    Raises
    ------
    StoreError
        If a shard cannot be read.
    """
    mine = np.array_split(np.flatnonzero(rows), world)[rank]
    yield from _deliver(cube, _split(mine, mine // SHARD), max(1, batch // world))


def _order(rows: NDArray[np.bool_], seed: int, epoch: int, window: int) -> tuple[Index, Index]:
    """The rows in the order of an epoch, and where each window ends in it."""
    chosen = np.flatnonzero(rows)
    shards, counts = np.unique(chosen // SHARD, return_counts=True)
    random = np.random.default_rng([seed, epoch])
    drawn = random.permutation(len(shards))
    starts = np.cumsum(counts) - counts
    windows = []
    for first in range(0, len(drawn), window):
        parts = [chosen[starts[k] : starts[k] + counts[k]] for k in drawn[first : first + window]]
        windows.append(random.permutation(np.concatenate(parts)))
    ends = np.cumsum([len(part) for part in windows], dtype=np.int64)
    return np.concatenate([np.empty(0, np.int64), *windows]), ends


def _split(rows: Index, group: Index) -> list[Index]:
    """`rows` cut wherever `group` changes."""
    return np.split(rows, np.flatnonzero(np.diff(group)) + 1) if len(rows) else []


def _deliver(cube: TrainingCube, groups: Sequence[Index], share: int) -> Iterator[Batch]:
    """The rows of all groups in batches of `share`; a thread reads the next group ahead."""
    if not groups:
        return
    rows, images = groups[0][:0], np.empty((0, *_shape(cube)), np.float32)
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(_load, cube, groups[0])
        for number, group in enumerate(groups):
            loaded = ahead.result()
            if number + 1 < len(groups):
                ahead = pool.submit(_load, cube, groups[number + 1])
            start = 0
            if len(rows):
                start = share - len(rows)
                rows = np.concatenate([rows, group[:start]])
                images = np.concatenate([images, loaded[:start]])
                if len(rows) < share:
                    continue
                yield rows, images
            whole = start + (len(group) - start) // share * share
            for first in range(start, whole, share):
                yield group[first : first + share], loaded[first : first + share]
            # A copy: a view would keep the whole window in memory.
            rows, images = group[whole:], loaded[whole:].copy()
    if len(rows):
        yield rows, images


def _load(cube: TrainingCube, rows: Index) -> NDArray[np.float32]:
    """Cutouts of `rows`, in their order; each shard is read once."""
    images = np.empty((len(rows), *_shape(cube)), np.float32)
    shard = rows // SHARD
    for number in np.unique(shard).tolist():
        read = cube.read(number)
        # A loop of plain copies: indexing with arrays would hold the shard a second time.
        for place in np.flatnonzero(shard == number).tolist():
            images[place] = read[rows[place] - number * SHARD]
    return images


def _shape(cube: TrainingCube) -> tuple[int, int, int]:
    return cube.planes, cube.cutout, cube.cutout
