"""Blocks that the inception networks share, and the network of Pasquet et al. 2019 (P19).

Sources: Pasquet et al. 2019, A&A 621, A26 and its public code (widths, PReLU slopes that start at
0, Xavier weights, biases of 0.1); Ait Ouahmed et al. 2023, section 3.1 (compression and
standardisation). Ours: a pixel that is not finite, or of a band that is absent, becomes 0 after
standardisation, which is the band's mean over the training set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from surveyproc.errors import ConfigError, InputError
from surveyproc.models.base import Network, Reads, register
from surveyproc.models.tasks.binned import BinnedOutput, bin_index, check_edges, cross_entropy
from surveyproc.models.tasks.redshift import RedshiftTask

CUTOUT = 64
"""Pixels on a side of the cutouts (P19; Ait Ouahmed et al. 2023, section 3.1)."""


CORE = 5
"""Pixels on a side of the centre that tells how bright an object is."""


WIDEST = float(np.finfo(np.float32).max)
"""Beyond all brightness: the range of a network that has seen no training set."""


def compress(flux: Tensor) -> Tensor:
    """Dynamic range compression sign(x) (sqrt(|x| + 1) - 1); x in nJy a pixel, any shape."""
    return flux.sign() * ((flux.abs() + 1.0).sqrt() - 1.0)


class BandScaling(nn.Module):
    """Compressed images, standardised band by band, 0 where nothing is known.

    Parameters
    ----------
    n_bands : int
        Number of bands.
    cutout : int
        Pixels on a side.

    Attributes
    ----------
    mean, std : float32 Tensor, shape (n_bands, 1, 1)
        Of the compressed pixels of the training set: buffers, kept with the weights.
    brightness : float32 Tensor, shape (n_bands, 2)
        Least and greatest mean of the central CORE x CORE compressed pixels (no unit) of the
        training objects that `fit` was given.
    """

    mean: Tensor
    std: Tensor
    brightness: Tensor

    def __init__(self, n_bands: int, cutout: int) -> None:
        super().__init__()
        self.shape = (n_bands, cutout, cutout)
        self.register_buffer("mean", torch.zeros(n_bands, 1, 1))
        self.register_buffer("std", torch.ones(n_bands, 1, 1))
        self.register_buffer("brightness", torch.tensor([[-WIDEST, WIDEST]] * n_bands))

    def forward(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """Network input of `images`, shape (n, bands, y, x), nJy a pixel.

        Parameters
        ----------
        images : float32 Tensor, shape (n, bands, y, x)
            Not finite = missing.
        present : bool Tensor, shape (n, bands), optional
            False where an object has no image in a band, whatever its pixels hold.

        Raises
        ------
        InputError
            If the images have another shape.
        """
        if images.shape[1:] != self.shape:
            raise InputError(f"images: shape {tuple(images.shape)} is not (n, *{self.shape})")
        known = images.isfinite()
        if present is not None:
            known = known & present.bool()[:, :, None, None]
        planes = (self.compress(images.where(known, 0.0)) - self.mean) / self.std
        return planes * known

    def compress(self, images: Tensor) -> Tensor:
        """Finite pixels, shape (n, bands, y, x), nJy, as they are standardised: here `compress`."""
        return compress(images)

    def outside(self, images: Tensor) -> Tensor:
        """Objects brighter or fainter at their centre, in any band, than all that `fit` was given.

        Ours: the least that images must have in common with those that a network was trained with.

        Parameters
        ----------
        images : float32 Tensor, shape (n, bands, y, x)
            nJy a pixel; a core without a finite pixel is not outside.

        Returns
        -------
        bool Tensor, shape (n,)
        """
        core = self._core(images)
        beyond = (core < self.brightness[:, 0]) | (core > self.brightness[:, 1])
        return beyond.any(dim=1)

    def _core(self, images: Tensor) -> Tensor:
        """Mean of the compressed central pixels, shape (n, bands); NaN where none is finite."""
        first = images.shape[-1] // 2 - CORE // 2
        part = slice(first, first + CORE)
        core = images[..., part, part]
        return self.compress(core.where(core.isfinite(), torch.nan)).nanmean(dim=(2, 3))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the buffers from training images, given batch by batch.

        Raises
        ------
        InputError
            If a band has no finite pixel at all.
        """
        sums = torch.zeros(3, len(self.mean), dtype=torch.float64)
        least = torch.full((len(self.mean),), WIDEST)
        greatest = -least
        for images in batches:
            core = self._core(images).cpu()
            # A core without a pixel is NaN, which fmin and fmax pass over.
            for one in core:
                least, greatest = least.fmin(one), greatest.fmax(one)
            known = images.isfinite()
            values = self.compress(images.where(known, 0.0)).double()
            sums += torch.stack([part.sum((0, 2, 3)) for part in (known, values, values**2)]).cpu()
        count, total, squares = sums
        if (count == 0).any():
            raise InputError(f"training images: band {int(count.argmin())} has no finite pixel")
        self.brightness.copy_(torch.stack([least, greatest], dim=1))
        mean = total / count
        std = (squares / count - mean**2).clamp(min=0.0).sqrt()
        self.mean.copy_(mean[:, None, None])
        self.std.copy_(std.where(std > 0, 1.0)[:, None, None])


def same_average_pool(x: Tensor) -> Tensor:
    """2x2 average of stride 1 that keeps the size, over real pixels only (TensorFlow's SAME).

    Padding lies below and to the right, so the last row and column average fewer pixels.
    """
    # Padded on all four sides torch gives one row and column too many: the first ones.
    pooled = functional.avg_pool2d(x, 2, stride=1, padding=1, count_include_pad=False)
    return pooled[..., 1:, 1:]


class Inception(nn.Module):
    """Parallel convolutions of several kernels, concatenated (after Szegedy et al. 2015).

    Its paths: 1x1 then 5x5; 1x1 then 3x3; 1x1 then a 2x2 average of stride 1; 1x1. An activation
    follows every convolution.

    Parameters
    ----------
    inputs : int
        Channels in.
    reduced : int
        Channels of the three 1x1 convolutions that something follows.
    wide : int
        Channels of the 5x5 and of the 3x3 convolution.
    direct : int
        Channels of the 1x1 convolution that stands alone.
    five : bool, optional
        Whether there is a 5x5 path; P19's last block has none.
    activation : callable, optional
        Makes the activation of a given number of channels.

    Attributes
    ----------
    outputs : int
        Channels out.
    """

    def __init__(
        self,
        inputs: int,
        reduced: int,
        wide: int,
        direct: int,
        *,
        five: bool = True,
        activation: Callable[[int], nn.Module] = lambda channels: nn.ReLU(),
    ) -> None:
        super().__init__()

        def conv(n_in: int, n_out: int, kernel: int) -> nn.Sequential:
            layer = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
            return nn.Sequential(layer, activation(n_out))

        kernels = (5, 3) if five else (3,)
        self.convolved = nn.ModuleList(
            nn.Sequential(conv(inputs, reduced, 1), conv(reduced, wide, kernel))
            for kernel in kernels
        )
        self.pooled = conv(inputs, reduced, 1)
        self.direct = conv(inputs, direct, 1)
        self.outputs = wide * len(kernels) + reduced + direct

    def forward(self, x: Tensor) -> Tensor:
        """Maps of shape (n, outputs, y, x) of maps of shape (n, inputs, y, x)."""
        convolved = [path(x) for path in self.convolved]
        return torch.cat([*convolved, same_average_pool(self.pooled(x)), self.direct(x)], dim=1)


def initialise(network: nn.Module, draw: Callable[[Tensor], object], bias: float = 0.0) -> None:
    """Draw the weights of all convolutions and dense layers with `draw` and set their biases."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def he_normal(weight: Tensor) -> None:
    """Normal weights that keep the variance through ReLU (He et al. 2015)."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


class ScaledNetwork(Network):
    """A network that scales its cutouts to those of the training set first.

    Attributes
    ----------
    scaling : BandScaling
        Its first layer.
    """

    scaling: BandScaling

    def set_images(self, batches: Iterable[Tensor]) -> None:
        """As `BandScaling.fit`."""
        self.scaling.fit(batches)

    def outside(self, images: Tensor) -> Tensor:
        """As `BandScaling.outside`."""
        return self.scaling.outside(images)


class P19(ScaledNetwork):
    """The network of Pasquet et al. 2019: five inceptions, a latent space of 22,272, classes.

    Parameters
    ----------
    bands : sequence of str
        Bands of the images; 5 in the paper.
    edges : sequence of float
        Edges of the redshift bins; in the paper 180 equal ones on 0 to 0.4.
    """

    edges: Tensor

    def __init__(self, bands: Sequence[str], edges: Sequence[float]) -> None:
        super().__init__()
        n_bands, n_bins = len(bands), len(edges) - 1
        self.reads = Reads(images=tuple(bands), cutout=CUTOUT, reddening=True)
        self.tasks = (RedshiftTask(self._loss, redshifts=(edges[0], edges[-1])),)
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float64), persistent=False)

        def prelu(channels: int) -> nn.Module:
            return nn.PReLU(channels, init=0.0)

        def inception(inputs: int, narrow: int, wide: int, *, five: bool = True) -> Inception:
            return Inception(inputs, narrow, wide, wide, five=five, activation=prelu)

        self.scaling = BandScaling(n_bands, CUTOUT)
        self.maps = nn.Sequential(
            nn.Conv2d(n_bands, 64, 5, padding=2),
            prelu(64),
            nn.AvgPool2d(2),
            inception(64, 48, 64),
            inception(240, 64, 92),
            nn.AvgPool2d(2),
            inception(340, 92, 128),
            inception(476, 92, 128),
            nn.AvgPool2d(2),
            inception(476, 92, 128, five=False),
            nn.Flatten(),
        )
        self.dense = nn.Sequential(
            nn.Linear(348 * (CUTOUT // 8) ** 2 + 1, 1096),
            nn.ReLU(),
            nn.Linear(1096, 1096),
            nn.ReLU(),
            nn.Linear(1096, n_bins),
        )
        initialise(self, nn.init.xavier_uniform_, bias=0.1)

    def forward(
        self, images: Tensor, reddening: Tensor, present: Tensor | None = None
    ) -> dict[str, BinnedOutput]:
        """Logits of the redshift bins.

        Parameters
        ----------
        images : float32 Tensor, shape (n, bands, 64, 64)
            nJy a pixel, background subtracted; not finite = missing.
        reddening : float32 Tensor, shape (n,)
            Galactic E(B - V) in mag.
        present : bool Tensor, shape (n, bands), optional
            False where an object has no image in a band.
        """
        latent = self.maps(self.scaling(images, present))
        logits = self.dense(torch.cat([latent, reddening[:, None]], dim=1))
        return {"redshift": BinnedOutput(logits.float(), None, self.edges)}

    def _loss(self, output: BinnedOutput, redshift: Tensor) -> Tensor:
        """Cross entropy of the true bin, shape (n,)."""
        if output.logits is None:
            raise ValueError("this network has classes")
        return cross_entropy(output.logits, bin_index(redshift, self.edges))


@register("p19")
def p19(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> P19:
    """P19 of any bands; the one setting is `bins`, by default [180, 0.0, 0.4].

    Raises
    ------
    ConfigError
        If there is another setting, or bins are not three numbers.
    """
    unknown = sorted(set(settings) - {"bins"})
    if unknown:
        raise ConfigError(f"{name}: unknown setting {unknown[0]!r}; known is bins")
    return P19(bands, check_edges(settings.get("bins", [180, 0.0, 0.4])))
