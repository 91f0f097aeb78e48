"""Networks of images, from the survey's own pixels to a published catalog."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from command import surveyproc
from sums import sums

from surveyproc import verbs
from surveyproc.catalogs import neighbours
from surveyproc.config import load
from surveyproc.errors import InputError
from surveyproc.models.package import load_package
from surveyproc.report.page import write_report
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.verbs.nightly import nightly
from surveyproc.verbs.similar import similar

SECTION = """
[[products]]
name = "photoz_images"
model = "{model}"
architecture_settings = {network}
[products.training]
source = "truth.parquet"
redshift = "z"
select = "spec"
epochs = 1
batch_size = 32
{more}
"""
TINY = "image_widths = [4, 4, 4, 4], cutout = 32, joint_widths = [8]"


def with_product(survey, model, network, more=""):
    text = survey.read_text()
    survey.write_text(text + SECTION.format(model=model, network=network, more=more))
    return load(survey)


@pytest.mark.parametrize(
    ("model", "network", "more"),
    [
        pytest.param("gaznet-1", f"{{ {TINY} }}", "", marks=pytest.mark.slow),
        ("gaznet-i4", f"{{ {TINY} }}", "folds = 2"),
        pytest.param(
            "multimodal-2",
            "{ width = 0.03, bins = [40, 0.0, 4.0], modality_dropout = 3 }",
            'patience = 1\nprecision = "bfloat16"\naccumulate = 2',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "multimodal-3",
            '{ width = 0.03, size = 0, heads = "regression" }',
            'bands = ["g", "r", "i", "K"]\ntest_share = 0.3',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_images_to_published_redshifts(survey_copy, model, network, more):
    config = with_product(survey_copy, model, network, more)
    done = verbs.train(Survey(config), "photoz_images")["photoz_images"]
    assert done.metrics["held_out"]["redshift"]["point"]["n"] > 0
    assert ("test" in done.metrics) == ("test_share" in more)
    store = Store(config.root)
    package = load_package(store, model)
    assert package.pixel_scale == pytest.approx(0.2, abs=0.2)
    assert store.names("training/photoz_images")
    logs = [name for name in store.names(f"runs/train-{model}") if name]
    assert store.names(f"runs/train-{model}/{logs[0]}") == ["log"]
    again = surveyproc("train", survey_copy, "--product", "photoz_images")
    assert again.returncode == 0, again.stderr
    assert f"version {done.version}\n  held out: " in again.stdout
    assert again.stdout.count("\n") == 1 + len(done.metrics)
    released = verbs.run(Survey(config))
    assert released.did == "published"
    table = pq.read_table(released.url + "/dataset")
    prefix = model.replace("-", "_")
    flags = table["photoz_images_flag"].to_numpy()
    regression = "regression" in network
    assert (f"{prefix}_z_median" in table.column_names) != regression
    redshift = table[f"{prefix}_z_{'point' if regression else 'median'}"].to_numpy()
    assert np.isfinite(redshift[flags == 0]).all()
    if "bands" in more:
        assert package.bands == ("g", "r", "i", "K")
    assert (flags == 0).mean() > 0.5
    assert table.num_rows == released.rows == 240
    column = f"{prefix}_z_{'point' if regression else 'median'}"
    judged = verbs.evaluate(Survey(config), column=column)
    assert judged.all["n"] > 100
    assert (judged.pdf is not None) != regression
    assert column in Path(write_report(Survey(config)).report).read_text()


def test_labels_beyond_the_bins_are_named(survey_copy):
    config = with_product(survey_copy, "multimodal", "{ width = 0.03, bins = [10, 0.0, 0.2] }")
    with pytest.raises(InputError, match=r"outside the range of the network, 0 to 0\.2"):
        verbs.train(Survey(config), "photoz_images")


ALIKE = """
[[products]]
name = "network_alike"
model = "alike"
architecture = "contrastive"
architecture_settings = { cutout = 32, hidden = 8, projection = 4, image_bands = ["g", "r", "i"] }
[products.training]
source = "truth.parquet"
epochs = 1
batch_size = 32
"""


def test_learning_without_labels_from_the_surveys_own_cutouts(survey_copy):
    """Its embedding serves `similar`; objects whose leaves are adopted keep their indexes."""
    survey_copy.write_text(survey_copy.read_text() + ALIKE)
    survey = Survey(load(survey_copy, ["run.place=here"]))
    verbs.train(survey, "network_alike")
    package = load_package(survey.store, "alike")
    learned = package.document["training"]
    assert learned["rows_known"] == {"likeness": learned["rows"]}
    assert learned["stamps"] is None
    assert package.pixel_scale is not None
    first = verbs.run(survey)
    table = pq.read_table(first.url + "/dataset", columns=["object_id", "alike_embedding"])
    known = table.filter(table["alike_embedding"].is_valid())["object_id"].to_pylist()
    assert len(known) > 200
    found = similar(survey, object_id=known[0], n=5)
    assert len(found.neighbours) == 5
    # A catalog that grew by a row: one partition is computed, the others' indexes are copied.
    indexes = sums(Path(first.url) / neighbours.FOLDER)
    catalog = Path(survey.config.resolve(survey.config.catalog.source))
    grown = Table.read(catalog)
    grown.add_row(grown[0])
    grown["object_id"][-1] = 987654
    grown.write(catalog, overwrite=True)
    night = nightly(survey)
    assert (night.did, night.exit_code) == ("published", 0)
    again = sums(Path(verbs.releases(survey).current.url) / neighbours.FOLDER)
    assert again.keys() == indexes.keys()
    assert sum(again[key] != indexes[key] for key in indexes) == 1
    assert similar(survey, object_id=987654, n=3).neighbours[0].object_id == grown["object_id"][0]
