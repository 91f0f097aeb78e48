"""A survey: its configuration, and the store that everything of it lies in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from surveyproc.config import SurveyConfig
from surveyproc.store.storage import Store


@dataclass(frozen=True)
class Survey:
    """What functions that work on a survey are given.

    It is sent to other processes as its configuration; each opens the store by itself.

    Parameters
    ----------
    config : SurveyConfig
        What survey.toml says.
    """

    config: SurveyConfig

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.config,)

    @cached_property
    def store(self) -> Store:
        """The survey's root."""
        return Store(self.config.root)

    @property
    def name(self) -> str:
        """Name of the survey, of its catalog and of its releases."""
        return self.config.survey.name
