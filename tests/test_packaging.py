"""What says the same thing in several files says the same thing."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"].values()
NEEDED = [Requirement(line) for lines in (PROJECT["dependencies"], *OPTIONAL) for line in lines]


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_what_is_installed_by_make_is_what_the_package_allows(needed, pinned):
    assert needed.specifier.contains(pinned[canonicalize_name(needed.name)])


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_every_dependency_has_its_reason_and_every_bound_its_line(needed):
    text = (REPOSITORY / "docs/dependencies.md").read_text()
    assert needed.name in text
    for bound in needed.specifier:
        assert bound.operator == ">=" or f"| {needed.name} | `{bound}` |" in text


def test_the_citation_is_of_this_version_under_this_license():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
