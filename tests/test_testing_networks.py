"""The conformance checks pass on our networks and fail on those that break the contract."""

import numpy as np
import pytest
import task_networks
import torch
from torch import nn

from surveyproc.models.base import Network, Reads, build
from surveyproc.models.tasks.base import Target, Task
from surveyproc.models.tasks.classes import ClassTask
from surveyproc.testing import ROWS, check_network

SMALL = {"image_widths": [4, 4, 4, 4], "cutout": 16, "joint_widths": [8]}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gaznet-c4", {}),
        ("gaznet-c4", {"components": 0}),
        ("gaznet-1", SMALL),
        ("gaznet-i4", SMALL),
        ("tabm", {"members": 2, "width": 8, "depth": 1}),
        ("multimodal", {"width": 0.03, "cutout": 32, "bins": [40, 0.0, 4.0]}),
        ("multimodal", {"width": 0.03, "cutout": 32, "heads": "regression"}),
        ("test-types", {"classes": {"class": task_networks.CLASSES}}),
        ("test-votes", {}),
        ("test-pixels", {}),
    ],
)
def test_our_networks_keep_the_contract(name, settings):
    torch.manual_seed(1)
    check_network(build(name, tuple("grzi"), settings))


class Plain(Network):
    """Two classes from the fluxes of two bands."""

    reads = Reads(features=("g", "r"))

    def __init__(self):
        super().__init__()
        self.tasks = (ClassTask(("a", "b")),)
        self.layer = nn.Linear(5, 2)

    def forward(self, features):
        return {"class": self.layer(features)}


class Comparing(Plain):
    def forward(self, features):
        return {"class": self.layer(features - features.mean(dim=0))}


class Nameless(Plain):
    def forward(self, features):
        return {"klass": self.layer(features)}


class Forgetful(Plain):
    offset = 0.0

    def set_targets(self, targets):
        self.offset = 2.0

    def forward(self, features):
        return {"class": self.layer(features) * torch.tensor([1.0, 1.0 + self.offset])}


class Careless(ClassTask):
    def loss(self, output, targets):
        chosen = nn.functional.one_hot(targets["class"].nan_to_num(0.0).long(), 2)
        return (output - chosen).square().sum(dim=1)


class Short(ClassTask):
    def loss(self, output, targets):
        return super().loss(output, targets).mean()


class Sum(ClassTask):
    def average(self, outputs):
        return torch.stack(list(outputs)).sum(dim=0)


class Untold(ClassTask):
    def values(self, output):
        return {**super().values(output), "more": output[:, 0].numpy()}


def with_task(task):
    network = Plain()
    network.tasks = (task,)
    return network


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (Comparing(), "p_a: other rows beside it gave another result"),
        (Nameless(), r"forward gives \['klass'\], the tasks are \['class'\]"),
        (Forgetful(), "p_a: the saved weights gave another result"),
        (with_task(Careless(("a", "b"))), "objects without any target must add 0"),
        (with_task(Short(("a", "b"))), r"loss: shape \(\) for 70 objects"),
        (with_task(Sum(("a", "b"))), "the average of twice the same changes p_a"),
        (with_task(Untold(("a", "b"))), r"values \['class', 'more', 'p_a', 'p_b'\], declared"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_network_that_breaks_the_contract_is_caught(network, match):
    check_network(Plain())
    with pytest.raises(AssertionError, match=match):
        check_network(network)


class SizeTask(Task):
    """A third party's kind: one number, whose column it says itself."""

    kind, name, targets = "theirs", "size", (Target("size"),)

    def describe(self):
        column = {"name": "{model}_size", "dtype": "float32", "unit": "arcsec", "range": [0, 99]}
        return {"name": self.name, "kind": self.kind, "columns": [column]}

    def loss(self, output, targets):
        known = targets["size"].isfinite()
        return (output - targets["size"].where(known, 0.0)).abs().where(known, 0.0)

    def average(self, outputs):
        return torch.stack(list(outputs)).mean(dim=0)

    def values(self, output):
        return {"size": output.cpu().numpy()}


class Sizes(Plain):
    def __init__(self):
        super().__init__()
        self.tasks = (SizeTask(),)

    def forward(self, features):
        return {"size": self.layer(features)[:, 0]}


def test_a_kind_of_a_third_party_is_checked_with_its_own_labels():
    check_network(Sizes(), {"size": np.linspace(0.1, 2.0, ROWS)})
    with pytest.raises(AssertionError, match="give `targets` with 'size'"):
        check_network(Sizes())
