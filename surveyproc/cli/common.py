"""What the verbs of the front door share: common options, the survey, and the answer."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surveyproc.cli import text

# `--help` answers at once: what only some verbs need is imported by them.
if TYPE_CHECKING:
    from surveyproc.survey import Survey as Opened

Survey = Annotated[Path, typer.Argument(metavar="survey.toml", help="The survey's description.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def ray_aside() -> AbstractContextManager[Any]:
    """Ray tells of dead nodes on standard output, which is ours; it may use standard error."""
    return redirect_stdout(sys.stderr)


def begin_reader() -> None:
    """Have the process that reads tables start while we import what the verb needs."""
    from surveyproc.child import begin

    begin("surveyproc.catalogs.formats.here")


def load_survey(survey: Path, overrides: list[str] | None) -> Opened:
    """The survey of a survey.toml with some keys overridden."""
    from surveyproc.config import load
    from surveyproc.survey import Survey as Opened

    return Opened(load(survey, overrides or ()))


def show(result: Any, as_json: bool, lines: list[str]) -> None:
    """Print what a verb returned: as one JSON document, or these lines."""
    print(text.as_json(result) if as_json else text.printable("\n".join(lines)))
