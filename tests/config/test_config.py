"""survey.toml: every error names the key; overrides beat the file beats the environment."""

import json
from pathlib import Path

import fsspec
import pytest

from surveyproc.config import load
from surveyproc.config.file import json_schema
from surveyproc.errors import ConfigError

MINIMAL = """
[survey]
name = "tiny"
root = "./store"
[images]
tiles = ["tiles/*.fits"]
bands = ["g", "r"]
[catalog]
source = "sources.fits"
[[products]]
name = "photometry"
aperture = 1.5
"""


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str) -> Path:
        path = tmp_path / "survey.toml"
        path.write_text(text)
        return path

    return _write


def test_defaults_and_paths_relative_to_the_file(write, tmp_path):
    config = load(write(MINIMAL), environment={})
    assert config.images.band_keyword == "FILTER"
    assert config.root == str(tmp_path / "store")
    assert config.resolve("s3://bucket/x") == "s3://bucket/x"


def test_overrides_beat_file_beats_environment_beats_defaults(write):
    path = write(MINIMAL)
    environment = {"SURVEYPROC_SURVEY_NAME": "other", "SURVEYPROC_RUN_WORKERS": "3"}
    config = load(path, ["images.band_keyword=BAND", "run.workers=1"], environment)
    assert config.survey.name == "tiny"
    assert config.run.workers == 1
    assert config.images.band_keyword == "BAND"
    assert load(path, environment=environment).run.workers == 3


def test_override_values_are_toml_and_bare_words_strings(write):
    config = load(
        write(MINIMAL), ["images.zeropoints={g = 25.0}", "products.photometry.aperture=2.0"]
    )
    assert config.images.zeropoints == {"g": 25.0}
    assert config.product("photometry").aperture == [2.0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "sources.fits"', 'sorce = "x"', "'catalog.sorce'; the nearest known key is 's"),
        ("aperture", "apperture", "'products.photometry.apperture'; the nearest known key is"),
        ("[catalog]", "[catalogue]", "'catalogue'; the nearest known key is 'catalog'"),
        ("aperture = 1.5", 'aperture = "wide"', "'products.photometry.aperture': Input should"),
        ("aperture = 1.5", "aperture = [1.5, 2, 1.5]", "aperture': a radius is named twice"),
        ("aperture = 1.5", "aperture = []", "'products.photometry.aperture'"),
        ("aperture = 1.5", "aperture = -1.0", "'products.photometry.aperture"),
        ('root = "./store"', "", "key 'survey.root' is missing"),
        ('bands = ["g", "r"]', 'bands = ["g", "g"]', "a band is named twice"),
        ('name = "tiny"', 'name = "../evil"', "'survey.name'"),
        ("[survey]", "[survey", "not valid TOML"),
        ('"./store"', '"s3://key:s3cret@bucket/a"', "'survey.root': this URL holds a user name"),
        ('"./store"', '"https://host/a"', "'survey.root': a web server cannot be written to"),
    ],
)  # fmt: skip
def test_errors_name_the_key(write, old, new, message):
    with pytest.raises(ConfigError, match=None) as caught:
        load(write(MINIMAL.replace(old, new, 1)), environment={})
    assert message in str(caught.value)
    assert "survey.toml" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("item", ["nonsense", "run=3", "products.nope.aperture=1", "a.b.=1"])
def test_unusable_overrides_are_refused(write, item):
    with pytest.raises(ConfigError):
        load(write(MINIMAL), [item])


def test_products_that_are_no_tables_are_named(write):
    text = MINIMAL[: MINIMAL.index("[[products]]")]
    path = write('products = ["photometry"]\n' + text)
    with pytest.raises(ConfigError, match=r"'products\.0': must be a section"):
        load(path, environment={})
    with pytest.raises(ConfigError, match="no products entry is called 'photometry'"):
        load(path, ["products.photometry.aperture=2.0"], environment={})
    with pytest.raises(ConfigError, match="'products'"):
        load(write('products = "photometry"\n' + text), environment={})


@pytest.mark.parametrize(
    "model", ["gaznet-c9", "gaznet-c9@3f2a", "../models/my net", "s3://bucket/models/x@1"]
)
def test_a_model_is_a_name_a_version_or_a_path(write, model):
    text = MINIMAL + f'[[products]]\nname = "photoz"\nmodel = "{model}"\n'
    assert load(write(text), environment={}).product("photoz").model == model


@pytest.mark.parametrize("model", ["", "a\\nb", "a\\u0000b", "x" * 2000])
def test_a_model_reference_is_one_line_of_text(write, model):
    text = MINIMAL + f'[[products]]\nname = "photoz"\nmodel = "{model}"\n'
    with pytest.raises(ConfigError, match=r"products\.photoz\.model"):
        load(write(text), environment={})


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("SURVEYPROC_RUN_WORKER", "nearest known variable is SURVEYPROC_RUN_WORKERS"),
        ("SURVEYPROC_TRUTH_SORCE", "nearest known variable is SURVEYPROC_TRUTH_SOURCE"),
        ("SURVEYPROC_PRODUCTS_PHOTOMETRY_APERTURE", "use --set"),
    ],
)
def test_unknown_variables_of_a_section_are_named(write, variable, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(MINIMAL), environment={variable: "1"})
    assert variable in str(caught.value)


def test_variables_of_no_section_are_not_ours(write):
    load(write(MINIMAL), environment={"SURVEYPROC_TRACEBACK": "1", "SURVEYPROC_RUNNER": "x"})


def test_tiles_are_found_under_a_folder_with_glob_characters(tmp_path):
    base = tmp_path / "run [2026] *"
    (base / "tiles").mkdir(parents=True)
    for name in ("b.fits", "a.fits"):
        (base / "tiles" / name).touch()
    (base / "survey.toml").write_text(MINIMAL)
    found = load(base / "survey.toml", environment={}).tile_files()
    assert found == [str(base / "tiles" / name) for name in ("a.fits", "b.fits")]
    elsewhere = MINIMAL.replace(
        '"tiles/*.fits"', f'"{tmp_path}/*/tiles/a.fits", "memory://config/*.fits"'
    )
    (tmp_path / "survey.toml").write_text(elsewhere)
    fsspec.filesystem("memory").pipe_file("/config/b.fits", b"")
    found = load(tmp_path / "survey.toml", environment={}).tile_files()
    assert found == [str(base / "tiles" / "a.fits"), "memory:///config/b.fits"]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load(tmp_path / "absent.toml")


def test_pattern_that_matches_nothing_is_named(write):
    with pytest.raises(ConfigError, match=r"tiles/\*\.fits"):
        load(write(MINIMAL)).tile_files()


def test_json_schema_on_disk_is_the_one_of_the_code():
    path = Path(__file__).parent.parent.parent / "schemas" / "survey.schema.json"
    written = json.loads(path.read_text())
    assert written == json_schema(), (
        "schemas/survey.schema.json is stale: write json.dumps(json_schema(), indent=1) into it"
    )


TRAINED = """
[[products]]
name = "photoz"
model = "gaznet-c2"
[products.training]
source = "labels.fits"
redshift = "z"
"""


def test_redshifts_to_train_with_are_two_numbers_in_order(write):
    config = load(write(MINIMAL + TRAINED + "redshifts = [0.04, 3]"), environment={})
    assert config.product("photoz").training.redshifts == [0.04, 3.0]
    for wrong in ("[3.0, 0.04]", "[0.1]", "0.1"):
        with pytest.raises(ConfigError, match="redshifts"):
            load(write(MINIMAL + TRAINED + f"redshifts = {wrong}"), environment={})


@pytest.mark.parametrize(
    "line", ["learning_rates = [inf]", "learning_rates = [0.0]", f"seed = {2**70}", "radius = inf"]
)
def test_numbers_that_no_training_can_use_are_refused(write, line):
    with pytest.raises(ConfigError, match=line.split()[0]):
        load(write(MINIMAL + TRAINED + line), environment={})


def test_two_products_of_one_model_are_refused(write):
    text = MINIMAL + TRAINED + TRAINED.replace('"photoz"', '"photoz_b"')
    with pytest.raises(ConfigError, match="model 'gaznet-c2'"):
        load(write(text), environment={})
