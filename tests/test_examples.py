"""The examples, run on the real data they describe."""

import importlib.util
from pathlib import Path

import pytest

from surveyproc import verbs
from surveyproc.config import load

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def kids_viking(survey_data, workers, tmp_path_factory):
    store = tmp_path_factory.mktemp("kids_viking") / "store"
    config = load(
        EXAMPLES / "kids_viking" / "survey.toml",
        [
            f"survey.root={store}",
            "products.photometry.aperture=1.05",
            "products.photoz.training.epochs=1",
        ],
    )
    verbs.ingest(config)
    verbs.train(config)
    return config, verbs.run(config)


def test_every_source_of_the_real_field_comes_out_once(kids_viking):
    config, done = kids_viking
    assert done["rows"] == 894
    assert done["rejected"] == 0
    assert done["partitions"] > 1
    # One source lies 0.25 px outside both tiles.
    assert done["flags"]["photometry"]["no_image"] == 1
    assert verbs.validate(config)["problems"] == []


def test_own_magnitudes_agree_with_those_of_the_input_in_every_band(kids_viking):
    path = EXAMPLES / "kids_viking" / "compare.py"
    spec = importlib.util.spec_from_file_location("compare", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = script.compare(kids_viking[0])
    assert [band for band, *_ in rows] == ["u", "g", "r", "i", "Z", "Y", "J", "H", "Ks"]
    for band, n, median, scatter in rows:
        assert n > 60, band
        assert abs(median) < 0.015, band
        assert scatter < 0.025, band
