"""The command itself: exit status, clear errors without tracebacks, machine-readable results."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table, vstack
from command import surveyproc

from surveyproc import verbs
from surveyproc.cli import text
from surveyproc.config import load
from surveyproc.evaluate.compare import Gain
from surveyproc.places import Placement
from surveyproc.releases.diff import ColumnChange, Difference
from surveyproc.releases.flux_ratios import TileRatio
from surveyproc.report.page import Reported
from surveyproc.survey import Survey
from surveyproc.verbs.core import RunResult, Trained
from surveyproc.verbs.demo import Demonstrated
from surveyproc.verbs.evaluation import Evaluation
from surveyproc.verbs.nightly import Night, NightUnits, Swept
from surveyproc.verbs.sources import Changes
from surveyproc.verbs.submit import JobEnd


def words(text: str) -> set[str]:
    return set(text.split())


RELEASE = words(
    "release url path rows rejected duplicates partitions kinds metadata tables pixels "
    "rows_per_second products flags band_flags quarantined damaged searched published"
)
EVALUATION = words(
    "catalog release rows rejected column labels labels_dropped matched threshold thresholds all "
    "unflagged bins pdf"
)
NIGHT = words("survey started before release did exit_code error seconds summary")


@pytest.mark.parametrize(
    ("verb", "keys"),
    [
        ("ingest", words("tiles catalog places")),
        (
            "plan",
            words("run rows rejected units adoptable_units pending_units pending_rows published"),
        ),
        ("run", RELEASE | words("did seconds")),
        ("validate", RELEASE | words("problems")),
        ("releases", words("current releases")),
        ("evaluate", EVALUATION),
        ("clean", words("removed bytes left dry_run")),
    ],
)
def test_verbs_on_a_published_survey_answer_in_json(published_survey, verb, keys):
    options = ["--dry-run"] if verb == "clean" else []
    done = surveyproc(verb, published_survey, "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == keys
    if verb == "releases":
        assert found["current"].keys() == RELEASE
        assert [one.keys() for one in found["releases"]] == [RELEASE | {"current"}]


@pytest.mark.parametrize(
    ("result", "keys"),
    [
        (
            RunResult,
            RELEASE
            | words(
                "did seconds places units units_resumed units_adopted units_computed "
                "rows_computed by_product seconds_computing"
            ),
        ),
        (Evaluation, EVALUATION | {"against", "recognised"}),
        (Gain, words("n n_missing baseline candidate delta gain p_value resamples")),
        (
            Difference,
            words(
                "first second tolerance rows added removed changed columns columns_added "
                "columns_removed leaves_read flux_ratios tables pixels"
            ),
        ),
        (ColumnChange, words("changed lost gained largest")),
        (TileRatio, words("objects ratio between")),
        (
            Night,
            NIGHT
            | words(
                "files tiles kept problems notes places units products quarantined damaged gates "
                "compared diff removed cleaned unsaved"
            ),
        ),
        (NightUnits, words("total affected computed adopted resumed quarantined")),
        (Changes, words("new changed gone")),
        (Swept, words("folders bytes")),
        (Placement, words("what place why")),
        (Trained, words("model version metrics places")),
        (Demonstrated, words("catalog report metrics seconds")),
        (Reported, words("report release rows rejected")),
        (JobEnd, words("job address status exit_code message")),
    ],
)
def test_documents_have_all_the_keys_that_others_rely_on(result, keys):
    assert {one.name for one in fields(result)} == keys


def test_a_night_that_came_to_nothing_says_what_it_knows():
    night = Night(survey="a", started="now", before=None, release=None, summary="there")
    assert json.loads(text.as_json(night)).keys() == NIGHT


def test_current_release_is_one_line_that_lsdb_opens(published_survey):
    import lsdb

    done = surveyproc("releases", published_survey, "--current")
    assert len(done.stdout.splitlines()) == 1
    assert len(lsdb.open_catalog(done.stdout.strip()).compute()) == 240


def test_evaluation_is_printed_as_a_table(published_survey):
    url = surveyproc("releases", published_survey, "--current").stdout.strip()
    done = surveyproc("evaluate", published_survey, "--catalog", url, "--magnitude", "flux_i")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"of {url} against" in lines[0]
    assert lines[0].endswith("|dz| > 0.15, 0.05")
    for start in ("all ", "unflagged ", "true redshift", "magnitude i", "PDFs, all: n ="):
        assert sum(line.startswith(start) for line in lines) == 1
    assert max(map(len, lines[2:-2])) <= 100
    free = surveyproc("evaluate", published_survey, "--outlier", "0.1").stdout.splitlines()
    assert "> 0.15, %      > 0.05, %      > 0.1, %       bias" in free[2]
    row = next(line for line in free if line.startswith("all "))
    assert row.count(" ± ") == 5


def test_a_magnitude_that_is_not_there_is_named(published_survey):
    done = surveyproc("evaluate", published_survey, "--magnitude", "mag_q")
    assert done.returncode == 2
    assert "has no column 'mag_q'" in done.stderr


def test_a_column_against_another_one_is_printed(published_survey):
    column = verbs.evaluate(Survey(load(published_survey))).column
    other = column.replace("_median", "_mean")
    done = surveyproc("evaluate", published_survey, "--column", column, "--baseline", other)
    _, _, table = done.stdout.partition(f"against {other}, outliers: |dz| > 0.15:")
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["nmad", "outlier", "bias"]
    assert table.count("p = ") == table.count("gain ") == 3


@pytest.mark.parametrize(
    ("verb", "section"), [("evaluate", "[truth]"), ("train", "[products.training]")]
)
def test_help_does_not_take_sections_for_markup(verb, section):
    assert section in surveyproc(verb, "--help").stdout


def test_json_has_no_nan():
    assert json.loads(
        text.as_json({"a": [np.nan, 1.0, (np.inf,)], "b": {"c": np.float64("nan")}})
    ) == {
        "a": [None, 1.0, [None]],
        "b": {"c": None},
    }


def test_a_repeated_run_says_that_there_is_nothing_to_do(published_survey):
    done = surveyproc("run", published_survey)
    assert done.returncode == 0
    assert "nothing to do" in done.stdout


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["--set", "images.bnads=3"],
            "unknown key 'images.bnads'; the nearest known key is 'bands'",
        ),
        (["--set", "run.workers=many"], "key 'run.workers'"),
        (["--set", "products.photoz.model=absent"], "no model is called 'absent'"),
    ],
)
def test_bad_configuration_ends_with_2_and_one_clear_message(published_survey, extra, message):
    done = surveyproc("run", published_survey, *extra)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gate_that_refuses_ends_with_3(survey_copy):
    done = surveyproc("run", survey_copy, "--set", "gates.max_null_share=0.0")
    assert done.returncode == 3
    assert "gates refused" in done.stderr
    assert surveyproc("releases", survey_copy).returncode == 2


def test_bad_rows_and_a_truncated_tile_are_named_and_cost_nothing_else(survey_copy):
    folder = survey_copy.parent
    table = Table.read(folder / "sources.fits")
    bad = table[:4].copy()
    bad["ra"][0], bad["dec"][1], bad["ra"][2] = np.nan, 91.0, 500.0
    bad["object_id"][:3] = [9001, 9002, 9003]  # the fourth repeats an id at its own place
    vstack([table, bad]).write(folder / "sources.fits", overwrite=True)
    tile = folder / "tiles" / "t00_u.fits"
    tile.write_bytes(tile.read_bytes()[:20_000])
    ingested = surveyproc("ingest", survey_copy)
    # What could be done is done; the status says that there were problems.
    assert ingested.returncode == 2, ingested.stderr
    assert "244 rows in, 241 in" in ingested.stdout
    assert "3 rejected, 2 with a duplicate id" in ingested.stdout
    assert "t00_u.fits" in ingested.stdout
    done = surveyproc("run", survey_copy)
    assert done.returncode == 0, done.stderr
    assert "241 objects, 3 rejected rows" in done.stdout
    flags = verbs.run(Survey(load(survey_copy))).flags
    assert flags["photometry"]["missing_band"] > 0


@pytest.mark.slow
def test_a_night_its_difference_and_the_way_back(survey_copy):
    job = Path(__file__).parent.parent.parent / "jobs" / "nightly.py"
    first = subprocess.run([sys.executable, job, survey_copy], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "tiles new: t00, t01, t02, t03" in first.stdout
    wider = ("--set", "products.photometry.aperture=1.5")
    refused = surveyproc("nightly", survey_copy, "--json", *wider, "--set", "nightly.max_drift=0.0")
    assert refused.returncode == 3
    assert "error: release" in refused.stderr
    summary = json.loads(refused.stdout)
    assert (summary["did"], summary["exit_code"]) == ("refused", 3)
    assert summary["gates"][0].keys() == {"gate", "where", "found", "allowed"}
    limits = (
        *("max_drift=1.0", "max_share_growth=1.0"),
        *("max_metric_growth=9.0", "max_flux_shift=1.0"),
    )
    loose = [part for limit in limits for part in ("--set", f"nightly.{limit}")]
    done = surveyproc("nightly", survey_copy, *wider, *loose)
    assert done.returncode == 0, done.stderr
    assert "240 changed by more than" in done.stdout
    one, other = summary["before"], json.loads(Path(done.stdout.split()[-1]).read_text())["release"]
    compared = surveyproc("releases", survey_copy, "--diff", other, one, "--tolerance", "1e9")
    assert f"{other} to {one}: 0 rows added, 0 removed, " in compared.stdout
    back = surveyproc("releases", survey_copy, "--rollback", one)
    assert f"release {one} is published again" in back.stdout
    again = surveyproc("nightly", survey_copy, *wider)
    assert again.returncode == 3
    assert "was withdrawn" in again.stderr


def test_job_entry_points_are_the_verbs(published_survey):
    jobs = Path(__file__).parent.parent.parent / "jobs"
    for job, found in (
        ("ingest", "0 written, 4 unchanged"),
        ("run", "nothing to do"),
    ):
        done = subprocess.run(
            [sys.executable, jobs / f"{job}.py", published_survey], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert found in done.stdout


def test_control_characters_of_file_names_reach_no_terminal(tmp_path):
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "t\x1b]0;owned\x07\x1b[31m.fits").write_text("no fits")
    (tmp_path / "sources.csv").write_text("object_id,ra,dec\n1,1,1\n")
    toml = tmp_path / "survey.toml"
    toml.write_text(
        '[survey]\nname = "x"\nroot = "./store"\n[images]\nbands = ["r"]\ntiles = ["tiles/*"]\n'
        '[catalog]\nsource = "sources.csv"\n'
    )
    done = surveyproc("ingest", str(toml))
    assert done.returncode == 2
    assert "\x1b" not in done.stdout + done.stderr
    assert r"t\x1b]0;owned\x07" in done.stderr
