"""Label tables: what is read of them, what is refused, and how."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_tables import survey

from surveyproc.catalogs import labels
from surveyproc.catalogs.formats.parquet import ParquetReader
from surveyproc.config import LabelsSection
from surveyproc.errors import InputError


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
    np.testing.assert_allclose(found.redshift, [0.6])


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


def test_empty_table_is_named(tmp_path):
    empty = {name: pa.array([], pa.float64()) for name in ("ra", "dec", "z")}
    with pytest.raises(InputError, match=r"labels\.parquet: no selected row"):
        read(tmp_path, empty)


def test_only_the_needed_columns_are_read_and_the_file_is_closed(tmp_path, monkeypatch):
    asked, closed = [], []
    original = ParquetReader._read

    def spy(self, rows, names):
        asked.append(names)
        return original(self, rows, names)

    monkeypatch.setattr(ParquetReader, "_read", spy)
    monkeypatch.setattr(ParquetReader, "close", lambda self: closed.append(True))
    read(tmp_path, columns(more=[1, 2, 3]))
    assert asked == [["ra", "dec", "z"]]
    assert closed
