"""Label tables: what is read of them, what is refused, and how."""

import gc
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_tables import survey

from surveyproc.catalogs import hats, ids, labels
from surveyproc.config.sections import LabelsSection, TrainingSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.schemas import Column
from surveyproc.store.storage import Store


def read(tmp_path, columns, **keys):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table(columns), path)
    section = LabelsSection(source=str(path), redshift="z", **keys)
    return labels.read_labels(section, survey(tmp_path, path))


def columns(**changed):
    base = {"ra": [1.0, 361.0, 3.0], "dec": [0.0, 1.0, None], "z": [0.5, 0.6, 0.7]}
    return base | changed


@pytest.mark.parametrize(
    "chosen", [[0, 1, 1], [False, True, True], [0.0, 1.0, 1.0], [None, 1, None]]
)
def test_select_takes_booleans_and_zero_or_one(tmp_path, chosen):
    found = read(tmp_path, columns(good=chosen), select="good")
    np.testing.assert_allclose(found.ra, [1.0])
    np.testing.assert_allclose(found.targets["redshift"], [0.6])


@pytest.mark.parametrize(
    ("changed", "keys", "message"),
    [
        ({"good": [0, 3, 1]}, {"select": "good"}, "'good' selects rows .* not 3"),
        ({"good": ["yes", "no", "no"]}, {"select": "good"}, "'good' is not numeric"),
        ({"z": ["0.5", "none", "0.7"]}, {}, "'z' is not numeric"),
        ({"z": [[0.5], [0.6], [0.7]]}, {}, "'z' is not numeric"),
        ({}, {"ra": "alpha"}, "no column 'alpha'"),
        ({"z": [None, None, 0.7]}, {}, "no selected row"),
    ],
)
def test_unusable_tables_are_named(tmp_path, changed, keys, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, columns(**changed), **keys)
    assert "labels.parquet" in str(caught.value)


def test_rows_without_a_place_on_the_sky_or_a_redshift_are_left_out(tmp_path):
    found = read(
        tmp_path,
        columns(ra=[1.0, 2.0, 3.0, 4.0], dec=[0.0, 91.0, -90.0, 1.0], z=[0.1, 0.2, 0.3, np.nan]),
    )
    np.testing.assert_array_equal(found.targets["redshift"], [0.1, 0.3])


def test_the_checksum_is_that_of_values_and_radius(tmp_path):
    one, wider = read(tmp_path, columns()), read(tmp_path, columns(), radius=2.0)
    assert one.checksum == read(tmp_path, columns(more=[1, 2, 3])).checksum
    assert len({one.checksum, wider.checksum, read(tmp_path, columns(z=[1, 2, 3])).checksum}) == 3


def test_empty_table_is_named(tmp_path):
    empty = {name: pa.array([], pa.float64()) for name in ("ra", "dec", "z")}
    with pytest.raises(InputError, match=r"labels\.parquet: no selected row"):
        read(tmp_path, empty)


def test_only_the_needed_columns_are_read_and_the_file_is_closed(tmp_path):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table(columns(more=["x" * 50] * 3)), path, compression="none")
    group = pq.ParquetFile(path).metadata.row_group(0)
    (more,) = (group.column(k) for k in range(4) if group.column(k).path_in_schema == "more")
    with path.open("r+b") as file:
        file.seek(more.dictionary_page_offset)
        file.write(b"\xff" * more.total_compressed_size)
    with pytest.raises(OSError, match="page"):
        pq.read_table(path)
    section = LabelsSection(source=str(path), redshift="z")
    assert len(labels.read_labels(section, survey(tmp_path, path))) == 2
    gc.collect()  # the failed reading above left the file to the collector
    assert str(path) not in {os.path.realpath(one) for one in Path("/proc/self/fd").iterdir()}


def catalog(tmp_path, quantiles):
    """Three objects in two leaves; the third one's list is null."""
    columns = (
        *(Column(name, "float64") for name in ("ra", "dec")),
        Column("_healpix_29", "int64"),
        Column("size", "float32"),
        Column("z_quantiles", "float32", length=2),
    )
    store = Store(str(tmp_path))
    for pixel, rows in ((0, [0, 1]), (1, [2])):
        table = pa.table(
            {
                "ra": [45.0 + row for row in rows],
                "dec": [10.0] * len(rows),
                "_healpix_29": [(pixel << 58) + row for row in rows],
                "size": [float(row) for row in rows],
                "z_quantiles": [quantiles[row] for row in rows],
            }
        )
        hats.write_leaf(store, f"cat/{hats.leaf_key(0, pixel)}", table, columns)
    return store


def test_lists_of_matched_objects_come_in_the_order_of_the_labels(tmp_path):
    store = catalog(tmp_path, [[0.1, 0.2], [0.3, 0.4], None])
    known = labels.Labels(
        np.array([47.0, 45.0, 99.0, 46.0]),
        np.full(4, 10.0),
        {"redshift": np.array([3.0, 1.0, 9.0, 2.0])},
        1.0,
    )
    values, targets = labels.match_catalog(store, "cat", known, ["size", "z_quantiles"])
    np.testing.assert_array_equal(targets["redshift"], [3.0, 1.0, 2.0])
    np.testing.assert_array_equal(values["size"], [2.0, 0.0, 1.0])
    expected = np.array([[np.nan, np.nan], [0.1, 0.2], [0.3, 0.4]], np.float32)
    np.testing.assert_array_equal(values["z_quantiles"], expected)


def test_nothing_known_or_matched_gives_empty_arrays(tmp_path):
    store = catalog(tmp_path, [[0.1, 0.2], [0.3, 0.4], None])
    for ra, shape in ((47.0, (1, 0)), (300.0, (0,))):
        one = labels.Labels(np.array([ra]), np.array([10.0]), {}, 1.0)
        values, _ = labels.match_catalog(store, "cat", one, ["z_quantiles"])
        assert values["z_quantiles"].shape == shape


def test_lists_of_unequal_length_are_named(tmp_path):
    store = catalog(tmp_path, [[0.1, 0.2], [0.3], None])
    known = labels.Labels(np.array([45.0, 46.0]), np.full(2, 10.0), {}, 1.0)
    with pytest.raises(InputError, match="'z_quantiles' holds lists of 1 and of 2"):
        labels.match_catalog(store, "cat", known, ["z_quantiles"])


def read_training(tmp_path, columns, **keys):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table(columns), path)
    section = TrainingSection(source=str(path), **keys)
    return labels.read_labels(section, survey(tmp_path, path))


SEVERAL = {
    "ra": [1.0, 2.0, 3.0, 4.0],
    "dec": [0.0, 0.0, 0.0, 91.0],
    "z": [-99.0, 0.5, None, 0.7],
    "kind": ["star ", "", None, "galaxy"],
    "a": [0.1, None, None, 0.3],
    "b": [None, None, None, 0.4],
    "id": ["one", "two", "three", None],
    "good": [True, False, True, True],
}


def test_a_row_that_tells_anything_is_a_label(tmp_path):
    targets = {"class": "kind", "votes": ["a", "b"], "good": "good"}
    found = read_training(tmp_path, SEVERAL, redshift="z", targets=targets)
    assert found.targets["class"].tolist() == ["star", None, None]
    np.testing.assert_array_equal(found.targets["redshift"], [np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(
        found.targets["votes"], [[0.1, np.nan], [np.nan] * 2, [np.nan] * 2]
    )
    np.testing.assert_array_equal(found.targets["good"], [1.0, 0.0, 1.0])
    assert found.dropped == {"labels without a position": 1}
    found = read_training(tmp_path, SEVERAL, targets={"class": "kind"}, select="good")
    assert found.targets["class"].tolist() == ["star"]
    assert found.dropped == {"labels without a target": 1, "labels without a position": 1}


def test_ids_stand_for_positions(tmp_path):
    given = {key: values for key, values in SEVERAL.items() if key not in ("ra", "dec")}
    found = read_training(tmp_path, given, redshift="z", targets={"class": "kind"}, id="id")
    expected, _ = ids.read(pa.array(["one", "two"]))
    np.testing.assert_array_equal(found.ids, expected)
    assert found.dropped == {"labels without a target": 1, "labels without an id": 1}
    # Beyond 2^53 a float would take two ids for one.
    large = {"id": [2**60, 2**60 + 1], "kind": ["a", "b"]}
    found = read_training(tmp_path, large, targets={"class": "kind"}, id="id")
    assert found.ids.tolist() == large["id"]


def test_every_target_counts_in_the_checksum(tmp_path):
    targets = {"class": "kind", "votes": ["a", "b"]}

    def checksum(**changed):
        return read_training(tmp_path, {**SEVERAL, **changed}, targets=targets).checksum

    changes = [{"kind": ["stars", "", None, "galaxy"]}, {"b": [0.2, None, None, 0.4]}]
    assert checksum(z=[0.1] * 4) == checksum()
    assert len({checksum(), *(checksum(**change) for change in changes)}) == 3


def test_of_a_table_without_targets_all_objects_with_a_position_are_taken(tmp_path):
    found = read_training(tmp_path, SEVERAL)
    assert found.targets == {}
    assert found.ra.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("keys", "error", "match"),
    [
        ({"redshift": "z", "targets": {"redshift": "z"}}, ConfigError, "names the column already"),
        ({"targets": {"class": "nope"}}, InputError, "no column 'nope'"),
        ({"targets": {"class": "kind"}, "id": "nope"}, InputError, "no column 'nope'"),
        ({"targets": {"class": "kind"}, "id": "good"}, InputError, "'good' holds no ids"),
        ({"targets": {"class": "kind"}, "id": "z"}, InputError, "'z' holds 0.5, which is no id"),
        ({"targets": {"votes": ["a", "kind"]}}, InputError, "'kind' is not numeric"),
        ({"redshift": "kind"}, InputError, "'kind' is not numeric"),
    ],
)
def test_wrong_keys_of_labels_are_named(tmp_path, keys, error, match):
    with pytest.raises(error, match=match):
        read_training(tmp_path, SEVERAL, **keys)
