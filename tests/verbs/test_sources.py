"""Which input files changed: by content, never by modification time."""

import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from surveyproc.config import load
from surveyproc.verbs import sources


@pytest.fixture
def survey(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SETTLED_NS", -(10**12))  # trust files that were just written
    (tmp_path / "tiles").mkdir()
    for name in "abc":
        (tmp_path / f"tiles/{name}.fits").write_bytes(name.encode() * 100)
    (tmp_path / "sources.fits").write_bytes(b"catalog")
    (tmp_path / "survey.toml").write_text(
        '[survey]\nname = "s"\nroot = "store"\n[images]\ntiles = "tiles/*.fits"\nbands = ["g"]\n'
        '[catalog]\nsource = "sources.fits"\n'
    )
    return load(tmp_path / "survey.toml")


def path(survey, name):
    return f"{survey.base}/tiles/{name}.fits"


def test_new_changed_and_gone_files(survey):
    first = sources.look(survey, {})
    assert len(first) == 4
    with open(path(survey, "new"), "wb") as file:
        file.write(b"new")
    status = os.stat(path(survey, "a"))
    with open(path(survey, "a"), "r+b") as file:
        file.write(b"x")
    os.utime(path(survey, "a"), ns=(status.st_atime_ns, status.st_mtime_ns))
    os.remove(path(survey, "b"))
    found = sources.compare(first, sources.look(survey, first))
    assert found == sources.Changes(
        new=[path(survey, "new")], changed=[path(survey, "a")], gone=[path(survey, "b")]
    )


def test_another_time_or_inode_is_no_change(survey):
    first = sources.look(survey, {})
    os.utime(path(survey, "a"))
    shutil.copy(path(survey, "b"), f"{survey.base}/copy")
    os.replace(f"{survey.base}/copy", path(survey, "b"))
    second = sources.look(survey, first)
    assert not sources.compare(first, second)
    assert second != first


def test_what_did_not_change_is_not_read_again(survey, monkeypatch):
    first = sources.look(survey, {})
    read = []
    checksum = sources.checksum
    monkeypatch.setattr(sources, "checksum", lambda path: read.append(path) or checksum(path))
    assert sources.look(survey, first) == first
    assert read == []
    os.utime(path(survey, "c"))
    sources.look(survey, first)
    assert read == [path(survey, "c")]


def test_a_file_that_was_just_written_is_read_again(survey, monkeypatch):
    monkeypatch.setattr(sources, "SETTLED_NS", 10**12)
    assert all(one.state == () for one in sources.look(survey, {}).values())


def test_a_file_that_cannot_be_read_counts_as_changed_every_time(survey):
    os.remove(path(survey, "a"))
    os.symlink("nowhere", path(survey, "a"))
    first = sources.look(survey, {})
    assert first[path(survey, "a")].content == ""
    assert sources.compare(first, sources.look(survey, first)).changed == [path(survey, "a")]


def test_a_catalog_of_many_files(survey):
    os.remove(f"{survey.base}/sources.fits")
    os.makedirs(f"{survey.base}/sources.fits/dataset")
    for name in ("a.parquet", "b.parquet"):
        with open(f"{survey.base}/sources.fits/dataset/{name}", "wb") as file:
            file.write(name.encode())
    assert len(sources.look(survey, {})) == 5


def test_a_catalog_of_a_web_server_is_read_once_and_not_listed(survey):
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=survey.base)

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            """Nothing: the test's output is not the server's."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/sources.fits"
        catalog = survey.catalog.model_copy(update={"source": url})
        found = sources.look(survey.model_copy(update={"catalog": catalog}), {})
        server.shutdown()
    assert found[url].content == sources.checksum(f"{survey.base}/sources.fits")[0]
    assert asked == ["/sources.fits"]


def test_files_that_differ_in_their_query_alone_are_told_apart():
    urls = ["http://h/get?tile=1", "http://h/get?tile=2", "s3://b/t#1", "s3://b/t#2", "http://h/c"]
    names = sources._names(urls)
    assert len(set(names)) == len(urls)
    assert not [name for name in names if "tile=" in name]
