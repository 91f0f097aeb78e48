"""Streaming: every row once an epoch, the same after a restart, two windows in memory at most."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cube import write

from surveyproc.errors import InputError, StoreError
from surveyproc.train.cube import SHARD, TrainingCube
from surveyproc.train.stream import in_order, shuffled

OBJECTS = 5 * SHARD + 70


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cube"), OBJECTS, bands=1, cutout=2)


def some(seed, share):
    return np.random.default_rng(seed).random(OBJECTS) < share


def run(cube, rows, rank=0, world=1, **keys):
    values = {"seed": 1, "epoch": 0, "batch": 64, "window": 2} | keys
    return list(shuffled(cube, rows, rank=rank, world=world, **values))


def same(one, other):
    assert len(one) == len(other)
    for (i, x), (j, y) in zip(one, other, strict=True):
        np.testing.assert_array_equal(i, j)
        np.testing.assert_array_equal(x, y)


SETTINGS = {
    "seed": st.integers(0, 5),
    "share": st.sampled_from([0.005, 0.1, 0.7, 1.0]),
    "batch": st.sampled_from([1, 7, 64, 300, 2000]),
    "world": st.integers(1, 3),
    "window": st.integers(1, 7),
}


@settings(max_examples=15, deadline=None)
@given(**SETTINGS)
def test_every_row_once_an_epoch_on_one_worker(made, seed, share, batch, world, window):
    cube, images = made
    rows = some(seed, share)
    rows[7] = True
    mine = max(1, batch // world)
    ranks = [run(cube, rows, r, world, seed=seed, batch=batch, window=window) for r in range(world)]
    steps = -(-rows.sum() // (mine * world))
    order = []
    for step in range(steps):
        for batches in ranks:
            index, pixels = batches[step]
            assert len(index) == mine
            assert (index.dtype, pixels.dtype) == (np.int64, np.float32)
            np.testing.assert_array_equal(pixels, images[index])
            order += index.tolist()
    assert {len(batches) for batches in ranks} == {steps}
    n = int(rows.sum())
    assert sorted(order[:n]) == np.flatnonzero(rows).tolist()
    # The last step is filled up from the beginning.
    assert order[n:] == list(itertools.islice(itertools.cycle(order[:n]), len(order) - n))


@settings(max_examples=12, deadline=None)
@given(first=st.floats(0, 1), **SETTINGS)
def test_a_resumed_epoch_is_the_undisturbed_one(made, first, seed, share, batch, world, window):
    cube, _ = made
    rows = some(seed, share)
    rows[7] = True
    keys = {"seed": seed, "batch": batch, "window": window, "rank": world - 1, "world": world}
    whole = run(cube, rows, **keys)
    step = int(first * len(whole))
    same(run(cube, rows, first_step=step, **keys), whole[step:])


def test_epochs_and_seeds_differ(made):
    cube, _ = made
    rows = some(0, 0.7)
    orders = [
        np.concatenate([index for index, _ in run(cube, rows, **keys)])
        for keys in ({}, {"epoch": 1}, {"seed": 2})
    ]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).mean() < 0.05


def test_a_batch_mixes_the_shards_of_a_window(made):
    cube, _ = made
    index, _ = run(cube, np.ones(OBJECTS, bool), window=3)[0]
    assert len(np.unique(index // SHARD)) == 3


@pytest.fixture
def reads(monkeypatch):
    """Shards in the order in which they are read."""
    found, original = [], TrainingCube.read

    def spy(self, shard):
        found.append(shard)
        return original(self, shard)

    monkeypatch.setattr(TrainingCube, "read", spy)
    return found


@pytest.mark.parametrize("window", [1, 2, 4])
def test_one_window_is_read_ahead_and_no_more(made, reads, window):
    cube, _ = made
    batches = shuffled(
        cube, np.ones(OBJECTS, bool), seed=1, epoch=0, batch=10, rank=0, world=1, window=window
    )
    seen = set()
    for index, _ in batches:
        seen |= set((index // SHARD).tolist())
        begun = -(-len(seen) // window) * window
        # What is being read while this batch is used is of the next window at most.
        assert len(reads) <= begun + window
    assert sorted(reads[: cube.shards]) == list(range(cube.shards))
    # The wrapped end of the last step.
    assert len(reads) <= cube.shards + window


def test_a_resumed_epoch_reads_only_what_is_left(made, reads):
    cube, _ = made
    rows = np.ones(OBJECTS, bool)
    steps = -(-OBJECTS // 64)
    assert len(run(cube, rows, window=1, first_step=steps - 1)) == 1
    # The last window, perhaps the one before it, and the first one again.
    assert len(reads) <= 3
    reads.clear()
    assert run(cube, rows, first_step=steps) == []
    assert reads == []


def test_shards_without_a_chosen_row_are_not_read(made, reads):
    cube, _ = made
    rows = np.zeros(OBJECTS, bool)
    rows[SHARD : SHARD + 5] = True
    run(cube, rows)
    assert set(reads) == {1}


def test_nothing_to_train_on_is_named(made):
    with pytest.raises(InputError, match="no row is left"):
        run(made[0], np.zeros(OBJECTS, bool))


def test_a_damaged_shard_stops_the_epoch(tmp_path):
    cube, _ = write(tmp_path, 300)
    (tmp_path / cube.key / "images/c/1/0/0/0").write_bytes(b"x" * 5000)
    with pytest.raises(StoreError, match="images/c/1/0/0/0 is damaged"):
        run(cube, np.ones(300, bool))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 5),
    share=st.sampled_from([0.0, 0.002, 0.1, 1.0]),
    batch=st.sampled_from([1, 7, 64, 2000]),
    world=st.integers(1, 3),
)
def test_in_order_gives_each_row_once(made, seed, share, batch, world):
    cube, images = made
    rows = some(seed, share)
    found = []
    for rank in range(world):
        for index, pixels in in_order(cube, rows, batch=batch, rank=rank, world=world):
            assert 0 < len(index) <= max(1, batch // world)
            np.testing.assert_array_equal(pixels, images[index])
            found += index.tolist()
    assert found == np.flatnonzero(rows).tolist()
