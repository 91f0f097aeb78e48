"""Many networks trained at once: each as if it were alone, and as the paper's protocol has it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from surveyproc.errors import InputError
from surveyproc.models.base import build
from surveyproc.models.families.otelo import PAPER
from surveyproc.train.fit import EPSILON, RHO
from surveyproc.train.many import ManySettings, fit_many
from surveyproc.train.schedules import fit_logistic, logistic, plateau_factor

BANDS = ("g", "r", "i")
N = 90
SMALL = {**PAPER, "base": [16], "classifier": [8], "base_dropout": 0.0, "classifier_dropout": 0.0}
SETTINGS = ManySettings(4, seed=2, batch_size=32)


@pytest.fixture(scope="module")
def sample():
    """Features and targets of objects whose first feature tells the class, the second z."""
    torch.set_num_threads(1)
    features = torch.randn(N, 8, generator=torch.Generator().manual_seed(1))
    targets = {"class": (features[:, 0] > 0).float(), "redshift": (0.3 * features[:, 1]).exp()}
    return features, targets


def start(number, targets, **changes):
    torch.manual_seed(number)
    network = build("otelo", BANDS, SMALL | changes)
    network.set_targets({name: one.double() for name, one in targets.items()})
    return network


def rows(m, n=N, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(N, generator=source)[:n] for _ in range(m)])


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_each_ends_as_it_would_alone(sample):
    features, targets = sample
    chosen = rows(3, 80)
    together = [start(k, targets) for k in range(3)]
    fit_many(together, features, targets, chosen, settings=SETTINGS)
    # Network 0 draws the same order whoever comes with it.
    alone = start(0, targets)
    fit_many([alone], features, targets, chosen[:1], settings=SETTINGS)
    torch.testing.assert_close(weights(alone), weights(together[0]), rtol=1e-4, atol=1e-6)
    assert (weights(together[1]) - weights(together[0])).abs().max() > 1e-2
    assert not any(network.training for network in together)


def test_a_step_is_that_of_rmsprop_with_the_constants_of_keras(sample):
    features, targets = sample
    chosen, settings = rows(1, 32), replace(SETTINGS, epochs=3)
    ours, peer = start(0, targets), start(0, targets)
    fit_many([ours], features, targets, chosen, settings=settings)
    peer.train()
    optimiser = torch.optim.RMSprop(peer.parameters(), lr=1e-3, alpha=RHO, eps=EPSILON)
    known = {name: one[chosen[0]] for name, one in targets.items()}
    for _ in range(3):
        optimiser.zero_grad()
        peer.loss(peer(features[chosen[0]]), known).mean().backward()
        optimiser.step()
    torch.testing.assert_close(weights(ours), weights(peer), rtol=1e-4, atol=1e-6)


def test_features_may_be_scaled_for_each_network(sample):
    features, targets = sample
    chosen = rows(2, 80)
    shared, own = ([start(k, targets) for k in range(2)] for _ in range(2))
    fit_many(shared, features, targets, chosen, settings=SETTINGS)
    each = torch.stack([features, features])
    fit_many(own, each, targets, chosen, settings=SETTINGS)
    assert torch.equal(weights(shared[1]), weights(own[1]))
    each[1] *= 2
    scaled = [start(k, targets) for k in range(2)]
    fit_many(scaled, each, targets, chosen, settings=SETTINGS)
    assert torch.equal(weights(scaled[0]), weights(own[0]))
    assert not torch.equal(weights(scaled[1]), weights(own[1]))


def test_each_stops_by_itself_and_the_rate_follows_the_redshift(sample):
    features, targets = sample
    # Of the second network's objects the classes say nothing: it soon learns them by heart.
    noise = torch.randint(0, 2, (N,), generator=torch.Generator().manual_seed(3)).float()
    mixed = {**targets, "class": torch.cat([targets["class"][:45], noise[45:]])}
    chosen = torch.stack([torch.arange(45), torch.arange(45, N)])
    settings = replace(SETTINGS, epochs=60, rates=(1e-2,), patience=4)
    networks = [start(k, targets, base=[64]) for k in range(2)]
    record = fit_many(
        networks, features, mixed, chosen[:, :30], chosen[:, 30:], settings=settings
    )  # fmt: skip
    assert record.epochs[1] < record.epochs[0]
    for number in range(2):
        epochs, losses = int(record.epochs[number]), record.losses["class"][number]
        lowest = losses[:epochs].argmin()
        assert epochs - 1 - lowest == 4 or epochs == 60
        rates = record.rates[number]
        assert np.isfinite(rates[:epochs]).all()
        assert np.isnan(rates[epochs:]).all()
        z = record.losses["redshift"][number]
        expected = [1e-2 * plateau_factor(z[:k].tolist()) for k in range(epochs)]
        np.testing.assert_allclose(rates[:epochs], expected)
    # The second one kept the weights of the epoch in which it stopped.
    with torch.no_grad():
        out = networks[1](features[chosen[1, 30:]])
    found = networks[1].tasks[0].loss(out["class"], {"class": mixed["class"][chosen[1, 30:]]})
    last = record.losses["class"][1, record.epochs[1] - 1]
    assert float(found.mean()) == pytest.approx(float(last), rel=1e-4)


def test_a_fixed_schedule_has_a_rate_for_every_epoch(sample):
    features, targets = sample
    rates = tuple(logistic(np.arange(4), (1e-3, 1e-4, 2.0, 1.0)))
    record = fit_many(
        [start(0, targets)], features, targets, rows(1), settings=replace(SETTINGS, rates=rates)
    )
    np.testing.assert_allclose(record.rates[0], rates)
    assert record.epochs.tolist() == [4]
    assert record.losses == {}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"training": torch.zeros(2, 5, dtype=torch.long)}, "1 networks: training rows have shape"),
        ({"settings": replace(SETTINGS, rates=(1e-3, 1e-3))}, "4 epochs have 2 rates"),
        ({"targets": {"class": torch.full((N,), 0.0), "redshift": torch.full((N,), 1e38)}},
         "network 0 diverged"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_named(sample, change, match):
    features, targets = sample
    given = {"targets": targets, "training": rows(1), "settings": SETTINGS} | change
    network = start(0, targets)
    if "targets" in change:
        network.target.copy_(torch.tensor([0.0, 1e-30]))
    with pytest.raises(InputError, match=match):
        fit_many([network], features, **given)


def test_plateau_as_keras_has_it():
    # min_delta is absolute: 5e-5 lower is standing still.
    still = [1.0] + [1.0 - 5e-5] * 5
    assert plateau_factor(still[:5]) == 1.0
    assert plateau_factor(still) == pytest.approx(0.9)
    assert plateau_factor([*still, *still]) == pytest.approx(0.81)
    assert plateau_factor([1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5]) == 1.0


def test_a_sigmoid_is_found_again_in_the_rates_it_gave():
    epochs = np.arange(60)
    shape = (1e-3, 2e-4, 25.0, 6.0)
    found = fit_logistic(np.tile(epochs, 3), np.tile(logistic(epochs, shape), 3))
    np.testing.assert_allclose(logistic(epochs, found), logistic(epochs, shape), rtol=1e-3)
    assert logistic(1e9, shape) == pytest.approx(2e-4)
    constant = fit_logistic(epochs, np.full(60, 1e-3))
    np.testing.assert_allclose(logistic(epochs, constant), 1e-3, rtol=1e-2)
    with pytest.raises(InputError, match="four finite rates"):
        fit_logistic([0, 1, 2], [1.0, 1.0, 1.0])
