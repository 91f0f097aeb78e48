"""The named exceptions. Each message says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from typing import Any

DIED = "its process died (killed for memory, or a crash outside Python)"
"""What is said of work that left no error."""


class SurveyError(Exception):
    """Base of the errors raised on purpose; `exit_code` is the command's exit status."""

    exit_code = 1


class ConfigError(SurveyError):
    """survey.toml, an override or an environment variable is wrong; the message names the key."""

    exit_code = 2


class InputError(SurveyError):
    """An image, catalog, label table or model cannot be used; the message names file and key."""

    exit_code = 2


class DiedError(InputError):
    """The process that read a file died of it: a crash in a library, or all of the memory."""


class StoreError(SurveyError):
    """Something under the survey's root could not be read or written (disk full, corrupt chunk)."""


class UnreachableError(StoreError):
    """A store or server did not answer for as long as `surveyproc.store.remote` waits."""


class ClusterError(SurveyError):
    """Ray failed under us; nothing that was finished is lost."""


class UnitsFailedError(SurveyError):
    """Some units of a run did not finish; the finished ones are kept and the next run resumes."""


class GateError(SurveyError):
    """A release gate refused to publish; the message holds the table of reasons.

    Parameters
    ----------
    message : str
        What is refused, and the reasons, one a line.
    reasons : sequence of surveyproc.releases.release.Reason
        The same reasons, for machines.
    """

    exit_code = 3

    def __init__(self, message: str, reasons: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)


def near(name: str, known: Iterable[str]) -> str:
    """The one of the `known` names that was perhaps meant, as the end of a message, or nothing.

    Examples
    --------
    >>> near("photometri", ["photometry", "photoz"]), near("R", ["g", "r"]), near("Y", ["u", "g"])
    ("; the nearest is 'photometry'", "; the nearest is 'r'", '')
    """
    alike = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name.casefold(), alike, n=1)
    return f"; the nearest is {alike[close[0]]!r}" if close else ""


def near_or_all(name: str, known: Iterable[str]) -> str:
    """As `near`, or all that there is if nothing is near."""
    names = list(known)
    return near(name, names) or f"; there are {', '.join(names) or 'none'}"


def store_error(error: OSError, where: str, action: str = "write") -> StoreError:
    """An OSError as a StoreError that says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"no space left while writing {where}: free some, then repeat the command; "
            "what was finished is kept"
        )
    return StoreError(f"cannot {action} {where}: {error}")
