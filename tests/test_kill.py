"""Exactly once: a few of the seeded kill trials (all kinds); more with tests/kill_trials.py."""

import random

import pytest
from kill_trials import KINDS, prepare, trial


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    _, expected, seconds = prepare(folder)
    return folder, expected, seconds


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_repeated_ends_in_the_same_bytes(prepared, kind):
    folder, expected, seconds = prepared
    story, found = trial(folder, KINDS.index(kind), kind, random.Random(kind), seconds)
    assert expected
    assert found == expected, story
