"""Profiles add up commit records; what differs too much from the last release is refused."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surveyproc.catalogs.hats import Leaf
from surveyproc.config.sections import NightlySection
from surveyproc.releases import drift
from surveyproc.releases.flux_ratios import TileRatio
from surveyproc.run.commit import Commit, column_stats
from surveyproc.schemas import Column

COLUMNS = (
    Column("flux_g", "float32"),
    Column("net_z_quantiles", "float32", length=2),
    Column("photometry_tile", "string"),
    Column("photometry_flag", "int32"),
)
LIMITS = NightlySection()


def record(flux, flags=None):
    flux = np.asarray(flux, np.float32)
    rows = len(flux)
    table = pa.table(
        {
            "flux_g": pa.array(flux, mask=np.isnan(flux)),
            "net_z_quantiles": pa.array(
                [[x, x + 1] for x in flux.tolist()], pa.list_(pa.float32())
            ),
            "photometry_tile": pa.array(["t00"] * rows),
            "photometry_flag": pa.array(np.zeros(rows, np.int32)),
        }
    )
    counts = {"photometry": {"any": 0, **(flags or {})}}
    leaf = Leaf(5, 1, rows, 1, "", b"")
    return Commit("unit", leaf, column_stats(table, COLUMNS), counts, 1.0, {})


def refused(before, after, limits=LIMITS):
    last, new = drift.profile(before), drift.profile(after)
    found = drift.changes(last, new, limits)
    return {(reason.gate, reason.where) for reason in drift.refusals(found)}


FLUXES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@given(st.lists(FLUXES, min_size=1, max_size=5))
def test_a_profile_does_not_depend_on_the_partitions(parts):
    apart = drift.profile(record(part) for part in parts)
    together = drift.profile([record([x for part in parts for x in part])])
    assert apart == together
    assert together.columns["flux_g"].values
    assert not together.columns["photometry_tile"].comparable
    assert "photometry_flag" not in together.columns


def test_the_same_release_passes():
    rows = record(np.linspace(1, 1000, 500), {"edge": 20})
    assert refused([rows], [rows], NightlySection(max_drift=0, max_share_growth=0)) == set()


def test_what_is_refused():
    flux = np.random.default_rng(1).lognormal(3, 1, 4000)
    shifted = record(flux * 1.4)
    assert refused([record(flux)], [shifted]) == {("drift", "flux_g"), ("drift", "net_z_quantiles")}
    assert refused([record(flux)], [record(flux * 1.05)]) == set()
    gaps = flux.copy()
    gaps[:400] = np.nan
    assert ("null share", "flux_g") in refused([record(flux)], [record(gaps)])
    assert refused([record(gaps)], [record(flux)]) == set()  # fewer nulls are welcome
    flagged = record(flux, {"edge": 400})
    assert refused([record(flux)], [flagged]) == {("flag share", "photometry_flag: edge")}


@pytest.mark.parametrize(
    ("new_rows", "duplicates", "lost", "gained", "gates"),
    [
        (1000, 0, 0, 0, []),
        (990, 0, 10, 0, []),
        (980, 0, 20, 0, ["rows lost"]),
        (1000, 0, 300, 300, ["rows lost"]),  # as many, but a third has other ids
        (2000, 2000, 0, 1000, ["rows gained", "duplicate ids"]),  # every row twice
        (1400, 0, 0, 400, []),
    ],
)
def test_rows_by_their_ids(new_rows, duplicates, lost, gained, gates):
    found = drift.row_changes((1000, new_rows), (0, duplicates), lost, gained, LIMITS)
    assert [one.gate for one in drift.refusals(found)] == gates


def test_labels_that_no_longer_match_are_a_reason():
    """All positions are off by more than the radius: the metrics have nothing to say."""
    for matched in ((100, 0), (1, 0), (0, 0), (1000, 980)):
        (reason,) = drift.labels_lost(matched, LIMITS, "net_z_median")
        assert (reason.gate, reason.where) == ("matched labels", "net_z_median")
    assert reason.found == "980 (were 1000)"
    assert reason.allowed == "988 at least"
    for matched in ((100, 100), (100, 97), (3, 1), (0, 5), (1000, 2000)):
        assert drift.labels_lost(matched, LIMITS, "net_z_median") == []


def test_records_without_histograms_are_not_compared():
    flux = np.arange(1.0, 100.0)
    old = record(flux)
    for stats in old.stats.values():
        object.__setattr__(stats, "histogram", "")
    found = drift.changes(drift.profile([old]), drift.profile([record(flux)]), LIMITS)
    assert {one.what for one in found} == {"null share"}


def test_a_metric_over_its_limit_is_a_reason():
    worse = drift.Change("nmad", "net_z_median", 0.02, 0.03, 0.025)
    (reason,) = drift.refusals([worse])
    assert str(reason).split()[:2] == ["nmad", "net_z_median"]
    assert reason.found == "0.0300 (was 0.0200)"


def test_growth_of_a_survey_is_no_drift():
    rng = np.random.default_rng(2)
    one, other = (record(rng.lognormal(3, 1, 3000)) for _ in range(2))
    assert refused([one], [one, other]) == set()
    assert drift.profile([one, other]).rows == 6000
    assert pytest.approx(0, abs=0.05) == max(
        change.after
        for change in drift.changes(drift.profile([one]), drift.profile([one, other]), LIMITS)
        if change.what == "drift"
    )


def test_a_shift_of_one_tile_is_a_reason_and_one_that_noise_allows_is_not():
    found = {
        "flux_r": {
            "t0": TileRatio(40, 1.0, (0.999, 1.001)),
            "t1": TileRatio(40, 1.05, (1.048, 1.052)),
            "t2": TileRatio(40, 0.95, (0.948, 0.952)),
            "t3": TileRatio(40, 1.05, (1.01, 1.09)),
            "t4": TileRatio(3, 1.05, None),
        },
        "flux_r_2p0": {"t0": TileRatio(40, 1.02, (1.019, 1.021))},
    }
    reasons = drift.flux_shifts(found, LIMITS)
    assert [one.where for one in reasons] == ["flux_r of tile t1", "flux_r of tile t2"]
    assert reasons[0].found == "1.0500 of 40 bright objects"
    assert reasons[0].allowed == "0.9709 to 1.0300"
    strict = NightlySection(max_flux_shift=0.005)
    assert len(drift.flux_shifts(found, strict)) == 4
    assert drift.flux_shifts(found, NightlySection(max_flux_shift=0.1)) == []


def test_flags_of_bands_are_compared_as_flags():
    flux = np.arange(1.0, 101.0)
    last, new = record(flux), record(flux)
    last.band_flags["photometry_flag_g"] = {"any": 1, "edge": 1}
    new.band_flags["photometry_flag_g"] = {"any": 50, "edge": 50}
    assert refused([last], [new]) == {("flag share", "photometry_flag_g: edge")}
    gone = drift.columns_gone(drift.profile([last]), drift.profile([record(flux)]))
    assert [reason.where for reason in gone] == ["photometry_flag_g"]
