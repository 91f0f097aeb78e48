import numpy as np
import pytest

from surveyproc.catalogs.galaxy_zoo import CUTS, FEATURES, LEFT_OUT, five_classes
from surveyproc.catalogs.labels import read_targets
from surveyproc.config.sections import TrainingSection
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


@pytest.fixture
def votes_of_three(tmp_path):
    """A spiral, a round one, and a spiral that too few were asked about; positions and ids too."""
    spiral, round_ = {**CUTS["spiral"]}, {**CUTS["completely_round"]}
    lines, columns = [], [one.column for one in FEATURES]
    header = ["dr7objid", "ra", "dec"]
    header += [f"{one}_{kind}" for one in columns for kind in ("debiased", "count")]
    header += [f"{one}_count" for one in LEFT_OUT]
    for row, (shares, each) in enumerate(((spiral, 30), (round_, 30), (spiral, 9))):
        cells = [str(row + 1), str(10 + row), "5"]
        for one in FEATURES:
            cells += [str(shares.get(one.name, 0.0)), str(each)]
        lines.append(",".join([*cells, *["4"] * 3]))
    path = tmp_path / "gz2.csv"
    path.write_text("\n".join([",".join(header), *lines]) + "\n")
    return path


def test_a_table_of_votes_tells_classes_and_features(votes_of_three):
    given = {"source": str(votes_of_three), "votes": "galaxy_zoo_2"}
    section = TrainingSection(**given, targets={"class": "five_classes"})
    targets, _ = read_targets(section, str(votes_of_three))
    # Two answers of nine votes each are fewer than twenty.
    assert targets["class"].tolist() == ["spiral", "completely_round", ""]
    both = {"votes": "features", "votes_counts": "feature_votes"}
    targets, more = read_targets(
        TrainingSection(**given, targets=both, id="dr7objid"), str(votes_of_three), ["ra"]
    )
    assert targets["votes"].shape == targets["votes_counts"].shape == (3, len(FEATURES))
    at = [one.name for one in FEATURES].index
    assert targets["votes"][0, at("spiral")] == CUTS["spiral"]["spiral"]
    # Votes for the answer that is no feature here are votes for its question too.
    assert targets["votes_counts"][0, at("bulge_obvious")] == 3 * 30 + 4
    assert targets["votes_counts"][2, at("spiral")] == 18
    assert more["ra"].tolist() == [10, 11, 12]
    plain = TrainingSection(source="x", targets={"class": "five_classes"})
    with pytest.raises(InputError, match="no column 'five_classes'"):
        read_targets(plain, given["source"])
    text = votes_of_three.read_text().replace("a07_no_bar_count", "other")
    votes_of_three.write_text(text)
    # Classes want no bars.
    assert read_targets(section, given["source"])[0]["class"][0] == "spiral"
    with pytest.raises(InputError, match="no column 't03_bar_a07_no_bar_count'"):
        read_targets(TrainingSection(**given, targets=both), given["source"])
