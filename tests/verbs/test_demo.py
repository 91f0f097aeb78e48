"""The README's first command, on a smaller survey."""

import json
import shutil

import pytest
from command import surveyproc
from sums import leaves

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.survey import Survey


@pytest.mark.timeout(300)
def test_the_whole_way_and_its_survey_file_goes_on(tmp_path):
    folder, root = tmp_path / "survey", tmp_path / "elsewhere"
    done = surveyproc("demo", "--out", folder, "--objects", 300, "--root", root, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["catalog"].startswith(str(root))
    assert [one["column"] for one in found["metrics"]] == [
        "gaznet_c9_z_median",
        "gaznet_1_z_median",
    ]
    assert all(one["all"]["n"] > 50 for one in found["metrics"])
    again = surveyproc("run", folder / "survey.toml", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["did"] == "nothing"
    assert not (folder / "store").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_this_process_and_ray_give_the_same_bytes(tmp_path, ray_session):
    done = surveyproc("demo", "--out", tmp_path / "survey", "--objects", 300, "--json")
    assert done.returncode == 0, done.stderr
    survey = tmp_path / "survey" / "survey.toml"
    expected = leaves(survey)
    assert len(expected) > 3
    for place in ("ray", "here"):
        for folder in ("releases", "runs", "images", "catalogs"):
            shutil.rmtree(survey.parent / "store" / folder)
        config = load(survey, [f"run.place={place}"])
        assert {one.place for one in verbs.ingest(Survey(config)).places} == {place}
        assert {one.place for one in verbs.run(Survey(config)).places} == {place}
        assert leaves(survey) == expected
