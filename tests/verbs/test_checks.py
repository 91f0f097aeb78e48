"""Checks before work: everything that can be known, told at once, before anything is written."""

from pathlib import Path

import pytest

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.errors import ConfigError, InputError, StoreError, near
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.verbs import checks

SOURCES = "object_id,ra,dec\n1,10.0,2.0\n2,10.1,2.1\n"


def survey(folder: Path, catalog: str = "", more: str = "", images: str = ""):
    (folder / "sources.csv").write_text(SOURCES)
    (folder / "survey.toml").write_text(
        f'[survey]\nname = "s"\nroot = "store"\n[images]\nbands = ["g", "r"]\n{images}\n'
        f'[catalog]\nsource = "sources.csv"\n{catalog}\n{more}'
    )
    return load(folder / "survey.toml")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"images": "zeropoints = { R = 25.0 }"}, ConfigError, "'R' is not in .*nearest is 'r'"),
        ({"images": "zeropoints = { Y = 25.0 }"}, ConfigError, r"'Y' is not in .*\(g, r\)$"),
        ({"images": 'file_pattern = "(?P<band"'}, ConfigError, "file_pattern: .* is no pattern"),
        ({"images": 'file_pattern = "_(.)_"'}, ConfigError, "no group named tile, band or kind"),
        ({"images": 'tiles = ["*.fits"]'}, ConfigError, "matches no file"),
        ({"catalog": 'ra = "RAJ2000"'}, InputError, r"'RAJ2000' \(catalog.ra\)"),
        ({"catalog": 'reddening = "EBV"'}, ConfigError, "catalog.reddening: .*'EBV'"),
        (
            {"more": '[truth]\nsource = "sources.csv"\nredshift = "z"\nselect = "good"'},
            InputError,
            r"no column 'z' \(truth.redshift\), 'good' \(truth.select\); there are object_id",
        ),
    ],
)
def test_an_ingest_is_refused_before_anything_is_written(tmp_path, given, error, words):
    with pytest.raises(error, match=words):
        verbs.ingest(Survey(survey(tmp_path, **given)))
    assert not (tmp_path / "store").exists()


def test_label_tables_of_a_training_are_looked_at_by_the_ingest(tmp_path):
    config = survey(
        tmp_path,
        more='[[products]]\nname = "photoz"\nmodel = "gaznet-c2"\n[products.training]\n'
        'source = "sources.csv"\nredshift = "dec"\nmagnitudes = { g = "mag_g", r = "ra" }\n',
    )
    with pytest.raises(InputError, match=r"'mag_g' \(products.photoz.training.magnitudes.g\)"):
        checks.before_ingest(Survey(config))


def training(*lines):
    return (
        '[[products]]\nname = "photoz"\nmodel = "gaznet-c2"\n[products.training]\n'
        'source = "sources.csv"\n' + "\n".join(lines)
    )


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ('targets = { class = "kind" }',),
            r"'kind' \(\S*photoz.training.targets.class\)",
        ),
        (
            ('targets = { votes = ["ra", "b"] }',),
            r"'b' \(\S*training.targets.votes\[1\]\)",
        ),
        (('redshift = "dec"', 'id = "name"', 'ra = "no"'), r"no column 'name' \(\S*training.id\);"),
    ],
)
def test_targets_and_ids_of_label_tables_too(tmp_path, lines, words):
    config = survey(tmp_path, more=training(*lines))
    with pytest.raises(InputError, match=words):
        checks.before_ingest(Survey(config))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), r"products\.photoz: training: no label column is named: set training\.redshift or"),
        (
            ('targets = { class = "ra" }',),
            r"products\.photoz: task 'redshift' .* set training",
        ),
        (
            ('redshift = "ra"', 'targets = { class = "ra" }'),
            r"products\.photoz: training\.targets\.class: no task .* its keys are training\.redsh",
        ),
        (
            ('redshift = "ra"', 'id = "object_id"', 'magnitudes = { g = "ra", r = "dec" }'),
            r"products\.photoz\.training: id matches .* leave one of them out",
        ),
    ],
)
def test_a_training_without_what_its_tasks_learn_from_is_refused(tmp_path, lines, words):
    config = survey(tmp_path, more=training(*lines))
    with pytest.raises(ConfigError, match=words):
        checks.before_training(Survey(config), config.products)


def test_all_findings_come_in_one_message(tmp_path):
    config = survey(
        tmp_path,
        catalog='ra = "RAJ2000"',
        images='zeropoints = { Y = 1.0 }\ntiles = ["nowhere/*.fits"]',
    )
    with pytest.raises(ConfigError, match="3 things to mend") as error:
        checks.before_ingest(Survey(config))
    assert [line[:8] for line in str(error.value).splitlines()[1:]] == [
        "- images", "- images", f"- {tmp_path}"[:8],
    ]  # fmt: skip


def test_a_plan_tells_all_that_stands_in_its_way(tmp_path):
    more = '[[products]]\nname = "photometry"\n[[products]]\nname = "photoz"\nmodel = "mine"\n'
    config = survey(tmp_path, more=more)
    with pytest.raises(InputError, match="2 things to mend") as error:
        checks.planned(Survey(config))
    assert "no catalog of s" in str(error.value)
    assert str(error.value).count("surveyproc train") == 1


def test_a_survey_does_not_train_the_model_of_another_one(tmp_path):
    more = (
        '[[products]]\nname = "photoz"\nmodel = "gaznet-c2"\n[products.training]\n'
        'source = "sources.csv"\nredshift = "dec"\nmagnitudes = { g = "dec", r = "ra" }\n'
    )
    config = survey(tmp_path, more=more)
    store = Store(config.root)
    store.put_json("models/gaznet-c2/current.json", {"version": "v1"})
    for name, sections in (("s", config.products), ("other", [])):
        store.put_json("models/gaznet-c2/v1/model.json", {"training": {"survey": name}})
        checks.before_training(Survey(config), sections)
    with pytest.raises(ConfigError, match="'gaznet-c2' was trained by survey 'other'"):
        checks.before_training(Survey(config), config.products)


def test_a_root_that_cannot_be_written_to_is_named(tmp_path):
    config = survey(tmp_path)
    (tmp_path / "store").write_text("no folder")
    with pytest.raises(StoreError, match=r"^survey.root: nothing can .*\(Not a directory\)"):
        verbs.ingest(Survey(config))


def test_a_name_is_offered_only_if_it_is_near():
    assert near("photometri", ["photometry", "photoz"]) == "; the nearest is 'photometry'"
    assert near("KS", ["J", "Ks"]) == "; the nearest is 'Ks'"
    assert near("Y", ["u", "g"]) == near("Y", []) == ""
