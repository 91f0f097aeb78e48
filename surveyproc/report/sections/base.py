"""What a section of the report is, and what it is told of the release."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from surveyproc.config import SurveyConfig
from surveyproc.releases.record import Release

Pass = tuple[Sequence[str], Callable[[pa.Table], None]]
"""The columns to read of every leaf, and what takes them."""


@dataclass(frozen=True)
class Shown:
    """What the page shows.

    Attributes
    ----------
    config : SurveyConfig
        The survey as it is configured now.
    current : Release
        The published release.
    columns : list of str
        Columns of its leaves without those carried from the source.
    flags : list of str
        Of these, the flag columns of the source row and of each product.
    """

    config: SurveyConfig
    current: Release
    columns: list[str]
    flags: list[str]


class Section(ABC):
    """One section of the page.

    Attributes
    ----------
    template : str
        Its file in templates/; sees what `values` returns and nothing else.
    """

    template: ClassVar[str]

    def __init__(self, shown: Shown) -> None:
        self.shown = shown

    def gather(self) -> Iterator[Pass]:
        """One pass over the leaves after the other; none if the release's record says it all.

        What follows a `yield` runs when every leaf has been taken. Sections share their passes, and
        nothing that is kept may grow with the number of objects.
        """
        yield from ()

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """What the template shows, once all passes are done."""
