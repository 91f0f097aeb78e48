"""Which sections the page of a release has, and in which order.

A section for another kind of product is a module beside this one, a template, and a line in
`SECTIONS`.
"""

from __future__ import annotations

from surveyproc.config.kinds import kind_of
from surveyproc.report.sections.base import Release, Section
from surveyproc.report.sections.classes import Classes, KnownClasses
from surveyproc.report.sections.facts import Facts
from surveyproc.report.sections.flags import BandFlags, Flags
from surveyproc.report.sections.known_redshifts import KnownRedshifts
from surveyproc.report.sections.number_counts import NumberCounts
from surveyproc.report.sections.opening import Opening
from surveyproc.report.sections.redshifts import Redshifts
from surveyproc.report.sections.sky_map import SkyMap

SECTIONS: dict[type[Section], tuple[str, ...]] = {
    Redshifts: ("photoz", "type_redshift"),
    Classes: ("type_redshift",),
    NumberCounts: ("photometry",),
}
"""Sections with distributions, in the order of the page, and the kinds of products they show."""

AGAINST_TRUTH: dict[type[Section], tuple[str, ...]] = {
    KnownRedshifts: ("photoz", "type_redshift"),
    KnownClasses: ("type_redshift",),
}
"""Sections that hold products against the [truth] table, and the kinds that they judge."""


def choose(release: Release) -> dict[str, list[Section]]:
    """Place on the page (`first`, `distributions`, `last`) to its sections."""
    # Releases made before kinds were recorded have names that say them.
    known = release.current.get("kinds", {})
    kinds = {known.get(product) or kind_of(product, None) for product in release.current["flags"]}
    places: dict[str, list[type[Section]]] = {
        "first": [Facts, SkyMap],
        "distributions": [one for one, shown in SECTIONS.items() if kinds.intersection(shown)],
        "last": [Flags, BandFlags, Opening],
    }
    if release.config.truth is not None:
        judged = [one for one, shown in AGAINST_TRUTH.items() if kinds.intersection(shown)]
        if release.config.truth.classes is None:
            judged = [one for one in judged if one is not KnownClasses]
        places["last"] = [*judged, *places["last"]]
    return {place: [one(release) for one in sections] for place, sections in places.items()}
