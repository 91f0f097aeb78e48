"""SHA-256 of the files of a survey, on any store: what is meant by byte-identical."""

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import fsspec

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.survey import Survey


def sums(folder: Path | str, wanted: Callable[[str], bool] = bool) -> dict[str, str]:
    """Path within the folder, or the URL, to the sum of every file that is wanted."""
    fs, base = fsspec.core.url_to_fs(str(folder))
    fs.invalidate_cache()
    found = {path.removeprefix(base).lstrip("/"): path for path in sorted(fs.find(base))}
    return {
        name: hashlib.sha256(fs.cat_file(path)).hexdigest()
        for name, path in found.items()
        if wanted(name)
    }


def is_leaf(name: str) -> bool:
    return PurePosixPath(name).name.startswith("Npix=")


def leaves(survey: Path) -> dict[str, str]:
    """Of the release that the survey has published."""
    return sums(verbs.releases(Survey(load(survey))).current.url, is_leaf)
