"""Types and redshifts: from a table with names of types to a release, its report and its gates."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import task_networks  # registers a network of votes
from pyarrow import csv

from surveyproc import verbs
from surveyproc.catalogs import hats
from surveyproc.config import load
from surveyproc.config.kinds import load_kind
from surveyproc.errors import ConfigError
from surveyproc.models.base import build
from surveyproc.models.features import fit_scaling
from surveyproc.models.package import save_package
from surveyproc.products.type_redshift import TypeRedshiftProduct
from surveyproc.report.page import write_report
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

SURVEY = """
[survey]
name = "types"
root = "./store"

[catalog]
source = "table.csv"
id = "id"

[catalog.magnitudes]
g = { column = "g", error = "error" }
r = { column = "r", error = "error" }
i = { column = "i", error = "error" }

[[products]]
name = "type_redshift"
model = "types"
architecture_settings = { base = [32], base_dropout = 0.1, components = 2, by_class = true, \
redshift_classes = ["early", "late"] }

[products.training]
source = "table.csv"
redshift = "z"
targets = { class = "type" }
magnitudes = { g = "g", r = "r", i = "i" }
magnitude_errors = { g = "error", r = "error", i = "error" }
epochs = 20
folds = 2

[truth]
source = "table.csv"
redshift = "z"
classes = "type"

[run]
place = "here"
workers = 1
"""


def write_table(folder: Path, n: int = 400) -> None:
    random = np.random.default_rng(4)
    kind = random.integers(0, 3, n)
    z = np.where(kind == 2, 0.0, random.uniform(0.1, 1.0, n))
    colour = np.array([1.5, 0.5, -0.5])[kind] + 0.5 * z
    columns = {
        "id": np.arange(n),
        "ra": (random.uniform(-0.5, 0.5, n) % 360).round(7),
        "dec": random.uniform(-0.5, 0.5, n).round(7),
        "g": 21 + colour + random.normal(0, 0.05, n),
        "r": 21 + random.normal(0, 0.05, n),
        "i": 21 - 2 * z + random.normal(0, 0.05, n),
        "error": random.uniform(0.04, 0.06, n),
        "z": z,
        "type": np.array(["early", "late", "star"])[kind],
    }
    csv.write_csv(pa.table(columns), folder / "table.csv")


def test_from_a_table_of_types_to_a_release(tmp_path):
    write_table(tmp_path)
    (tmp_path / "survey.toml").write_text(SURVEY)
    survey = Survey(load(tmp_path / "survey.toml"))
    verbs.ingest(survey)
    trained = verbs.train(survey)["type_redshift"]
    assert trained.metrics["held_out"]["class"]["area"] > 0.95
    current = verbs.run(survey)
    page = Path(write_report(survey).report).read_text()
    assert "Against known classes" in page
    assert "have learned from labels of the same table" in page
    assert "expected calibration error" in page

    parts = [
        hats.read_leaf(survey.store, f"{current.path}/{leaf}")
        for leaf in hats.leaf_keys(survey.store, current.path)
    ]
    table = pa.concat_tables(parts)
    found = {name: table[name].to_numpy() for name in table.column_names if "quant" not in name}
    assert len(table) == 400
    p = np.stack([found[f"types_p_{one}"] for one in ("early", "late", "star")], axis=1)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-5)
    best = np.array(["early", "late", "star"])[p.argmax(axis=1)]
    assert (found["types_class"] == best).all()
    assert (best == found["type"]).mean() > 0.85
    assert "types_z_median_star" not in found
    galaxy = found["type"] != "star"
    joint = found["types_z_median"][galaxy]
    given = [found[f"types_z_median_{one}"][galaxy] for one in ("early", "late")]
    # The median of a mixture lies between those of its parts.
    assert (joint >= np.minimum(*given) - 1e-3).all()
    assert (joint <= np.maximum(*given) + 1e-3).all()


def test_it_is_a_kind_whose_section_names_the_network():
    kind = load_kind("type_redshift")
    assert kind is TypeRedshiftProduct
    assert kind.Section(name="type_redshift", model="any").architecture == "otelo"


@pytest.mark.parametrize(("network", "lacks"), [("gaznet-c4", "class"), ("test-votes", "class")])
def test_a_model_without_classes_or_redshifts_is_refused(tmp_path, network, lacks):
    bands = task_networks.BANDS
    flux = np.exp(np.random.default_rng(0).normal(6, 0.5, (50, 4)))
    package = save_package(
        Store(str(tmp_path)),
        "other",
        architecture=network,
        settings={},
        bands=bands,
        scaling=fit_scaling(flux, None, bands),
        members=[build(network, bands, {}).state_dict()],
    )
    with pytest.raises(ConfigError, match=f"'other' gives no {lacks}"):
        TypeRedshiftProduct(package)
