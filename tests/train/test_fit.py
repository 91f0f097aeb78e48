from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cube import write

from surveyproc.errors import SurveyError
from surveyproc.images.augment import centre
from surveyproc.models.base import Reads, build
from surveyproc.models.features import fit_scaling, network_inputs
from surveyproc.train.examples import (
    BandDropout,
    Examples,
    drop_features,
    drop_planes,
    generator,
)
from surveyproc.train.fit import FitSettings, FitState, fit
from surveyproc.train.schedules import logistic, plateau_factor

BANDS = ("g", "r", "i")
NET = {"widths": [16] * 8, "components": 2}


DROPOUT = BandDropout(0.2, 0.25)


@pytest.fixture(scope="module")
def data():
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    z = rng.uniform(0.1, 1.5, 600)
    flux = 1e3 * np.exp(
        np.stack([-z, 0.5 * z, np.cos(2 * z)], axis=1) + rng.normal(0, 0.01, (600, 3))
    )
    inputs, _ = network_inputs(flux, fit_scaling(flux, None, BANDS))
    tensors = {"features": torch.from_numpy(inputs)}
    targets = {"redshift": torch.from_numpy(z.astype(np.float32))}
    held_out = torch.from_numpy(np.arange(600) % 5 == 0)
    return Examples(Reads(features=BANDS), tensors, targets, held_out, None, DROPOUT, 0)


def start(seed=0):
    torch.manual_seed(seed)
    return build("gaznet-c3", BANDS, NET)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A hundred objects with cutouts one pixel wider than the network's on every side."""
    cube, _ = write(tmp_path_factory.mktemp("cube"), 148, bands=2, cutout=34)
    tensors = {
        "cube_row": torch.arange(48, 148),
        "reddening": torch.zeros(100),
    }
    targets = {"redshift": torch.linspace(0.1, 1.5, 100)}
    reads = Reads(images=("g", "r"), cutout=32, reddening=True)
    held_out, dropout = torch.arange(100) % 5 == 0, BandDropout(0.0, 0.0)
    return Examples(reads, tensors, targets, held_out, cube, dropout, 0)


def start_with_images(**changes):
    torch.manual_seed(0)
    settings = {"width": 0.03, "cutout": 32, "size": 1, "bins": [10, 0.0, 4.0]}
    return build("multimodal", ("g", "r"), settings | changes)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_learns_a_simple_relation(data):
    network, held = start(), data.held_out
    examples = replace(data, dropout=BandDropout(0.0, 0.0))
    *_, last = fit(network, examples, FitSettings(30, 32, 0))
    network.load_state_dict(last.best)
    with torch.no_grad():
        found = network.eval()(data.tensors["features"][held])["redshift"].point
    assert (found - data.targets["redshift"][held]).abs().median() < 0.03
    assert last.epoch == 60
    assert [entry["rate"] for entry in last.history] == [1e-3] * 30 + [1e-4] * 30
    assert last.best_loss == min(entry["validation_loss"] for entry in last.history)


@pytest.mark.parametrize("stop", [1, 2, 4, 7, 9])
def test_going_on_from_bytes_equals_never_stopping(data, stop):
    # Five steps an epoch: states come after the second, the fourth and the last.
    settings = FitSettings(4, 100, 3, checkpoint_steps=2)
    *_, whole = fit(start(), data, settings)
    first = fit(start(), data, settings)
    for _ in range(stop):
        state = next(first)
    *_, resumed = fit(start(seed=9), data, settings, FitState.from_bytes(state.to_bytes()))
    assert equal(resumed.weights, whole.weights)
    assert equal(resumed.best, whole.best)
    assert resumed.history == whole.history


def test_dropout_goes_on_as_if_it_had_never_stopped(data):
    settings = FitSettings(2, 100, 3, checkpoint_steps=2)
    small = {"members": 2, "width": 8, "depth": 1, "dropout": 0.5, "errors": False}

    def begun(seed):
        # Whatever else has drawn from torch's own generator in this process.
        torch.manual_seed(seed)
        return build("tabm", BANDS, small)

    *_, whole = fit(begun(0), data, settings)
    first = fit(begun(0), data, settings)
    state = [next(first) for _ in range(4)][-1]
    *_, resumed = fit(begun(5), data, settings, FitState.from_bytes(state.to_bytes()))
    assert equal(resumed.weights, whole.weights)
    assert resumed.history == whole.history


def go_on_from_every_state(rank, place, data):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=3
    )
    settings = FitSettings(2, 48, 3, rates=(1e-3,), checkpoint_steps=1)
    *states, whole = fit(start(), data, settings, rank=rank, world=3)
    assert len(states) == 19
    for state in states:
        *_, resumed = fit(start(seed=9), data, settings, state, rank=rank, world=3)
        assert equal(resumed.weights, whole.weights)
        assert resumed.history == whole.history
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_several_workers_go_on_to_the_same_last_bit(data, tmp_path):
    torch.multiprocessing.spawn(go_on_from_every_state, (tmp_path, data), nprocs=3)


def test_states_within_an_epoch_change_nothing(data):
    *_, often = fit(start(), data, FitSettings(2, 100, 3, checkpoint_steps=1))
    *_, rarely = fit(start(), data, FitSettings(2, 100, 3))
    assert equal(often.weights, rarely.weights)


def test_same_seed_same_weights_other_seed_others(data):
    runs = [
        list(fit(start(), replace(data, seed=seed), FitSettings(2, 64, seed)))[-1]
        for seed in (0, 0, 1)
    ]
    assert equal(runs[0].weights, runs[1].weights)
    assert not equal(runs[0].weights, runs[2].weights)


def test_held_out_rows_are_not_trained_on(data):
    z = data.targets["redshift"]
    targets = {"redshift": torch.where(data.held_out, z + 1.0, z)}
    settings = FitSettings(1, 64, 0, rates=(1e-3,))
    (first,), (second,) = (
        list(fit(start(), examples, settings))
        for examples in (data, replace(data, targets=targets))
    )
    assert equal(first.weights, second.weights)
    assert first.best_loss != second.best_loss


def test_gradients_in_parts_are_those_of_the_whole_step(data):
    settings = FitSettings(1, 96, 0, rates=(1e-3,))
    (whole,) = fit(start(), data, settings)
    (parts,) = fit(start(), data, replace(settings, accumulate=3))
    for key, tensor in whole.weights.items():
        torch.testing.assert_close(parts.weights[key], tensor, rtol=1e-4, atol=1e-6)


def test_a_stage_ends_when_nothing_gets_better(data):
    examples = replace(data, dropout=BandDropout(0.0, 0.0))
    settings = FitSettings(50, 64, 0, rates=(0.03, 1e-12), patience=3)
    *_, last = fit(start(), examples, settings)
    assert last.epoch == 100
    # With hardly a rate the second stage finds nothing better, or only what rounding makes so.
    assert sum(entry["rate"] == 1e-12 for entry in last.history) < 50
    assert len(last.history) < 100


def typed(seed=0):
    torch.manual_seed(seed)
    small = {"base": [16], "classifier": [8], "components": 2, "errors": False}
    return build("otelo", BANDS, small)


@pytest.fixture(scope="module")
def types(data):
    z = data.targets["redshift"]
    return replace(data, targets={"redshift": z, "class": (z > 0.7).float()})


@pytest.mark.parametrize("stop", [1, 5, 12])
def test_the_rate_of_a_plateau_goes_on_as_if_never_stopped(types, stop):
    options = {**typed().fit_options, "rates": (3e-3, 1e-3), "patience": 3}
    settings = FitSettings(12, 100, 3, checkpoint_steps=3, **options)
    *_, whole = fit(typed(), types, settings)
    first = fit(typed(), types, settings)
    state = [next(first) for _ in range(stop)][-1]
    *_, resumed = fit(typed(9), types, settings, FitState.from_bytes(state.to_bytes()))
    assert equal(resumed.weights, whole.weights)
    assert resumed.history == whole.history


def test_the_redshift_slows_and_the_class_stops_a_training(types):
    # Classes by chance: nothing is learned of those held out.
    noise = torch.randint(0, 2, (600,), generator=torch.Generator().manual_seed(1)).float()
    examples = replace(types, targets={**types.targets, "class": noise})
    options = {**typed().fit_options, "rates": (1e-2,), "patience": 8}
    *_, last = fit(typed(), examples, FitSettings(80, 64, 0, **options))
    classes = [entry["validation_loss_class"] for entry in last.history]
    redshifts = [entry["validation_loss_redshift"] for entry in last.history]
    assert len(classes) < 80
    assert len(classes) - 1 - classes.index(min(classes)) == 8
    expected = [1e-2 * plateau_factor(redshifts[:epoch]) for epoch in range(len(classes))]
    assert [entry["rate"] for entry in last.history] == expected
    # What is kept are the best weights of both losses together.
    whole = [entry["validation_loss"] for entry in last.history]
    assert last.best_loss == min(whole)


def test_a_fitted_schedule_is_followed_without_rows_held_out(types):
    nothing = torch.zeros(600, dtype=torch.bool)
    shape = (1.0, 0.1, 4.0, 1.0)
    settings = FitSettings(
        8, 100, 0, rates=(1e-3,), schedule="logistic", logistic=shape, optimiser="rmsprop"
    )
    *_, last = fit(typed(), replace(types, held_out=nothing), settings)
    rates = [entry["rate"] for entry in last.history]
    np.testing.assert_allclose(rates, 1e-3 * logistic(np.arange(8), shape))


def test_a_stage_starts_from_the_best_weights_of_the_one_before(data):
    # The more is learned, the worse for those held out: the last weights are not the best.
    z = data.targets["redshift"]
    targets = {"redshift": torch.where(data.held_out, z + 5.0, z)}
    settings = FitSettings(4, 64, 0, rates=(1e-2, 0.0))
    states = list(fit(start(), replace(data, targets=targets), settings))
    assert not equal(states[3].weights, states[3].best)
    # Without a rate it stays where it starts.
    assert equal(states[4].weights, states[3].best)


def test_convolutions_are_trained_channels_last(pictures):
    network = start_with_images()
    list(fit(network, pictures, FitSettings(1, 40, 0, rates=(1e-3,))))
    kernels = [weight for weight in network.parameters() if weight.ndim == 4]
    assert kernels
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


def test_training_drops_modalities_step_by_step(pictures):
    settings = FitSettings(1, 10, 0, rates=(1e-3,))
    (plain,) = fit(start_with_images(), pictures, settings)
    (dropped,) = fit(start_with_images(modality_dropout=1), pictures, settings)
    assert plain.history != dropped.history


def test_training_images_are_turned_and_shifted_and_held_out_ones_are_not(pictures):
    how = {"batch": 20, "rank": 0, "world": 1, "device": "cpu"}
    trained, again, held = (
        # What is left of a pixel is its place in the cutout.
        torch.cat([inputs["images"] % (2 * 34**2) for inputs, _ in samples])
        for samples in (
            pictures.training(0, 0, **how),
            pictures.training(1, 0, **how),
            pictures.validation(**how),
        )
    )
    plain = centre(torch.arange(2.0 * 34**2).reshape(1, 2, 34, 34), 32)
    assert torch.equal(held, plain.expand(20, 2, 32, 32))
    # There are 8 turns and mirror images, and 9 shifts: neither alone gives so many.
    assert len(trained.flatten(1).unique(dim=0)) > 9
    assert not torch.equal(trained, again)


def test_half_precision_learns_too(data):
    *_, full = fit(start(), data, FitSettings(5, 64, 0))
    *_, last = fit(start(), data, FitSettings(5, 64, 0, precision="bfloat16"))
    assert last.history != full.history
    assert last.best_loss == pytest.approx(full.best_loss, rel=0.2)
    assert all(tensor.dtype == torch.float32 for tensor in last.weights.values())


def test_dropped_bands_look_like_missing_ones():
    rng = np.random.default_rng(1)
    flux = np.exp(rng.normal(5, 1, (400, 3)))
    flux[:100, 0] = np.nan
    flux[:50, 1] = np.nan
    scaling = fit_scaling(flux, None, BANDS)
    inputs = torch.from_numpy(network_inputs(flux, scaling)[0])
    lost = BandDropout(0.9, 0.6).draw(400, 3, generator(0))
    found = drop_features(inputs, lost)
    present = found[:, 5:] > 0
    assert present.any(dim=1).all()
    assert (present.sum(dim=1) < (inputs[:, 5:] > 0).sum(dim=1)).sum() > 100
    holed = np.where(present.numpy(), flux, np.nan)
    np.testing.assert_array_equal(found, network_inputs(holed, scaling)[0])
    assert torch.equal(
        drop_features(inputs, BandDropout(0.0, 1.0).draw(400, 3, generator(0))), inputs
    )


def test_dropped_planes_are_missing_and_never_all():
    images = torch.ones(200, 3, 4, 4)
    images[:50, 0] = torch.nan
    lost = BandDropout(1.0, 0.6).draw(200, 3, generator(1))
    found = drop_planes(images, lost)
    seen = found.isfinite().any(dim=3).any(dim=2)
    assert seen.any(dim=1).all()
    assert (~seen[50:]).any()
    assert torch.equal(found[seen], images[seen])


def test_divergence_is_an_error(data):
    tensors = {"features": torch.full_like(data.tensors["features"], torch.nan)}
    with pytest.raises(SurveyError, match="diverged in epoch 1"):
        list(fit(start(), replace(data, tensors=tensors), FitSettings(1, 64, 0)))
