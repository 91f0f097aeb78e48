"""The README's first command, on a smaller survey."""

import json

from command import surveyproc


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
