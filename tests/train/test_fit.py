import numpy as np
import pytest
import torch

from surveyproc.errors import SurveyError
from surveyproc.models.base import build
from surveyproc.models.features import fit_scaling, network_inputs
from surveyproc.train.fit import FitSettings, FitState, drop_bands, fit

BANDS = ("g", "r", "i")
NET = {"widths": [16] * 8, "components": 2}


@pytest.fixture(scope="module")
def data():
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    z = rng.uniform(0.1, 1.5, 600)
    flux = 1e3 * np.exp(
        np.stack([-z, 0.5 * z, np.cos(2 * z)], axis=1) + rng.normal(0, 0.01, (600, 3))
    )
    inputs, _ = network_inputs(flux, fit_scaling(flux, None, BANDS))
    held_out = np.arange(600) % 5 == 0
    return tuple(torch.from_numpy(a) for a in (inputs, z.astype(np.float32), held_out))


def start(seed=0):
    torch.manual_seed(seed)
    return build("gaznet-c3", BANDS, NET)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_learns_a_simple_relation(data):
    inputs, z, held_out = data
    network = start()
    *_, last = fit(network, inputs, z, held_out, FitSettings(30, 32, 0, dropped_rows=0.0))
    network.load_state_dict(last.best)
    with torch.no_grad():
        found = network.eval()(inputs[held_out]).point
    assert (found - z[held_out]).abs().median() < 0.03
    assert last.epoch == 60
    assert [entry["rate"] for entry in last.history] == [1e-3] * 30 + [1e-4] * 30
    assert last.best_loss == min(entry["validation_loss"] for entry in last.history)


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_going_on_from_files_equals_never_stopping(data, tmp_path, stop):
    settings = FitSettings(4, 100, 3)
    *_, whole = fit(start(), *data, settings)
    first = fit(start(), *data, settings)
    for _ in range(stop):
        state = next(first)
    state.save(tmp_path)
    *_, resumed = fit(start(seed=9), *data, settings, FitState.load(tmp_path))
    assert equal(resumed.weights, whole.weights)
    assert equal(resumed.best, whole.best)
    assert resumed.history == whole.history


def test_same_seed_same_weights_other_seed_others(data):
    runs = [list(fit(start(), *data, FitSettings(2, 64, seed)))[-1] for seed in (0, 0, 1)]
    assert equal(runs[0].weights, runs[1].weights)
    assert not equal(runs[0].weights, runs[2].weights)


def test_held_out_rows_are_not_trained_on(data):
    inputs, z, held_out = data
    changed = torch.where(held_out, z + 1.0, z)
    settings = FitSettings(1, 64, 0, rates=(1e-3,))
    (first,), (second,) = (list(fit(start(), inputs, t, held_out, settings)) for t in (z, changed))
    assert equal(first.weights, second.weights)
    assert first.best_loss != second.best_loss


def test_dropped_bands_look_like_missing_ones():
    rng = np.random.default_rng(1)
    flux = np.exp(rng.normal(5, 1, (400, 3)))
    flux[:100, 0] = np.nan
    flux[:50, 1] = np.nan
    scaling = fit_scaling(flux, None, BANDS)
    inputs = torch.from_numpy(network_inputs(flux, scaling)[0])
    found = drop_bands(inputs, 3, 0.9, 0.6, torch.Generator().manual_seed(0))
    present = found[:, 5:] > 0
    assert present.any(dim=1).all()
    assert (present.sum(dim=1) < (inputs[:, 5:] > 0).sum(dim=1)).sum() > 100
    holed = np.where(present.numpy(), flux, np.nan)
    np.testing.assert_array_equal(found, network_inputs(holed, scaling)[0])
    untouched = drop_bands(inputs, 3, 0.0, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(untouched, inputs)


def test_divergence_is_an_error(data):
    inputs, z, held_out = data
    with pytest.raises(SurveyError, match="diverged in epoch 1"):
        list(fit(start(), inputs, torch.full_like(z, torch.nan), held_out, FitSettings(1, 64, 0)))
