"""GaZNet from images, alone or with a catalog (Li et al. 2022, A&A 666, A85, sections 2.1, 4.2).

What the paper states: a VGG-like path of four blocks with 2, 2, 3 and 3 convolutions on cutouts of
8" (40 pixels of 0.2"), then a flatten layer. GaZNet-I4 sees u, g, r, i images and ends in three
dense layers. GaZNet-1 sees the r image beside the nine-band catalog, whose path has eight dense
layers as in GaZNet-C9; the two are concatenated and five dense layers follow. Two more test the
cutout (81pix: twice the side) and all images (C9I4).

What is ours, because the paper states nothing: 3x3 kernels with ReLU and a 2x2 maximum after each
block, as in VGG; all widths; 81 pixels, after the name (16" are 80); the mixture-density head
beside the point estimate, and the catalog's inputs with their masks, as in `gaznet`. Images are
compressed as by P19 (sign(x) (sqrt(|x| + 1) - 1), then standardised band by band) rather than by an
asinh over the noise: the square root makes the photon noise of bright pixels uniform and keeps more
contrast in them, where the redshift of the paper's mostly bright galaxies is, and all image
networks then share one scaling. A missing band is a plane
of zeros, which no real, noisy image is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from surveyproc.errors import ConfigError, InputError
from surveyproc.models.base import Network, Reads, checked, register
from surveyproc.models.families.gaznet import (
    TARGET,
    GaZNetCSettings,
    catalog_path,
    dense_layers,
    mixture_head,
    mixture_output,
    mixture_task,
    target_scale,
)
from surveyproc.models.families.inception import BandScaling, he_normal, initialise
from surveyproc.models.features import input_count
from surveyproc.models.tasks.pdf import MixtureOutput

CONVOLUTIONS = (2, 2, 3, 3)
"""Convolutions of the four blocks."""


@dataclass(frozen=True)
class GaZNetConfig:
    """Everything that fixes a GaZNet with images.

    Attributes
    ----------
    image_bands : tuple of str
        Bands of the cutouts.
    catalog_bands : tuple of str
        Bands of the catalog's inputs, ascending in wavelength; none for a network of images alone.
    cutout : int
        Pixels on a side, at least 16.
    image_widths : tuple of int
        Channels of the four blocks.
    catalog_widths : tuple of int
        Widths of the catalog's eight dense layers.
    joint_widths : tuple of int
        Widths of the dense layers behind the flatten layer; the output layer follows.
    components, huber_delta, point_weight :
        As in `surveyproc.models.families.gaznet.GaZNetC`.

    Raises
    ------
    ConfigError
        If a value cannot be used; the message names it.
    """

    image_bands: tuple[str, ...]
    catalog_bands: tuple[str, ...] = ()
    cutout: int = 40
    image_widths: tuple[PositiveInt, ...] = (32, 64, 128, 256)
    catalog_widths: tuple[PositiveInt, ...] = GaZNetCSettings.widths
    joint_widths: tuple[PositiveInt, ...] = (512, 256, 128, 64)
    components: NonNegativeInt = GaZNetCSettings.components
    huber_delta: PositiveFloat = GaZNetCSettings.huber_delta
    point_weight: NonNegativeFloat = GaZNetCSettings.point_weight

    def __post_init__(self) -> None:
        if not self.image_bands:
            raise ConfigError("image_bands: at least one band is needed")
        if len(self.catalog_bands) == 1:
            raise ConfigError("catalog_bands: at least two bands are needed for a colour")
        if self.cutout < 16:
            raise ConfigError(f"cutout: {self.cutout} pixels do not outlast four pools")
        if len(self.image_widths) != 4 or len(self.catalog_widths) != 8:
            raise ConfigError("image_widths, catalog_widths: four and eight widths are needed")


GAZNET_I4 = GaZNetConfig(tuple("ugri"), joint_widths=(256, 64))
"""Four images, no catalog: three dense layers, the output among them."""

GAZNET_1 = GaZNetConfig(("r",), (*"ugriZYJH", "Ks"))
"""The paper's reference network: the r image and nine bands of catalog; five dense layers."""

GAZNET_C9I4 = GaZNetConfig(tuple("ugri"), GAZNET_1.catalog_bands)
"""Four images and nine bands of catalog."""

GAZNET_81PIX = GaZNetConfig(("r",), GAZNET_1.catalog_bands, cutout=81)
"""GaZNet-1 on cutouts of twice the side."""


class GaZNetImages(Network):
    """A path of convolutions, perhaps a catalog's path beside it, then a point and a mixture.

    Parameters
    ----------
    config : GaZNetConfig
        One of the constants of this module, or `dataclasses.replace` of one.

    Attributes
    ----------
    target : Tensor, shape (2,)
        As in `surveyproc.models.families.gaznet.GaZNetC`.
    """

    target: Tensor

    def __init__(self, config: GaZNetConfig) -> None:
        super().__init__()
        self.config = config
        self.tasks = (mixture_task(config.components, config.huber_delta, config.point_weight),)
        self.reads = Reads(config.catalog_bands, config.image_bands, config.cutout)
        self.register_buffer("target", torch.tensor(TARGET))
        self.scaling = BandScaling(len(config.image_bands), config.cutout)
        self.images = image_path(len(config.image_bands), config.image_widths)
        joined = config.image_widths[-1] * (config.cutout // 16) ** 2
        self.catalog: nn.Sequential | None = None
        if config.catalog_bands:
            inputs = input_count(len(config.catalog_bands))
            self.catalog = nn.Sequential(*catalog_path(inputs, config.catalog_widths))
            joined += config.catalog_widths[-1]
        sizes = [joined, *config.joint_widths]
        self.joint = dense_layers(sizes)
        self.head = mixture_head(sizes[-1], config.components)

    def forward(
        self, images: Tensor, features: Tensor | None = None, present: Tensor | None = None
    ) -> dict[str, MixtureOutput]:
        """Point estimate and mixture.

        Parameters
        ----------
        images : float32 Tensor, shape (n, image bands, cutout, cutout)
            nJy a pixel, background subtracted; not finite = missing.
        features : float32 Tensor, shape (n, 3 catalog bands - 1)
            From `features.network_inputs`; None for a network of images alone.
        present : bool Tensor, shape (n, image bands), optional
            False where an object has no image in a band, whatever its pixels hold.

        Raises
        ------
        InputError
            If the images have another shape, or features are lacking or not wanted.
        """
        parts = [self.images(self.scaling(images, present))]
        if self.catalog is not None and features is not None:
            parts.append(self.catalog(features))
        elif self.catalog is not None or features is not None:
            raise InputError("features come with a network that has a catalog's path, only then")
        raw = self.head(self.joint(torch.cat(parts, dim=1)))
        return {"redshift": mixture_output(raw, self.target)}

    def set_images(self, batches: Iterable[Tensor]) -> None:
        """As `BandScaling.fit`."""
        self.scaling.fit(batches)

    def outside(self, images: Tensor) -> Tensor:
        """As `BandScaling.outside`; with a catalog its fluxes say it, and no image."""
        if self.catalog is not None:
            return super().outside(images)
        return self.scaling.outside(images)

    def set_targets(self, targets: Mapping[str, Tensor]) -> None:
        """Set `target` from the redshifts of the training set."""
        self.target.copy_(target_scale(targets["redshift"]))


def image_path(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Four blocks, each halving the side (rounded down), then a flatten layer."""
    layers: list[nn.Module] = []
    for repeats, width in zip(CONVOLUTIONS, widths, strict=True):
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    path = nn.Sequential(*layers, nn.Flatten())
    # Signals would fade through ten layers of torch's default weights.
    initialise(path, he_normal)
    return path


@register("gaznet-1")
@register("gaznet-i*")
@register("gaznet-c*i*")
@register("gaznet-81pix")
def gaznet_images(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> GaZNetImages:
    """The network that the paper calls so, of any bands; `settings` are fields of `GaZNetConfig`.

    `gaznet-i4` reads images of the first four bands and no catalog, `gaznet-c9i4` the same images
    and a catalog of all nine bands, `gaznet-1` and `gaznet-81pix` the image of band r.

    Raises
    ------
    ConfigError
        If a setting is unknown or cannot be used, or the bands do not fit the name.
    """
    joint = GAZNET_I4.joint_widths if name.startswith("gaznet-i") else GAZNET_1.joint_widths
    parts = re.fullmatch(r"gaznet-(?:1|81pix|(?:c(\d+))?i(\d+))", name)
    if parts is None or int(parts[2] or 0) > len(bands):
        raise ConfigError(f"{name}: no such network of {len(bands)} bands ({', '.join(bands)})")
    chosen: dict[str, Any] = {
        "image_bands": tuple(bands[: int(parts[2])]) if parts[2] else ("r",),
        "catalog_bands": () if name.startswith("gaznet-i") else tuple(bands),
        "cutout": GAZNET_81PIX.cutout if name == "gaznet-81pix" else GAZNET_1.cutout,
        "joint_widths": joint,
    }
    config = checked(GaZNetConfig, chosen | dict(settings), name)
    absent = sorted({*config.image_bands, *config.catalog_bands} - set(bands))
    if absent:
        raise ConfigError(f"{name}: band {absent[0]!r} is not among {', '.join(bands)}")
    if parts[1] and int(parts[1]) != len(config.catalog_bands):
        raise ConfigError(f"{name}: the catalog has {len(config.catalog_bands)} bands")
    return GaZNetImages(config)
