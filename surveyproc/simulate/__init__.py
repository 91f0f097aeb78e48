"""A survey with known truth, drawn with GalSim."""

from surveyproc.simulate.bands import DEFAULT_BANDS
from surveyproc.simulate.survey import SimulatedSurvey, simulate

__all__ = ["DEFAULT_BANDS", "SimulatedSurvey", "simulate"]
