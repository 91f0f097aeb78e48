"""Differences between releases, against a plain dictionary of rows."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surveyproc import verbs
from surveyproc.catalogs.hats import Leaf
from surveyproc.config import load
from surveyproc.errors import InputError
from surveyproc.releases.diff import ColumnChange, RowChanges, compare, differing
from surveyproc.releases.flux_ratios import TileRatios, flux_columns
from surveyproc.survey import Survey

ROW = st.tuples(
    st.integers(0, 12),
    st.one_of(st.none(), st.floats(allow_nan=False, width=32)),
    st.one_of(st.none(), st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=2)),
    st.integers(-(2**62), 2**62),
    st.sampled_from(["", "t00", "t01"]),
    st.one_of(st.none(), st.lists(st.sampled_from(["a", "b"]), max_size=2)),
)
SCHEMA = pa.schema(
    [
        ("object_id", pa.int64()),
        ("flux", pa.float32()),
        ("quantiles", pa.list_(pa.float32())),
        ("flag", pa.int64()),
        ("tile", pa.string()),
        ("names", pa.list_(pa.string())),
    ]
)

# The first array that pyarrow makes imports pandas, longer than hypothesis waits for an example.
pa.array([0])


def table(rows):
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


def by_key(rows):
    """(id, how many of it came before) to the row."""
    seen, found = Counter(), {}
    for row in rows:
        found[row[0], seen[row[0]]] = row
        seen[row[0]] += 1
    return found


@given(st.lists(ROW, max_size=15), st.lists(ROW, max_size=15))
def test_exact_comparison_finds_what_a_dictionary_finds(first, second):
    found = compare(table(first), table(second), 0.0)
    one, other = by_key(first), by_key(second)
    both = one.keys() & other.keys()
    assert found.added == len(other.keys() - both)
    assert found.removed == len(one.keys() - both)
    assert found.changed == sum(one[key] != other[key] for key in both)
    for place, name in enumerate(SCHEMA.names):
        changed = [key for key in both if one[key][place] != other[key][place]]
        counted = found.columns.get(name, ColumnChange(0, 0, 0, None))
        assert counted.changed == len(changed)
        assert counted.lost == sum(other[key][place] is None for key in changed)
        assert counted.gained == sum(one[key][place] is None for key in changed)


@given(st.lists(ROW, max_size=15), st.randoms())
def test_a_table_does_not_differ_from_itself(rows, random):
    unique = list({row[0]: row for row in rows}.values())
    shuffled = random.sample(unique, len(unique))
    found = compare(table(unique), table(shuffled), 0.0)
    assert found == RowChanges()


def test_tolerance_is_relative_and_nan_equals_nan():
    nan = float("nan")
    rows = [
        (1, 100.0, [1.0, nan], 0, "", []),
        (2, 100.0, None, 0, "", []),
        (3, 0.0, None, 7, "", []),
    ]
    other = [
        (1, 100.05, [1.0, nan], 0, "", []),
        (2, 101.0, None, 0, "", []),
        (3, 0.0, None, 8, "", []),
    ]
    found = compare(table(rows), table(other), 1e-3)
    assert found.changed == 2
    assert found.columns.keys() == {"flux", "flag"}
    assert found.columns["flux"] == ColumnChange(1, 0, 0, pytest.approx(1.0))


@st.composite
def split(draw, leaves):
    """A partition of the same sky into leaves: any of them may be split into its four children."""
    out = []
    for order, pixel in leaves:
        if order < 4 and draw(st.booleans()):
            out += draw(split([(order + 1, 4 * pixel + k) for k in range(4)]))
        else:
            out.append((order, pixel))
    return out


@given(split([(1, 5), (1, 7)]), split([(1, 5), (1, 6)]), st.data())
def test_leaves_that_overlap_are_compared_together(first, second, data):
    def made(parts, side):
        contents = [data.draw(st.sampled_from(["same", side])) for _ in parts]
        return [
            Leaf(order, pixel, 1, 1, f"{content}{order}-{pixel}", b"")
            for (order, pixel), content in zip(parts, contents, strict=True)
        ]

    one, other = made(first, "a"), made(second, "b")
    groups = list(differing(one, other))
    taken = [leaf for group in groups for side in group for leaf in side]
    assert len(taken) == len(set(map(id, taken)))
    alike = {leaf.sha256 for leaf in one} & {leaf.sha256 for leaf in other}
    left = [leaf for leaf in one + other if id(leaf) not in set(map(id, taken))]
    assert {leaf.sha256 for leaf in left} <= alike

    def covered(leaf, group):
        low, high = (p << 2 * (6 - leaf.order) for p in (leaf.pixel, leaf.pixel + 1))
        return any(
            low < (leaf2.pixel + 1) << 2 * (6 - leaf2.order)
            and leaf2.pixel << 2 * (6 - leaf2.order) < high
            for side in group
            for leaf2 in side
        )

    for group in groups:
        outside = [leaf for leaf in one + other if not any(leaf is x for s in group for x in s)]
        assert not any(covered(leaf, group) for leaf in outside)


def fluxes(flux, tiles, flags=0, **more):
    flux = np.asarray(flux, np.float32)
    return pa.table(
        {
            "photometry_tile": list(tiles),
            "flux_r": pa.array(flux, mask=np.isnan(flux)),
            "flux_err_r": np.full(len(flux), 0.5, np.float32),
            "photometry_flag_r": np.full(len(flux), flags, np.int32),
            **more,
        }
    )


def test_ratios_of_fluxes_tile_by_tile_add_up_over_leaves():
    flux = np.linspace(50, 500, 60)
    tiles = ["a", "b", "a"] * 20
    shifted = np.where(np.array(tiles) == "b", 1.05, 1.0) * flux
    shifted[:3] = np.nan
    first, second = fluxes(flux, ["b"] * 60), fluxes(shifted, tiles)  # the new tile counts
    whole, parts = TileRatios(["r"]), TileRatios(["r"])
    whole.add(first, second)
    for start in range(0, 60, 7):
        parts.add(first.slice(start, 7), second.slice(start, 7))
    assert whole.summary() == parts.summary()
    found = whole.summary()["flux_r"]
    assert [one.objects for one in found.values()] == [38, 19]
    assert found["a"].ratio == pytest.approx(1.0, abs=1e-9)
    assert found["b"].ratio == pytest.approx(1.05, abs=0.002)
    low, high = found["b"].between
    assert 1.045 < low < 1.05 < high < 1.055


def test_flagged_fluxes_and_tiles_of_few_objects():
    ratios = TileRatios(["r"])
    ratios.add(fluxes([100.0] * 20, ["a"] * 20, flags=2), fluxes([200.0] * 20, ["a"] * 20))
    assert ratios.summary() == {"flux_r": {}}
    ratios.add(fluxes([100.0] * 3, ["a"] * 3), fluxes([200.0] * 3, ["a"] * 3))
    assert ratios.summary()["flux_r"]["a"].between is None


def test_every_aperture_and_no_other_flux_is_compared():
    names = ["photometry_tile", "photometry_flag", "photometry_x"]
    for end in ("r", "g", "r_2p0"):
        names += [f"flux_{end}", f"flux_err_{end}", f"photometry_flag_{end}"]
    assert flux_columns([*names, "flux_auto", "flux_err_auto"]) == ["r", "g", "r_2p0"]
    assert flux_columns(names[1:]) == []


def test_a_release_does_not_differ_from_itself_and_an_unknown_one_is_named(published_survey):
    config = load(published_survey)
    release = verbs.releases(Survey(config)).current.release
    found = verbs.diff(Survey(config), release, release, 0.0)
    assert (found.changed, found.leaves_read) == (0, 0)
    assert found.rows == (240, 240)
    with pytest.raises(InputError, match="no finished release of simulated is called 'rx'"):
        verbs.diff(Survey(config), release, "rx", 0.0)
