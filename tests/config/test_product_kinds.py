"""Kinds of products: ours and those of other packages."""

import sys

import pytest

from surveyproc.config import kinds, load
from surveyproc.errors import ConfigError

SURVEY = """
[survey]
name = "test"
root = "./store"
[images]
bands = ["g", "r"]
[catalog]
source = "sources.fits"
[[products]]
name = "{name}"
{more}
"""
PLUGIN = """
from surveyproc.config.sections import ProductSection

class Section(ProductSection):
    threshold: float = 3.0

class Kind:
    Section, reads, writes = Section, "nothing", "nothing"
    @classmethod
    def build(cls, section, survey): ...
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package that brings products, by its entry points; gone after the test."""

    def install(name, entries, code=PLUGIN):
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "\n".join(f"{kind} = {value}" for kind, value in entries.items())
        (metadata / "entry_points.txt").write_text(f"[{kinds.ENTRY_POINTS}]\n{lines}\n")
        (tmp_path / f"{name}.py").write_text(code)
        kinds.installed.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    kinds.installed.cache_clear()
    for name in ("stars_one", "stars_two"):
        sys.modules.pop(name, None)


def config(tmp_path, name, more=""):
    (tmp_path / "survey.toml").write_text(SURVEY.format(name=name, more=more))
    return load(tmp_path / "survey.toml", environment={})


def test_a_kind_of_another_package_brings_its_own_section(tmp_path, package):
    package("stars_one", {"stars": "stars_one:Kind"})
    assert config(tmp_path, "stars_faint", "threshold = 2.0").products[0].threshold == 2.0
    assert config(tmp_path, "faint", 'kind = "stars"').products[0].threshold == 3.0
    with pytest.raises(ConfigError, match=r"products.stars.treshold'; the nearest .* 'threshold'"):
        config(tmp_path, "stars", "treshold = 2.0")
    with pytest.raises(ConfigError, match=r"products.stars.threshold': .* not 'high'"):
        config(tmp_path, "stars", 'threshold = "high"')
    with pytest.raises(ConfigError, match=r"unknown key 'products.stars.aperture'"):
        config(tmp_path, "stars", "aperture = 1.0")
    listed = {one.kind: one for one in kinds.listing()}
    assert listed["stars"] == kinds.InstalledKind("stars", "stars_one", "nothing", "nothing")


@pytest.mark.parametrize("name", ["photometri", "unknown_thing"])
def test_an_unknown_kind_is_told_which_there_are(tmp_path, name):
    with pytest.raises(
        ConfigError,
        match=r"no installed kind .* there are blend_probability, deblend, morphology",
    ):
        config(tmp_path, name)


def test_two_packages_of_one_kind_are_both_named(tmp_path, package):
    package("stars_one", {"stars": "stars_one:Kind"})
    package("stars_two", {"stars": "stars_two:Kind", "photoz": "stars_two:Kind"})
    with pytest.raises(ConfigError, match="'stars' is brought by stars_one and stars_two"):
        config(tmp_path, "stars")
    with pytest.raises(ConfigError, match="'photoz' is brought by stars_two and surveyproc"):
        config(tmp_path, "photoz", 'model = "x"')
    # Who does not ask for them is not in the way.
    assert config(tmp_path, "photometry").products[0].aperture == [1.0]


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ("stars_one:Kind", "import absent_library", "cannot be imported: .*absent_library"),
        ("stars_one:Other", PLUGIN, "cannot be imported: .*Other"),
        ("stars_one:Section", PLUGIN, "is no kind of product: it has no Section, reads, writes"),
    ],
)
def test_a_kind_that_is_no_use_is_named_with_its_package(tmp_path, package, value, code, words):
    package("stars_one", {"stars": value}, code)
    with pytest.raises(ConfigError, match=rf"package stars_one \({value}\) {words}"):
        config(tmp_path, "stars")
    assert next(one for one in kinds.listing() if one.kind == "stars").error


def test_a_key_that_was_renamed_says_its_new_name(tmp_path):
    with pytest.raises(ConfigError, match="`network` is called `architecture_settings`"):
        config(tmp_path, "photoz", 'model = "tabm"\nnetwork = { width = 8 }')
