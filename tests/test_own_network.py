"""A network of another package, from its labels to the columns of a release."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from own_package import EXAMPLES, call, install

import surveyproc
from surveyproc.errors import ConfigError
from surveyproc.models import base
from surveyproc.models.base import build
from surveyproc.testing import check_network

README = (EXAMPLES / "own_network" / "README.md").read_text()
SECTION = README.partition("```toml\n")[2].partition("```")[0]
CHANGES = ("architecture_settings.width=8", "training.epochs=40", "training.shift=0")
SETS = [part for one in CHANGES for part in ("--set", f"products.extent.{one}")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as pip installs it."""
    folder = tmp_path_factory.mktemp("installed")
    return install("own_network", folder, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def survey(published_survey, tmp_path_factory):
    """survey.toml with photometry and the README's section, nothing done yet; and its labels."""
    folder = tmp_path_factory.mktemp("extent") / "survey"
    shutil.copytree(published_survey.parent, folder, ignore=shutil.ignore_patterns("store"))
    path = folder / "survey.toml"
    before, _, _ = path.read_text().partition('[[products]]\nname = "photoz"')
    path.write_text(before + SECTION)
    truth = pq.read_table(folder / "truth.parquet")
    radius = truth["half_light_radius"].to_numpy()  # NaN: a star
    shape = np.where(radius > 0.6, "extended", "compact")
    labels = pa.table({"ra": truth["ra"], "dec": truth["dec"], "shape": shape})
    pyarrow.csv.write_csv(labels, folder / "shapes.csv")
    return path


def test_from_labels_to_columns(installed, survey):
    assert call(installed, "ingest", survey)["catalog"]["rows_out"] == 240
    trained = call(installed, "train", survey, *SETS)["extent"]
    measured = trained["metrics"]["held_out"]["class"]
    assert measured["n"] > 20
    assert np.sum(measured["confusion"]) == measured["n"]
    done = call(installed, "run", survey, *SETS)
    assert done["products"]["extent"].startswith(trained["version"])
    assert call(installed, "validate", survey)["problems"] == []
    report = Path(call(installed, "report", survey)["report"]).read_text()
    assert "<span>extent flagged</span>" in report

    names = ["object_id", "extent_class", "extent_p_compact", "extent_p_extended"]
    rows = surveyproc.open(survey).catalog(columns=[*names, "extent_embedding"]).compute()
    assert len(rows) == 240
    p = np.stack([rows["extent_p_compact"], rows["extent_p_extended"]], axis=1)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-5)
    classes = np.array(["compact", "extended"])
    assert (rows["extent_class"].to_numpy() == classes[p.argmax(axis=1)]).all()
    vectors = np.array(rows["extent_embedding"].to_list())
    assert vectors.shape == (240, 4)
    assert (vectors.std(axis=0) > 0).any()
    # Those that it learned from lie on the side where it was told that they are.
    labels = pyarrow.csv.read_csv(survey.parent / "shapes.csv")
    truth = pq.read_table(survey.parent / "truth.parquet")
    told = dict(zip(truth["object_id"].to_pylist(), labels["shape"].to_pylist(), strict=True))
    extended = np.array([told[one] == "extended" for one in rows["object_id"]])
    assert p[extended, 1].mean() > p[~extended, 1].mean() + 0.05


def test_it_keeps_the_contract_of_networks(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    base._third_parties.cache_clear()
    network = build("extent", ("g", "r", "i"), {"cutout": 12})
    assert type(network).__module__ == "surveyproc_extent"
    check_network(network)
    with pytest.raises(ConfigError, match="extent: unknown setting 'depth'"):
        build("extent", ("g", "r", "i"), {"depth": 3})
    with pytest.raises(ConfigError, match="image_band: there are g, i"):
        build("extent", ("g", "i"), {})
