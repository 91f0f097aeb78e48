"""Blended objects by neighbours, peaks and probabilities; their fluxes, table, masks and flags."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from surveyproc import schemas
from surveyproc.errors import ConfigError
from surveyproc.measure.peaks import other_peak
from surveyproc.models.base import build
from surveyproc.models.package import save_package
from surveyproc.products.base import Batch
from surveyproc.products.deblend import NEIGHBOUR, PEAKS, PROBABLE, DeblendProduct
from surveyproc.products.network import NetworkProduct
from surveyproc.store.storage import Store
from surveyproc.testing import check_product

SIDE, SCALE = 32, 0.2
BANDS = ("r", "g")


def galaxy(flux, dy=0, dx=0, sigma=1.5, side=SIDE):
    y, x = np.indices((side, side)) - side // 2
    shape = np.exp(-((y - dy) ** 2 + (x - dx) ** 2) / (2 * sigma**2))
    return flux * shape / (2 * np.pi * sigma**2)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Untrained networks of each kind."""
    store = Store(str(tmp_path_factory.mktemp("models")))
    random = np.random.default_rng(0)
    images = np.stack([galaxy(f) + galaxy(f, 4, 3) for f in random.uniform(900, 3000, 40)])
    pixels = torch.from_numpy(np.stack([images, images], 1)).float()
    wanted = {
        "blend2flux": {"cutout": SIDE, "width": 2},
        "blend2mask2flux": {
            "cutout": SIDE, "width": 2, "dense": [4], "filters": 2, "depth": 2, "overlap": True
        },
        "unet": {"cutout": SIDE, "filters": 2, "depth": 2},
        "forced_blend2flux": {"cutout": SIDE, "width": 2, "dense": [4]},
        "blend2flux of three": {"cutout": SIDE, "width": 2, "galaxies": 3},
        "forced_blend2flux of three": {"cutout": SIDE, "width": 2, "dense": [4], "galaxies": 3},
    }  # fmt: skip
    found = {}
    for name, settings in wanted.items():
        torch.manual_seed(3)
        architecture, fluxes = name.partition(" ")[0], 2 * settings.get("galaxies", 2)
        network = build(architecture, BANDS, settings)
        network.set_images(iter([pixels]))
        network.set_targets({"fluxes": torch.full((40, fluxes), 2000.0, dtype=torch.float64)})
        found[name] = save_package(
            store, name.replace(" ", "-"), architecture=architecture, settings=settings,
            bands=BANDS, scaling=None,
            members=[network.state_dict()], pixel_scale=SCALE,
        )  # fmt: skip
    return found


def batch(n=6, **more):
    """Isolated galaxies in noise, without neighbours."""
    random = np.random.default_rng(1)
    images = np.stack([galaxy(2000.0)] * n)[:, None] + random.normal(0, 1, (n, 2, SIDE, SIDE))
    whole = {
        "columns": {},
        "flags": np.zeros(n, np.int32),
        "images": images.astype(np.float32),
        "pixel_scale": np.full(n, SCALE),
        "neighbour_ids": np.zeros((n, 2), np.int64),
        "neighbour_offsets": np.full((n, 2, 2), np.nan),
    }
    return Batch(**whole | more)


def beside(given, row, *ids, apart=1.0):
    """The batch with neighbours of one row, so many arcsec apart."""
    held, offsets = given.neighbour_ids.copy(), given.neighbour_offsets.copy()
    for number, one in enumerate(ids):
        held[row, number], offsets[row, number] = one, (0.0, apart * (number + 1))
    return replace(given, neighbour_ids=held, neighbour_offsets=offsets)


def flag_names(flags):
    return {name for name, bit in schemas.flags().items() if flags & bit}


def with_pixels(given, row, plane):
    images = given.images.copy()
    images[row] += plane
    return replace(given, images=images)


@pytest.mark.parametrize("masks", [False, True])
def test_it_keeps_the_contract(packages, masks):
    product = DeblendProduct(packages["blend2mask2flux"], masks=masks, radius=1.6)
    assert product.inputs.neighbours == 2
    check_product(product, beside(with_pixels(batch(), 1, galaxy(1500.0, 5, 4)), 2, 70))


def test_objects_that_are_not_blended_have_no_fluxes_and_no_flags(packages):
    product = DeblendProduct(packages["blend2flux"])
    found = product.compute(batch())
    assert not found["deblend_signs"].any()
    assert not found["deblend_flag"].any()
    assert not found["deblend_blendedness"].any()
    assert np.isnan(found["deblend_flux_r"]).all()
    assert np.isnan(found["deblend_flux_err_g"]).all()
    assert len(found["deblend_galaxies"]["row"]) == 0


def test_each_sign_makes_a_blended_object(packages):
    chosen = {"probability": ("blend_probability", 0.5), "radius": 1.6}
    product = DeblendProduct(packages["blend2flux"], **chosen)
    probability = np.array([np.nan, 0.1, 0.2, 0.9, 0.5, 0.8])
    given = beside(batch(columns={"blend_probability": probability}), 1, 70)
    given = with_pixels(with_pixels(given, 2, galaxy(1500.0, 5, 4)), 5, galaxy(1500.0, -6, 0))
    given = with_pixels(given, 0, galaxy(1500.0, 10, 10))  # farther than the radius
    found = product.compute(given)
    assert found["deblend_signs"].tolist() == [0, NEIGHBOUR, PEAKS, PROBABLE, 0, PEAKS | PROBABLE]
    assert np.isfinite(found["deblend_flux_r"]).tolist() == [False, True, True, True, False, True]
    assert found["deblend_neighbour_id"].tolist() == [0, 70, 0, 0, 0, 0]
    quiet = DeblendProduct(packages["blend2flux"], **chosen, peaks=False).compute(given)
    assert quiet["deblend_signs"].tolist() == [0, NEIGHBOUR, 0, PROBABLE, 0, PROBABLE]


def test_the_table_has_every_galaxy(packages):
    product = DeblendProduct(packages["blend2flux"])
    found = product.compute(beside(beside(batch(), 1, 70), 3, 5, 6, apart=0.9))
    table = found["deblend_galaxies"]
    assert table["row"].tolist() == [1, 1, 3, 3]
    assert table["galaxy"].tolist() == [0, 1, 0, 1]
    # Of two neighbours nobody knows which the one companion is.
    assert table["neighbour_id"].tolist() == [0, 70, 0, 0]
    np.testing.assert_array_equal(table["flux_r"][::2], found["deblend_flux_r"][[1, 3]])
    light = sum(np.clip(table[f"flux_{band}"].reshape(2, 2), 0, None) for band in BANDS)
    share = light[:, 1] / light.sum(axis=1)
    np.testing.assert_allclose(found["deblend_blendedness"][[1, 3]], share, atol=1e-6)
    assert flag_names(found["deblend_flag"][3]) >= {"crowded"}
    assert "crowded" not in flag_names(found["deblend_flag"][1])


def test_companions_are_neighbours_where_the_network_knows_which(packages):
    given = batch(3)
    ids, offsets = np.zeros((3, 3), np.int64), np.full((3, 3, 2), np.nan)
    for row, count in enumerate((1, 2, 3)):
        ids[row, :count] = 70 + np.arange(count)
        offsets[row, :count, 0] = 0.0
        offsets[row, :count, 1] = 0.6 + 0.3 * np.arange(count)
    pixels = offsets / SCALE
    given = replace(given, neighbour_ids=ids, neighbour_offsets=offsets, neighbour_pixels=pixels)
    named = {}
    for model, chosen in packages.items():
        if model != "unet":
            product = DeblendProduct(chosen, radius=2.0, peaks=False)
            table = product.compute(given)["deblend_galaxies"]
            named[model] = table["neighbour_id"].reshape(3, -1).tolist()
    # One companion, and nothing says of which of several neighbours.
    assert named["blend2flux"] == [[0, 70], [0, 0], [0, 0]]
    assert named["forced_blend2flux"] == [[0, 70], [0, 70], [0, 70]]
    # Companions in the order of brightness, neighbours in that of distance.
    assert named["blend2flux of three"] == [[0, 0, 0]] * 3
    assert named["forced_blend2flux of three"] == [[0, 70, 0], [0, 70, 71], [0, 70, 71]]


def test_masks_are_those_of_the_galaxies(packages):
    """Not the map of the overlap, which comes before them."""
    product = DeblendProduct(packages["blend2mask2flux"], masks=True)
    given = beside(batch(), 1, 70)
    found = product.compute(given)["deblend_masks"]
    assert found.shape == (6, 2, SIDE, SIDE)
    assert not found[[0, 2, 3, 4, 5]].any()
    with torch.no_grad():
        network = packages["blend2mask2flux"].network()
        logits = network(images=torch.from_numpy(given.images[1:2]))["masks"]
    np.testing.assert_array_equal(found[1], logits[0, 1:] >= 0)


def test_a_network_is_told_where_the_neighbours_are(packages):
    product = DeblendProduct(packages["forced_blend2flux"], radius=2.0)
    given = beside(beside(with_pixels(batch(), 1, galaxy(1500.0, 5, 4)), 1, 70), 2, 71)
    pixels = np.full((6, 2, 2), np.nan)
    pixels[1, 0] = 4.0, 5.0
    given = replace(given, neighbour_pixels=pixels)
    check_product(product, given)
    here = product.compute(given)["deblend_flux_r"]
    elsewhere = pixels.copy()
    elsewhere[1, 0] = -4.0, 5.0
    there = product.compute(replace(given, neighbour_pixels=elsewhere))["deblend_flux_r"]
    assert np.isfinite(here[1:3]).all()
    assert here[1] != there[1]
    assert here[2] == there[2]
    # Without neighbours of the catalog it is told of the peak, and of nothing where there is none.
    found = product.compute(replace(given, neighbour_pixels=None))["deblend_flux_r"]
    assert found[1:3].tolist() == here[1:3].tolist()
    with pytest.raises(ConfigError, match="told the places of neighbours, which products of kind"):
        NetworkProduct(packages["forced_blend2flux"], name="other")


def test_bad_pixels_and_neighbours_are_flagged(packages):
    product = DeblendProduct(packages["blend2flux"], radius=1.6)
    given = batch()
    for row in range(6):
        given = beside(given, row, 70 + row, apart=0.1 if row == 3 else 1.0)
    images = given.images.copy()
    images[0, 1, :8, :8] = np.nan  # a saturated neighbour that is masked
    images[1, 0] = np.nan  # a band without image
    images[2] = np.nan
    images[4] += galaxy(1e7, 12, 0).astype(np.float32)  # one that is not
    found = product.compute(replace(given, images=images))
    named = [flag_names(one) for one in found["deblend_flag"]]
    assert named == [
        {"bad_pixels"}, {"missing_band"}, {"missing_band", "no_image"}, {"same_place"},
        {"outside_training_range"}, set(),
    ]  # fmt: skip
    known = [True, False, False, False, True, True]
    assert np.isfinite(found["deblend_flux_g"]).tolist() == known
    assert np.isfinite(found["deblend_blendedness"]).tolist() == known
    assert found["deblend_neighbour_id"].tolist() == [70, 71, 72, 73, 74, 75]
    assert set(found["deblend_galaxies"]["row"]) == {0, 4, 5}


def test_models_and_settings_that_cannot_be_are_named(packages):
    with pytest.raises(ConfigError, match="'unet' gives no fluxes of the galaxies of a blend"):
        DeblendProduct(packages["unet"])
    with pytest.raises(ConfigError, match=r"masks: model 'blend2flux' gives none; blend2mask2flux"):
        DeblendProduct(packages["blend2flux"], masks=True)
    with pytest.raises(ConfigError, match=r"4 arcsec are 20 pixels, .* reach 16 .* at most 3.2"):
        DeblendProduct(packages["blend2flux"], radius=4.0, pixel_scale=SCALE)
    with pytest.raises(ConfigError, match="cannot do without"):
        DeblendProduct(packages["blend2flux"], survey_bands=["r"])


def test_versions_depend_on_settings(packages):
    settings = [{}, {"radius": 1.0}, {"peaks": False}, {"probability": ("p", 0.5)}]
    versions = {DeblendProduct(packages["blend2flux"], **one).version for one in settings}
    assert len(versions) == 4


def test_peaks_near_the_centre():
    noise = np.random.default_rng(2).normal(0, 1, (SIDE, SIDE))
    assert other_peak(noise, 16) is None
    assert other_peak(noise + galaxy(2000.0), 16) is None
    pair = noise + galaxy(2000.0) + galaxy(1000.0, 6, -1)
    assert other_peak(pair, 8) == (-1.0, 6.0)
    assert other_peak(pair + galaxy(1500.0, 0, 10), 11) == (-1.0, 6.0)
    assert other_peak(pair, 4) is None
    pair[19:26, 12:20] = np.nan
    assert other_peak(pair, 8) is None
    assert other_peak(np.full((SIDE, SIDE), np.nan), 8) is None
