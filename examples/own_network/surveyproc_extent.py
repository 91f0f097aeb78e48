"""A network of one's own: whether an object is compact or extended, from a cutout and the fluxes.

Gives the probabilities of both classes, and four numbers an object for searches by likeness.
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn

from surveyproc.errors import ConfigError
from surveyproc.models.base import Network, Reads, checked
from surveyproc.models.features import input_count
from surveyproc.models.tasks.classes import ClassTask
from surveyproc.models.tasks.embedding import EmbeddingTask


@dataclass(frozen=True)
class Settings:
    """Its keys in `architecture_settings`."""

    image_band: str = "r"
    cutout: int = 20
    width: int = 16


class Extent(Network):
    """Two convolutions of the cutout, beside the fluxes of all bands."""

    def __init__(self, bands, image_band, cutout, width):
        super().__init__()
        self.reads = Reads(features=bands, images=(image_band,), cutout=cutout)
        self.tasks = (ClassTask(("compact", "extended")), EmbeddingTask(4))
        self.image = nn.Sequential(
            nn.Conv2d(1, width, 5, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()
        )
        self.both = nn.Linear(width + input_count(len(bands)), width)
        self.embedding = nn.Linear(width, 4)
        self.logits = nn.Linear(4, 2)

    def forward(self, images, features):
        """What each task wants; images are in nJy, NaN where there is no pixel."""
        light = torch.asinh(images.nan_to_num(0.0) / 100.0)
        seen = self.image(light).mean(dim=(2, 3))
        both = torch.relu(self.both(torch.cat([seen, features], dim=1)))
        embedding = self.embedding(both)
        return {"class": self.logits(embedding), "embedding": embedding}


def build(name, bands, settings):
    """The network of a section of survey.toml: its `architecture`, bands and settings."""
    chosen = checked(Settings, settings, name)
    if chosen.image_band not in bands:
        raise ConfigError(f"{name}: image_band: there are {', '.join(bands)}")
    return Extent(tuple(bands), **asdict(chosen))
