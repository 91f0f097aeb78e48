"""Networks that see what a galaxy looks like (Khramtsov et al. 2022, SDSS morphology III).

What the paper states: 100 x 100 colour images, scaled by its eq. 1; one of eleven backbones, a
global maximum of its maps, a dense layer of 128 with LeakyReLU and one output a class (five of
them); or a dense layer of 512 with ReLU and 34 outputs, the features of Galaxy Zoo 2, each for
itself; Adam with 1e-4 over 40 epochs; zoom, turns and flips; with the adversarial augmentation
also its eq. 2. Its softmax and sigmoid are in the losses here.

What is ours: the small backbones (`backbones`), cutouts of any bands in nanojansky beside colour
images (`pixels`), LeakyReLU's slope of 0.01, the Dirichlet-multinomial loss of votes, the zoom, the
turn and the average over turns and the eight symmetries of the square at inference, the settings of
the training, and the embedding: the dense layer, by which galaxies that look alike can be found. A
network starts from random weights unless `weights` says otherwise.

The zoom and the turn at inference matter: trained with galaxies that are larger by a tenth in the
mean, and softer from the interpolation, networks told 87.1 % of the stamps of Galaxy Zoo 1 as they
are, and 88.7 % of the same, enlarged by a tenth; trained with galaxies turned by any angle, 89.3 %
of stamps as they lie and 90.0 % in the mean over turns (`benchmarks/NOTES.md`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from surveyproc.catalogs.galaxy_zoo import FEATURES, QUESTIONS
from surveyproc.errors import ConfigError, InputError
from surveyproc.images.augment import Distortion, magnified, turn
from surveyproc.models.base import Reads, register
from surveyproc.models.families.backbones import (
    Widths,
    backbone,
    configured,
    load_weights,
    symmetries,
)
from surveyproc.models.families.inception import ScaledNetwork
from surveyproc.models.families.pixels import SCALINGS
from surveyproc.models.tasks.classes import ClassTask
from surveyproc.models.tasks.embedding import EmbeddingTask
from surveyproc.models.tasks.votes import VoteTask

HEADS = {"classes": 128, "votes": 512}
"""Width of the dense layer before the decision, by what is decided."""


@dataclass(frozen=True)
class MorphologyConfig:
    """Everything that fixes a morphology network.

    Attributes
    ----------
    image_bands : tuple of str
        Bands of the cutouts; `r`, `g`, `b` are the planes of colour images.
    backbone : str
        `residual`, `equivariant`, or a name of timm.
    widths : tuple of int
        Channels of the blocks of one of our own backbones; by default `backbones.OWN`.
    cutout : int
        Pixels on a side.
    pixels : {'asinh', 'lupton', 'eight_bit'}
        How pixels become inputs; `eight_bit` for colour images.
    decides : {'classes', 'votes'}
        Classes that exclude each other, or shares of votes.
    classes : mapping of str to tuple of str
        `class` to the names; those of the labels if absent.
    answers : tuple of str
        Names of the votes; the 34 features of Galaxy Zoo 2 by default.
    questions : mapping of str to tuple of str, or 'galaxy_zoo_2'
        Question to its answers; by that name those of the default answers. With questions the loss
        is that of votes cast for one answer each (Dirichlet-multinomial), and numbers of votes are
        needed; without, each answer is for itself.
    thresholds : mapping of str to float
        Answer to the share above which an object has the feature, kept with the model; by default
        the paper's, of those answers that are among its 34.
    hidden : int
        Width of the dense layer; 0: as the paper has it, 128 for classes and 512 for votes.
    average : bool
        Whether outputs at inference are the means over the eight symmetries of the square, each
        turned by all of `turned`.
    turned : tuple of float or None
        Angles by which cutouts are turned at inference, degrees; without `average` the first one
        alone. None: within what the training turns by, so that galaxies are as soft from the
        interpolation as those that it showed.
    zoom : float or None
        Factor by which cutouts are enlarged about their middle at inference; None: the mean of
        those that the training draws, so that galaxies look as those that it showed.
    weights : str
        Start of the backbone: nothing (random), `timm`, which downloads them, or a safetensors
        file.

    Raises
    ------
    ConfigError
        If a value cannot be used; the message names it.
    """

    image_bands: tuple[str, ...]
    backbone: str = "residual"
    widths: Widths = ()
    cutout: PositiveInt = 100
    pixels: Literal["asinh", "lupton", "eight_bit"] = "asinh"
    decides: Literal["classes", "votes"] = "classes"
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    answers: tuple[str, ...] = tuple(one.name for one in FEATURES)
    questions: Mapping[str, tuple[str, ...]] | Literal["galaxy_zoo_2"] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(
        default_factory=lambda: {one.name: one.threshold for one in FEATURES}
    )
    hidden: NonNegativeInt = 0
    average: bool = False
    turned: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)] | None = None
    zoom: Annotated[float, Field(ge=1)] | None = None
    weights: str = ""

    def __post_init__(self) -> None:
        if not self.image_bands:
            raise ConfigError("image_bands: at least one band is needed")
        if self.cutout < 32:
            raise ConfigError(
                f"cutout: of {self.cutout} pixels a backbone leaves none; 32 is least"
            )
        if self.decides == "classes" and self.questions:
            raise ConfigError('questions: only with decides = "votes"')


class Morphology(ScaledNetwork):
    """A backbone, the maximum of its maps, a dense layer, and a decision.

    Parameters
    ----------
    config : MorphologyConfig
        What it is made of.
    """

    fit_options: ClassVar[Mapping[str, Any]] = {
        "rates": (1e-3,),
        "schedule": "cosine",
        "weight_decay": 1e-2,
        "ema": 0.99,
        "zoom": 1.2,
        "dropped_rows": 0.0,
    }

    def __init__(self, config: MorphologyConfig) -> None:
        super().__init__()
        self.config = config
        planes = len(config.image_bands)
        self.reads = Reads(images=config.image_bands, cutout=config.cutout)
        self.scaling = SCALINGS[config.pixels](planes, config.cutout)
        self.backbone = backbone(config.backbone, planes, config.widths)
        width = config.hidden or HEADS[config.decides]
        self.decision: ClassTask | VoteTask
        if config.decides == "classes":
            self.decision = ClassTask(config.classes.get("class", ()))
            # The names may be told by the labels, after this was built once without.
            outputs = max(1, len(self.decision.classes))
        else:
            named = QUESTIONS if isinstance(config.questions, str) else config.questions
            known = {
                one: config.thresholds[one] for one in config.answers if one in config.thresholds
            }
            self.decision = VoteTask(config.answers, questions=named, thresholds=known)
            outputs = len(config.answers)
        self.tasks = (self.decision, EmbeddingTask(width))
        activation = nn.LeakyReLU() if config.decides == "classes" else nn.ReLU()
        self.dense = nn.Sequential(nn.Linear(self.backbone.num_features, width), activation)
        self.head = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The decision and the layer before it.

        Parameters
        ----------
        images : float32 Tensor, shape (n, band, cutout, cutout)
            nJy a pixel, or intensities 0 to 255; not finite = missing.

        Returns
        -------
        dict
            `class` or `votes`: logits; `embedding`.

        Raises
        ------
        InputError
            If the images have another shape, or the backbone gives no maps of features.
        """
        if self.training:
            return self._decide(self.scaling(images))
        each = [self._decide(self.scaling(one)) for one in self._views(images)]
        if len(each) == 1:
            return each[0]
        return {
            self.decision.name: self.decision.average([one[self.decision.name] for one in each]),
            "embedding": torch.stack([one["embedding"] for one in each]).mean(dim=0),
        }

    def _views(self, images: Tensor) -> Iterator[Tensor]:
        """Images as they are looked at at inference."""
        config = self.config
        angles = config.turned or (0.0,)
        same = [images]
        if config.average:
            # Quarter turns say nothing new to an equivariant network, where it is one (`backbones`:
            # sides of a multiple of 16); a mirror image that is turned does.
            exact = config.backbone == "equivariant" and config.cutout % 16 == 0
            same = symmetries(images)[:: 4 if exact else 1]
        for one, angle in product(same, angles if config.average else angles[:1]):
            seen = turn(one, torch.full((len(one),), math.radians(angle))) if angle else one
            yield magnified(seen, config.zoom) if config.zoom else seen

    def _decide(self, planes: Tensor) -> dict[str, Tensor]:
        maps = self.backbone.forward_features(planes)
        if maps.ndim != 4 or maps.shape[1] != self.backbone.num_features:
            raise InputError(
                f"backbone {self.config.backbone!r} gives {tuple(maps.shape)} and no maps of "
                f"{self.backbone.num_features} features: choose a convolutional one"
            )
        vector = self.dense(maps.amax(dim=(2, 3)))
        return {self.decision.name: self.head(vector).float(), "embedding": vector.float()}

    def suited(self, distortion: Distortion) -> Mapping[str, Any]:
        """The zoom and the turns at inference, if the settings leave them to the training."""
        found: dict[str, Any] = {}
        mean = (1.0 + distortion.zoom) / 2.0
        if self.config.zoom is None and mean != 1.0:
            found["zoom"] = mean
        if self.config.turned is None and distortion.turning:
            reach = min(distortion.turning, 45.0)
            # With the eight symmetries, every 15 degrees of the circle.
            found["turned"] = (reach / 2, reach / 6, 5 * reach / 6)
        return found

    def begin_training(self) -> None:
        """Load the weights that the backbone starts from, if there are some."""
        config = self.config
        if config.weights:
            load_weights(self.backbone, config.backbone, len(config.image_bands), config.weights)


@register("morphology")
@register("morphology-*")
def morphology(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> Morphology:
    """A network of cutouts of all bands; `settings` are fields of `MorphologyConfig`.

    `morphology-densenet201` has that backbone, `morphology` the one of the settings.

    Raises
    ------
    ConfigError
        If a setting is unknown or cannot be used, or there is no such backbone.
    """
    return Morphology(configured(MorphologyConfig, name, bands, settings))
