"""Small networks of several tasks, and tables to train them with, which the tests share."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from surveyproc.models.base import Network, Reads, register
from surveyproc.models.families.gaznet import (
    TARGET,
    dense_layers,
    mixture_head,
    mixture_output,
    target_scale,
)
from surveyproc.models.features import input_count
from surveyproc.models.tasks.classes import ClassTask
from surveyproc.models.tasks.embedding import EmbeddingTask
from surveyproc.models.tasks.fluxes import FluxOutput, FluxTask
from surveyproc.models.tasks.masks import MaskTask
from surveyproc.models.tasks.pdf import log_density
from surveyproc.models.tasks.redshift import RedshiftTask
from surveyproc.models.tasks.votes import VoteTask
from surveyproc.train.data import TrainingSet

BANDS = ("g", "r", "i", "z")
CLASSES = ("galaxy", "quasar", "star")
ANSWERS = tuple(f"t{number:02d}" for number in range(34))


class TypeRedshift(Network):
    """A common base, a head of classes, and one of redshifts that reads both (as OTELO's does)."""

    def __init__(self, bands, classes, width=32, components=2):
        super().__init__()
        self.reads = Reads(features=tuple(bands))
        self.tasks = (
            ClassTask(classes),
            RedshiftTask(lambda output, z: -log_density(output, torch.log1p(z)), weight=0.5),
        )
        self.register_buffer("target", torch.tensor(TARGET))
        self.base = dense_layers([input_count(len(bands)), width, width])
        # The classes may be told by the labels, after this was built once without.
        k = max(1, len(classes))
        self.classes = nn.Linear(width, k)
        self.hidden = dense_layers([width + k, width])
        self.redshift = mixture_head(width, components)

    def forward(self, features):
        base = self.base(features)
        logits = self.classes(base)
        both = torch.cat([base, logits.softmax(dim=1)], dim=1)
        mixture = mixture_output(self.redshift(self.hidden(both)), self.target)
        return {"class": logits.float(), "redshift": mixture}

    def set_targets(self, targets):
        self.target.copy_(target_scale(targets["redshift"]))


class Votes(Network):
    """Shares of 34 votes, and the layer before them."""

    def __init__(self, bands, width=64):
        super().__init__()
        self.reads = Reads(features=tuple(bands))
        self.tasks = (VoteTask(ANSWERS), EmbeddingTask(width))
        self.base = dense_layers([input_count(len(bands)), width])
        self.votes = nn.Linear(width, len(ANSWERS))

    def forward(self, features):
        embedding = self.base(features)
        return {"votes": self.votes(embedding).float(), "embedding": embedding}


class Pixels(Network):
    """Masks and fluxes of cutouts."""

    def __init__(self, bands, cutout=8):
        super().__init__()
        self.reads = Reads(images=tuple(bands), cutout=cutout)
        self.tasks = (MaskTask(("one", "two"), (cutout, cutout)), FluxTask(bands))
        self.first = nn.Conv2d(len(bands), 4, 3, padding=1)
        self.masks = nn.Conv2d(4, 2, 1)
        self.fluxes = nn.Linear(4 * cutout**2, 2 * len(bands))

    def forward(self, images):
        maps = functional.silu(self.first(images.where(images.isfinite(), 0.0) / 30))
        flux, error = self.fluxes(maps.flatten(1)).chunk(2, dim=1)
        fluxes = FluxOutput(100 * flux.float(), 100 * functional.softplus(error.float()))
        return {"masks": self.masks(maps).float(), "fluxes": fluxes}


class Looks(Network):
    """What a cutout looks like, as a vector, by a convolution that nobody trained."""

    def __init__(self, bands, cutout=12, width=24):
        super().__init__()
        self.reads = Reads(images=tuple(bands), cutout=cutout)
        self.tasks = (EmbeddingTask(width),)
        self.first = nn.Conv2d(len(bands), width, 5)

    def forward(self, images):
        known = images.isfinite().all(dim=(1, 2, 3))
        maps = torch.tanh(self.first(images.nan_to_num() / 100)).mean(dim=(2, 3))
        return {"embedding": maps.where(known[:, None], torch.nan)}


@register("test-types")
def types(name, bands, settings):
    chosen = dict(settings)
    classes = chosen.pop("classes", {}).get("class", ())
    return TypeRedshift(bands, classes, **chosen)


@register("test-votes")
def votes(name, bands, settings):
    return Votes(bands, **settings)


@register("test-looks")
def looks(name, bands, settings):
    return Looks(bands, **settings)


@register("test-pixels")
def pixels(name, bands, settings):
    return Pixels(bands, **settings)


def labelled(n=600, seed=0):
    """Fluxes that tell class, redshift and votes; stars have no redshift, some no class."""
    random = np.random.default_rng(seed)
    index = random.integers(0, 3, n)
    z = random.uniform(0.1, 1.5, n)
    phase = np.arange(4) * 0.7 + 2 * index[:, None] + np.where(index == 2, 0, z)[:, None]
    flux = 1e3 * np.exp(np.sin(phase) + random.normal(0, 0.01, (n, 4)))
    kind = np.array(CLASSES, object)[index]
    kind[random.random(n) < 0.1] = None
    share = 1 / (1 + np.exp(-np.sin(phase[:, :1] + np.arange(34))))
    share[random.random((n, 34)) < 0.1] = np.nan
    return TrainingSet(
        flux=flux,
        flux_err=0.01 * flux,
        targets={"class": kind, "redshift": np.where(index == 2, np.nan, z), "votes": share},
        ra=10 + random.uniform(0, 1, n),
        dec=random.uniform(-0.5, 0.5, n),
        bands=BANDS,
    )
