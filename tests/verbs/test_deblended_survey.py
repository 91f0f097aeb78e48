"""The whole way: blends to train with, deblended fluxes that feed redshifts, a release, metrics."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from surveyproc import schemas, verbs
from surveyproc.catalogs import hats
from surveyproc.config import load
from surveyproc.errors import ConfigError
from surveyproc.products.deblend import NEIGHBOUR
from surveyproc.report.page import write_report
from surveyproc.run.plan import make_plan
from surveyproc.simulate import simulate
from surveyproc.simulate.bands import BANDS as ALL
from surveyproc.simulate.blends import Rule
from surveyproc.simulate.galaxies import Sky, drawn
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train.blends import BlendCounts, write_blends

BANDS = ("g", "r", "i")
TELLS = """
name = "blend_probability"
model = "tells"
architecture = "morphology"
architecture_settings = { cutout = 32, hidden = 8 }
threshold = 0.4
"""
PRODUCTS = f"""
[[products]]{TELLS}
[products.training]
images = "blends/blends/train"
epochs = 1

[[products]]
name = "deblend"
model = "blend2mask2flux"
architecture_settings = {{ cutout = 32, filters = 2, depth = 3, width = 4, dense = [16] }}
radius = 2.1
probability = 0.9
masks = true

[products.training]
images = "blends/blends/train"
epochs = 2
learning_rates = [1e-2]

[[products]]
name = "photoz"
model = "deep"
architecture = "gaznet-c3"
fluxes = "deblend"
blends = "blend_probability"

[products.training]
source = "truth.parquet"
redshift = "z"
select = "spec"
radius = 0.5
epochs = 1

[truth]
"""


def nanojansky(band):
    """Noise of a pixel."""
    return ALL[band].sky_sigma * 10 ** ((31.4 - ALL[band].zeropoint) / 2.5)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deblended")
    made = simulate(folder / "sim", objects=240, seed=7, workers=1, bands=BANDS)
    skies = [Sky(ALL[band].fwhm / 0.25, nanojansky(band)) for band in BANDS]
    parents = drawn(60, side=32, skies=skies, bands=BANDS)
    noise = np.array([[sky.sigma for sky in skies]])
    counts, rule = BlendCounts(300, 20), Rule(least=0.3, most=2.0)
    out = Store(str(made.config.parent / "blends"))
    write_blends(out, parents, counts, rule=rule, isolated=0.3, noise=noise)
    text = made.config.read_text()
    start = text.index('[[products]]\nname = "photoz"')
    text = text[:start] + text[text.index("[truth]") :].replace("[truth]", PRODUCTS, 1)
    made.config.write_text(text)
    opened = Survey(load(made.config, ["run.place=here"]))
    verbs.ingest(opened)
    trained = verbs.train(opened)
    assert list(trained) == ["blend_probability", "deblend", "photoz"]
    verbs.run(opened)
    return opened


def leaves(survey, name=""):
    """Rows of the release, or of a table beside it."""
    plan = make_plan(survey)
    folder = layout.table(plan.release_key, name) if name else plan.release_key
    keys = [f"{folder}/{hats.leaf_key(one.order, one.pixel)}" for one in plan.units]
    there = [pq.read_table(survey.store.url_of(key)) for key in keys if survey.store.exists(key)]
    return pa.concat_tables(there)


def changed(survey, folder, old, new):
    """A copy of the survey with one line of survey.toml replaced."""
    shutil.copytree(survey.config.base, folder / "copy")
    path = folder / "copy" / "survey.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return Survey(load(path, ["run.place=here"]))


def test_blended_objects_are_deblended(survey):
    rows = leaves(survey)
    truth = pq.read_table(survey.config.resolve("truth.parquet"))
    blended = dict(zip(truth["object_id"].to_pylist(), truth["blended"].to_pylist(), strict=True))
    signs = rows["deblend_signs"].to_numpy()
    expected = [blended[one] for one in rows["object_id"].to_pylist()]
    assert ((signs & NEIGHBOUR) > 0).tolist() == expected
    assert 8 < sum(expected) < 40
    flux = rows["deblend_flux_r"].to_numpy()
    flags = rows["deblend_flag"].to_numpy()
    image = (flags & schemas.flag("missing_band", "no_image", "same_place")) == 0
    assert np.isfinite(flux).tolist() == ((signs > 0) & image).tolist()
    blendedness = rows["deblend_blendedness"].to_numpy()
    assert (blendedness[(signs == 0) & image] == 0).all()
    # A companion of the catalog has the object itself as its neighbour.
    nearest = dict(
        zip(rows["object_id"].to_pylist(), rows["deblend_neighbour_id"].to_pylist(), strict=True)
    )
    pairs = [one for one, other in nearest.items() if other and nearest[other] == one]
    assert len(pairs) > 0.8 * sum(expected)


def test_every_galaxy_is_a_row_and_has_a_mask(survey):
    rows, galaxies = leaves(survey), leaves(survey, "deblend_galaxies")
    known = np.isfinite(rows["deblend_flux_r"].to_numpy())
    assert galaxies.num_rows == 2 * known.sum()
    ids = rows["object_id"].to_numpy()[known]
    assert sorted(set(galaxies["object_id"].to_pylist())) == sorted(ids.tolist())
    first = galaxies["galaxy"].to_numpy() == 0
    own = dict(zip(ids, rows["deblend_flux_r"].to_numpy()[known], strict=True))
    for one, flux in zip(
        galaxies["object_id"].to_numpy()[first], galaxies["flux_r"].to_numpy()[first], strict=True
    ):
        assert own[one] == flux
    plan = make_plan(survey)
    folder = f"{plan.release_key}/pixels/deblend_masks"
    group = zarr.open_group(survey.store.url_of(folder), mode="r")
    masks = np.concatenate([group[f"Norder={one.order}-Npix={one.pixel}"][:] for one in plan.units])
    assert masks.shape == (240, 2, 32, 32)
    assert not masks[~known].any()


def test_redshifts_read_deblended_fluxes_where_there_are_some(survey, tmp_path):
    """Without them other objects have the same redshifts, and nothing else is computed."""
    other = changed(survey, tmp_path, 'fluxes = "deblend"\n', "")
    done = verbs.run(other)
    computed = {name: counts["computed"] > 0 for name, counts in done.by_product.items()}
    names = ("photometry", "blend_probability", "deblend", "photoz")
    assert computed == {name: name == "photoz" for name in names}
    before, after = leaves(survey), leaves(other)
    z = [rows["deep_z_median"].to_numpy() for rows in (before, after)]
    fluxes = [before[f"deblend_flux_{band}"].to_numpy() for band in BANDS]
    deblended = np.isfinite(fluxes).all(axis=0)
    assert deblended.sum() > 8
    np.testing.assert_array_equal(z[0][~deblended], z[1][~deblended])
    assert (z[0][deblended] != z[1][deblended]).mean() > 0.9


def test_another_radius_makes_deblending_and_redshifts_stale(survey, tmp_path):
    done = verbs.run(changed(survey, tmp_path, "radius = 2.1", "radius = 1.2"))
    computed = {name: counts["computed"] > 0 for name, counts in done.by_product.items()}
    assert computed == {
        "photometry": False, "blend_probability": False, "deblend": True, "photoz": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("radius = 2.1", "radius = 5.0", r"5 arcsec are 20 pixels, .* at most 4"),
        ('fluxes = "deblend"', 'fluxes = "blend_probability"', "reads blend_probability_flux_g"),
        ('blends = "blend_probability"', 'blends = "photometer"', "reads photometer_flag, which"),
        (
            TELLS,
            TELLS.replace("blend_probability", "morphology").replace("threshold = 0.4", ""),
            "no product of kind blend_probability is listed before",
        ),
    ],
)
def test_what_cannot_be_is_named(survey, tmp_path, old, new, match):
    with pytest.raises(ConfigError, match=match):
        verbs.run(changed(survey, tmp_path, old, new))


def test_unrecognised_blends_are_told_and_left_out(survey):
    rows = leaves(survey)
    bit = schemas.flag("unrecognised_blend")
    flagged = (rows["blend_probability_flag"].to_numpy() & bit) > 0
    alone = (rows["deblend_signs"].to_numpy() & NEIGHBOUR) == 0
    p = rows["blend_probability"].to_numpy()
    assert flagged.tolist() == ((p > 0.4) & alone).tolist()
    assert flagged.sum() > 0
    # The redshifts know it too.
    assert ((rows["photoz_flag"].to_numpy() & bit) > 0).tolist() == flagged.tolist()
    found = verbs.evaluate(survey)
    assert set(found.samples) == {"all", "unflagged", "recognised"}
    assert set(found.pdf) > set(found.samples)
    truth = pq.read_table(survey.config.resolve("truth.parquet"))
    test = set(truth["object_id"].filter(truth["test"]).to_pylist())
    lost = sum(one in test for one in rows["object_id"].filter(pa.array(flagged)).to_pylist())
    assert found.recognised["n"] == found.all["n"] - lost


def test_the_report_has_the_figures_of_the_paper(survey, tmp_path):
    write_report(survey, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for number in range(5, 12):
        assert f"({number})" in page
    assert "completeness against rejected, by separation" in page
    cells = [f"<td>{method}</td><td>{one}</td>" for method in ("deblend", "sep")
             for one in ("central", "companion")]  # fmt: skip
    assert all(cell in page for cell in cells)


def test_without_a_test_of_blends_the_report_has_none(survey, tmp_path):
    other = changed(survey, tmp_path, "radius = 2.1", "radius = 2.1 ")
    shutil.rmtree(f"{other.config.base}/blends/blends/test")
    write_report(other, tmp_path / "report.html")
    assert "artificial blends" not in (tmp_path / "report.html").read_text()


def test_nothing_is_done_twice(survey):
    assert verbs.run(survey).did == "nothing"
    assert verbs.validate(survey).problems == []
