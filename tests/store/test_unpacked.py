"""A packed file fills no disk."""

import collections
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from surveyproc import child
from surveyproc.catalogs import hats, metadata
from surveyproc.catalogs.formats.base import LocalCopy
from surveyproc.child import Talk
from surveyproc.errors import StoreError
from surveyproc.images.hdus import local_copy
from surveyproc.store import unpacked
from surveyproc.store.storage import Store
from surveyproc.train import curves

WAYS = {
    "a map": lambda path: metadata.point_map(np.zeros(12 << 16, np.int64)),
    "a table": lambda path: LocalCopy(path),
    "a tile": lambda path: local_copy(path).__enter__(),
    "properties": lambda path: hats.main_table(Store(str(Path(path).parent)), "c"),
    "a process": lambda path: Talk(list),
    "a log": lambda path: curves.write_log(Store(str(Path(path).parent)), "f", 0, []),
}
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A temporary folder on a disk that has room for 300 kB more than is reserved."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(unpacked, "LOOK_EVERY", 100_000)

    def usage(path):
        held = sum(one.stat().st_size for one in folder.iterdir())
        return Usage(0, 0, unpacked.RESERVE + 300_000 - held)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return folder


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "x.fits.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(20):
            stream.write(bytes(1 << 20))
    return str(path)


def test_a_packed_image_leaves_room_on_the_disk(folder, packed):
    with pytest.raises(StoreError, match="set TMPDIR"), local_copy(packed):
        pass
    assert not list(folder.iterdir())


def test_a_packed_table_leaves_room_on_the_disk(folder, packed):
    with pytest.raises(StoreError, match="set TMPDIR"):
        LocalCopy(packed)
    assert not list(folder.iterdir())


def test_what_there_is_room_for_is_unpacked(folder, tmp_path):
    path = tmp_path / "y.fits.gz"
    path.write_bytes(gzip.compress(b"0123456789" * 10))
    with local_copy(str(path)) as copy:
        assert Path(copy).read_bytes() == b"0123456789" * 10


@pytest.mark.parametrize("way", WAYS)
def test_a_temporary_folder_that_takes_nothing_is_named(tmp_path, monkeypatch, way):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/collection.properties").write_text("obs_collection=x\n")
    child._end()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(
        StoreError, match=r"cannot write (a temporary file|an unpacked copy).*/gone/"
    ):
        WAYS[way](str(path))
