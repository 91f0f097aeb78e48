"""Fluxes of blended galaxies whose places are known: ours, after Boucaud et al. 2019.

`forced_blend2flux` is told where the catalog has the galaxies, as forced photometry is, by a plane
a companion beside the image. It does not say how bright a galaxy is, but how bright in units of the
light about its place, in each band: a sum of pixels weighted by a Gaussian, soft below its noise.
So a blend ten times as bright is the same to the network, errors of the bands are alike and colours
hold, and none of it knows how bright the galaxies of the training were. Images are in units of that
light too, compressed by arsinh. In between are the convolutions of `blend2flux`.

The loss is that of ratios (`tasks.fluxes.ratio_loss`): as much for half of a flux as for twice it.

Errors are relative, from a branch that reads the same features without a gradient into them, and
also the light, the fluxes found, and how far the companions are, on which they depend most.

A companion whose place is not known is given the light of the centre; a share of the training rows
(`train.examples.UNTOLD`) is not told of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from surveyproc.errors import ConfigError
from surveyproc.evaluate.blends import flux_names
from surveyproc.models.base import Reads, checked, register
from surveyproc.models.families.blends import (
    FIRST_ERROR,
    PixelUnits,
    convolutions,
    glorot,
    some_bands,
)
from surveyproc.models.families.inception import ScaledNetwork
from surveyproc.models.tasks.fluxes import FluxOutput, FluxTask, error_loss, ratio_loss

SIGMA = 1 / 16
"""Of the Gaussian that weights the light about a place, in sides of the stamp."""
PLACE = 5.0
"""Of a companion's pixel in its plane, so that it stands out from the image."""
WIDEST = 12.0
"""Of the logarithm of a flux over its light."""
LOGS = 3.0
"""What logarithms are divided by, to be of order one."""


@dataclass(frozen=True)
class ForcedBlend2FluxConfig:
    """Everything that fixes a forced_blend2flux beside its bands.

    Attributes
    ----------
    cutout : int
        Pixels on a side of the stamps.
    galaxies : int
        Galaxies of a blend, the central one among them.
    width : int
        Filters of the first convolution.
    dense : tuple of int
        Widths of the dense layers.
    pools : int
        Maxima: after so many of the five convolutions.

    Raises
    ------
    ConfigError
        If the cutout does not outlast the pools, or there is no companion to be told of.
    """

    cutout: PositiveInt = 64
    galaxies: PositiveInt = 2
    width: PositiveInt = 64
    dense: tuple[PositiveInt, ...] = (128, 128)
    pools: PositiveInt = 4

    def __post_init__(self) -> None:
        if self.pools > 5:
            raise ConfigError(f"pools: there are five convolutions, not {self.pools}")
        if self.cutout < 2**self.pools:
            raise ConfigError(f"cutout: {self.cutout} pixels do not outlast {self.pools} pools")
        if self.galaxies < 2:
            raise ConfigError("galaxies: a blend has two at least, and one was asked for")


class LightUnits(PixelUnits):
    """The light about places of a stamp.

    Parameters
    ----------
    n_bands, cutout : int
        As in `PixelUnits`.

    Attributes
    ----------
    noise : float32 Tensor, shape (n_bands,)
        Of a pixel, nJy: 1.4826 times the median of a stamp's distances from its median, in the mean
        over the training set.
    area : float
        Pixels that the weights of the light add up to.
    """

    noise: Tensor
    axis: Tensor

    def __init__(self, n_bands: int, cutout: int) -> None:
        super().__init__(n_bands, cutout)
        self.register_buffer("noise", torch.ones(n_bands))
        self.register_buffer("axis", torch.arange(cutout).float() - cutout // 2, persistent=False)
        self.sigma = SIGMA * cutout
        self.area = 2 * math.pi * self.sigma**2

    def light(self, pixels: Tensor, offsets: Tensor) -> Tensor:
        """How bright it is about places, in units of the noise of that.

        Parameters
        ----------
        pixels : float32 Tensor, shape (n, bands, y, x)
            nJy, finite.
        offsets : float32 Tensor, shape (n, k, 2)
            (x, y) of the places from the central pixel, pixels.

        Returns
        -------
        float32 Tensor, shape (n, k, bands)
            Positive: a where the weighted sum a is far above 1, 1 where it is 0
            ((a + sqrt(a^2 + 4)) / 2).
        """
        along = (-0.5 * ((self.axis - offsets[..., None]) / self.sigma) ** 2).exp()
        weights = along[:, :, 1, :, None] * along[:, :, 0, None, :]
        with torch.autocast(pixels.device.type, enabled=False):
            total = weights.flatten(2) @ pixels.float().flatten(2).transpose(1, 2)
        total = total / self.noise_of_light
        return (total + (total**2 + 4).sqrt()) / 2

    @property
    def noise_of_light(self) -> Tensor:
        """Standard deviation of the weighted sum of independent pixels, nJy, shape (bands,)."""
        return self.noise * (math.sqrt(math.pi) * self.sigma)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the buffers from training images, given batch by batch."""
        total, stamps = torch.zeros(2, self.shape[0], dtype=torch.float64)

        def counted() -> Iterator[Tensor]:
            for images in batches:
                pixels = images.where(images.isfinite(), torch.nan).flatten(2)
                middle = pixels.nanmedian(dim=2, keepdim=True).values
                spread = 1.4826 * (pixels - middle).abs().nanmedian(dim=2).values.double().cpu()
                total.add_(spread.nansum(dim=0))
                stamps.add_(spread.isfinite().sum(dim=0))
                yield images

        super().fit(counted())
        self.noise.copy_((total / stamps).clamp(min=1e-30))


class ForcedBlend2Flux(ScaledNetwork):
    """Fluxes of the galaxies of a blend, in units of the light at their places.

    Parameters
    ----------
    bands : tuple of str
        Of the stamps.
    config : ForcedBlend2FluxConfig
        Everything else.
    """

    fit_options: ClassVar[Mapping[str, Any]] = {
        "rates": (1e-3,),
        "schedule": "cosine",
        "dropped_rows": 0.0,
        "shift": 0,
    }
    scaling: LightUnits

    def __init__(self, bands: tuple[str, ...], config: ForcedBlend2FluxConfig) -> None:
        super().__init__()
        companions, outputs = config.galaxies - 1, config.galaxies * len(bands)
        self.reads = Reads(images=bands, cutout=config.cutout, neighbours=companions)
        self.scaling = LightUnits(len(bands), config.cutout)
        self.convolutions = nn.Sequential(
            *convolutions(len(bands) + companions, config.width, config.pools)
        )
        size = 4 * config.width * (config.cutout // 2**config.pools) ** 2 + outputs + companions
        layers: list[nn.Module] = []
        for width in config.dense:
            layers += [nn.Linear(size, width), nn.SELU()]
            size = width
        self.dense = nn.Sequential(*layers)
        self.flux = nn.Linear(size, outputs)
        branch = size + 2 * outputs + 3 * companions
        self.error = nn.Sequential(
            nn.Linear(branch, 128), nn.SELU(), nn.Linear(128, 64), nn.SELU(), nn.Linear(64, outputs)
        )
        self.tasks = (
            FluxTask(flux_names(config.galaxies, bands), loss=_loss, positive=True, apart=True),
        )
        self.apply(glorot)

    def forward(self, images: Tensor, places: Tensor) -> dict[str, FluxOutput]:
        """Fluxes of stamps.

        Parameters
        ----------
        images : float32 Tensor, shape (n, bands, cutout, cutout)
            nJy a pixel, not finite = missing.
        places : float32 Tensor, shape (n, companions, cutout, cutout)
            1 in the pixel of each companion; empty where none is known.
        """
        scaling = self.scaling
        pixels = images.where(images.isfinite(), 0.0)
        known = places.amax(dim=(2, 3))
        offsets = torch.stack(
            [
                (places.sum(dim=2) * scaling.axis).sum(dim=2),
                (places.sum(dim=3) * scaling.axis).sum(dim=2),
            ],
            dim=2,
        )
        light = scaling.light(pixels, nn.functional.pad(offsets, (0, 0, 1, 0)))
        unit = (light[:, 0] * scaling.noise_of_light / scaling.area)[:, :, None, None]
        planes = torch.cat([(pixels / unit).asinh(), PLACE * places], dim=1)
        bright = light.log().flatten(1) / LOGS
        features = self.dense(torch.cat([self.convolutions(planes), bright, known], dim=1))
        ratio = self.flux(features).float().clamp(-WIDEST, WIDEST)
        relative = light.flatten(1) * ratio.exp()
        flux = relative * scaling.noise_of_light.repeat(light.shape[1])
        apart = offsets.norm(dim=2) / scaling.sigma
        seen = [
            features.detach(),
            bright,
            known,
            relative.detach().log() / LOGS,
            apart / 4,
            known / (0.25 + apart),
        ]
        error = (self.error(torch.cat(seen, dim=1)).float() + FIRST_ERROR).clamp(-10.0, 5.0)
        nearest = offsets.norm(dim=2).where(known > 0, torch.inf).amin(dim=1)
        told = nearest.where(nearest.isfinite(), -1.0)
        return {"fluxes": FluxOutput(flux, flux.detach() * error.exp(), told)}


def _loss(output: FluxOutput, flux: Tensor) -> Tensor:
    return ratio_loss(output, flux) + error_loss(output, flux)


@register("forced_blend2flux")
def forced_blend2flux(
    name: str, bands: Sequence[str], settings: Mapping[str, Any]
) -> ForcedBlend2Flux:
    """A network of any bands; `settings` are fields of `ForcedBlend2FluxConfig`."""
    return ForcedBlend2Flux(
        some_bands(name, bands), checked(ForcedBlend2FluxConfig, settings, name)
    )
