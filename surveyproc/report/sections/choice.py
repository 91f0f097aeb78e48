"""Which sections the page of a release has, and in which order.

A section for another kind of product is a module beside this one, a template, and a line in
`SECTIONS`.
"""

from __future__ import annotations

from surveyproc.config.kinds import kind_of
from surveyproc.report.sections.base import Section, Shown
from surveyproc.report.sections.classes import Classes, KnownClasses
from surveyproc.report.sections.facts import Facts
from surveyproc.report.sections.flags import BandFlags, Flags
from surveyproc.report.sections.known_blends import KnownBlends, tested
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


def choose(shown: Shown) -> dict[str, list[Section]]:
    """Place on the page (`first`, `distributions`, `last`) to its sections."""
    # Releases made before kinds were recorded have names that say them.
    known, products = shown.current.kinds, shown.current.flags
    kinds = {known.get(product) or kind_of(product, None) for product in products}
    places: dict[str, list[type[Section]]] = {
        "first": [Facts, SkyMap],
        "distributions": [one for one, about in SECTIONS.items() if kinds.intersection(about)],
        "last": [Flags, BandFlags, Opening],
    }
    if shown.config.truth is not None:
        fitting = [one for one, judged in AGAINST_TRUTH.items() if kinds.intersection(judged)]
        if shown.config.truth.classes is None:
            fitting = [one for one in fitting if one is not KnownClasses]
        places["last"] = [*fitting, *places["last"]]
    judged_kinds = kinds.intersection(("deblend", "blend_probability"))
    if any(next(tested(shown.config, kind), None) for kind in judged_kinds):
        places["last"] = [KnownBlends, *places["last"]]
    return {place: [one(shown) for one in sections] for place, sections in places.items()}
