import numpy as np
import pytest

from surveyproc.catalogs.galaxy_zoo import CUTS, five_classes
from surveyproc.errors import InputError

ZERO = {
    **dict.fromkeys(("smooth", "completely_round", "rounded_in_between", "cigar_shaped"), 0.0),
    **dict.fromkeys(("features_or_disk", "edgeon_yes", "edgeon_no", "spiral"), 0.0),
}


def table(*rows):
    return {name: np.array([{**ZERO, **row}[name] for row in rows]) for name in ZERO}


def test_each_class_is_reached_by_its_cuts_and_missed_just_below():
    for name, cuts in CUTS.items():
        below = [{**cuts, feature: least - 0.001} for feature, least in cuts.items()]
        found = five_classes(table(dict(cuts), *below))
        assert found.tolist() == [name, *[""] * len(cuts)]


def test_two_classes_are_none():
    both = {**CUTS["edge_on"], **CUTS["cigar_shaped"]}
    assert five_classes(table(both)).tolist() == [""]


def test_unknown_fractions_and_few_votes_reach_no_cut():
    spiral = dict(CUTS["spiral"])
    rows = table(spiral, {**spiral, "spiral": np.nan}, spiral, spiral)
    votes = {question: np.full(4, 40) for question in ("t01", "t02", "t04", "t07")}
    votes["t04"] = np.array([40, 40, 19, 20])
    assert five_classes(rows, votes).tolist() == ["spiral", "", "", "spiral"]


def test_counts_for_fractions_and_missing_features_are_named():
    with pytest.raises(InputError, match="'smooth' holds 12; fractions lie within 0 and 1"):
        five_classes(table({"smooth": 12.0}))
    lacking = table({})
    del lacking["spiral"]
    with pytest.raises(InputError, match="no fraction of 'spiral'"):
        five_classes(lacking)
