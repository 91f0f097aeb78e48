"""The multimodal inception network: bands in parallel groups, fused, then one redshift PDF.

Ait Ouahmed et al. 2023 (arXiv:2310.02185), sections 3, 4 and 7. What the paper states: cutouts of
64x64; the compression of P19 and standardised bands; two convolutions with PReLU and tanh, eight
inceptions with ReLU, the first ones in parallel, one path a modality; 2x2 average pools before the
first, fourth and sixth; convolutions without padding and a last pool down to 96 values; E(B - V)
appended; dense layers; softmax over bins and a regression. Blocks in parallel are sized by the
number of bands.

What is ours, because the paper states nothing:

- Widths. They give all 14 parameter counts of Table C.1 within 0.006 million, but other widths
  would too. Layout of the inception and kernels of the two first convolutions: from the public
  code of the same group.
- Cross-fusion, after Hong et al. 2020 (IEEE TGRS 59, 4340), the paper's reference: the last block
  of the parallel part is there once for each modality, each of them processes every modality in
  turn and averages what comes out (Hong et al. add it up), all pass one shared 1x1 convolution and
  are concatenated. All modalities must have the same size.
- Plain CNNs of L layers (section 7.1): the same two convolutions, then L - 2 convolutions of 3x3
  with ReLU in place of inceptions, pools and fusion at the same relative depths, and a global
  average in place of the convolutions without padding, so that L counts all.
- Cutouts of 32x32, for coarser pixels or slower machines: the first pool is left out.
- Initial weights (He et al. 2015), because there are no normalisation layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from surveyproc.errors import ConfigError
from surveyproc.models.base import Reads, checked, register
from surveyproc.models.families.inception import (
    CUTOUT,
    BandScaling,
    Inception,
    ScaledNetwork,
    he_normal,
    initialise,
)
from surveyproc.models.families.modalities import (
    Modality,
    draw_kept,
    modality_name,
    select_modalities,
)
from surveyproc.models.tasks.binned import (
    BinnedOutput,
    absolute_error,
    bin_index,
    check_edges,
    cross_entropy,
    normalised_absolute_error,
    root_mean_square_error,
    uniform_edges,
)
from surveyproc.models.tasks.redshift import RedshiftTask

FUSION_DEPTHS = (0, 1, 2, 4, 6)
"""Inceptions before the fusion: extremely early, very early, early, middle, late (section 5.2)."""

INCEPTIONS = 8

REGRESSION_LOSSES = {
    "mae": absolute_error,
    "nmae": normalised_absolute_error,
    "rmse": root_mean_square_error,
}
"""Appendix A of the paper; it uses the first."""


@dataclass(frozen=True)
class MultimodalConfig:
    """Everything that fixes the graph of a multimodal network.

    Attributes
    ----------
    bands : tuple of str
        The N bands, ascending in wavelength.
    modalities : tuple of tuple of int
        Indices of the bands of each; see `modalities.select_modalities`. One modality of all bands
        is the paper's baseline (with early fusion, as its parameter count shows).
    fusion_depth : int
        Inceptions in each parallel path, of 8 in all: 0, 1, 2, 4 or 6.
    fusion : {'concatenation', 'cross'}
        How modalities come together.
    edges : tuple of float
        Edges of the redshift bins.
    heads : {'both', 'classification', 'regression'}
        Outputs; appendix A compares them.
    width : float
        Factor on the widths of all layers but the outputs.
    cnn_layers : int or None
        Convolutions of a plain CNN, at least 5; None for inceptions.
    regression_loss : {'mae', 'nmae', 'rmse'}
        Loss of the regression head (Table A.1). The third is of the rows of one pass: those of a
        step on one worker, or of the parts in which it is accumulated.
    modality_dropout : int
        Most modalities dropped in a step of training (section 7.4: 5); 0 drops none.
    cutout : int
        Pixels on a side: 64, or 32 without the first pool.

    Raises
    ------
    ConfigError
        If a value is not one of these; the message names it.
    """

    bands: tuple[str, ...]
    modalities: tuple[Modality, ...]
    fusion_depth: int = 2
    fusion: Literal["concatenation", "cross"] = "concatenation"
    edges: tuple[float, ...] = field(default_factory=uniform_edges)
    heads: Literal["both", "classification", "regression"] = "both"
    width: float = 1.0
    cnn_layers: int | None = None
    regression_loss: Literal["mae", "nmae", "rmse"] = "mae"
    modality_dropout: int = 0
    cutout: int = CUTOUT

    def __post_init__(self) -> None:
        used = {band for modality in self.modalities for band in modality}
        if not all(self.modalities) or not used or not used <= set(range(len(self.bands))):
            raise ConfigError(f"modalities: {self.modalities} do not fit {len(self.bands)} bands")
        for key, known in (
            ("fusion_depth", FUSION_DEPTHS),
            ("fusion", ("concatenation", "cross")),
            ("heads", ("both", "classification", "regression")),
            ("regression_loss", tuple(REGRESSION_LOSSES)),
            ("cutout", (CUTOUT, CUTOUT // 2)),
        ):
            if getattr(self, key) not in known:
                raise ConfigError(f"{key}: {getattr(self, key)!r} is none of {known}")
        if len(self.edges) < 2 or any(not low < high for low, high in pairwise(self.edges)):
            raise ConfigError("edges: two or more ascending redshifts are needed")
        if not 0 <= self.modality_dropout < max(2, len(self.modalities)):
            raise ConfigError(
                f"modality_dropout: cannot drop up to {self.modality_dropout} of "
                f"{len(self.modalities)} modalities"
            )
        if not self.width > 0:
            raise ConfigError(f"width: {self.width} is not positive")
        if self.cnn_layers is not None and self.cnn_layers < 5:
            raise ConfigError(f"cnn_layers: {self.cnn_layers} is less than 5")
        if self.fusion == "cross":
            if len({len(modality) for modality in self.modalities}) > 1:
                raise ConfigError("fusion: cross-fusion needs modalities of one size")
            if self.parallel_blocks == 0:
                raise ConfigError("fusion: cross-fusion needs at least one block before it")

    @property
    def blocks(self) -> int:
        """Blocks in series after the two first convolutions."""
        return INCEPTIONS if self.cnn_layers is None else self.cnn_layers - 2

    @property
    def parallel_blocks(self) -> int:
        """Blocks of each parallel path."""
        return round(self.fusion_depth * self.blocks / INCEPTIONS)

    @property
    def pools(self) -> tuple[int, ...]:
        """Blocks, counted from 1, that a pool precedes: (1, 4, 6) of 8, without the 1 for 32x32."""
        shares = (0, 3, 5) if self.cutout == CUTOUT else (3, 5)
        return tuple(1 + round(share * self.blocks / INCEPTIONS) for share in shares)

    def scaled(self, width: int) -> int:
        """A width of the full network times the factor, at least 1."""
        return max(1, round(width * self.width))


class MultimodalNetwork(ScaledNetwork):
    """Parallel paths, one for each modality, then a common part and the heads.

    Parameters
    ----------
    config : MultimodalConfig
        The graph.

    Attributes
    ----------
    names : tuple of str
        Names of the modalities, in order: `u_g`, `g_r`, ...
    edges : float64 Tensor, shape (bins + 1,)
        Edges of the redshift bins.
    """

    edges: Tensor

    def __init__(self, config: MultimodalConfig) -> None:
        super().__init__()
        self.config = config
        self.names = tuple(modality_name(m, config.bands) for m in config.modalities)
        self.register_buffer(
            "edges", torch.tensor(config.edges, dtype=torch.float64), persistent=False
        )
        self.reads = Reads(images=config.bands, cutout=config.cutout, reddening=True)
        has_pdf, limits = config.heads != "regression", (config.edges[0], config.edges[-1])
        self.tasks = (RedshiftTask(self._loss, pdf=has_pdf, redshifts=limits),)
        self.kept: Tensor | None = None
        self.scaling = BandScaling(len(config.bands), config.cutout)
        crossed = config.fusion == "cross"
        own = range(1, config.parallel_blocks + (0 if crossed else 1))
        paths = [_Path(config, modality, own) for modality in config.modalities]
        self.paths = nn.ModuleList(paths)
        fused = sum(path.outputs for path in paths)
        self.cross: _CrossFusion | None = None
        if crossed:
            self.cross = _CrossFusion(config, paths[0].outputs)
            fused = self.cross.outputs
        self.common, maps = _series(
            config, range(config.parallel_blocks + 1, config.blocks + 1), fused, None
        )
        self.reduction, latent = _reduction(config, maps)
        dense = config.scaled(1024)
        self.dense = nn.Sequential(
            nn.Linear(latent + 1, dense), nn.ReLU(), nn.Linear(dense, dense), nn.ReLU()
        )
        initialise(self, he_normal)
        self.classes: nn.Linear | None = None
        self.regression: nn.Linear | None = None
        if config.heads != "regression":
            self.classes = nn.Linear(dense, len(config.edges) - 1)
        if config.heads != "classification":
            self.regression = nn.Linear(dense, 1)

    def forward(
        self,
        images: Tensor,
        reddening: Tensor,
        present: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> dict[str, BinnedOutput]:
        """Logits of the bins and the redshift of the regression.

        Parameters
        ----------
        images : float32 Tensor, shape (n, bands, cutout, cutout)
            nJy a pixel, background subtracted; not finite = missing.
        reddening : float32 Tensor, shape (n,)
            Galactic E(B - V) in mag.
        present : bool Tensor, shape (n, bands), optional
            False where an object has no image in a band, whatever its pixels hold.
        kept : bool Tensor, shape (modalities,), optional
            False where the output of a modality is replaced by zeros, as `without` gives it. In
            training those that `begin_step` drew are used.

        Raises
        ------
        InputError
            If the images have another shape.
        """
        planes = self.scaling(images, present)
        maps = [path(planes) for path in self.paths]
        if self.training and kept is None:
            kept = self.kept
        if kept is not None:
            # Multiplied, not left out: every parameter keeps a gradient, as data-parallel training
            # needs, and the graph stays the same from batch to batch.
            scale = kept.to(planes)
            maps = [scale[number] * part for number, part in enumerate(maps)]
        fused = torch.cat(maps, dim=1) if self.cross is None else self.cross(maps)
        latent = self.reduction(self.common(fused))
        hidden = self.dense(torch.cat([latent, reddening[:, None]], dim=1))
        output = BinnedOutput(
            None if self.classes is None else self.classes(hidden).float(),
            None if self.regression is None else self.regression(hidden).float(),
            self.edges,
        )
        return {"redshift": output}

    def _loss(self, output: BinnedOutput, redshift: Tensor) -> Tensor:
        """Equation 1 of the paper, or the part of it that the heads have; shape (n,)."""
        parts = []
        if output.logits is not None:
            parts.append(cross_entropy(output.logits, bin_index(redshift, self.edges)))
        if output.point is not None:
            parts.append(REGRESSION_LOSSES[self.config.regression_loss](output.point, redshift))
        return torch.stack(parts).sum(dim=0)

    def begin_step(self, generator: torch.Generator) -> None:
        """Draw the modalities that this step of training does without."""
        most = self.config.modality_dropout
        if most:
            self.kept = draw_kept(len(self.names), generator, most)

    def without(self, name: str) -> Tensor:
        """The `kept` of `forward` that drops one modality (section 7.4).

        Raises
        ------
        ConfigError
            If no modality has that name.
        """
        if name not in self.names:
            raise ConfigError(f"no modality is called {name!r}; known are {', '.join(self.names)}")
        return torch.tensor([other != name for other in self.names])


class _Path(nn.Module):
    """Two convolutions and the first blocks, for one modality."""

    index: Tensor

    def __init__(self, config: MultimodalConfig, modality: Modality, numbers: range) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(modality), persistent=False)
        n = len(modality)
        width = n * config.scaled(48)
        self.first = nn.Sequential(
            nn.Conv2d(n, width, 5, padding=2),
            nn.PReLU(width, init=0.0),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Tanh(),
        )
        self.blocks, self.outputs = _series(config, numbers, width, n)

    def forward(self, planes: Tensor) -> Tensor:
        maps: Tensor = self.blocks(self.first(planes.index_select(1, self.index)))
        return maps


class _CrossFusion(nn.Module):
    """As many blocks as modalities, each applied to every modality; see the module's docstring."""

    def __init__(self, config: MultimodalConfig, inputs: int) -> None:
        super().__init__()
        number, n = config.parallel_blocks, len(config.modalities[0])
        self.blocks = nn.ModuleList()
        for _ in config.modalities:
            block, width = _series(config, range(number, number + 1), inputs, n)
            self.blocks.append(block)
        self.shared = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU())
        self.outputs = width * len(self.blocks)

    def forward(self, maps: list[Tensor]) -> Tensor:
        crossed = [
            self.shared(torch.stack([block(part) for part in maps]).mean(dim=0))
            for block in self.blocks
        ]
        return torch.cat(crossed, dim=1)


def _series(
    config: MultimodalConfig, numbers: range, inputs: int, n_bands: int | None
) -> tuple[nn.Sequential, int]:
    """Blocks `numbers` with their pools, for n bands or (None) the common part; channels out."""
    layers: list[nn.Module] = []
    for number in numbers:
        if number in config.pools:
            layers.append(nn.AvgPool2d(2))
        block, inputs = _block(config, inputs, n_bands)
        layers.append(block)
    return nn.Sequential(*layers), inputs


def _block(config: MultimodalConfig, inputs: int, n_bands: int | None) -> tuple[nn.Module, int]:
    """An inception or a plain convolution; channels out."""

    def width(common: int, band: int) -> int:
        return config.scaled(common) if n_bands is None else n_bands * config.scaled(band)

    if config.cnn_layers is None:
        inception = Inception(inputs, width(110, 32), width(148, 44), width(94, 28))
        return inception, inception.outputs
    outputs = width(192, 48)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()), outputs


def _reduction(config: MultimodalConfig, inputs: int) -> tuple[nn.Sequential, int]:
    """From maps of 8x8 to the latent vector; its length."""
    if config.cnn_layers is not None:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), inputs
    latent = config.scaled(96)
    layers: list[nn.Module] = []
    for channels in (inputs, latent, latent):
        layers += [nn.Conv2d(channels, latent, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten()), latent


@register("multimodal*")
def multimodal(name: str, bands: Sequence[str], settings: Mapping[str, Any]) -> MultimodalNetwork:
    """A multimodal network of `bands` under any name that begins so.

    Settings are fields of `MultimodalConfig`, and: `size` and `orders` of the modalities (two
    adjacent bands by default; size 0 is the baseline, one modality of all bands), `all_bands` and
    `single_bands` as in `select_modalities`, `bins` as [number, lowest redshift, highest].

    Raises
    ------
    ConfigError
        If a setting is unknown or cannot be used.
    """
    chosen = dict(settings)
    own = {field.name for field in fields(MultimodalConfig)} - {"bands", "modalities", "edges"}
    choice = {field.name for field in fields(_Choice)}
    known = sorted(own | choice | {"bins"})
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ConfigError(f"{name}: unknown setting {unknown[0]!r}; known are {', '.join(known)}")
    wanted = checked(_Choice, {key: chosen.pop(key) for key in choice & set(chosen)}, name)
    modalities = select_modalities(
        len(bands),
        wanted.size or len(bands),
        wanted.orders,
        all_bands=wanted.all_bands,
        single_bands=wanted.single_bands,
    )
    edges = check_edges(chosen.pop("bins", [800, 0.0, 4.0]))
    graph = {"bands": tuple(bands), "modalities": modalities, "edges": edges, **chosen}
    return MultimodalNetwork(checked(MultimodalConfig, graph, name))


@dataclass(frozen=True)
class _Choice:
    """Which modalities: what `select_modalities` is told."""

    size: NonNegativeInt = 2
    orders: tuple[PositiveInt, ...] = (1,)
    all_bands: bool = False
    single_bands: bool = False
