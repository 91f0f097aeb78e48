"""Places of work for tests that call what a command calls."""

from surveyproc.config.sections import RunSection
from surveyproc.places import Places

HERE = Places(RunSection(place="here", workers=2))
"""This process, two threads."""


def on_ray(**settings) -> Places:
    """Ray: that of the session's fixture `ray_session`, or one of its own, to be closed."""
    return Places(RunSection(place="ray", **{"workers": 2, **settings}))
