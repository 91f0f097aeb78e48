"""Labelled objects as the epochs of a training read them: shuffled, perturbed, on the device.

Everything random is drawn from (seed, epoch, step, rank), so that a training can go on from any
step and ends like one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveyproc.images.augment import Distortion, augment, centre
from surveyproc.images.places import marked
from surveyproc.models.base import Reads
from surveyproc.train.cube import TrainingCube
from surveyproc.train.stream import in_order, shuffled

NO_DISTORTION = Distortion()
UNTOLD = 0.2
"""Share of the training rows whose neighbours the network is not told of: catalogs miss some."""

Sample = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Inputs of the network, and targets by name."""


def generator(*numbers: int) -> torch.Generator:
    """A source of random numbers, on the CPU, that depends on `numbers` alone."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
    made = torch.Generator()
    made.manual_seed(seed)
    return made


@dataclass(frozen=True)
class BandDropout:
    """Bands made missing at random: teaches a network to do without (ours, not the papers').

    Attributes
    ----------
    rows, bands : float
        Share of the objects that lose bands, and of the bands that such an object loses.
    """

    rows: float
    bands: float

    def draw(self, n: int, n_bands: int, source: torch.Generator) -> Tensor:
        """Which bands each of n objects loses, bool, shape (n, n_bands)."""
        lost = torch.rand(n, n_bands, generator=source) < self.bands
        return lost & (torch.rand(n, 1, generator=source) < self.rows)


@dataclass(frozen=True)
class Examples:
    """Labelled rows, as one worker trains with them.

    Attributes
    ----------
    reads : Reads
        What the network wants.
    tensors : dict of str to Tensor
        `features`, `reddening` and `places` if the network reads them; `cube_row`, int64, with
        images: the object's row in the cube.
    targets : dict of str to float32 Tensor, first axis n
        What is known of the objects, by name; NaN = missing.
    held_out : bool Tensor, shape (n,)
        Rows for validation only.
    cube : TrainingCube or None
        Where the cutouts lie.
    dropout : BandDropout
        For training rows.
    seed : int
        Of order and perturbations.
    distortion : Distortion
        Of the cutouts of training rows.
    shift : int, optional
        By how many pixels these are moved at most; by default as far as the cube's reach.
    """

    reads: Reads
    tensors: dict[str, Tensor]
    targets: dict[str, Tensor]
    held_out: Tensor
    cube: TrainingCube | None
    dropout: BandDropout
    seed: int
    distortion: Distortion = NO_DISTORTION
    shift: int | None = None

    @property
    def rows(self) -> int:
        """Rows to train with."""
        return int((~self.held_out).sum())

    def steps(self, batch: int) -> int:
        """Steps of an epoch; the last one wraps around to fill its batch."""
        return math.ceil(self.rows / batch)

    def training(
        self, epoch: int, first_step: int, *, batch: int, rank: int, world: int, device: str
    ) -> Iterator[Sample]:
        """This worker's part of every step of an epoch, from `first_step` on.

        Parameters
        ----------
        batch : int
            Objects a step over all workers, a multiple of `world`.
        """
        source = self._shuffled(epoch, first_step, batch, rank, world)
        for step, (rows, images) in enumerate(source, start=first_step):
            draws = generator(self.seed, epoch, step, rank)
            yield self._sample(rows, images, device, draws)

    def validation(self, *, batch: int, rank: int, world: int, device: str) -> Iterator[Sample]:
        """This worker's part of the held-out rows, each once, as they are."""
        for rows, images in self._ordered(self.held_out, batch, rank, world):
            yield self._sample(rows, images, device, None)

    def images(
        self, chosen: Tensor, batch: int
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Rows of a bool mask, shape (n,), their cutouts as the network reads them, and masks."""
        for rows, planes in self._ordered(chosen, batch, 0, 1):
            if planes is not None:
                yield rows, *self._parted(centre(torch.from_numpy(planes), self.reads.cutout))

    def _shuffled(
        self, epoch: int, first_step: int, batch: int, rank: int, world: int
    ) -> Iterator[tuple[Tensor, NDArray[np.float32] | None]]:
        if self.cube is not None:
            row_of, mask = self._cube_rows(~self.held_out)
            for index, images in shuffled(
                self.cube,
                mask,
                seed=self.seed,
                epoch=epoch,
                batch=batch,
                rank=rank,
                world=world,
                first_step=first_step,
            ):
                yield row_of[torch.from_numpy(index)], images
            return
        order = torch.nonzero(~self.held_out)[:, 0]
        order = order[torch.randperm(len(order), generator=generator(self.seed, epoch))]
        steps, share = self.steps(batch), batch // world
        order = order.repeat(math.ceil(steps * batch / len(order)))
        for step in range(first_step, steps):
            first = step * batch + rank * share
            yield order[first : first + share], None

    def _ordered(
        self, chosen: Tensor, batch: int, rank: int, world: int
    ) -> Iterator[tuple[Tensor, NDArray[np.float32] | None]]:
        if self.cube is not None:
            row_of, mask = self._cube_rows(chosen)
            for index, images in in_order(self.cube, mask, batch=batch, rank=rank, world=world):
                yield row_of[torch.from_numpy(index)], images
            return
        for rows in torch.split(torch.nonzero(chosen)[:, 0][rank::world], batch):
            yield rows, None

    def _cube_rows(self, chosen: Tensor) -> tuple[Tensor, NDArray[np.bool_]]:
        """For every row of the cube our row, and whether it is chosen."""
        where = self.tensors["cube_row"]
        length = 0 if self.cube is None else self.cube.n
        row_of = torch.full((length,), -1)
        row_of[where] = torch.arange(len(where))
        mask = torch.zeros(length, dtype=torch.bool)
        mask[where[chosen]] = True
        return row_of, mask.numpy()

    def _sample(
        self,
        rows: Tensor,
        images: NDArray[np.float32] | None,
        device: str,
        draws: torch.Generator | None,
    ) -> Sample:
        bands = self.reads.bands
        lost = None if draws is None else self.dropout.draw(len(rows), len(bands), draws)
        inputs: dict[str, Tensor] = {}
        targets = {name: one[rows].to(device) for name, one in self.targets.items()}
        if self.reads.features:
            features = self.tensors["features"][rows]
            if lost is not None:
                features = drop_features(features, lost[:, : len(self.reads.features)])
            inputs["features"] = features.to(device)
        if images is not None:
            pixels = torch.from_numpy(images)
            if self.reads.neighbours:
                pixels = torch.cat([pixels, self._places(rows, pixels.shape[-1], draws)], dim=1)
            planes = pixels.to(device, non_blocking=True)
            if draws is None:
                planes = centre(planes, self.reads.cutout)
            else:
                planes = augment(planes, draws, self.reads.cutout, self.shift)
            if self.reads.neighbours:
                inputs["places"] = planes[:, -self.reads.neighbours :]
            planes, masks = self._parted(planes)
            targets |= masks
            if draws is not None:
                planes = self.distortion(planes, draws)
            if lost is not None:
                index = [bands.index(band) for band in self.reads.images]
                planes = drop_planes(planes, lost[:, index].to(device))
            inputs["images"] = planes.contiguous(memory_format=torch.channels_last)
        if self.reads.reddening:
            inputs["reddening"] = self.tensors["reddening"][rows].to(device)
        return inputs, targets

    def _places(self, rows: Tensor, side: int, draws: torch.Generator | None) -> Tensor:
        """Planes with the neighbours' places, which turn with the cutouts."""
        planes = torch.from_numpy(marked(self.tensors["places"][rows].numpy(), side))
        if draws is not None:
            planes *= torch.rand(len(rows), 1, 1, 1, generator=draws) >= UNTOLD
        return planes

    def _parted(self, planes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The cutouts, and the targets that are images, of what was turned as one."""
        first = len(self.reads.images)
        images, found = planes[:, :first], {}
        if self.cube is not None:
            for name, count in self.cube.pixel_targets.items():
                found[name] = planes[:, first : first + count]
                first += count
        return images, found


def drop_features(features: Tensor, lost: Tensor) -> Tensor:
    """Inputs with bands made missing, as `features.network_inputs` writes a missing band.

    Parameters
    ----------
    features : Tensor, shape (n, 3 bands - 1) or (n, 4 bands - 1)
        Magnitudes, colours, masks; perhaps errors.
    lost : bool Tensor, shape (n, bands)
        Bands to drop. A row that would lose all it has keeps them.
    """
    n_bands = lost.shape[1]
    kept = (features[:, 2 * n_bands - 1 : 3 * n_bands - 1] > 0) & ~lost
    keep = ~(lost & kept.any(dim=1, keepdim=True))
    parts = [keep, keep[:, :-1] & keep[:, 1:], keep, keep]
    return features * torch.cat(parts, dim=1)[:, : features.shape[1]]


def drop_planes(images: Tensor, lost: Tensor) -> Tensor:
    """Cutouts, shape (n, band, y, x), with the bands of `lost`, shape (n, band), made missing.

    A row that would lose all it has keeps them.
    """
    seen = images.isfinite().any(dim=3).any(dim=2)
    drop = lost & (seen & ~lost).any(dim=1, keepdim=True)
    return images.masked_fill(drop[:, :, None, None], torch.nan)
