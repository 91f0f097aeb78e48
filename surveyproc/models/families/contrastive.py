"""Networks that learn from cutouts without labels, by telling an object again that was changed.

SimCLR (Chen et al. 2020, ICML 119, 1597): each cutout is distorted twice, a backbone and two dense
layers make unit vectors of both, and the loss (its eq. 1, NT-Xent) is the surprise at finding an
object's other view among all the views of a batch. What distortions leave as it was is what the
embedding tells: shape and colour, not orientation, position or noise (Hayat et al. 2021,
ApJL 911, L33, for galaxies of SDSS).

Backbone, scaling and dense layer are those of `morphology` and have its names, so that a training
may begin with them: `training.start`. The embedding finds galaxies that look alike as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from surveyproc.errors import ConfigError
from surveyproc.images.augment import Distortion
from surveyproc.models.base import Reads, register
from surveyproc.models.families.backbones import Widths, backbone, configured
from surveyproc.models.families.inception import ScaledNetwork
from surveyproc.models.families.pixels import SCALINGS
from surveyproc.models.tasks.embedding import EmbeddingTask
from surveyproc.models.tasks.likeness import LikenessTask

Bounds = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


@dataclass(frozen=True)
class ContrastiveConfig:
    """Everything that fixes a contrastive network.

    Attributes
    ----------
    image_bands, backbone, widths, cutout, pixels :
        As in `MorphologyConfig`.
    hidden : int
        Width of the embedding; up to 32 its code keeps the order of near neighbours.
    projection : int
        Length of the vectors that are compared; only in training.
    temperature : float
        Of their similarities.
    zoom, dimming, shrinking :
        Of the views: see `images.augment.Distortion`; they are turned by any angle.
    noise : float
        Standard deviation of what is added to a view's pixels, in units of the standard deviation
        of its band's.

    Raises
    ------
    ConfigError
        If a value cannot be used; the message names it.
    """

    image_bands: tuple[str, ...]
    backbone: str = "residual"
    widths: Widths = ()
    cutout: Annotated[int, Field(ge=32)] = 100
    pixels: Literal["asinh", "lupton", "eight_bit"] = "asinh"
    hidden: PositiveInt = 32
    projection: PositiveInt = 64
    temperature: PositiveFloat = 0.2
    zoom: Annotated[float, Field(ge=1, le=4)] = 1.3
    dimming: Bounds = (0.6, 1.0)
    shrinking: Bounds = (0.7, 1.0)
    noise: Annotated[float, Field(ge=0)] = 0.1

    def __post_init__(self) -> None:
        if not self.image_bands:
            raise ConfigError("image_bands: at least one band is needed")


class Contrastive(ScaledNetwork):
    """A backbone, the maximum of its maps, a dense layer, and vectors to compare.

    Parameters
    ----------
    config : ContrastiveConfig
        What it is made of.
    """

    fit_options: ClassVar[Mapping[str, Any]] = {
        "rates": (1e-3,),
        "schedule": "cosine",
        "weight_decay": 1e-4,
        "dropped_rows": 0.0,
    }

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        planes = len(config.image_bands)
        self.reads = Reads(images=config.image_bands, cutout=config.cutout)
        self.tasks = (LikenessTask(config.temperature), EmbeddingTask(config.hidden))
        self.distortion = Distortion(config.zoom, config.dimming, config.shrinking, 180.0)
        self.scaling = SCALINGS[config.pixels](planes, config.cutout)
        self.backbone = backbone(config.backbone, planes, config.widths)
        self.dense = nn.Sequential(
            nn.Linear(self.backbone.num_features, config.hidden), nn.LeakyReLU()
        )
        self.projection = nn.Sequential(
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.projection),
        )
        self.draws: torch.Generator | None = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The embedding; in training and validation, also vectors of two views.

        Parameters
        ----------
        images : float32 Tensor, shape (n, band, cutout, cutout)
            nJy a pixel, or intensities 0 to 255; not finite = missing.

        Returns
        -------
        dict
            `embedding`, shape (n, hidden), and `likeness`, unit vectors of shape
            (n, 2, projection); at inference, where no gradient is asked for, of the image itself.
        """
        if torch.is_inference_mode_enabled():
            embedding = self._embed(self.scaling(images))
            vectors = functional.normalize(self.projection(embedding).float(), dim=1)
            return {"embedding": embedding.float(), "likeness": vectors[:, None].expand(-1, 2, -1)}
        # Validation is of the same views in every epoch.
        draws = self.draws if self.training and self.draws else torch.Generator().manual_seed(0)
        embedding = self._embed(torch.cat([self._view(images, draws) for _ in range(2)]))
        vectors = functional.normalize(self.projection(embedding).float(), dim=1)
        both = torch.stack(vectors.chunk(2), dim=1)
        return {"embedding": embedding[: len(images)].float(), "likeness": both}

    def _view(self, images: Tensor, draws: torch.Generator) -> Tensor:
        planes: Tensor = self.scaling(self.distortion(images, draws))
        if not self.config.noise:
            return planes
        # Drawn where it is needed: a device does not wait for millions of numbers of a CPU.
        seed = int(torch.randint(2**31, (), generator=draws))
        source = torch.Generator(planes.device).manual_seed(seed)
        noise = torch.randn(planes.shape, generator=source, device=planes.device)
        level = planes.detach().std(dim=(0, 2, 3), keepdim=True)
        noisy: Tensor = planes + self.config.noise * level * noise
        return noisy

    def _embed(self, planes: Tensor) -> Tensor:
        maps = self.backbone.forward_features(planes)
        vector: Tensor = self.dense(maps.amax(dim=(2, 3)))
        return vector

    def begin_step(self, generator: torch.Generator) -> None:
        """The views of the step are drawn from `generator`."""
        self.draws = generator


@register("contrastive")
@register("contrastive-*")
def contrastive(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> Contrastive:
    """A network of cutouts of all bands; `settings` are fields of `ContrastiveConfig`.

    `contrastive-densenet201` has that backbone, `contrastive` the one of the settings.

    Raises
    ------
    ConfigError
        If a setting is unknown or cannot be used, or there is no such backbone.
    """
    return Contrastive(configured(ContrastiveConfig, name, bands, settings))
