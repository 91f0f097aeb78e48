import json
import pickle

import pytest
import safetensors.torch
import torch
from small_package import save

from surveyproc.errors import InputError
from surveyproc.models.package import find_trained, load_package, package_versions
from surveyproc.store.storage import Store, digest, fingerprint


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "root"))


def files(store, package):
    folder = store.path(f"models/{package.name}/{package.version}")
    return f"{folder}/weights.safetensors", f"{folder}/model.json"


def rewrite(store, package, document, weights=None):
    """A package of the same name under the version that its changed content has."""
    if weights is not None:
        document = {**document, "weights_sha256": digest(weights)}
    else:
        weights = store.read(f"models/{package.name}/{package.version}/weights.safetensors")
    version = fingerprint(document)
    store.put(f"models/{package.name}/{version}/weights.safetensors", weights)
    store.put_json(f"models/{package.name}/{version}/model.json", document)
    return f"{package.name}@{version}"


def test_round_trip(store):
    saved = save(store, training={"fingerprint": "f", "rows": 50}, metrics={"a": 1.5})
    folders = [store.path(f"models/m/{saved.version}"), store.path("models/m")]
    for reference in ("m", f"m@{saved.version}", *folders):
        found = load_package(store, reference)
        assert (found.name, found.version, found.document) == ("m", saved.version, saved.document)
        assert found.bands == tuple("ugri")
        assert found.metrics == {"a": 1.5}
        for key, tensor in saved.tensors.items():
            assert torch.equal(found.tensors[key], tensor)
    x = torch.randn(5, 11)
    first, second = (one.network()(x)["redshift"] for one in (saved, load_package(store, "m")))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert not load_package(store, "m").network().training


def test_same_content_is_the_same_version_and_rewrites_nothing(store):
    import os

    first = save(store)
    before = [os.stat(path).st_mtime_ns for path in files(store, first)]
    second = save(store)
    assert first.version == second.version
    assert [os.stat(path).st_mtime_ns for path in files(store, first)] == before
    other = save(store, seed=1)
    assert other.version != first.version
    assert load_package(store, "m").version == other.version
    assert package_versions(store, "m") == sorted([first.version, other.version])


def test_find_by_training(store):
    saved = save(store, training={"fingerprint": "abc"})
    save(store, seed=1)
    assert find_trained(store, "m", "abc").version == saved.version
    assert find_trained(store, "m", "xyz") is None
    assert find_trained(store, "other", "abc") is None


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin"])
def test_a_pickle_is_refused_by_name(store, suffix):
    with pytest.raises(InputError, match="only safetensors"):
        load_package(store, f"somewhere/model{suffix}")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('unpickled')",))


def test_pickles_dressed_as_weights_are_refused_and_never_run(store, tmp_path):
    package = save(store)
    torch.save({"x": torch.zeros(1)}, tmp_path / "zip.pt")
    for data in (pickle.dumps(Bomb()), (tmp_path / "zip.pt").read_bytes()):
        with pytest.raises(InputError, match="only safetensors"):
            load_package(store, rewrite(store, package, package.document, data))


def test_a_folder_with_a_pickle_only_is_refused(store, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"model\.pt: only safetensors"):
        load_package(store, str(tmp_path / "theirs"))


def test_corrupt_files_are_named(store):
    package = save(store)
    weights, document = files(store, package)
    with open(weights, "rb+") as stream:
        stream.truncate(100)
    with pytest.raises(InputError, match="corrupt"):
        load_package(store, "m")
    with open(document, "w") as stream:
        stream.write("{")
    with pytest.raises(InputError, match="not JSON"):
        load_package(store, "m")


def test_one_changed_weight_is_noticed(store):
    package = save(store)
    weights, _ = files(store, package)
    with open(weights, "rb+") as stream:
        stream.seek(-3, 2)
        stream.write(b"\x11")
    with pytest.raises(InputError, match="is not the file"):
        load_package(store, "m")


def test_changed_document_is_noticed(store):
    package = save(store)
    _, document = files(store, package)
    with open(document, "w") as stream:
        json.dump({**package.document, "bands": ["g", "u", "r", "i"]}, stream)
    with pytest.raises(InputError, match="changed"):
        load_package(store, "m")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("head.bias"), "'head.bias' is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "'extra' of no layer"),
        (lambda t: t.update({"head.bias": torch.zeros(3)}), r"'head.bias' has shape \(3,\)"),
        (lambda t: t["head.bias"].fill_(torch.nan), "'head.bias' holds non-finite"),
    ],
)
def test_wrong_tensors_are_named(store, change, match):
    package = save(store)
    tensors = {key: tensor.clone() for key, tensor in package.tensors.items()}
    change(tensors)
    reference = rewrite(store, package, package.document, safetensors.torch.save(tensors))
    with pytest.raises(InputError, match=match):
        load_package(store, reference).network()


def test_missing_key_unknown_format_and_unknown_model(store):
    package = save(store)
    short = {k: v for k, v in package.document.items() if k != "bands"}
    with pytest.raises(InputError, match="bands: Field required"):
        load_package(store, rewrite(store, package, short))
    with pytest.raises(InputError, match="format"):
        load_package(store, rewrite(store, package, {**package.document, "format": 99}))
    with pytest.raises(InputError, match="there are: m"):
        load_package(store, "other")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("members", 0),
        ("members", "x"),
        ("inputs", {}),
        ("inputs", None),
        ("outputs", {}),
        ("training", None),
        ("bands", None),
        ("absent_bands", "maybe"),
    ],
)
def test_a_changed_document_is_named_when_it_is_read(store, key, value):
    package = save(store)
    changed = {**package.document, key: value}
    with pytest.raises(InputError, match=rf"model\.json: {key}"):
        load_package(store, rewrite(store, package, changed))


@pytest.mark.parametrize("damaged", ["weights.safetensors", "model.json", "../current.json"])
def test_a_training_mends_what_is_damaged(store, damaged):
    package = save(store, training={"fingerprint": "f"})
    assert find_trained(store, "m", "f").version == package.version
    place = f"models/m/{package.version}/{damaged}".replace(f"{package.version}/../", "")
    store.put(place, store.read(place)[:-20])
    if "current" not in damaged:
        assert find_trained(store, "m", "f") is None
    assert find_trained(store, "m", "another") is None
    save(store, training={"fingerprint": "f"})
    assert load_package(store, "m").version == package.version
    assert find_trained(store, "m", "f").version == package.version


@pytest.mark.parametrize("reference", ["..", "m@..", "", "a b", "m@"])
def test_names_that_would_leave_the_folder_are_refused(store, reference):
    with pytest.raises(InputError):
        load_package(store, reference)
    if "@" not in reference:
        with pytest.raises(InputError, match="not a model name"):
            save(store, name=reference)
