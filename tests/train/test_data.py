import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import InputError
from surveyproc.sky import healpix29
from surveyproc.train.data import TrainingSet, from_labels, sky_split


def section(**keys):
    base = {
        "source": "x",
        "redshift": "z",
        "magnitudes": {"g": "mg", "r": "mr"},
        "magnitude_errors": {"r": "er"},
    }
    return TrainingSection(**(base | keys))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "labels.parquet"
    columns = {
        "z": [0.5, 0.7, np.nan, -9.0, 99.0, 0.0, 0.4, 0.6],
        "ra": [10.0, 10.1, 10.2, 10.3, 10.4, 10.5, np.nan, 10.7],
        "dec": [0.0] * 8,
        "mg": [31.4, -99.0, 22.0, 22.0, 22.0, 22.0, 22.0, 99.9],
        "mr": [21.4, 23.9, 22.0, 22.0, 22.0, 22.0, 22.0, -1.0],
        "er": [0.1, -1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
        "good": [True, True, True, True, True, True, True, False],
        "name": ["a"] * 8,
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_magnitudes_become_fluxes_and_codes_become_missing(table):
    found = from_labels(section(), table)
    assert found.bands == ("g", "r")
    np.testing.assert_allclose(found.targets["redshift"], [0.5, 0.7])
    np.testing.assert_allclose(found.flux, [[1.0, 1e4], [np.nan, 1e3]])
    np.testing.assert_allclose(found.flux_err, [[np.nan, 1e3 * np.log(10) / 2.5], [np.nan] * 2])
    assert found.dropped == {
        "no usable redshift": 4,
        "no position": 1,
        "no flux in any band": 1,
    }


def test_select_keeps_true_rows_only(table):
    found = from_labels(section(select="good"), table)
    assert found.dropped["not selected"] == 1
    assert len(found) == 2


def test_classes_and_votes_of_the_label_table_itself(table):
    targets = {"class": "name", "votes": ["z", "dec"]}
    found = from_labels(section(redshift=None, targets=targets), table)
    assert found.targets["class"].tolist() == ["a"] * 6
    assert found.targets["votes"].shape == (6, 2)
    assert found.dropped == {"no position": 1, "no flux in any band": 1}
    first = found.checksum
    found.targets["class"][0] = "b"
    assert found.checksum != first


def test_band_order_is_the_configurations(table):
    found = from_labels(section(magnitudes={"r": "mr", "g": "mg"}), table)
    assert found.bands == ("r", "g")
    assert found.flux[0, 1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"redshift": "zz"}, "no column 'zz'"),
        ({"magnitudes": {"g": "mx", "r": "mr"}}, "no column 'mx'"),
        ({"magnitudes": {"g": "name", "r": "mr"}}, "'name' is not numeric"),
        ({"magnitude_errors": {"k": "er"}}, "'k'"),
        ({"select": "nope"}, "no column 'nope'"),
        ({"redshift": "dec"}, r"no row .*\(8 no usable redshift\)"),
    ],
)
def test_wrong_tables_are_named(table, keys, match):
    with pytest.raises(InputError, match=match):
        from_labels(section(**keys), table)


def test_shapes_must_fit():
    with pytest.raises(InputError, match="shapes"):
        TrainingSet(np.ones((3, 2)), np.ones((3, 2)), {}, np.ones(3), np.ones(3), ("g",))


def test_checksum_follows_the_content(table):
    first, second = from_labels(section(), table), from_labels(section(), table)
    assert first.checksum == second.checksum
    second.targets["redshift"][0] += 1e-9
    assert first.checksum != second.checksum


@settings(deadline=None)
@given(st.integers(0, 50), st.floats(0.05, 0.5))
def test_split_is_by_whole_pixels_and_deterministic(seed, share):
    rng = np.random.default_rng(5)
    ra, dec = (359.5 + rng.uniform(0, 1, 600)) % 360, rng.uniform(-0.5, 0.5, 600)
    held = sky_split(ra, dec, seed, share, order=9)
    np.testing.assert_array_equal(held, sky_split(ra, dec, seed, share, order=9))
    pixels = healpix29(ra, dec) >> 40
    assert not set(pixels[held]) & set(pixels[~held])
    assert share <= held.mean() < share + 0.1
    order = rng.permutation(600)
    np.testing.assert_array_equal(sky_split(ra[order], dec[order], seed, share, 9), held[order])


@pytest.mark.parametrize("size", [0.05, 1.0, 60.0])
def test_order_adapts_to_the_footprint(size):
    rng = np.random.default_rng(5)
    held = sky_split(rng.uniform(0, size, 500), rng.uniform(0, size, 500), 0, 0.2)
    assert 0.2 <= held.mean() < 0.4


def test_another_seed_holds_out_other_rows():
    rng = np.random.default_rng(5)
    ra, dec = rng.uniform(0, 1, 500), rng.uniform(0, 1, 500)
    assert (sky_split(ra, dec, 0) != sky_split(ra, dec, 1)).any()
