"""OTELO: type and redshift of a galaxy in one network (de Diego et al. 2021, A&A 655, A56).

What the paper states (section 2.2.1): a base of one dense layer of 512 ReLU and dropout 0.5; from
it a module of classification, two dense layers of 32 ReLU with dropout 0.1 and one sigmoid; and a
module of redshift, one linear neuron that reads the base beside the probability of the class.
Inputs are the standardised magnitudes of eight bands. Losses are the cross entropy and the squared
error, with equal weights; RMSprop with the constants of Keras; training stops when the
classification, and slows down when the redshift no longer improves on the rows held out.
Architectures 2 to 4 of its Table 2 are settings, see `ALTERNATIVES`.

What is ours, because the paper leaves it for later or states nothing: inputs of `models.features`
(colours, masks, errors); Glorot's weights, as Keras draws them; the regression in standardised
ln(1 + z); more than two classes (softmax, and all probabilities go to the redshift); the
mixture-density head; a path of convolutions beside the photometry; the redshift given the class.

Given class c, the redshift module reads c itself where it would have read the probabilities of the
classes, once for every c; then p(z) = sum_c p(c) p(z | c).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, StrictBool
from torch import Tensor, nn

from surveyproc.errors import ConfigError
from surveyproc.models.base import Network, Reads, checked, register
from surveyproc.models.families.gaznet import TARGET, mixture_head, mixture_output, target_scale
from surveyproc.models.families.gaznet_images import image_path
from surveyproc.models.families.inception import BandScaling, initialise
from surveyproc.models.features import input_count
from surveyproc.models.tasks.classes import ClassTask
from surveyproc.models.tasks.pdf import MixtureOutput, log_density
from surveyproc.models.tasks.redshift import RedshiftTask
from surveyproc.models.tasks.redshift_by_class import GivenClass, RedshiftByClassTask

Widths = tuple[PositiveInt, ...]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class OteloSettings:
    """Settings of `Otelo`.

    Attributes
    ----------
    base, classifier, redshift : tuple of int
        Widths of the hidden layers of the three modules.
    base_dropout, classifier_dropout : float
        After each hidden layer of the two.
    inputs : {'all', 'magnitudes'}
        What of `models.features` is read; magnitudes alone, missing ones at their mean, are the
        paper's.
    errors : bool
        Whether the errors of the fluxes are read as well.
    components : int
        Gaussians of the PDF in ln(1 + z); 0 gives the paper's point estimate alone.
    pass_class : bool
        Whether the redshift module reads the probabilities of the classes.
    by_class : bool
        Whether there is a PDF for each class, and the PDF is their sum.
    redshift_classes : tuple of str
        With `by_class`, the classes that have redshifts, all by default: stars have none. The PDF
        is then that of an object that is one of them.
    image_bands : tuple of str
        Bands of cutouts that are read beside the fluxes; none by default.
    cutout : int
        Pixels on a side, at least 16.
    image_widths : tuple of int
        Channels of the four blocks of convolutions, those of `gaznet_images`.
    classes : mapping of str to tuple of str
        Names of the classes, by task: `class`. The label table tells them if this does not.
    """

    base: Annotated[Widths, Field(min_length=1)] = (512,)
    classifier: Widths = (32, 32)
    redshift: Widths = ()
    base_dropout: Share = 0.5
    classifier_dropout: Share = 0.1
    inputs: Literal["all", "magnitudes"] = "all"
    errors: StrictBool = True
    components: NonNegativeInt = 5
    pass_class: StrictBool = True
    by_class: StrictBool = False
    redshift_classes: tuple[str, ...] = ()
    image_bands: tuple[str, ...] = ()
    cutout: Annotated[int, Field(ge=16)] = 32
    image_widths: Annotated[Widths, Field(min_length=4, max_length=4)] = (8, 16, 32, 32)
    classes: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)


PAPER: dict[str, Any] = {"inputs": "magnitudes", "errors": False, "components": 0}
"""Settings of the paper's network, architecture 1: 22,627 parameters with eight bands."""

ALTERNATIVES: dict[int, dict[str, Any]] = {
    1: PAPER,
    2: {**PAPER, "base": (64,)},
    3: {**PAPER, "classifier": (32,)},
    4: {**PAPER, "redshift": (16,)},
}
"""Settings of the four architectures of the paper's Table 2."""


class Otelo(Network):
    """A base, the classes read from it, and redshifts read from both.

    Parameters
    ----------
    bands : sequence of str
        The n bands: 3n - 1 inputs, 4n - 1 with errors, n with magnitudes alone.
    settings : OteloSettings
        Sizes, and what is read and asked for.

    Attributes
    ----------
    target : Tensor, shape (2,)
        Mean and standard deviation of ln(1 + z) over the training set: the scale of the outputs.

    Raises
    ------
    ConfigError
        If settings contradict each other.
    """

    fit_options: ClassVar[Mapping[str, Any]] = {
        "optimiser": "rmsprop",
        "rates": (1e-3,),
        "schedule": "plateau",
        "slow_by": "redshift",
        "stop_by": "class",
        "patience": 10,
    }
    target: Tensor

    def __init__(self, bands: Sequence[str], settings: OteloSettings) -> None:
        super().__init__()
        self.settings, n = settings, len(bands)
        classes = tuple(settings.classes.get("class", ()))
        # The network is built once before the labels have told the classes.
        self.k = max(2, len(classes))
        self.given = _given(settings, classes)
        self.reads = Reads(
            tuple(bands),
            settings.image_bands,
            settings.cutout if settings.image_bands else 0,
            errors=settings.errors,
        )
        self.tasks = (
            ClassTask(classes, calibrate=True),
            RedshiftTask(self._loss, pdf=settings.components > 0),
        )
        if settings.by_class:
            names = [classes[number] for number in self.given] if classes else []
            self.tasks += (RedshiftByClassTask(names, self.given),)
        self.register_buffer("target", torch.tensor(TARGET))
        self.inputs = (
            n if settings.inputs == "magnitudes" else input_count(n, errors=settings.errors)
        )
        width = self.inputs
        if settings.image_bands:
            self.scaling = BandScaling(len(settings.image_bands), settings.cutout)
            self.images = image_path(len(settings.image_bands), settings.image_widths)
            width += settings.image_widths[-1] * (settings.cutout // 16) ** 2
        # Two classes are one sigmoid, and one number says which of them it is.
        outputs = self.k if self.k > 2 else 1
        self.base = _layers([width, *settings.base], settings.base_dropout)
        sizes = [settings.base[-1], *settings.classifier]
        self.classifier = nn.Sequential(
            *_layers(sizes, settings.classifier_dropout), nn.Linear(sizes[-1], outputs)
        )
        self.redshift = _layers([settings.base[-1], *settings.redshift], 0.0)
        for part in (self.base, self.classifier, self.redshift):
            initialise(part, nn.init.xavier_uniform_)
        # One layer of the base and the class. A matrix of both would have rows of 513 numbers,
        # whose products round otherwise in another place of a block.
        joined = (*settings.base, *settings.redshift)[-1]
        self.head = mixture_head(joined, settings.components)
        passed = outputs if settings.pass_class else 0
        ends = self.head.out_features
        bound = math.sqrt(6 / (joined + passed + ends))
        nn.init.uniform_(self.head.weight, -bound, bound)
        self.heard = nn.Parameter(torch.empty(passed, ends).uniform_(-bound, bound))

    @property
    def redshift_weights(self) -> Tensor:
        """Weights of the point estimate: those of the base, then those of the class; (inputs,)."""
        return torch.cat([self.head.weight[0], self.heard[:, 0]]).detach()

    def forward(self, features: Tensor, images: Tensor | None = None) -> dict[str, Any]:
        """Logits of the classes, the redshift, and with `by_class` the redshift given each class.

        Parameters
        ----------
        features : float32 Tensor, shape (n, inputs)
            From `features.network_inputs`.
        images : float32 Tensor, shape (n, image bands, cutout, cutout), optional
            nJy a pixel; not finite = missing. For a network that reads them.
        """
        read = features[:, : self.inputs]
        if images is not None:
            read = torch.cat([read, self.images(self.scaling(images))], dim=1)
        base = self.base(read)
        logits = self.classifier(base)
        if self.k == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        hidden = self.redshift(base)
        found: dict[str, Any] = {"class": logits.float()}
        if not self.settings.by_class:
            return found | {"redshift": self._redshift(hidden, logits.softmax(dim=1))}
        each = torch.eye(self.k, dtype=hidden.dtype, device=hidden.device)
        given = GivenClass(
            tuple(self._redshift(hidden, each[c].expand(len(hidden), -1)) for c in self.given),
            logits[:, self.given].float().log_softmax(dim=1),
        )
        return found | {"redshift": given.joint(), "redshift_by_class": given}

    def _redshift(self, hidden: Tensor, classes: Tensor) -> MixtureOutput:
        """The redshift, read from the base and from classes of shape (n, k)."""
        passed = classes[:, 1:] if self.k == 2 else classes
        raw = self.head(hidden)
        for number, weights in enumerate(self.heard):
            raw = raw + passed[:, number : number + 1] * weights
        return mixture_output(raw, self.target)

    def _loss(self, output: MixtureOutput, redshift: Tensor) -> Tensor:
        """Squared error of ln(1 + z) in units of the training set's scatter, less ln p; (n,)."""
        x = torch.log1p(redshift)
        squared = ((torch.log1p(output.point) - x) / self.target[1]).square()
        return squared - log_density(output, x) if self.settings.components else squared

    def set_targets(self, targets: Mapping[str, Tensor]) -> None:
        """Set `target` from the redshifts of the training set."""
        self.target.copy_(target_scale(targets["redshift"]))

    def set_images(self, batches: Iterable[Tensor]) -> None:
        """As `BandScaling.fit`."""
        self.scaling.fit(batches)


def _layers(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Dense layers from sizes[0] inputs to sizes[-1] outputs, ReLU and dropout after each."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _given(settings: OteloSettings, classes: Sequence[str]) -> list[int]:
    """Places of the classes that have redshifts."""
    chosen = settings.redshift_classes
    if settings.by_class and not (settings.components and settings.pass_class):
        raise ConfigError("otelo: by_class needs a PDF (components) that reads it (pass_class)")
    if chosen and not settings.by_class:
        raise ConfigError("otelo: redshift_classes are those of by_class, which is not set")
    if not classes:
        return [0, 1]
    for name in chosen:
        if name not in classes:
            raise ConfigError(
                f"otelo: redshift_classes: {name!r} is none of the classes {', '.join(classes)}"
            )
    return [number for number, name in enumerate(classes) if name in chosen or not chosen]


@register("otelo*")
def otelo(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> Otelo:
    """The network of `bands`; `settings` are fields of `OteloSettings`.

    Raises
    ------
    ConfigError
        If a setting is unknown or cannot be used, two contradict each other, there are fewer than
        two bands, or the images are of a band that is not there.
    """
    chosen: OteloSettings = checked(OteloSettings, settings, name)
    if len(bands) < 2:
        raise ConfigError(f"{name}: at least two bands are needed for a colour")
    if chosen.inputs == "magnitudes" and chosen.errors:
        raise ConfigError(f"{name}: inputs are magnitudes alone: errors must be false")
    absent = sorted(set(chosen.image_bands) - set(bands))
    if absent:
        raise ConfigError(f"{name}: band {absent[0]!r} is not among {', '.join(bands)}")
    return Otelo(bands, chosen)
