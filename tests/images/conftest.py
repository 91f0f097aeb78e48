import pytest
from conftest_images import make_config

from surveyproc.images import ingest

__all__ = ["make_config"]


@pytest.fixture
def in_this_process(monkeypatch):
    """No Ray, which is tested elsewhere and here would only cost time."""

    def stream(items, worker, *, arguments=(), **_):
        call = worker(*arguments)
        for item in items:
            yield call(item)

    monkeypatch.setattr(ingest.cluster, "stream", stream)
