"""Shared fixtures: real survey data where it is present, and one Ray session for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from surveyproc import cluster

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared" / "data"

# Ray's worker processes unpickle classes of test modules by importing them.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture(scope="session")
def survey_data() -> Path:
    """Folder of real survey data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("real survey data (../shared/data) is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def workers() -> Iterator[int]:
    """Worker processes of a local Ray that ends with the tests."""
    with cluster.session(workers=2) as count:
        yield count
