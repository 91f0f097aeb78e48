"""Survey images and catalogs in, science-ready value-added catalogs out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from surveyproc.front import OpenedSurvey

__version__: str


def __getattr__(name: str) -> str:
    # What finds the version takes longer to import than the rest of a short command's beginning.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("surveyproc")


def open(path: str | Path, overrides: Iterable[str] = ()) -> OpenedSurvey:
    """Open a survey: its configuration, its store, its catalogs and pixels.

    Parameters
    ----------
    path : path
        survey.toml.
    overrides : iterable of str
        `section.key=value` items, as given to `--set`.

    Returns
    -------
    OpenedSurvey
        `survey.catalog()`, `survey.tiles`, `survey.cutouts(ra, dec, size)`; the functions of
        `surveyproc.verbs` take it.

    Raises
    ------
    ConfigError
        If the file is missing, is not TOML, or a key is unknown or has a wrong value.
    """
    from surveyproc.front import open_survey

    return open_survey(path, overrides)
