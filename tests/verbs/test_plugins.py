"""Which files of other packages go with a job."""

import json
import sys

import pytest

from surveyproc.config import kinds, load
from surveyproc.errors import ConfigError, InputError
from surveyproc.verbs import plugins, submit

SURVEY = """
[survey]
name = "small"
root = "/somewhere"
[images]
bands = ["r"]
[catalog]
source = "/somewhere/sources.csv"
"""
NETWORK = '[[products]]\nname = "network"\nmodel = "{}"\n'
KIND = """
from surveyproc.config.sections import ProductSection as Section

class Kind:
    Section, reads, writes, build = Section, "", "", None
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package, file by file, as a wheel is: metadata, and a list of what it brought."""
    site = tmp_path / "lib" / "site-packages"
    site.mkdir(parents=True)

    def install(name, group, entry, files=None, listed=(), record=True):
        metadata = f"{name}-1.0.dist-info"
        files = {f"{name}.py": KIND} if files is None else files
        files = files | {
            f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{metadata}/entry_points.txt": f"[{group}]\n{entry} = {name}:Kind\n",
        }
        for place, text in files.items():
            (site / place).parent.mkdir(parents=True, exist_ok=True)
            (site / place).write_text(text)
        if record:
            every = [*files, *listed, f"{metadata}/RECORD"]
            (site / metadata / "RECORD").write_text("".join(f"{one},,\n" for one in every))
        kinds.installed.cache_clear()
        return site

    monkeypatch.syspath_prepend(site)
    yield install
    kinds.installed.cache_clear()
    for name in ("stars", "nets", "others"):
        sys.modules.pop(name, None)


def config(tmp_path, *sections):
    path = tmp_path / "survey.toml"
    path.write_text(SURVEY + "".join(sections))
    return load(path, environment={})


def packed(tmp_path, *sections):
    folder = tmp_path / "packed"
    folder.mkdir()
    submit.pack(config(tmp_path, *sections), tmp_path / "survey.toml", folder)
    return folder


def test_only_what_the_products_name_goes_along(tmp_path, package):
    package("stars", kinds.ENTRY_POINTS, "stars")
    package("nets", kinds.NETWORKS, "net-*")
    package("others", kinds.NETWORKS, "other")
    stars, network = '[[products]]\nname = "stars_faint"\n', NETWORK.format("net-3@20250101")

    def brought(*sections):
        names = plugins.plugin_files(config(tmp_path, *sections))
        return {name for name in names if "/" not in name}

    assert brought(NETWORK.format("gaznet-c9")) == set()
    assert brought(stars) == {"stars.py"}
    assert brought(network) == {"nets.py"}
    assert brought(stars, network) == {"stars.py", "nets.py"}
    named = NETWORK.format("mine") + 'architecture = "other"\n'
    assert brought(named) == {"others.py"}


def test_files_come_with_their_metadata_and_nothing_from_elsewhere(tmp_path, package):
    login = json.dumps({"url": "https://me:secret@host/stars.whl"})
    files = {
        "stars.py": KIND,
        "more/deep/table.json": "{}",
        "more/__pycache__/x.cpython-311.pyc": "",
        "stars-1.0.dist-info/direct_url.json": login,
        "../../bin/stars": "#!/bin/sh\n",
        "surveyproc/__init__.py": "raise ImportError",
    }
    (tmp_path / "secret").write_text("")
    elsewhere = ("more/../../../secret", str(tmp_path / "secret"))
    package("stars", kinds.ENTRY_POINTS, "stars", files, elsewhere)
    folder = packed(tmp_path, '[[products]]\nname = "stars"\n')
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in names if "stars" in name or "more" in name} == {
        "stars.py", "more/deep/table.json",
        *(f"stars-1.0.dist-info/{one}" for one in ("METADATA", "RECORD", "entry_points.txt")),
    }  # fmt: skip
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["bin", "lib", "packed", "secret", "survey.toml"]
    assert not [name for name in names if "secret" in name or "bin/" in name]
    # Whatever a package brings, ours is ours.
    assert "raise ImportError" not in (folder / "surveyproc" / "__init__.py").read_text()


@pytest.mark.parametrize(
    "given",
    [
        {"files": {"__editable__.stars-1.0.pth": "/somewhere/src\n"}},
        {"record": False},
    ],
)
def test_what_is_installed_as_a_link_is_refused_with_a_way_on(tmp_path, package, given):
    """An editable install lists a link; an installer without RECORD tells of nothing."""
    site = package("nets", kinds.NETWORKS, "net", **given)
    with pytest.raises(
        ConfigError, match=r"package 'nets'.*a wheel .*without -e.*`ray job submit`"
    ):
        plugins.plugin_files(config(tmp_path, NETWORK.format("net")))
    assert site.is_dir()


def test_a_file_that_is_a_link_to_elsewhere_is_refused(tmp_path, package):
    (tmp_path / "elsewhere.py").write_text(KIND)
    site = package("nets", kinds.NETWORKS, "net", listed=("nets_more.py",))
    (site / "nets_more.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(ConfigError, match=r"nets_more.py of package 'nets' is a link to .*copy"):
        plugins.plugin_files(config(tmp_path, NETWORK.format("net")))


def test_a_package_that_is_too_large_is_named(tmp_path, package, monkeypatch):
    monkeypatch.setattr(submit, "MAX_BYTES", 5_000_000)
    package("nets", kinds.NETWORKS, "net", {"weights.bin": " " * 5_000_001})
    with pytest.raises(InputError, match=r"at most 5 MB.*largest file is .*weights\.bin"):
        packed(tmp_path, NETWORK.format("net"))
