"""A table of magnitudes with text ids, no images: to a release with PDFs, and through a night."""

import hashlib
from pathlib import Path

import lsdb
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv

from surveyproc import verbs
from surveyproc.config import SurveyConfig, load
from surveyproc.errors import ConfigError
from surveyproc.report.page import write_report
from surveyproc.survey import Survey
from surveyproc.verbs.nightly import nightly

SURVEY = """
[survey]
name = "alone"
root = "./store"

[catalog]
source = "table.csv"
id = "name"
missing = [-99]

[catalog.magnitudes]
g = { column = "g", error = "g_err" }
r = { column = "r", error = "r_err" }
J = { column = "J", ab_offset = 0.91 }

[[products]]
name = "photoz"
model = "gaznet-c3"
architecture_settings = { widths = [8, 8, 8, 8, 8, 8, 8, 8], components = 2 }

[products.training]
source = "table.csv"
redshift = "z"
epochs = 1
learning_rates = [0.01]

[run]
place = "here"
workers = 1
"""


def write_table(path: Path, rows: slice = slice(None)) -> None:
    rng = np.random.default_rng(4)
    n = 200
    z = rng.uniform(0.1, 1.0, n)
    columns = {
        "name": [f"OBJ {k:03}" for k in range(n)],
        "ra": (rng.uniform(-0.5, 0.5, n) % 360).round(7),
        "dec": rng.uniform(-0.5, 0.5, n).round(7),
        "g": 21 + 2 * z + rng.normal(0, 0.1, n),
        "g_err": np.full(n, 0.1),
        "r": 20.5 + z + rng.normal(0, 0.1, n),
        "r_err": np.full(n, 0.1),
        "J": 19 + rng.normal(0, 0.1, n),
        "flux_r": np.arange(n),
        "z": z,
    }
    columns["J"][7] = -99
    csv.write_csv(pa.table({name: values[rows] for name, values in columns.items()}), path)


@pytest.fixture
def config(tmp_path) -> SurveyConfig:
    write_table(tmp_path / "table.csv", slice(1, None))
    (tmp_path / "survey.toml").write_text(SURVEY)
    return load(tmp_path / "survey.toml")


def test_from_a_table_to_pdfs_and_through_a_night(config, tmp_path):
    done = verbs.ingest(Survey(config))
    assert "made from the text column 'name'" in done.catalog.notes[0]
    verbs.train(Survey(config))
    assert verbs.plan(Survey(config)).pending_rows == 199
    current = verbs.run(Survey(config))
    assert verbs.validate(Survey(config)).problems == []
    assert Path(write_report(Survey(config)).report).stat().st_size > 10_000

    found = lsdb.open_catalog(current.url, columns="all").compute().set_index("name")
    assert len(found) == 199
    digest = hashlib.sha256(b"OBJ 005").digest()
    assert found.object_id["OBJ 005"] == int.from_bytes(digest[:8], "big") >> 1
    one = found.loc["OBJ 005"]
    for band, offset in (("g", 0), ("r", 0), ("J", 0.91)):
        assert one[f"flux_{band}"] == pytest.approx(10 ** (0.4 * (31.4 - one[band] - offset)))
    assert one["source_flux_r"] == 5
    assert len(one["gaznet_c3_z_quantiles"]) == 21
    assert (np.diff(np.stack(found["gaznet_c3_z_quantiles"])) > 0).all()
    assert current.flags["catalog_photometry"] == {"any": 1, "missing_band": 1}
    assert found.index[found["photoz_flag"] & 4 > 0].tolist() == ["OBJ 007"]

    assert nightly(Survey(config)).did == "nothing"
    write_table(tmp_path / "table.csv")
    night = nightly(Survey(config))
    assert night.did == "published", night.error
    assert (night.diff.added, night.diff.removed, night.diff.changed) == (1, 0, 0)


def test_columns_are_checked_by_the_first_command(config, tmp_path):
    for key, column in (("catalog.magnitudes.r", "R"), ("catalog.columns", ["z", "zz"])):
        wrong = load(tmp_path / "survey.toml", [f"{key}={column}"])
        with pytest.raises(ConfigError, match=rf"{key}: the catalog has no column"):
            verbs.ingest(Survey(wrong))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("columns", "kept"),
    [('"none"', []), ('["z", "flux_r", "name"]', ["z", "source_flux_r", "name"])],
)
def test_a_release_carries_the_columns_that_it_is_told(config, tmp_path, columns, kept):
    without = SURVEY.partition("[[products]]")[0] + '[run]\nplace = "here"\n'
    (tmp_path / "survey.toml").write_text(without)
    config = load(tmp_path / "survey.toml", [f"catalog.columns={columns}"])
    verbs.ingest(Survey(config))
    names = lsdb.open_catalog(verbs.run(Survey(config)).url).columns.tolist()
    assert names[names.index("catalog_photometry_flag") + 1 :] == kept
