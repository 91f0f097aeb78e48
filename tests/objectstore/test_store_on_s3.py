"""`Store` on a real object store: as on a disk, conditional puts, faults, refusals."""

import datetime
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import botocore.auth
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seaweed
from conftest import use
from faults import Faults
from small_package import save

from surveyproc.config import load
from surveyproc.errors import StoreError, UnreachableError
from surveyproc.images.build import create_cube, write_rows
from surveyproc.images.cube import Cube, Tile
from surveyproc.models.package import load_package
from surveyproc.store import remote
from surveyproc.store.storage import Store
from surveyproc.verbs import sources

pytestmark = pytest.mark.s3


@pytest.fixture(params=["s3", "disk"])
def store(request, tmp_path):
    if request.param == "disk":
        return Store(str(tmp_path))
    return Store(f"{request.getfixturevalue('bucket')}/deep/root")


def test_objects_come_and_go(store):
    assert store.names("") == store.names("a") == []
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"two!")
    store.put_json("a/c/d.json", {"z": 1})
    with store.writing("a/table.parquet") as stream:
        pq.write_table(pa.table({"x": [1, 2], "y": [3, 4]}), stream)
    assert store.read("a/b.bin") == b"two!"
    assert store.read_range("a/b.bin", 1, 2) == b"wo"
    assert store.read_json("a/c/d.json") == {"z": 1}
    assert store.read_json("a/none.json") is None
    assert store.read_table("a/table.parquet", ["y"]).to_pydict() == {"y": [3, 4]}
    assert store.names("a") == ["b.bin", "c", "table.parquet"]
    assert set(store.sizes("a")) == {"b.bin", "c/d.json", "table.parquet"}
    assert store.size("a/b.bin") == 4
    assert store.size("a/none") is None
    with pytest.raises(StoreError, match=r"cannot read .*a/none"):
        store.read("a/none")
    store.remove("a/b.bin")
    assert not store.exists("a/b.bin")
    store.remove("a")
    store.remove("a")
    assert store.sizes("a") == {}


def test_copies_are_made_by_the_store(bucket, proxy):
    store = Store(bucket)
    store.put("a/leaf", b"x" * 100_000)
    proxy.requests.clear()
    store.copy("a/leaf", "b/leaf")
    assert "GET" not in proxy.counts()
    assert store.read("b/leaf") == b"x" * 100_000
    with pytest.raises(StoreError, match=r"cannot copy .*a/none"):
        store.copy("a/none", "b/none")


def test_files_are_known_by_their_tags_without_being_read(bucket, proxy, tmp_path):
    store = Store(bucket)
    for name in ("tiles/a.fits", "tiles/b.fits", "sources.fits"):
        store.put(name, name.encode() * 1000)
    (tmp_path / "survey.toml").write_text(
        f'[survey]\nname = "s"\nroot = "{bucket}/store"\n[images]\nbands = ["g"]\n'
        f'tiles = "{bucket}/tiles/*.fits"\n[catalog]\nsource = "{bucket}/sources.fits"\n'
    )
    config = load(tmp_path / "survey.toml")
    proxy.requests.clear()
    first = sources.look(config, {})
    assert "GET" not in proxy.counts()
    assert all(one.content.startswith("ETag:") for one in first.values())
    assert not sources.compare(first, sources.look(config, first))
    store.put("tiles/a.fits", b"other")
    store.remove("tiles/b.fits")
    found = sources.compare(first, sources.look(config, first))
    assert (found.changed, found.gone) == ([f"{bucket}/tiles/a.fits"], [f"{bucket}/tiles/b.fits"])


def test_a_block_that_raises_writes_nothing(bucket, proxy):
    store = Store(bucket)

    def interrupted() -> None:
        with store.writing("big") as stream:
            for _ in range(12):
                stream.write(bytes(10_000_000))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert not [one for one in proxy.requests if one.method in ("PUT", "POST")]
    assert not store.exists("big")


def test_large_objects_go_up_in_parts_or_not_at_all(bucket, proxy, monkeypatch):
    store = Store(bucket)
    with store.writing("big") as stream:
        stream.write(bytes(105_000_000))
    assert store.size("big") == 105_000_000
    assert proxy.counts("big")["PUT"] == 3
    monkeypatch.setattr(remote, "PATIENCE_S", 0.5)
    proxy.faults = Faults(error=1.0)
    with pytest.raises(UnreachableError), store.writing("other") as stream:
        stream.write(bytes(105_000_000))
    proxy.faults = Faults()
    assert not store.exists("other")


def test_one_of_many_creates_an_object(store):
    names = [f"driver {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda name: store.create("lock", name), names))
    assert sum(made) == 1
    assert store.read("lock") == names[made.index(True)]
    assert store.create("lock", store.read("lock"))  # asked twice, told the same


def test_a_pointer_is_replaced_only_if_nobody_else_did(store):
    assert store.swap("pointer", None, b"1")
    assert not store.swap("pointer", None, b"2")
    assert store.swap("pointer", b"1", b"2")
    assert not store.swap("pointer", b"1", b"3")
    news = [f"{number}".encode() for number in range(10, 18)]
    with ThreadPoolExecutor(8) as pool:
        swapped = list(pool.map(lambda new: store.swap("pointer", b"2", new), news))
    assert sum(swapped) == 1
    assert store.read("pointer") == news[swapped.index(True)]


def test_a_stale_read_never_undoes_what_another_wrote(bucket, proxy):
    store = Store(bucket)
    store.put("pointer", b"1")
    store.put("pointer", b"2")
    proxy.faults = Faults(stale=1.0)
    # It sees "1", as it does itself: only the condition of the put knows better.
    assert store.read("pointer") == b"1"
    assert not store.swap("pointer", b"1", b"mine")
    assert not store.swap("pointer", b"2", b"mine")
    proxy.faults = Faults()
    assert store.read("pointer") == b"2"
    assert store.swap("pointer", b"2", b"3")


def test_a_store_without_conditional_puts_is_asked_before_it_is_written_to(bucket, proxy):
    store = Store(bucket)
    proxy.unconditional = True
    assert store.create("lock", b"1")
    assert not store.create("lock", b"2")
    assert store.create("lock", b"1")  # asked twice, told the same
    assert store.swap("lock", b"1", b"3")
    assert not store.swap("lock", b"1", b"4")
    assert store.read("lock") == b"3"


def small_cube(store):
    """A cube of three bands, opened anew, and its pixels."""
    nothing = dict.fromkeys(("wcs", "checksum"), "") | dict.fromkeys(("ra", "dec", "radius"), 0.0)
    nothing |= dict.fromkeys(("footprint_ra", "footprint_dec", "files"), ())
    tile = Tile("t", "v", tuple("gri"), height=512, width=512, pixel_scale=1.0, has_weight=False,
                has_mask=False, **nothing)  # fmt: skip
    pixels = np.random.default_rng(1).normal(size=(3, 512, 512)).astype(np.float32)
    create_cube(store, tile.key, pixels.shape, {"has_weight": False, "has_mask": False})
    write_rows(store, tile.key, "image", 0, pixels, pixels.shape[1:])
    store.put_json(f"{tile.key}/tile.json", {})
    return Cube(store, tile), pixels


BOX = (100, 400, 50, 300)


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_chunks_of_a_store_that_does_not_answer(how, bucket, proxy, monkeypatch):
    monkeypatch.setattr(remote, "READ_S", 0.5)
    monkeypatch.setattr(remote, "PATIENCE_S", 4.0)
    store = Store(bucket)
    cube, pixels = small_cube(store)
    window = cube.read(BOX, "gri")

    def back_after(seconds):
        time.sleep(seconds)
        setattr(proxy, how, False)

    # Away for less than patience lasts: waited for.
    setattr(proxy, how, True)
    Thread(target=back_after, args=(2.0,)).start()
    np.testing.assert_array_equal(cube.read(BOX, "gri").image, window.image)
    np.testing.assert_array_equal(window.image, pixels[:, 100:400, 50:300])
    # Away for longer: an error in time, of a kind that is not held against the data.
    setattr(proxy, how, True)
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="image: cannot be read"):
        cube.read(BOX, "gri", tolerant=True)
    # Twice the patience, as promised, and a wait between; the machine may be slow.
    assert 3.0 < time.monotonic() - started < 2 * 4.0 + remote.WAITS_S[1] + 10.0
    setattr(proxy, how, False)


def write_and_read(store):
    with store.writing("w") as stream:
        stream.write(b"w" * 200_000)
    return store.read("w") == b"w" * 200_000


def read_in_parts(store):
    with store.reading("folder/a") as stream:
        stream.seek(1_900_000)
        return len(stream.read()) == 100_000


@pytest.mark.parametrize("fault", ["truncate", "reset"])
@pytest.mark.parametrize(
    "work",
    [
        lambda store: len(store.read("folder/a")) == 2_000_000,
        read_in_parts,
        write_and_read,
        lambda store: store.names("folder") == ["a"],
        lambda store: store.sizes("folder") == {"a": 2_000_000},
        lambda store: store.size("folder/a") == 2_000_000,
        lambda store: store.create("new", b"1"),
        lambda store: store.swap("pointer", b"1", b"2"),
        lambda store: store.copy("folder/a", "b") is None and store.exists("b"),
        lambda store: store.remove("pointer") is None and not store.exists("pointer"),
    ],
)
def test_work_that_is_broken_off_goes_on_when_the_store_is_back(bucket, proxy, work, fault):
    store = Store(bucket)
    store.put("folder/a", b"a" * 2_000_000)
    store.put("pointer", b"1")
    proxy.faults = Faults(**{fault: 1.0})

    def go_away_after_the_first():
        until = time.monotonic() + 30.0
        while not proxy.met() and time.monotonic() < until:
            time.sleep(0.001)
        proxy.gone, proxy.faults = True, Faults()
        time.sleep(0.5)
        proxy.gone = False

    pulled = Thread(target=go_away_after_the_first)
    pulled.start()
    assert work(store)
    pulled.join()
    assert proxy.met()


def test_a_store_that_never_answers_is_an_error_in_time(bucket, proxy, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 3.0)
    monkeypatch.setattr(remote.PatientS3, "read_timeout", 0.5)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store = Store(bucket)
    store.put("a", b"1")
    proxy.silent = True
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="could not be reached for 3 s"):
        store.read("a")
    assert 2.5 < time.monotonic() - started < 5.0
    proxy.silent = False
    assert store.read("a") == b"1"


def test_chunks_are_read_whole_through_faults(bucket, proxy):
    cube, pixels = small_cube(Store(bucket))
    for kind in Faults.KINDS:
        proxy.faults = Faults(**{kind: 0.35, "delay_s": 0.1})
        for _ in range(8):
            window = cube.read(BOX, "gri").image
            np.testing.assert_array_equal(window, pixels[:, 100:400, 50:300])
    assert set(proxy.met()) == set(Faults.KINDS)


def test_faults_of_every_kind_change_nothing(bucket, proxy):
    proxy.faults = Faults.all(0.05)
    store = Store(bucket)
    with ThreadPoolExecutor(8) as pool:
        data = {f"k/{number}": f"{number}".encode() * 500 for number in range(120)}
        list(pool.map(lambda key: store.put(key, data[key]), data))
        assert dict(zip(data, pool.map(store.read, data), strict=True)) == data
        assert sum(pool.map(lambda n: store.create(f"c/{n}", b"mine"), range(40))) == 40
    assert len(store.names("k")) == 120
    assert sum(store.sizes("k").values()) == sum(map(len, data.values()))
    assert set(proxy.met()) >= {"error", "slow_down", "reset", "truncate", "delay"}
    store.remove("k")
    assert store.sizes("k") == {}


def test_a_store_gone_for_good_is_an_error_in_time_and_then_it_is_back(bucket, proxy, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 2.0)
    monkeypatch.setattr(remote, "IMPATIENCE_S", 0.5)
    store = Store(bucket)
    store.put("a", b"1")
    proxy.gone = True
    for limit in (2.0, 0.5, 0.5):  # given up once, it is not waited for as long again
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=r"could not be reached for .* check the"):
            store.read("a")
        assert limit * 0.9 < time.monotonic() - started < limit + 2.0
    proxy.gone = False
    assert store.read("a") == b"1"


@pytest.fixture
def refused(bucket, proxy, server, monkeypatch):
    """What a command says when it reads from, or writes to, a store that refuses."""
    Store(bucket).put("there.json", b"{}")

    def attempt(action: str, user: str = "admin", url: str = bucket, **changed: str) -> str:
        use(monkeypatch, proxy.endpoint, user)
        for name, value in changed.items():
            monkeypatch.setenv(name, value)
        store, started = Store(url), time.monotonic()
        with pytest.raises(StoreError) as caught:
            store.put("new", b"x") if action == "write" else store.read_json("there.json")
        assert time.monotonic() - started < 20
        message = str(caught.value)
        assert message.startswith(f"cannot {action} {url}")
        secrets = ["Z" * 12, *seaweed.KEYS["admin"], *seaweed.KEYS["reader"]]
        assert not [secret for secret in secrets if secret in message]
        return message

    return attempt


@pytest.mark.parametrize("action", ["read", "write"])
def test_wrong_credentials_are_named(refused, action):
    assert "check AWS_ACCESS_KEY_ID" in refused(action, AWS_SECRET_ACCESS_KEY="Z" * 12)
    assert "does not know the access key" in refused(action, AWS_ACCESS_KEY_ID="Z" * 12)


def test_missing_credentials_are_named(bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StoreError, match="no credentials were found"):
        Store(bucket).read("a")


@pytest.mark.parametrize("action", ["read", "write"])
def test_a_missing_bucket_is_named(refused, action):
    assert "there is no such bucket" in refused(action, url="s3://absent-bucket/x")


def test_a_bucket_that_may_only_be_read_is_named(refused, bucket, proxy, monkeypatch):
    assert "no right to write here" in refused("write", user="reader")
    assert Store(bucket).read_json("there.json") == {}
    with pytest.raises(StoreError, match="no right to write here"):
        Store(bucket).remove("there.json")


@pytest.mark.parametrize("action", ["read", "write"])
def test_a_wrong_clock_is_named(refused, proxy, action):
    proxy.refuse = (403, "RequestTimeTooSkewed")
    assert "clock differs" in refused(action)


def test_a_signature_of_another_hour_is_named(refused, monkeypatch):
    # The server's own answer to what this machine signs with its clock an hour slow.
    now, slow = botocore.auth.get_current_datetime, datetime.timedelta(hours=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *args: now(*args) - slow)
    assert "clock differs" in refused("read")
    assert "clock differs" in refused("write")


def test_a_model_package_is_read_wherever_it_lies(bucket, tmp_path, web):
    version = save(Store(str(tmp_path))).version
    fsspec.filesystem("s3").put(str(tmp_path / "models"), f"{bucket}/models", recursive=True)
    elsewhere = Store(str(tmp_path / "empty"))
    for url in (f"{bucket}/models/m", web(tmp_path) + "/models/m"):
        for reference in (url, f"{url}/{version}"):
            assert load_package(elsewhere, reference).version == version
