"""Labels of Galaxy Zoo 2: the answers that a network learns, and classes by cuts on votes.

The names are those of Khramtsov et al. 2022, Tables 2 and 3, in their order, with the columns of
Willett et al. 2013 (MNRAS 435, 2835) and the probability above which the paper gives a galaxy the
feature. Bulge dominant, lens or arc, and boxy bulge are left out there: fewer than ten
galaxies have each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc.errors import InputError


class Feature(NamedTuple):
    """An answer: its name here, its column's beginning in a vote table, and its threshold."""

    name: str
    column: str
    threshold: float

    @property
    def question(self) -> str:
        """The question that it answers, `t01` to `t11`."""
        return self.column.partition("_")[0]


FEATURES = tuple(
    Feature(*one)
    for one in (
        ("smooth", "t01_smooth_or_features_a01_smooth", 0.10),
        ("features_or_disk", "t01_smooth_or_features_a02_features_or_disk", 0.30),
        ("star_or_artifact", "t01_smooth_or_features_a03_star_or_artifact", 0.05),
        ("edgeon_yes", "t02_edgeon_a04_yes", 0.05),
        ("edgeon_no", "t02_edgeon_a05_no", 0.25),
        ("bar", "t03_bar_a06_bar", 0.05),
        ("no_bar", "t03_bar_a07_no_bar", 0.20),
        ("spiral", "t04_spiral_a08_spiral", 0.15),
        ("no_spiral", "t04_spiral_a09_no_spiral", 0.05),
        ("no_bulge", "t05_bulge_prominence_a10_no_bulge", 0.05),
        ("bulge_just_noticeable", "t05_bulge_prominence_a11_just_noticeable", 0.05),
        ("bulge_obvious", "t05_bulge_prominence_a12_obvious", 0.05),
        ("odd_yes", "t06_odd_a14_yes", 0.05),
        ("odd_no", "t06_odd_a15_no", 0.45),
        ("completely_round", "t07_rounded_a16_completely_round", 0.15),
        ("rounded_in_between", "t07_rounded_a17_in_between", 0.20),
        ("cigar_shaped", "t07_rounded_a18_cigar_shaped", 0.10),
        ("ring", "t08_odd_feature_a19_ring", 0.05),
        ("disturbed", "t08_odd_feature_a21_disturbed", 0.15),
        ("irregular", "t08_odd_feature_a22_irregular", 0.05),
        ("other", "t08_odd_feature_a23_other", 0.05),
        ("merger", "t08_odd_feature_a24_merger", 0.05),
        ("dust_lane", "t08_odd_feature_a38_dust_lane", 0.05),
        ("bulge_shape_rounded", "t09_bulge_shape_a25_rounded", 0.05),
        ("bulge_shape_no_bulge", "t09_bulge_shape_a27_no_bulge", 0.05),
        ("arms_winding_tight", "t10_arms_winding_a28_tight", 0.05),
        ("arms_winding_medium", "t10_arms_winding_a29_medium", 0.05),
        ("arms_winding_loose", "t10_arms_winding_a30_loose", 0.05),
        ("arms_number_1", "t11_arms_number_a31_1", 0.05),
        ("arms_number_2", "t11_arms_number_a32_2", 0.05),
        ("arms_number_3", "t11_arms_number_a33_3", 0.05),
        ("arms_number_4", "t11_arms_number_a34_4", 0.05),
        ("arms_number_more_than_4", "t11_arms_number_a36_more_than_4", 0.05),
        ("arms_number_cant_tell", "t11_arms_number_a37_cant_tell", 0.05),
    )
)

QUESTIONS = {
    question: tuple(one.name for one in FEATURES if one.question == question)
    for question in dict.fromkeys(one.question for one in FEATURES)
}
"""Question to the names of its answers, of which a voter gives one."""

CUTS: Mapping[str, Mapping[str, float]] = {
    "completely_round": {"smooth": 0.469, "completely_round": 0.50},
    "in_between": {"smooth": 0.469, "rounded_in_between": 0.50},
    "cigar_shaped": {"smooth": 0.469, "cigar_shaped": 0.50},
    "edge_on": {"features_or_disk": 0.430, "edgeon_yes": 0.602},
    "spiral": {"features_or_disk": 0.430, "edgeon_no": 0.715, "spiral": 0.619},
}
"""Class to the least debiased fractions of its features.

Willett et al. 2013, Table 3, as Zhu et al. 2019 use it; Khramtsov et al. 2022 state no cuts. The
three smooth classes exclude each other, and smooth and features may both reach their cuts.
"""

_CUT = [one for one in FEATURES if any(one.name in cuts for cuts in CUTS.values())]

LEFT_OUT = (
    "t05_bulge_prominence_a13_dominant",
    "t08_odd_feature_a20_lens_or_arc",
    "t09_bulge_shape_a26_boxy",
)
"""Answers that are no features here, though votes for them are votes for their question."""

CLASSES, SHARES, VOTES = "five_classes", "features", "feature_votes"
DERIVED = (CLASSES, SHARES, VOTES)
"""What a table of votes tells beside its columns: see `derived`."""

LEAST_VOTES = 20
"""Votes that a question must have for its answers to count (Willett et al. 2013, section 3.3)."""


def five_classes(
    fractions: Mapping[str, ArrayLike], votes: Mapping[str, ArrayLike] | None = None
) -> NDArray[Any]:
    """Classes of galaxies by the cuts of `CUTS`.

    Parameters
    ----------
    fractions : mapping of str to array_like of float, shape (n,)
        Debiased fractions of the features that `CUTS` names; NaN reaches no cut.
    votes : mapping of str to array_like of int, shape (n,), optional
        Votes for the question (`t01`, `t02`, `t04`, `t07`) of each object. Answers of one that has
        fewer than `LEAST_VOTES` reach no cut. Without them all questions count.

    Returns
    -------
    ndarray of str, shape (n,)
        Empty where no class's cuts are reached, or those of two classes are: the paper removes
        seven such galaxies.

    Raises
    ------
    InputError
        If a feature is missing, or a fraction is outside of 0 and 1.
    """
    question = {one.name: one.question for one in FEATURES}
    reached: dict[str, NDArray[np.bool_]] = {}
    for made, cuts in CUTS.items():
        for name, least in cuts.items():
            if name not in fractions:
                raise InputError(f"five classes: there is no fraction of {name!r}")
            share = np.asarray(fractions[name], np.float64)
            wrong = np.isfinite(share) & ((share < 0) | (share > 1))
            if wrong.any():
                raise InputError(
                    f"five classes: {name!r} holds {share[wrong][0]:g}; fractions lie within 0 and "
                    "1: divide numbers of votes by those of their question"
                )
            enough = share >= least
            if votes is not None:
                enough &= np.asarray(votes[question[name]]) >= LEAST_VOTES
            reached[made] = reached.get(made, True) & enough
    table = np.stack(list(reached.values()), axis=1)
    names = np.array([*reached, ""], object)
    place = np.where(table.sum(axis=1) == 1, table.argmax(axis=1), len(reached))
    return np.asarray(names[place])


def columns_of(names: Iterable[str]) -> list[str]:
    """The columns of a table of votes that some names stand for: `derived` ones for several."""
    found: list[str] = []
    for name in names:
        if name not in DERIVED:
            found.append(name)
        elif name == CLASSES:
            asked = {one.question for one in _CUT}
            found += [f"{one.column}_debiased" for one in _CUT]
            found += [f"{one.column}_count" for one in FEATURES if one.question in asked]
        elif name == SHARES:
            found += [f"{one.column}_debiased" for one in FEATURES]
        else:
            found += [f"{one.column}_count" for one in FEATURES]
            found += [f"{column}_count" for column in LEFT_OUT]
    return list(dict.fromkeys(found))


def derived(name: str, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[Any]:
    """What a table of votes with the columns of Willett et al. 2013 tells of its n objects.

    Parameters
    ----------
    name : str
        `five_classes`: the class by the cuts, counting questions of at least `LEAST_VOTES`;
        `features`: the debiased fractions of the 34 features; `feature_votes`: the votes for their
        questions.
    columns : mapping of str to float64 ndarray, shape (n,)
        Those of `columns_of`.

    Returns
    -------
    ndarray, shape (n,) of str, or (n, 34) of float64

    Raises
    ------
    InputError
        If a fraction is outside of 0 and 1.
    """
    if name == SHARES:
        return np.stack([columns[f"{one.column}_debiased"] for one in FEATURES], axis=1)
    votes = {question: np.zeros(len(next(iter(columns.values())))) for question in QUESTIONS}
    for column in (*(one.column for one in FEATURES), *LEFT_OUT):
        if f"{column}_count" in columns:
            votes[column.partition("_")[0]] += np.nan_to_num(columns[f"{column}_count"])
    if name == VOTES:
        return np.stack([votes[one.question] for one in FEATURES], axis=1)
    return five_classes({one.name: columns[f"{one.column}_debiased"] for one in _CUT}, votes)
