"""Blends as training cubes, from galaxies to a package: splits, masks that turn, three stages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import where
from hypothesis import given, settings
from hypothesis import strategies as st

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.config.sections import TrainingSection
from surveyproc.errors import ConfigError, InputError, StoreError
from surveyproc.evaluate.blends import found_blends
from surveyproc.models.base import Reads, build
from surveyproc.models.inference import predict
from surveyproc.models.package import load_package
from surveyproc.simulate.blends import Rule
from surveyproc.simulate.parents import Parents
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train.blends import (
    BlendCounts,
    blend_training_set,
    blend_truth,
    write_blends,
)
from surveyproc.train.cube import SHARD, TrainingCube, shard_name
from surveyproc.train.examples import BandDropout, Examples
from surveyproc.train.fit import FitSettings
from surveyproc.train.loop import train
from surveyproc.train.split import check_cutout

SIDE = 16
UNET = {"cutout": SIDE, "filters": 3, "depth": 2, "up": 2, "dropout": 0.0}
BOTH = UNET | {"width": 4, "dense": [16]}


def spots(n=60, bands=("g", "r"), seed=0):
    random = np.random.default_rng(seed)
    y, x = np.indices((SIDE, SIDE)) - SIDE // 2
    sigma = random.uniform(0.8, 1.6, n)[:, None, None]
    shape = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    shape /= shape.sum(axis=(1, 2), keepdims=True)
    flux = 10 ** random.uniform(3, 3.6, (n, len(bands)))
    return Parents(
        images=(flux[:, :, None, None] * shape[:, None]).astype(np.float32),
        flux=flux,
        mask=shape > 0.03 * shape.max(axis=(1, 2), keepdims=True),
        radius=1.1774 * sigma[:, 0, 0],
        kind=np.array(["disc", "bulge"])[np.arange(n) % 2],
        bands=bands,
        select=bands.index("r"),
        psf=np.full(n, np.nan),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("blends")))
    counts = BlendCounts(SHARD + 144, 50)
    noise = np.array([[2.0, 2.0], [4.0, 8.0]])
    return write_blends(store, spots(), counts, rule=Rule(least=1.5, most=4.0), noise=noise, seed=3)


def go(made, name, **keys):
    network = keys.pop("network")
    chosen = {"source": "x", "epochs": 2, "batch_size": 40, "learning_rates": [3e-3], **keys}
    return train(
        blend_training_set(
            made[0], fluxes=not name.startswith("unet"), told=name.startswith("forced")
        ),
        settings=TrainingSection(**chosen),
        store=made[0].store,
        name=name,
        network=network,
        architecture=name.partition(".")[0],
        places=where.HERE,
    )


def test_no_galaxy_of_the_test_or_of_the_held_out_rows_is_trained_with(made):
    train_cube, test_cube = made
    held = train_cube.index["held_out"].to_numpy()
    assert held.sum() == 80
    parents = blend_truth(train_cube).parent
    sides = [parents[~held], parents[held], blend_truth(test_cube).parent]
    sets = [set(side.ravel().tolist()) for side in sides]
    assert all(sets)
    assert len(sets[0] | sets[1] | sets[2]) == sum(len(one) for one in sets)


def test_a_cube_holds_what_is_true(made):
    cube = made[0]
    truth, parents = blend_truth(cube), spots()
    np.testing.assert_array_equal(truth.flux, parents.flux[truth.parent])
    np.testing.assert_array_equal(truth.magnitude, parents.magnitude[truth.parent])
    assert truth.kind.tolist() == parents.kind[truth.parent].tolist()
    planes = np.concatenate([cube.read(k) for k in range(cube.shards)])
    assert planes.shape == (400, 4, SIDE, SIDE)
    assert set(np.unique(planes[:, 2:])) == {0.0, 1.0}
    np.testing.assert_allclose(
        planes[:, 2].sum(axis=(1, 2)), parents.mask[truth.parent[:, 0]].sum(axis=(1, 2))
    )
    near = np.linalg.norm(truth.shift[:, 1], axis=1)
    np.testing.assert_allclose(truth.separation[:, 0], near / truth.radius[:, 0])
    np.testing.assert_allclose(truth.contrast[:, 0], -truth.contrast[:, 1])
    assert set(np.unique(cube.index["noise"].to_numpy())) == {2.0, 8.0}


def test_the_same_seed_gives_the_same_bytes(made, tmp_path):
    counts = BlendCounts(SHARD + 144, 50)
    noise = np.array([[2.0, 2.0], [4.0, 8.0]])
    rule = Rule(least=1.5, most=4.0)
    again = write_blends(Store(str(tmp_path)), spots(), counts, rule=rule, noise=noise, seed=3)
    for one, other in zip(made, again, strict=True):
        for name in (shard_name(0), shard_name(0, "masks")):
            found = [cube.store.read(f"{cube.key}/{name}") for cube in (one, other)]
            assert found[0] == found[1]
        assert one.record == other.record


def test_a_damaged_shard_of_masks_is_named(tmp_path):
    cube = write_blends(Store(str(tmp_path)), spots(), BlendCounts(20, 10), rule=Rule(least=1.5))[0]
    where_ = f"{cube.key}/{shard_name(0, 'masks')}"
    data = bytearray(cube.store.read(where_))
    data[5] ^= 1
    cube.store.put(where_, bytes(data))
    with pytest.raises(StoreError, match=r"masks/c/0/0/0/0 is damaged"):
        cube.read(0)
    cube.store.remove(where_)
    with pytest.raises(StoreError, match="masks/c/0"):
        cube.read(0)


@settings(max_examples=10, deadline=None)
@given(epoch=st.integers(0, 50))
def test_masks_turn_with_their_images(made, epoch):
    """Where the masks' truth is bright in the image before, it is after every turn."""
    cube = made[0]
    data = blend_training_set(cube)
    examples = Examples(
        Reads(images=cube.bands, cutout=SIDE),
        {"cube_row": torch.arange(cube.n)},
        {"fluxes": torch.from_numpy(data.targets["fluxes"]).float()},
        torch.from_numpy(data.held_out),
        cube,
        BandDropout(0.0, 0.0),
        seed=0,
    )
    inputs, targets = next(
        iter(examples.training(epoch, 0, batch=32, rank=0, world=1, device="cpu"))
    )
    image = inputs["images"][:, 1]
    member = targets["masks"].amax(dim=1) > 0
    assert targets["masks"].shape == (32, 2, SIDE, SIDE)
    inside = torch.stack([one[own].mean() for one, own in zip(image, member, strict=True)])
    outside = torch.stack([one[~own].mean() for one, own in zip(image, member, strict=True)])
    assert (inside > 3 * outside.abs()).all()


@settings(max_examples=10, deadline=None)
@given(epoch=st.integers(0, 50))
def test_places_turn_with_their_images(made, epoch):
    """Where a companion is said to be, its mask is, after every turn; some are not told."""
    cube = made[0]
    data = blend_training_set(cube)
    examples = Examples(
        Reads(images=cube.bands, cutout=SIDE, neighbours=1),
        {"cube_row": torch.arange(cube.n), "places": torch.from_numpy(data.places).float()},
        {"fluxes": torch.from_numpy(data.targets["fluxes"]).float()},
        torch.from_numpy(data.held_out),
        cube,
        BandDropout(0.0, 0.0),
        seed=0,
    )
    steps = examples.training(epoch, 0, batch=160, rank=0, world=1, device="cpu")
    inputs, targets = next(iter(steps))
    marks, masks = inputs["places"][:, 0], targets["masks"][:, 1]
    told = marks.sum(dim=(1, 2))
    assert set(told.unique().tolist()) == {0.0, 1.0}
    assert 0.6 < told.mean() < 0.95
    assert ((marks * masks).sum(dim=(1, 2)) == told).all()
    inputs, _ = next(iter(examples.validation(batch=80, rank=0, world=1, device="cpu")))
    assert (inputs["places"].sum(dim=(1, 2, 3)) == 1).all()


@pytest.mark.parametrize("name", ["blend2flux", "unet", "blend2mask2flux", "forced_blend2flux"])
def test_networks_of_blends_are_shown_the_central_galaxy_in_the_centre(made, name):
    """What lies about the stamps is light of the companions, and no room to move them in."""
    cube, cutout = made[0], SIDE - 6
    shift = {**build(name, cube.bands, {"cutout": 16}).fit_options}["shift"]
    tensors = {"cube_row": torch.arange(cube.n)}
    held = torch.zeros(cube.n, dtype=torch.bool)
    reads = Reads(images=cube.bands, cutout=cutout)
    given = reads, tensors, {}, held, cube, BandDropout(0.0, 0.0)
    y, x = np.indices((cutout, cutout)) - cutout // 2
    for moved, most in ((shift, 0), (3, 3)):
        examples = Examples(*given, seed=0, shift=moved)
        _, targets = next(iter(examples.training(0, 0, batch=200, rank=0, world=1, device="cpu")))
        own = targets["masks"][:, 0].numpy()
        # Round masks about the central pixel.
        off = [(own * one).sum((1, 2)) / own.sum((1, 2)) for one in (y, x)]
        assert np.abs(off).max() == pytest.approx(most, abs=1e-4)


def test_who_is_told_of_companions_learns_them_nearest_first(tmp_path):
    """As `deblend` tells neighbours; who is told of none learns them brightest first."""
    three = BlendCounts(120, 40)
    cube, _ = write_blends(
        Store(str(tmp_path)),
        spots(),
        three,
        rule=Rule(least=1.5, most=4.0),
        galaxies=3,
        isolated=0.2,
    )
    truth, bands = blend_truth(cube), len(cube.bands)
    told, untold = (blend_training_set(cube, told=one) for one in (True, False))
    np.testing.assert_array_equal(untold.targets["fluxes"].reshape(-1, 3, bands), truth.flux)
    away = np.linalg.norm(told.places, axis=2)
    alone = np.isnan(away).all(axis=1)
    assert 0 < alone.sum() < len(alone)
    assert (away[~alone, 0] <= away[~alone, 1]).all()
    turned = np.linalg.norm(untold.places, axis=2)[~alone]
    assert (turned[:, 0] > turned[:, 1]).any()
    # Fluxes go with their places.
    of = {
        tuple(place): tuple(flux)
        for place, flux in zip(
            np.c_[np.repeat(np.arange(len(alone)), 2), untold.places.reshape(-1, 2)].tolist(),
            truth.flux[:, 1:].reshape(-1, bands).tolist(),
            strict=True,
        )
    }
    flux = told.targets["fluxes"].reshape(-1, 3, bands)
    np.testing.assert_array_equal(flux[:, 0], truth.flux[:, 0])
    for row in np.flatnonzero(~alone):
        for place, found in zip(told.places[row].tolist(), flux[row, 1:].tolist(), strict=True):
            assert of[row, *place] == tuple(found)


def test_a_network_is_trained_with_places(made):
    settings = {"cutout": SIDE, "width": 4, "dense": [16]}
    package = go(made, "forced_blend2flux", network=settings, epochs=4)
    assert package.reads["neighbours"] == 1
    truth, images = blend_truth(made[1]), made[1].read(0)[:, :2]
    off = {}
    for how, places in {"told": truth.places, "untold": np.full_like(truth.places, np.nan)}.items():
        values, _ = predict(package.network(), None, images=images, places=places)
        off[how] = np.abs(np.log(values["flux_companion_r"] / truth.flux[:, 1, 1])).mean()
    assert off["told"] < 0.7 * off["untold"]
    network = build("forced_blend2flux", made[0].bands, settings)
    with pytest.raises(InputError, match="places of 1 neighbours, and blends/train has those of 0"):
        check_cutout(
            replace(blend_training_set(made[0]), places=None), network, FitSettings(1, 8, 0)
        )
    with pytest.raises(InputError, match="places of neighbours of blends/train would not lie"):
        go(made, "forced_blend2flux.b", network=settings, epochs=1, zoom=1.2)


def test_three_stages(made):
    masks = go(made, "unet", network=UNET, epochs=4, learning_rates=[1e-2])
    found = masks.metrics["held_out"]["masks"]
    assert found["n"] == 80
    assert 0 <= found["iou"] <= 1
    losses = [epoch["validation_loss"] for epoch in masks.document["training"]["loss_curve"]]
    assert losses[-1] < 0.9 * losses[0]
    package = go(made, "blend2mask2flux", network=BOTH, start="unet", epochs=3)
    assert package.document["training"]["start"] == f"unet@{masks.version}"
    found = package.metrics["held_out"]
    assert found["masks"]["n"] == 80
    fluxes = found["fluxes"]["central_r"]
    assert fluxes["n"] == 80
    assert fluxes["mape_flux"] < 80
    # Scaled by other rows than those that are judged.
    assert fluxes["coverage"] == pytest.approx(0.68, abs=0.06)
    (calibration,) = [task["calibration"] for task in package.tasks if "calibration" in task]
    assert set(calibration) == {"central_g", "central_r", "companion_g", "companion_r"}
    # What a package says is calibrated.
    again = load_package(made[0].store, "blend2mask2flux").network()
    images = made[1].read(0)[:, :2]
    values, _ = predict(again, None, images=images)
    again.calibrations = {}
    before, _ = predict(again, None, images=images)
    np.testing.assert_array_equal(values["flux_central_r"], before["flux_central_r"])
    (scale,) = calibration["central_r"]["scale"]
    np.testing.assert_allclose(
        values["flux_err_central_r"], scale * before["flux_err_central_r"], rtol=1e-5
    )


def test_training_goes_on_from_the_weights_of_a_package(made):
    first = go(made, "unet", network=UNET, epochs=1)
    own = first.tensors["unet.last.weight"]
    begun = first.begin({"unet.last.weight": torch.zeros_like(own), "other": torch.zeros(1)})
    torch.testing.assert_close(begun["unet.last.weight"], own)
    assert begun["other"].item() == 0
    with pytest.raises(InputError, match="has no layer of this network"):
        go(made, "blend2flux", network={"cutout": SIDE, "width": 4}, start="unet", epochs=1)
    with pytest.raises(InputError, match=r"has shape .* give both the same settings"):
        go(made, "blend2mask2flux.b", network=BOTH | {"filters": 4}, start="unet", epochs=1)
    with pytest.raises(InputError, match="no model is called 'nothing'"):
        go(made, "blend2mask2flux.b", network=BOTH, start="nothing", epochs=1)


def test_fluxes_that_are_not_positive_are_missing(made, tmp_path):
    """A galaxy without a positive flux in a band is learned from in the others alone."""
    parents = spots()
    parents.flux[::2, 0] = -5.0
    parents.flux[1, 0] = 0.0
    cubes = write_blends(Store(str(tmp_path)), parents, BlendCounts(200, 20), rule=Rule(least=1.5))
    package = go(cubes, "blend2flux", network={"cutout": SIDE, "width": 4}, epochs=1)
    held = cubes[0].index["held_out"].to_numpy()
    blue = blend_truth(cubes[0]).flux[held, :, 0]
    found = package.metrics["held_out"]["fluxes"]
    assert found["central_g"]["n"] == (blue[:, 0] > 0).sum() < 40
    assert found["central_r"]["n"] == 40


def test_folds_and_shares_that_cannot_be_are_named(made):
    with pytest.raises(InputError, match="says itself which rows to hold out"):
        go(made, "blend2flux", network={"cutout": SIDE, "width": 4}, folds=3)
    with pytest.raises(InputError, match="the test of this training set is a set of its own"):
        go(made, "blend2flux", network={"cutout": SIDE, "width": 4}, test_share=0.2)
    with pytest.raises(ConfigError, match="leaves no galaxies"):
        BlendCounts(held_out_share=0.5, test_share=0.5)
    with pytest.raises(ConfigError, match="greater than 0"):
        BlendCounts(test_share=0.0)


def test_stamps_smaller_than_the_networks_are_named(made):
    with pytest.raises(InputError, match=r"reads 32 x 32 pixels, and the cutouts of blends/train"):
        go(made, "blend2flux", network={"cutout": 2 * SIDE, "width": 4})


def test_another_cube_holds_no_blends(tmp_path):
    from test_cube import write

    cube, _ = write(tmp_path, 5, bands=1, cutout=2)
    assert isinstance(cube, TrainingCube)
    with pytest.raises(InputError, match="holds no blends: `surveyproc blends` makes"):
        blend_truth(cube)


def test_an_ensemble_is_calibrated_as_one(tmp_path):
    # So many galaxies that those held out are enough to scale errors by.
    many = write_blends(Store(str(tmp_path)), spots(1000), BlendCounts(400, 50), seed=3)
    package = go(
        many, "blend2flux", network={"cutout": SIDE, "width": 4, "errors": False}, members=2
    )
    assert package.document["members"] == 2
    assert len(package.network().calibrations["fluxes"]["central_r"]["scale"]) == 1
    found = package.metrics["held_out"]["fluxes"]["companion_r"]
    assert found["coverage"] == pytest.approx(0.68, abs=0.06)


def survey(folder, images, keys="", root="store"):
    """A survey.toml whose three products learn from a cube of blends."""
    (folder / "catalog.csv").write_text("object_id,ra,dec\n1,10.0,10.0\n")
    network = f"cutout = {SIDE}, filters = 3, depth = 2, up = 2"
    products = {
        "blend2flux": f"cutout = {SIDE}, width = 4",
        "unet": network,
        "blend2mask2flux": network + ", width = 4, dense = [8]",
    }
    text = f"""
    [survey]
    name = "blends"
    root = "{folder / root}"
    [images]
    bands = ["g", "r"]
    [catalog]
    source = "catalog.csv"
    """
    for name, settings_ in products.items():
        text += f"""
    [[products]]
    name = "network_{name}"
    model = "{name}"
    architecture_settings = {{ {settings_} }}
    [products.training]
    images = "{images}"
    epochs = 1
    batch_size = 40
    {'start = "unet"' if name == "blend2mask2flux" else ""}
    {keys}
    """
    (folder / "survey.toml").write_text(text)
    return Survey(load(folder / "survey.toml", ["run.place=here"]))


def test_a_survey_trains_with_the_blends_that_images_names(made, tmp_path):
    """All three networks, into another root than that of the blends."""
    done = verbs.train(survey(tmp_path, made[0].store.url_of("blends/train")))
    assert list(done) == ["network_blend2flux", "network_unet", "network_blend2mask2flux"]
    found = {name: one.metrics["held_out"] for name, one in done.items()}
    assert found["network_blend2flux"]["fluxes"]["central_r"]["n"] == 80
    assert found["network_unet"].keys() == {"masks"}
    assert found["network_blend2mask2flux"].keys() == {"fluxes", "masks"}
    package = load_package(Store(str(tmp_path / "store")), "blend2mask2flux")
    assert package.document["training"]["start"].startswith("unet@")
    assert package.document["training"]["split"] == "galaxies"


@pytest.mark.parametrize(
    ("images", "keys", "error", "match"),
    [
        ("elsewhere", "", InputError, "elsewhere is no cube of blends: `surveyproc blends"),
        ("blends/train", "", InputError, "blends/train is no cube of blends"),
        (None, 'redshift = "z"', ConfigError, "leave out redshift, or name the source"),
        (None, "zoom = 1.2", InputError, "masks of blends/train would not lie on the distorted"),
    ],
)
def test_what_cannot_be_trained_with_blends_is_named(made, tmp_path, images, keys, error, match):
    given = images or made[0].store.url_of("blends/train")
    with pytest.raises(error, match=match):
        verbs.train(survey(tmp_path, given, keys), "network_unet")


def test_masks_of_other_galaxies_than_the_networks_are_named(made):
    with pytest.raises(InputError, match="has 3 planes, and those of blends/train 2"):
        go(made, "unet.b", network=UNET | {"galaxies": 3})


def test_other_blends_in_the_same_place_are_another_training_set(tmp_path):
    """Also for a network of masks, to which the fluxes are not handed."""
    found = []
    for seed in (0, 0, 1):
        counts, rule = BlendCounts(40, 10), Rule(least=1.5)
        cube = write_blends(Store(str(tmp_path)), spots(), counts, rule=rule, seed=seed)[0]
        found.append(blend_training_set(cube, fluxes=False).checksum)
    assert found[0] == found[1] != found[2]


@pytest.fixture(scope="module")
def with_lone_ones(tmp_path_factory):
    """Blends within four pixels, and as many galaxies alone, 32 pixels wide."""
    store = Store(str(tmp_path_factory.mktemp("lone")))
    parents = spots(80)
    wide = np.pad(parents.images, ((0, 0), (0, 0), (8, 8), (8, 8)))
    mask = np.pad(parents.mask, ((0, 0), (8, 8), (8, 8)))
    parents = replace(parents, images=wide, mask=mask)
    rule, noise = Rule(least=2.5, most=8.0, within=4.0), np.array([[2.0, 2.0]])
    counts = BlendCounts(500, 120)
    return write_blends(store, parents, counts, rule=rule, isolated=0.5, noise=noise, seed=4)


def test_a_cube_may_hold_galaxies_alone(with_lone_ones):
    for cube in with_lone_ones:
        truth = blend_truth(cube)
        alone = cube.index["target_class"].to_numpy() == "single"
        assert 0.4 < alone.mean() < 0.6
        assert np.isnan(truth.flux[alone, 1]).all()
        assert np.isfinite(truth.flux[~alone]).all()
        assert (truth.parent[:, 1] == -1).tolist() == alone.tolist()
        assert np.isinf(truth.separation[alone, 0]).all()
        assert np.isneginf(truth.contrast[alone, 0]).all()
        assert np.isfinite(truth.contrast[~alone]).all()
        assert (np.linalg.norm(truth.shift[~alone, 1], axis=1) <= 4.0).all()
        masks = np.concatenate([cube.read(k)[:, 3] for k in range(cube.shards)])
        assert (masks.any(axis=(1, 2)) == ~alone).all()
    with pytest.raises(
        ConfigError, match=r"a share of 1 isolated galaxies is not at least 0 and below 1"
    ):
        write_blends(with_lone_ones[0].store, spots(), isolated=1.0)
    with pytest.raises(ConfigError, match="limit that nothing satisfies"):
        Rule(within=0.5)


def test_a_network_learns_which_are_blends(with_lone_ones):
    train_cube, test_cube = with_lone_ones
    package = train(
        blend_training_set(train_cube, fluxes=False, classes=True),
        settings=TrainingSection(source="x", epochs=3, batch_size=50, learning_rates=[3e-3]),
        store=train_cube.store,
        name="tells",
        network={"cutout": 32, "hidden": 8},
        architecture="morphology",
        places=where.HERE,
    )
    assert package.tasks[0]["classes"] == ["blend", "single"]
    values, _ = predict(package.network(), None, images=test_cube.read(0)[:, :2])
    blended = test_cube.index["target_class"].to_numpy() == "blend"
    found = found_blends(values["p_blend"], blended, np.where(blended, 3.0, np.nan), [0, 2, 5])
    assert found["completeness"][found["rejected"].index(0.1)] > 0.3
    assert found["by_separation"][0]["n"] == 0
    assert found["by_separation"][1]["n"] == blended.sum()


def test_fluxes_are_learned_beside_galaxies_alone(with_lone_ones):
    package = go(with_lone_ones, "blend2flux", network={"cutout": 32, "width": 4}, epochs=1)
    found, held = package.metrics["held_out"]["fluxes"], with_lone_ones[0].index
    rows = held["held_out"].to_numpy()
    blended = (held["target_class"].to_numpy() == "blend") & rows
    assert found["central_r"]["n"] == rows.sum()
    assert found["companion_r"]["n"] == blended.sum()
