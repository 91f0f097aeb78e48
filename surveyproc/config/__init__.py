"""survey.toml as typed, checked values."""

from surveyproc.config.file import SurveyConfig, load

__all__ = ["SurveyConfig", "load"]
