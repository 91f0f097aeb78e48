"""The code that other packages bring to a survey: which of them it uses, and their files.

Ours is shipped with every job (`surveyproc.verbs.submit`); this is what goes with it.
"""

from __future__ import annotations

import fnmatch
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

from surveyproc.config import SurveyConfig
from surveyproc.config.kinds import NETWORKS, installed, kind_of, package_of
from surveyproc.config.sections import ModelSection
from surveyproc.errors import ConfigError

_LEFT = ("direct_url.json", ".pyc")
"""Endings of files that stay here: where a package came from, which may hold a login; bytecode."""


def plugin_files(config: SurveyConfig) -> dict[str, Path]:
    """The files of every package that the survey's products use, by their place in `sys.path`.

    Used are the packages that bring the kind of a product, or an architecture that a product's
    `architecture` (else its `model`) matches. What they depend on is not among them.

    Raises
    ------
    ConfigError
        If the files of such a package are not known, or lie elsewhere, as after `pip install -e`.
    """
    used = {entry.dist.name: entry.dist for entry in _entries(config) if entry.dist is not None}
    return {name: file for one in used.values() for name, file in _files_of(one).items()}


def _entries(config: SurveyConfig) -> list[EntryPoint]:
    """What names a kind or an architecture of the survey's products in other packages."""
    architectures = entry_points(group=NETWORKS)
    found: list[EntryPoint] = []
    for product in config.products:
        found += installed()[kind_of(product.name, product.kind)]
        if isinstance(product, ModelSection):
            name = product.architecture or product.model.partition("@")[0]
            found += [one for one in architectures if fnmatch.fnmatchcase(name, one.name)]
    return [entry for entry in found if package_of(entry) != "surveyproc"]


def _files_of(package: Distribution) -> dict[str, Path]:
    """Files of one package, its metadata among them, by their path from the folder it lies in."""
    root = Path(str(package.locate_file(""))).resolve()
    # Without RECORD the list is one of what was built, not of what lies here.
    listed = [] if package.read_text("RECORD") is None else package.files or []
    if not listed or any(file.suffix == ".pth" for file in listed):
        raise ConfigError(
            f"submit: package {package.name!r}, which the survey's products use, cannot be "
            f"shipped: {root} has a link to it (.pth) or no list of its files. Install it as a "
            "wheel (`pip install` without -e); or install it on the cluster's nodes and start the "
            "job with `ray job submit`, see README"
        )
    found = {}
    for file in listed:
        # Scripts and data lie beside the folder of modules; nothing imports them.
        if ".." in file.parts or file.is_absolute() or str(file).endswith(_LEFT):
            continue
        place = (root / file).resolve()
        if not place.is_relative_to(root):
            raise ConfigError(
                f"submit: {file} of package {package.name!r} is a link to {place}, outside of "
                f"{root}: install the package as files (`pip install`, or uv with --link-mode=copy)"
            )
        if place.is_file():
            found[str(file)] = place
    return found
