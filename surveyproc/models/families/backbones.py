"""Backbones of networks of images: from planes to maps of features.

Any network of timm whose `forward_features` gives maps of shape (n, channels, y, x), and two of our
own for small training sets and CPUs, each a 4x4 convolution of stride 2 and four residual blocks
(He et al. 2016, CVPR, 770) with 2x2 maxima between them:

- `residual`: with plain convolutions.
- `equivariant`: with group convolutions over the eight symmetries of the square (p4m of Cohen &
  Welling 2016, ICML 48, 2990): every channel comes in eight copies, one a symmetry, that share
  their weights. A turned or mirrored image gives turned maps with the copies permuted, and their
  maximum over the copies and the plane is the same for all eight. Exact if the side is a multiple
  of 16; otherwise a pool drops a row that it keeps of the mirror image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from surveyproc.errors import ConfigError, InputError, near
from surveyproc.models.base import checked
from surveyproc.models.package import read_tensors
from surveyproc.store.storage import Store

ELEVEN = (
    "resnet50",
    "resnet101",
    "resnet152",
    "inception_v3",
    "inception_resnet_v2",
    "densenet121",
    "densenet169",
    "densenet201",
    "nasnetalarge",
    "vgg16",
    "legacy_xception",
)
"""Those of Khramtsov et al. 2022, Table 1, in its order, under timm's names."""

OWN = {"residual": (32, 64, 96, 128), "equivariant": (4, 8, 16, 32)}
"""Channels of the blocks of our own; those of the equivariant one in eight copies each."""

Widths = Annotated[tuple[PositiveInt, ...], Field(max_length=5)]
"""Other channels; empty for those of `OWN`. More blocks would leave nothing of 32 pixels."""

SYMMETRIES = 8


def symmetries(images: Tensor) -> list[Tensor]:
    """The four turns of images, shape (..., y, x) with y = x, then those of the transposed ones."""
    both = images, images.transpose(-2, -1)
    return [torch.rot90(one, k, (-2, -1)) for one in both for k in range(4)]


def _divided() -> list[list[int]]:
    """Place of g^-1 k among the symmetries, for the elements g (row) and k (column)."""
    images = symmetries(torch.arange(4, device="cpu").reshape(2, 2))
    table = [[0] * SYMMETRIES for _ in images]
    for j, image in enumerate(images):
        for g, product in enumerate(symmetries(image)):
            k = next(k for k, other in enumerate(images) if other.equal(product))
            table[g][k] = j
    return table


def configured(kind: Any, name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> Any:
    """Settings of a network with a backbone, whose registered name may tell it: `<network>-<it>`.

    Parameters
    ----------
    kind : type
        A dataclass with the fields `image_bands`, by default all of `bands`, and `backbone`.
    name, bands, settings :
        As a builder of networks is given them.

    Raises
    ------
    ConfigError
        If a setting is unknown or cannot be used, or a band is not among `bands`.
    """
    _, _, named = name.partition("-")
    chosen: dict[str, Any] = {"image_bands": tuple(bands), **({"backbone": named} if named else {})}
    config = checked(kind, chosen | dict(settings), name)
    absent = sorted(set(config.image_bands) - set(bands))
    if absent:
        raise ConfigError(f"{name}: band {absent[0]!r} is not among {', '.join(bands)}")
    return config


class GroupConvolution(nn.Module):
    """A convolution with one filter for eight, turned and mirrored.

    With f_k the copy of the input's maps of symmetry k and r_g the symmetry g acting on a plane,
    the output's copy g is the sum over k of f_k * r_g w_(g^-1 k) (Cohen & Welling 2016, eq. 11).

    Parameters
    ----------
    inputs, outputs : int
        Channels, without their copies.
    size, stride : int
        Side of the filters, and the step between them.
    padding : int
        Zeros on each side.
    lifting : bool
        Whether the input is an image, which has no copies.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        lifting: bool = False,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.stride, self.padding = stride, padding
        self.copies = 1 if lifting else SYMMETRIES
        # Of four axes, so that it can have the memory format of all convolutions.
        self.weight = nn.Parameter(torch.empty(outputs, inputs * self.copies, size, size))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.order = _divided()

    def forward(self, images: Tensor) -> Tensor:
        """(n, inputs * copies, y, x) to (n, outputs * 8, y, x); the copies of a channel adjoin."""
        turned = symmetries(self.weight)
        size = self.weight.shape[-1]
        if self.copies > 1:
            apart = (self.outputs, self.inputs, SYMMETRIES, size, size)
            turned = [
                one.reshape(apart)[:, :, order]
                for one, order in zip(turned, self.order, strict=True)
            ]
        shape = (self.outputs * SYMMETRIES, self.inputs * self.copies, size, size)
        kernel = torch.stack(turned, dim=1).reshape(shape)
        return functional.conv2d(images, kernel, stride=self.stride, padding=self.padding)


class SharedNorm(nn.Module):
    """Batch normalisation with one mean, variance, scale and offset for the copies of a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, channels * 8, y, x), the same out."""
        n, _, y, x = maps.shape
        one: Tensor = self.norm(maps.reshape(n, -1, SYMMETRIES * y, x))
        return one.reshape(maps.shape)


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to what came in.

    Parameters
    ----------
    inputs, outputs : int
        Channels; where they differ, a 1x1 convolution makes one of the other.
    convolution : callable
        Makes a convolution of (inputs, outputs, size, stride, padding).
    norm : callable
        Makes the normalisation of so many channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        convolution: Callable[..., nn.Module],
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.path = nn.Sequential(
            convolution(inputs, outputs, 3, 1, 1),
            norm(outputs),
            nn.ReLU(),
            convolution(outputs, outputs, 3, 1, 1),
            norm(outputs),
        )
        self.kept = nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same side."""
        both: Tensor = self.path(maps) + self.kept(maps)
        return both.relu()


class Small(nn.Module):
    """One of our own backbones.

    Parameters
    ----------
    planes : int
        Bands of the images.
    name : {'residual', 'equivariant'}
        Which one.
    widths : sequence of int
        Channels of its blocks.

    Attributes
    ----------
    num_features : int
        Channels of the maps.
    """

    def __init__(self, planes: int, name: str, widths: Sequence[int]) -> None:
        super().__init__()
        self.equivariant = name == "equivariant"

        def plain(
            inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0
        ) -> nn.Module:
            return nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)

        convolution: Callable[..., nn.Module] = GroupConvolution if self.equivariant else plain
        norm: Callable[[int], nn.Module] = SharedNorm if self.equivariant else nn.BatchNorm2d
        lifting = {"lifting": True} if self.equivariant else {}
        layers = [convolution(planes, widths[0], 4, 2, 1, **lifting), norm(widths[0]), nn.ReLU()]
        inputs = widths[0]
        for number, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if number else []
            layers.append(Block(inputs, width, convolution, norm))
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]

    def forward_features(self, images: Tensor) -> Tensor:
        """(n, band, y, x) to (n, num_features, y // 16, x // 16), with four blocks."""
        maps: Tensor = self.layers(images)
        if self.equivariant:
            maps = maps.reshape(len(maps), -1, SYMMETRIES, *maps.shape[2:]).amax(dim=2)
        return maps


def backbone(name: str, planes: int, widths: Sequence[int] = ()) -> Any:
    """A backbone with random weights: `forward_features` and `num_features` are what it offers.

    Parameters
    ----------
    name : str
        One of `OWN`, or any of timm's that gives maps.
    planes : int
        Bands of the images.
    widths : sequence of int
        Channels of the blocks of one of `OWN`; by default those that it has there.

    Raises
    ------
    ConfigError
        If nothing is called so, or the widths of one of timm's are given.
    """
    if name in OWN:
        return Small(planes, name, widths or OWN[name])
    if widths:
        raise ConfigError(f"widths: those of backbone {name!r} are timm's; leave them out")
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        raise ConfigError(
            f"backbone: neither we nor timm {timm.__version__} have {name!r}; there are "
            f"{', '.join((*OWN, *ELEVEN))} and {len(known)} of timm" + near(name, known)
        )
    made = timm.create_model(name, pretrained=False, in_chans=planes, num_classes=0, global_pool="")
    # VGG keeps its 119.5 million dense weights, behind the maps, even without classes.
    if hasattr(made, "pre_logits"):
        made.pre_logits = nn.Identity()
    return made


def load_weights(made: Any, name: str, planes: int, weights: str) -> None:
    """Start a backbone from other weights than random ones.

    Parameters
    ----------
    made : Module
        From `backbone`.
    name, planes : str, int
        What it was made of.
    weights : str
        `timm` for those that timm downloads for the backbone; else the path or URL of a
        safetensors file with tensors of timm's names. Tensors of layers that a backbone does not
        have (a head) are passed over.

    Raises
    ------
    ConfigError
        If timm has no weights of this backbone.
    InputError
        If the file lacks a tensor, or one has another shape.
    """
    if weights == "timm":
        import timm

        try:
            given = timm.create_model(
                name, pretrained=True, in_chans=planes, num_classes=0, global_pool=""
            ).state_dict()
        except (RuntimeError, OSError) as error:
            raise ConfigError(f"backbone {name!r}: timm's weights: {error}") from error
    else:
        folder, _, file = weights.rpartition("/")
        given = read_tensors(Store(folder or ".").read(file), weights)
    wanted = made.state_dict()
    for key, tensor in wanted.items():
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, tensor)
        if key not in given:
            raise InputError(f"{weights}: tensor {key!r} of backbone {name!r} is missing")
        if given[key].shape != tensor.shape:
            raise InputError(
                f"{weights}: tensor {key!r} has shape {tuple(given[key].shape)}, backbone {name!r} "
                f"for {planes} bands wants {tuple(tensor.shape)}"
            )
    made.load_state_dict({key: given[key] for key in wanted})
