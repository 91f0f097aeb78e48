"""Which sections the page of a release has, and in which order.

A section for another kind of product is a module beside this one, a template, and a line in
`SECTIONS`.
"""

from __future__ import annotations

from surveyproc.config.kinds import kind_of
from surveyproc.report.sections.base import Section, Shown
from surveyproc.report.sections.facts import Facts
from surveyproc.report.sections.flags import BandFlags, Flags
from surveyproc.report.sections.known_redshifts import KnownRedshifts
from surveyproc.report.sections.number_counts import NumberCounts
from surveyproc.report.sections.opening import Opening
from surveyproc.report.sections.redshifts import Redshifts
from surveyproc.report.sections.sky_map import SkyMap

SECTIONS: dict[str, type[Section]] = {"photoz": Redshifts, "photometry": NumberCounts}
"""Kind of product to the section with its distributions, in the order of the page."""

AGAINST_TRUTH: dict[str, type[Section]] = {"photoz": KnownRedshifts}
"""Kind of product to the section that holds it against the [truth] table."""


def choose(shown: Shown) -> dict[str, list[Section]]:
    """Place on the page (`first`, `distributions`, `last`) to its sections."""
    # Releases made before kinds were recorded have names that say them.
    known, products = shown.current.kinds, shown.current.flags
    kinds = {known.get(product) or kind_of(product, None) for product in products}
    places: dict[str, list[type[Section]]] = {
        "first": [Facts, SkyMap],
        "distributions": [section for kind, section in SECTIONS.items() if kind in kinds],
        "last": [Flags, BandFlags, Opening],
    }
    if shown.config.truth is not None:
        judged = [section for kind, section in AGAINST_TRUTH.items() if kind in kinds]
        places["last"] = [*judged, *places["last"]]
    return {place: [one(shown) for one in sections] for place, sections in places.items()}
