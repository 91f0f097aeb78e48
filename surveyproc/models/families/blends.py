"""Fluxes and masks of blended galaxies (Boucaud et al. 2019, MNRAS 491, 2481).

`blend2flux` (section 3.1): five 3x3 convolutions with ReLU of widths f, f, 2f, 2f, 4f, a 2x2
maximum after each of the first four, dense layers with SELU, a linear output of one flux a galaxy
and band.
The paper does not say how wide the dense layers are: two of width f give its three counts of
parameters (table 2), and no other width does.

`unet` (section 3.2): depth 5 means four levels, each two convolutions with ReLU and dropout and a
2x2 maximum, and two more at the bottom; filters double from level to level; the skip connection
leaves before the second dropout. The authors' modular network has transposed convolutions of 3x3
pixels, the classic one 2x2 (`up`), both without an activation. The paper draws two maps; the
authors' runs had a third of the overlap (`overlap`).

`blend2mask2flux`: the U-Net, then a smaller blend2flux on the image and the maps. The paper gives
18.5 million parameters and no sizes, and the authors' class was never published. Ours: up 2, width
128, three dense layers of 256, which are 18,497,092 with two maps and one band, the nearest of what
is natural. The loss is MAPE + 0.1 times the masks' binary cross entropy; both weights are settings.

Dense and convolutional weights begin as Glorot's uniform ones, biases at zero (Keras' defaults).

The loss of a flux below a tenth of its band's median is relative to that tenth: in bands in which
some galaxies all but vanish, their relative errors, of thousands, would be all that is learned.

Ours: units of the images and fluxes, which are those of the training set (root mean squares of its
pixels, medians of its fluxes) in place of the catalog's; and errors: a branch beside the last layer
reads the same features, without a gradient into them, so that a network with errors has the fluxes
of one without. Its sizes are not in the paper's counts; `errors = false` leaves it out, and then
all fluxes have the same relative error. Either is scaled by what the rows held out say
(`FluxTask.fit_calibration`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from surveyproc.errors import ConfigError, InputError
from surveyproc.evaluate.blends import flux_names, galaxy_names
from surveyproc.models.base import Reads, checked, register
from surveyproc.models.families.inception import CORE, BandScaling, ScaledNetwork
from surveyproc.models.tasks.fluxes import FluxOutput, FluxTask, error_loss, percentage_loss
from surveyproc.models.tasks.masks import MaskTask

FAINT = 0.01
"""Share of the median flux that errors of fluxes near zero are measured by."""
SMALLEST = 0.1
"""Share of the median flux, below which the loss of a flux is relative to that share instead."""
FIRST_ERROR = -2.0
"""Logarithm of the relative error that training begins with."""


@dataclass(frozen=True)
class Blend2FluxConfig:
    """Everything that fixes a blend2flux beside its bands.

    Attributes
    ----------
    cutout : int
        Pixels on a side of the stamps.
    galaxies : int
        Galaxies of a blend, the central one among them.
    width : int
        Filters f of the first convolution.
    dense : tuple of int
        Widths of the dense layers; none means two of `width`.
    pools : int
        Maxima: after so many of the five convolutions.
    errors : bool
        Whether each flux has an error of its own.

    Raises
    ------
    ConfigError
        If the cutout does not outlast the pools.
    """

    cutout: PositiveInt = 128
    galaxies: PositiveInt = 2
    width: PositiveInt = 256
    dense: tuple[PositiveInt, ...] = ()
    pools: PositiveInt = 4
    errors: bool = True

    def __post_init__(self) -> None:
        if self.pools > 5:
            raise ConfigError(f"pools: there are five convolutions, not {self.pools}")
        if self.cutout < 2**self.pools:
            raise ConfigError(f"cutout: {self.cutout} pixels do not outlast {self.pools} pools")


@dataclass(frozen=True)
class UNetConfig:
    """Everything that fixes a U-Net beside its bands.

    Attributes
    ----------
    cutout, galaxies :
        As in `Blend2FluxConfig`.
    depth : int
        Levels, the bottom among them. With too few no pixel sees as far as the edges, and the
        network cannot tell which galaxy is the central one: 64 pixels want 5 levels, not 4.
    filters : int
        Of the first level.
    up : {2, 3}
        Pixels on a side of the transposed convolutions.
    overlap : bool
        Whether a map of the overlap comes before those of the galaxies.
    dropout : float
        After every convolution.

    Raises
    ------
    ConfigError
        If the cutout cannot be halved so often.
    """

    cutout: PositiveInt = 128
    galaxies: PositiveInt = 2
    depth: PositiveInt = 5
    filters: PositiveInt = 32
    up: Literal[2, 3] = 3
    overlap: bool = False
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.2

    def __post_init__(self) -> None:
        if self.cutout % 2 ** (self.depth - 1):
            raise ConfigError(
                f"cutout: {self.cutout} pixels cannot be halved {self.depth - 1} times, as "
                f"depth = {self.depth} does"
            )


@dataclass(frozen=True)
class Blend2Mask2FluxConfig(UNetConfig):
    """Everything that fixes a blend2mask2flux beside its bands.

    Attributes
    ----------
    cutout, galaxies, depth, filters, up, overlap, dropout :
        As in `UNetConfig`.
    width, dense, pools, errors :
        As in `Blend2FluxConfig`.
    flux_weight, mask_weight : float
        Of the two losses.
    """

    up: Literal[2, 3] = 2
    width: PositiveInt = 128
    dense: tuple[PositiveInt, ...] = (256, 256, 256)
    pools: PositiveInt = 4
    errors: bool = True
    flux_weight: NonNegativeFloat = 1.0
    mask_weight: NonNegativeFloat = 0.1

    @property
    def fluxes(self) -> Blend2FluxConfig:
        """The part behind the maps."""
        keys = ("cutout", "galaxies", "width", "dense", "pools", "errors")
        return Blend2FluxConfig(**{key: getattr(self, key) for key in keys})


class PixelUnits(BandScaling):
    """Images in units of the root mean square of a band's pixels, 0 where nothing is known.

    An object is outside of the training range by the brightest place of its stamp, not by its
    centre: a star beside it spoils its fluxes too.

    Fluxes add up in pixels as they are; compressed ones (`BandScaling`) did worse (MAPE 17, 16 %).

    Parameters
    ----------
    n_bands, cutout : int
        As in `BandScaling`.

    Attributes
    ----------
    level : float32 Tensor, shape (n_bands, 1, 1)
        Of the training set, nJy a pixel: a buffer, kept with the weights.
    """

    level: Tensor

    def __init__(self, n_bands: int, cutout: int) -> None:
        super().__init__(n_bands, cutout)
        self.register_buffer("level", torch.ones(n_bands, 1, 1))

    def forward(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """As `BandScaling.forward`, without compression."""
        if images.shape[1:] != self.shape:
            raise InputError(f"images: shape {tuple(images.shape)} is not (n, *{self.shape})")
        known = images.isfinite()
        if present is not None:
            known = known & present.bool()[:, :, None, None]
        return images.where(known, 0.0) / self.level

    def _core(self, images: Tensor) -> Tensor:
        """Mean of the brightest CORE x CORE compressed pixels; NaN where no pixel is finite."""
        known = images.isfinite()
        values = self.compress(images.where(known, 0.0))
        sums, counts = (
            functional.avg_pool2d(one, CORE, stride=1) for one in (values, known.to(values))
        )
        means = (sums / counts).where(counts > 0, -torch.inf).amax(dim=(2, 3))
        return means.where(means.isfinite(), torch.nan)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the buffers from training images, given batch by batch."""
        squares = torch.zeros(self.shape[0], dtype=torch.float64)
        counts = torch.zeros(self.shape[0], dtype=torch.float64)

        def counted() -> Iterator[Tensor]:
            for images in batches:
                known = images.isfinite()
                counts.add_(known.sum(dim=(0, 2, 3)))
                squares.add_((images.where(known, 0.0).double() ** 2).sum(dim=(0, 2, 3)))
                yield images

        super().fit(counted())
        self.level.copy_((squares / counts).sqrt().clamp(min=1e-30)[:, None, None])


def convolutions(planes: int, filters: int, pools: int) -> list[nn.Module]:
    """The layers of `blend2flux` up to its dense ones, flattened: 4 filters a remaining pixel."""
    layers: list[nn.Module] = []
    for number, width in enumerate((filters, filters, 2 * filters, 2 * filters, 4 * filters)):
        layers += [nn.Conv2d(planes, width, 3, padding=1), nn.ReLU()]
        if number < pools:
            layers.append(nn.MaxPool2d(2))
        planes = width
    return [*layers, nn.Flatten()]


class FluxHead(nn.Module):
    """Planes to the fluxes of all galaxies in all bands, and their errors.

    Parameters
    ----------
    planes : int
        Of its input, shape (n, planes, cutout, cutout).
    outputs : int
        Fluxes.
    config : Blend2FluxConfig
        Its sizes.

    Attributes
    ----------
    target : Tensor, shape (outputs,)
        Median fluxes of the training set, nJy.
    """

    target: Tensor

    def __init__(self, planes: int, outputs: int, config: Blend2FluxConfig) -> None:
        super().__init__()
        self.register_buffer("target", torch.ones(outputs))
        f = config.width
        layers = convolutions(planes, f, config.pools)
        size = 4 * f * (config.cutout // 2**config.pools) ** 2
        for width in config.dense or (f, f):
            layers += [nn.Linear(size, width), nn.SELU()]
            size = width
        self.features = nn.Sequential(*layers)
        self.flux = nn.Linear(size, outputs)
        self.error: nn.Sequential | None = None
        if config.errors:
            self.error = nn.Sequential(nn.Linear(size, size), nn.SELU(), nn.Linear(size, outputs))

    def forward(self, planes: Tensor) -> FluxOutput:
        """Fluxes and errors, nJy, of each blend, shape (n, outputs)."""
        features = self.features(planes)
        flux = self.flux(features).float() * self.target
        near = flux.detach().abs() + FAINT * self.target
        if self.error is None:
            return FluxOutput(flux, near)
        relative = (self.error(features.detach()).float() + FIRST_ERROR).clamp(-10.0, 5.0)
        return FluxOutput(flux, near * relative.exp())

    @torch.no_grad()
    def set_target(self, fluxes: Tensor) -> None:
        """Set `target` from true fluxes, shape (n, outputs), NaN = missing."""
        median = fluxes.nanmedian(dim=0).values
        self.target.copy_(median.where(median.isfinite(), torch.ones_like(median)))


class _Level(nn.Module):
    """Two convolutions with ReLU, dropout after each; gives what was there before the last one."""

    def __init__(self, before: int, width: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(before, width, 3, padding=1),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, planes: Tensor) -> Tensor:
        found: Tensor = self.convolutions(planes)
        return found


class UNet(nn.Module):
    """Planes to the logits of maps of the same size (Ronneberger, Fischer & Brox 2015).

    Parameters
    ----------
    planes, maps : int
        Of input and output.
    config : UNetConfig
        Its sizes.
    """

    def __init__(self, planes: int, maps: int, config: UNetConfig) -> None:
        super().__init__()
        widths = [config.filters * 2**level for level in range(config.depth)]
        before = [planes, *widths[:-1]]
        self.down = nn.ModuleList(
            _Level(one, width, config.dropout) for one, width in zip(before, widths, strict=True)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.pool = nn.MaxPool2d(2)
        rising = list(reversed(widths[:-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, config.up, stride=2) for w in rising)
        self.joined = nn.ModuleList(_Level(2 * w, w, config.dropout) for w in rising)
        self.last = nn.Conv2d(widths[0], maps, 1)

    def forward(self, planes: Tensor) -> Tensor:
        """Logits, shape (n, maps, y, x), of planes of shape (n, planes, y, x)."""
        skips: list[Tensor] = []
        for number, level in enumerate(self.down):
            planes = level(planes if number == 0 else self.pool(planes))
            skips.append(planes)
            planes = self.dropout(planes)
        for up, level, skip in zip(self.up, self.joined, reversed(skips[:-1]), strict=True):
            # 3x3 pixels reach one pixel further, which Keras cuts off: last row, last column.
            risen = up(planes)[..., : skip.shape[-2], : skip.shape[-1]]
            planes = self.dropout(level(torch.cat([risen, skip], dim=1)))
        found: Tensor = self.last(planes)
        return found


class _OfBlends(ScaledNetwork):
    """What the networks of blends share: the scaling of their images, and how they are trained."""

    fit_options: ClassVar[Mapping[str, Any]] = {
        "rates": (1e-4,),
        "schedule": "cosine",
        "dropped_rows": 0.0,
        "shift": 0,
    }

    def __init__(self, bands: tuple[str, ...], cutout: int) -> None:
        super().__init__()
        self.reads = Reads(images=bands, cutout=cutout)
        self.scaling = PixelUnits(len(bands), cutout)


class Blend2Flux(_OfBlends):
    """Fluxes of the galaxies of a blend.

    Parameters
    ----------
    bands : tuple of str
        Of the stamps.
    config : Blend2FluxConfig
        Everything else.
    """

    def __init__(self, bands: tuple[str, ...], config: Blend2FluxConfig) -> None:
        super().__init__(bands, config.cutout)
        self.fluxes = FluxHead(len(bands), config.galaxies * len(bands), config)
        self.tasks = (_flux_task(self.fluxes, bands, config.galaxies, config.errors),)
        self.apply(glorot)

    def forward(self, images: Tensor) -> dict[str, FluxOutput]:
        """Fluxes of stamps, shape (n, bands, cutout, cutout), nJy a pixel, not finite = missing."""
        return {"fluxes": self.fluxes(self.scaling(images))}

    def set_targets(self, targets: Mapping[str, Tensor]) -> None:
        """As `FluxHead.set_target`."""
        self.fluxes.set_target(targets["fluxes"])


class BlendMasks(_OfBlends):
    """Masks of the galaxies of a blend.

    Parameters
    ----------
    bands : tuple of str
        Of the stamps.
    config : UNetConfig
        Everything else.
    """

    def __init__(self, bands: tuple[str, ...], config: UNetConfig) -> None:
        super().__init__(bands, config.cutout)
        self.tasks = (_mask_task(config, 1.0),)
        self.unet = UNet(len(bands), len(self.tasks[0].names), config)
        self.apply(glorot)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of the maps of stamps, shape (n, bands, cutout, cutout)."""
        return {"masks": self.unet(self.scaling(images)).float()}


class Blend2Mask2Flux(_OfBlends):
    """Masks, and fluxes that read them.

    The paper trains the U-Net alone first: train the architecture `unet` of the same sizes, and
    name its package as `training.start` of this one.

    Parameters
    ----------
    bands : tuple of str
        Of the stamps.
    config : Blend2Mask2FluxConfig
        Everything else.
    """

    def __init__(self, bands: tuple[str, ...], config: Blend2Mask2FluxConfig) -> None:
        super().__init__(bands, config.cutout)
        masks = _mask_task(config, config.mask_weight)
        self.unet = UNet(len(bands), len(masks.names), config)
        outputs = config.galaxies * len(bands)
        self.fluxes = FluxHead(len(bands) + len(masks.names), outputs, config.fluxes)
        fluxes = _flux_task(self.fluxes, bands, config.galaxies, config.errors)
        fluxes.weight = config.flux_weight
        self.tasks = (fluxes, masks)
        self.apply(glorot)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Fluxes and logits of the maps of stamps, shape (n, bands, cutout, cutout)."""
        planes = self.scaling(images)
        logits = self.unet(planes).float()
        both = torch.cat([planes, logits.sigmoid()], dim=1)
        return {"fluxes": self.fluxes(both), "masks": logits}

    def set_targets(self, targets: Mapping[str, Tensor]) -> None:
        """As `FluxHead.set_target`."""
        self.fluxes.set_target(targets["fluxes"])


def _flux_task(head: FluxHead, bands: tuple[str, ...], galaxies: int, errors: bool) -> FluxTask:
    def loss(output: FluxOutput, flux: Tensor) -> Tensor:
        found = percentage_loss(output, flux, SMALLEST * head.target.to(flux.device))
        return found + error_loss(output, flux) if errors else found

    return FluxTask(flux_names(galaxies, bands), loss=loss, positive=True)


def _mask_task(config: UNetConfig, weight: float) -> MaskTask:
    names = galaxy_names(config.galaxies)
    if config.overlap:
        names = ("overlap", *names)
    return MaskTask(names, (config.cutout,) * 2, weight=weight, overlap=config.overlap)


@torch.no_grad()
def glorot(layer: nn.Module) -> None:
    """Keras' default: Glorot & Bengio 2010, uniform; biases of zero."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@register("blend2flux")
def blend2flux(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> Blend2Flux:
    """A blend2flux of any bands; `settings` are fields of `Blend2FluxConfig`."""
    return Blend2Flux(some_bands(name, bands), checked(Blend2FluxConfig, settings, name))


@register("unet")
def unet(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> BlendMasks:
    """A U-Net of any bands; `settings` are fields of `UNetConfig`."""
    return BlendMasks(some_bands(name, bands), checked(UNetConfig, settings, name))


@register("blend2mask2flux")
def blend2mask2flux(
    name: str, bands: Sequence[str], settings: Mapping[str, Any]
) -> Blend2Mask2Flux:
    """A blend2mask2flux of any bands; `settings` are fields of `Blend2Mask2FluxConfig`."""
    return Blend2Mask2Flux(some_bands(name, bands), checked(Blend2Mask2FluxConfig, settings, name))


def some_bands(name: str, bands: Sequence[str]) -> tuple[str, ...]:
    """The bands, of which there must be one."""
    if not bands:
        raise ConfigError(f"{name}: at least one band is needed")
    return tuple(bands)
