"""The examples, run on the real data they describe."""

import importlib.util
from pathlib import Path

import pytest
from sums import is_leaf, sums

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.config.sections import RunSection
from surveyproc.simulate import simulate
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def images_model(tmp_path_factory):
    """The package of the network of images, hardly trained."""
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, objects=300, workers=2, pixel_scale=0.3)
    config = load(
        EXAMPLES / "kids_viking" / "simulated.toml",
        [
            f"survey.root={folder}/store",
            f'images.tiles=["{folder}/tiles/*.fits"]',
            f"catalog.source={folder}/sources.fits",
            f"products.photoz_images.training.source={folder}/truth.parquet",
            "products.photoz_images.training.epochs=1",
        ],
    )
    verbs.ingest(Survey(config))
    verbs.train(Survey(config))
    return f"{folder}/store/models/gaznet-1"


@pytest.fixture(scope="module")
def kids_viking(survey_data, images_model, tmp_path_factory):
    store = tmp_path_factory.mktemp("kids_viking") / "store"
    config = load(
        EXAMPLES / "kids_viking" / "survey.toml",
        [
            f"survey.root={store}",
            "products.photometry.aperture=1.05",
            "products.photoz.training.epochs=1",
            f"products.photoz_images.model={images_model}",
        ],
    )
    verbs.ingest(Survey(config))
    verbs.train(Survey(config))
    return config, verbs.run(Survey(config))


def test_every_source_of_the_real_field_comes_out_once(kids_viking):
    config, done = kids_viking
    assert done.rows == 894
    assert done.rejected == 0
    assert done.partitions > 1
    # One source lies 0.25 px outside both tiles.
    assert done.flags["photometry"]["no_image"] == 1
    assert verbs.validate(Survey(config)).problems == []


@pytest.mark.ray
def test_ray_gives_the_same_bytes(kids_viking, ray_session):
    config, done = kids_viking
    expected = sums(done.url, is_leaf)
    assert {one.place for one in done.places} == {"here"}
    store = Store(config.root)
    for folder in (f"releases/{config.survey.name}", f"runs/{done.release}"):
        store.remove(folder)
    on_ray = config.model_copy(update={"run": RunSection(place="ray", workers=2)})
    again = verbs.run(Survey(on_ray))
    assert {one.place for one in again.places} == {"ray"}
    assert sums(again.url, is_leaf) == expected


@pytest.fixture(scope="module")
def script():
    path = EXAMPLES / "kids_viking" / "compare.py"
    spec = importlib.util.spec_from_file_location("compare", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_kinds_of_redshifts_with_flags_outside_the_training_range(kids_viking, script):
    config, done = kids_viking
    rows = script.published(config)
    assert rows.gaznet_1_z_median.notna().sum() == rows.gaznet_c7_z_median.notna().sum() == 893
    for product in ("photoz", "photoz_images"):
        assert 100 < done.flags[product]["outside_training_range"] < 600
    # Edge, bad pixels: the images' own flags; the edge is that of the network's own cutouts.
    assert done.flags["photoz_images"]["edge"] > 20
    both = (rows.photoz_flag == 0) & (rows.photoz_images_flag == 0)
    assert script.compare_redshifts(config)["n"] == both.sum() > 100


def test_own_magnitudes_agree_with_those_of_the_input_in_every_band(kids_viking, script):
    rows = script.compare(kids_viking[0])
    assert [band for band, *_ in rows] == ["u", "g", "r", "i", "Z", "Y", "J", "H", "Ks"]
    for band, n, median, scatter in rows:
        assert n > 60, band
        assert abs(median) < 0.015, band
        assert scatter < 0.025, band
