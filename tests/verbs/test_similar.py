"""From a network's embedding to the objects most like one: run, index, search, and its errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import task_networks
import torch
from astropy.io import fits
from PIL import Image
from sums import sums

import surveyproc
from surveyproc import verbs
from surveyproc.catalogs import hats, neighbours
from surveyproc.cli import text
from surveyproc.config import load
from surveyproc.errors import ConfigError, InputError, StoreError
from surveyproc.models.base import build
from surveyproc.models.package import save_package
from surveyproc.run import commit
from surveyproc.run.plan import make_plan
from surveyproc.survey import Survey
from surveyproc.verbs.similar import similar

SECTION = '\n[[products]]\nname = "looks"\nkind = "network"\nmodel = "test-looks"\n'
COLUMN = "test_looks_embedding"
BANDS = ("g", "r", "i")
HERE = ["run.place=here"]


def make_model(survey, seed=0):
    """A network without training, its codes fitted to what it says of noise."""
    torch.manual_seed(seed)
    network = build("test-looks", BANDS, {})
    noise = torch.randn(500, 3, 12, 12) * 60
    with torch.no_grad():
        network.tasks[0].fit(network(noise)["embedding"].numpy())
    save_package(
        survey.store, "test-looks", architecture="test-looks", settings={}, bands=BANDS,
        scaling=None, members=[network.state_dict()],
    )  # fmt: skip


def place(published_survey, folder):
    """A copy of the survey with the product; published again."""
    assert task_networks.Looks
    shutil.copytree(published_survey.parent, folder)
    path = folder / "survey.toml"
    path.write_text(path.read_text() + SECTION)
    survey = surveyproc.open(path, HERE)
    make_model(survey)
    return survey, verbs.run(survey)


@pytest.fixture(scope="module")
def looked(published_survey, tmp_path_factory):
    return place(published_survey, tmp_path_factory.mktemp("looks") / "survey")


@pytest.fixture(scope="module")
def survey(looked):
    return looked[0]


@pytest.fixture(scope="module")
def rows(survey):
    """All rows of the release, with codes as (n, 32)."""
    url = verbs.releases(survey).current.url
    table = pq.read_table(f"{url}/dataset", columns=["object_id", "ra", "dec", COLUMN])
    known = table.filter(table[COLUMN].is_valid())
    codes = np.array(known[COLUMN].to_pylist(), np.int64)
    return known["object_id"].to_numpy(), known["ra"].to_numpy(), known["dec"].to_numpy(), codes


@pytest.fixture
def copied(looked, tmp_path):
    shutil.copytree(looked[0].config.base, tmp_path / "copy")
    return surveyproc.open(tmp_path / "copy" / "survey.toml", HERE)


def ids_of(found):
    return [one.object_id for one in found.neighbours]


def test_the_nearest_are_those_of_brute_force(survey, rows):
    numbers, ra, dec, codes = rows
    assert codes.shape[1] == 32
    assert codes.std() > 5
    squares = ((codes - codes[17]) ** 2).sum(axis=1)
    order = [one for one in np.lexsort((numbers, squares)) if one != 17][:7]
    found = survey.similar(int(numbers[17]), n=7)
    assert ids_of(found) == numbers[order].tolist()
    told = [one.distance for one in found.neighbours]
    np.testing.assert_allclose(told, np.sqrt(squares[order]))
    assert (found.column, found.of.object_id) == (COLUMN, numbers[17])
    # By text, as the command line has it, and by a position half an arcsecond away.
    assert survey.similar(str(numbers[17]), n=7) == found
    near = survey.similar(position=(ra[17], dec[17] + 0.5 / 3600), n=7)
    assert near == found
    lines = text.similar_lines(found)
    assert len(lines) == 8
    assert str(numbers[order[0]]) in lines[1]


def test_more_than_there_are_gives_all_others(survey, rows):
    found = ids_of(survey.similar(int(rows[0][0]), n=10_000))
    assert sorted(found) == sorted(rows[0][1:].tolist())


def test_an_image_finds_the_object_that_it_is_of(survey, rows, tmp_path):
    numbers, ra, dec, _ = rows
    stamp = survey.cutouts(ra[5], dec[5], 12, BANDS).images[0]
    fits.PrimaryHDU(stamp).writeto(tmp_path / "one.fits")
    found = survey.similar(image=tmp_path / "one.fits", n=3)
    assert ids_of(found)[0] == numbers[5]
    assert found.neighbours[0].distance == 0.0
    fits.PrimaryHDU(np.full_like(stamp, np.nan)).writeto(tmp_path / "empty.fits")
    with pytest.raises(InputError, match="makes no embedding of it"):
        survey.similar(image=tmp_path / "empty.fits")
    fits.PrimaryHDU(stamp[:2]).writeto(tmp_path / "two.fits")
    with pytest.raises(InputError, match="has 2 bands, and the model reads 3"):
        survey.similar(image=tmp_path / "two.fits")
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(tmp_path / "colours.png")
    with pytest.raises(InputError, match=r"colours\.png: a colour image .* learned from fluxes in"):
        survey.similar(image=tmp_path / "colours.png")


def test_an_index_is_a_file_of_the_unit(copied):
    """Listed with its checksum, seen by validate and rollback, mended by the next run."""
    plan = make_plan(copied)
    records = list(commit.read_all(copied.store, plan))
    for unit, record in zip(plan.units, records, strict=True):
        key = "/" + neighbours.index_key(COLUMN, unit.order, unit.pixel)
        assert [file.key for file in record.indexes] == [key]
        assert record.stats[COLUMN].histogram == ""
    assert verbs.validate(copied).problems == []
    lost = Path(copied.store.path(plan.release_key + records[0].indexes[0].key))
    kept = lost.read_bytes()
    lost.write_bytes(kept[:-1] + b"x")
    (problem,) = verbs.validate(copied).problems
    assert problem.endswith(".arrow differs from its commit record")
    lost.unlink()
    with pytest.raises(StoreError, match="is missing"):
        verbs.rollback(copied, plan.run)
    key = hats.leaf_key(plan.units[0].order, plan.units[0].pixel)
    leaf = hats.read_leaf(copied.store, f"{plan.release_key}/{key}", ["object_id"])
    number = leaf["object_id"][0].as_py()
    with pytest.raises(StoreError, match=r"\.arrow cannot be read .*repeat"):
        copied.similar(number)


def test_carried_or_computed_the_indexes_are_the_same_bytes(copied, looked):
    """Photometry is computed anew, the embeddings carried over: their indexes are made of them."""
    first = Path(looked[1].url) / neighbours.FOLDER
    opened = Survey(
        load(f"{copied.config.base}/survey.toml", [*HERE, "products.photometry.aperture=1.7"])
    )
    done = verbs.run(opened)
    assert done.by_product["looks"]["computed"] == 0
    assert sums(Path(done.url) / neighbours.FOLDER) == sums(first)
    assert verbs.validate(opened).problems == []


# astropy's own Parquet files say how long the texts are; it measures those of others.
@pytest.mark.filterwarnings("ignore:No table..len..:astropy.utils.exceptions.AstropyUserWarning")
def test_the_release_is_read_by_others(looked):
    """hats finds the catalog valid, and astropy reads codes as a table of whole numbers."""
    from astropy.table import Table
    from hats.io.validation import is_valid_catalog

    assert is_valid_catalog(looked[1].url, strict=True)
    leaf = next(Path(looked[1].url).rglob("Npix=*.parquet"))
    table = Table.read(leaf, format="parquet.votable")
    assert np.array(table[COLUMN].tolist()).shape == (len(table), 32)
    frame = looked[0].catalog(columns=["object_id", COLUMN]).compute()
    assert len(frame.iloc[0][COLUMN]) == 32


def test_what_cannot_be_asked_is_named(survey, rows, published_survey):
    numbers = rows[0]
    with pytest.raises(InputError, match="has no object '123456789'"):
        survey.similar(123456789)
    for name in ("NGC 1", "--5", "\u0665"):
        with pytest.raises(InputError, match=f"has no object '{name}'"):
            survey.similar(name)
    with pytest.raises(InputError, match=r"no object within 2 arcsec of \(200, 80\)"):
        survey.similar(position=(200.0, 80.0))
    with pytest.raises(ConfigError, match=r"\(10, 100\) is no position in degrees"):
        survey.similar(position=(10.0, 100.0))
    with pytest.raises(ConfigError, match="needs one of"):
        survey.similar()
    with pytest.raises(ConfigError, match="needs one of"):
        survey.similar(int(numbers[0]), image="one.png")
    with pytest.raises(ConfigError, match="1 is the least"):
        survey.similar(int(numbers[0]), n=0)
    with pytest.raises(ConfigError, match="has no embedding 'test_looks'; the nearest is 'test_lo"):
        survey.similar(int(numbers[0]), column="test_looks")
    with pytest.raises(InputError, match="has no embeddings: add a product"):
        similar(Survey(load(published_survey)), object_id=1)


def test_an_object_without_an_embedding_is_named(copied):
    """A row whose code is null: no cutout reaches it, or the model failed."""
    plan = make_plan(copied)
    unit = plan.units[0]
    key = f"{plan.release_key}/{hats.leaf_key(unit.order, unit.pixel)}"
    leaf = hats.read_leaf(copied.store, key)
    place = leaf.schema.get_field_index(COLUMN)
    codes = [None, *leaf[COLUMN].to_pylist()[1:]]
    field = leaf.schema.field(place)
    path = copied.store.path(key)
    pq.write_table(leaf.set_column(place, field, pa.array(codes, field.type)), path)
    number = leaf["object_id"][0].as_py()
    with pytest.raises(InputError, match=f"object {number} has no {COLUMN} .* looks_flag says"):
        copied.similar(number)


def test_another_version_of_the_model_than_that_of_the_release(copied, tmp_path):
    make_model(copied, seed=1)
    fits.PrimaryHDU(np.zeros((3, 12, 12), np.float32)).writeto(tmp_path / "one.fits")
    with pytest.raises(
        InputError, match=r"is of version .* survey\.toml has version .* makes a rel"
    ):
        copied.similar(image=tmp_path / "one.fits")
    old = make_plan(copied)
    before = verbs.releases(copied).current
    done = verbs.run(copied)
    assert old.run == done.release != before.release
    assert copied.similar(image=tmp_path / "one.fits").release == done.release
    # An index that was put beside a release that it is not of.
    unit = old.units[0]
    key = neighbours.index_key(COLUMN, unit.order, unit.pixel)
    shutil.copy(f"{before.url}/{key}", f"{done.url}/{key}")
    with pytest.raises(StoreError, match=r"is the index of .* and the release has"):
        copied.similar(image=tmp_path / "one.fits")


def test_the_command_line(looked, rows, capsys):
    from surveyproc.cli.app import app

    path, number = f"{looked[0].config.base}/survey.toml", int(rows[0][3])
    app(["similar", path, "--id", str(number), "-n", "2", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["neighbours"] == [vars(one) for one in looked[0].similar(number, n=2).neighbours]
    with pytest.raises(ConfigError, match="--ra and --dec go together"):
        app(["similar", path, "--ra", "10"], standalone_mode=False)
