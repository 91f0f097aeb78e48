"""The store: atomic puts, create-if-absent, and keys that cannot leave the root."""

import errno
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surveyproc.errors import StoreError
from surveyproc.store.storage import STAGING, Store, fingerprint


def test_put_read_names_remove(tmp_path):
    store = Store(str(tmp_path))
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"two")
    store.put_json("a/c.json", {"z": 1, "a": [2]})
    assert store.read("a/b.bin") == b"two"
    assert store.read_json("a/c.json") == {"a": [2], "z": 1}
    assert store.names("a") == ["b.bin", "c.json"]
    assert store.read_json("a/none.json") is None
    assert store.names("nowhere") == []
    assert store.sizes("") == {"a/b.bin": 3, "a/c.json": store.size("a/c.json")}
    assert store.sizes("nowhere") == {}
    store.remove("a")
    assert not store.exists("a/b.bin")


def test_failed_write_leaves_the_old_object_and_no_litter(tmp_path):
    store = Store(str(tmp_path))
    store.put("x", b"old")

    def interrupted() -> None:
        with store.writing("x") as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert store.read("x") == b"old"
    assert list((tmp_path / STAGING).iterdir()) == []


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../x"])
def test_keys_cannot_leave_the_root(tmp_path, key):
    with pytest.raises(StoreError, match="outside the root"):
        Store(str(tmp_path)).put(key, b"")


def test_damaged_json_is_named(tmp_path):
    store = Store(str(tmp_path))
    store.put("bad.json", b"{")
    with pytest.raises(StoreError, match=r"bad\.json is not JSON"):
        store.read_json("bad.json")


def test_full_disk_says_so_and_keeps_what_was_there(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        store = Store(str(disk))
        store.put("good", b"x" * 1000)
        with pytest.raises(StoreError, match="no space left"):
            store.put("big", b"x" * 4_000_000)
        assert store.read("good") == b"x" * 1000
        assert not store.exists("big")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6), json_values, max_size=5))
def test_fingerprint_ignores_key_order(document):
    reordered = dict(reversed(list(document.items())))
    assert fingerprint(document) == fingerprint(reordered)
    assert len(fingerprint(document)) == 16


def test_old_staging_is_cleared_files_and_folders_alike(tmp_path):
    store = Store(str(tmp_path))
    old = tmp_path / STAGING / "cube"
    old.mkdir(parents=True)
    (old / "chunk").write_bytes(b"x")
    (tmp_path / STAGING / "young").write_bytes(b"x")
    os.utime(old, (1, 1))
    store.clear_staging()
    assert [path.name for path in (tmp_path / STAGING).iterdir()] == ["young"]


def test_local_file_urls_are_paths(tmp_path: Path):
    assert Store(f"file://{tmp_path}").root == str(tmp_path)


def test_a_copy_is_a_link_and_replaces_in_one_step(tmp_path):
    store = Store(str(tmp_path))
    store.put("a/leaf", b"one")
    store.put("b/leaf", b"other")
    for _ in range(2):  # the second time both names are the same file already
        store.copy("a/leaf", "b/leaf")
        assert os.path.samefile(tmp_path / "a/leaf", tmp_path / "b/leaf")
        assert store.names(".staging") == []
    store.put("a/leaf", b"two")  # a put makes a new file: the copy keeps what it was
    assert store.read("b/leaf") == b"one"
    with pytest.raises(StoreError, match=r"cannot write .*c/leaf"):
        store.copy("absent", "c/leaf")
    assert store.names(".staging") == []


def test_a_copy_where_the_disk_knows_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    store.put("a", b"one")
    store.copy("a", "deep/b")
    assert store.read("deep/b") == b"one"
    assert not os.path.samefile(tmp_path / "a", tmp_path / "deep/b")


def test_a_copy_on_an_object_store():
    store = Store("memory://copies")
    store.put("a", b"one")
    store.copy("a", "deep/b")
    assert store.read("deep/b") == b"one"


def test_what_need_not_outlive_a_power_cut_appears_whole_too(tmp_path):
    """Whoever is killed while it is written leaves nothing that another process would read."""
    store = Store(str(tmp_path))
    with store.writing("notes/one.json", lasting=False) as stream:
        stream.write(b"half")
        stream.flush()
        assert store.names("notes") == []
        stream.write(b" and half")
    assert store.read("notes/one.json") == b"half and half"
    assert store.names(".staging") == []


@pytest.mark.parametrize("reason", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_only_one_creates_a_key_where_the_disk_knows_no_links(tmp_path, monkeypatch, reason):
    def refuse(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: store.create("a/x", b"%d" % number), range(8)))
    assert made.count(True) == 1
    assert store.read("a/x") == b"%d" % made.index(True)
    assert not store.swap("a/x", None, b"other")
    assert store.swap("a/x", store.read("a/x"), b"other")
    assert list((tmp_path / STAGING).iterdir()) == []


def test_a_record_whose_bytes_are_others_is_named_with_what_mends_it(tmp_path):
    store = Store(str(tmp_path))
    store.put_record("a.json", {"rows": 30, "share": 0.1, "nothing": None, "more": {"b": [1]}})
    assert store.read_json("a.json")["rows"] == 30
    store.put("a.json", store.read("a.json").replace(b"30", b"31"))
    with pytest.raises(StoreError, match=r"a\.json .*its checksum differs.*; run it again"):
        store.read_json("a.json", "run it again")


def test_json_nested_deeper_than_anybody_writes_is_named(tmp_path):
    store = Store(str(tmp_path))
    store.put("model.json", b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(StoreError, match=r"model\.json is not JSON .*recursion"):
        store.read_json("model.json")
