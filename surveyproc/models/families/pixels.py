"""First layers of networks that look at shapes: compressed cutouts, or colour images as they are.

All take float32 images of shape (n, band, y, x) and make 0 of what is not finite (masked,
saturated, not observed), which is a band's mean.

- `asinh`: asinh(x / s) band by band, s the noise of the band's pixels in the training set. Faint
  pixels keep their scale, bright ones are logarithms (Lupton, Gunn & Szalay 1999, AJ 118, 1406).
- `lupton`: x asinh(I / s) / I with I the mean of the bands, so that a pixel keeps its colour,
  however bright it is (Lupton et al. 2004, PASP 116, 133).
- `eight_bit`: (x - 127.5) / 255 of intensities 0 to 255 (Khramtsov et al. 2022, eq. 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from surveyproc.errors import InputError
from surveyproc.models.families.inception import BandScaling

NORMAL = 1.4826
"""Standard deviation of normal noise over its median absolute deviation."""


class AsinhScaling(BandScaling):
    """asinh(x / softening), standardised band by band; parameters are those of `BandScaling`.

    Attributes
    ----------
    softening : float32 Tensor, shape (n_bands, 1, 1)
        nJy a pixel: 1.4826 times the median absolute deviation of the finite pixels of the first
        batch that `fit` is given. Most pixels of a cutout are sky, so it is the noise.
    """

    softening: Tensor

    def __init__(self, n_bands: int, cutout: int) -> None:
        super().__init__(n_bands, cutout)
        self.register_buffer("softening", torch.ones(n_bands, 1, 1))

    def compress(self, images: Tensor) -> Tensor:
        """asinh(x / softening)."""
        return (images / self.softening).asinh()

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the buffers from training images, given batch by batch.

        Raises
        ------
        InputError
            If a band has no finite pixel in the first batch.
        """
        given = iter(batches)
        first = next(given)
        for band in range(len(self.softening)):
            plane = first[:, band]
            values = plane[plane.isfinite()]
            if not len(values):
                raise InputError(f"training images: band {band} has no finite pixel")
            noise = NORMAL * (values - values.median()).abs().median()
            self.softening[band] = noise if noise > 0 else 1.0
        super().fit(chain([first], given))


class LuptonScaling(AsinhScaling):
    """x asinh(I / s) / I, s the mean of the bands' softening; standardised band by band."""

    def compress(self, images: Tensor) -> Tensor:
        """Every band of a pixel times the same factor; 1 / s at I = 0."""
        softening = self.softening.mean()
        mean = images.mean(dim=1, keepdim=True) / softening
        factor = torch.where(mean.abs() > 1e-6, mean.asinh() / mean, 1.0)
        return images / softening * factor


class EightBitScaling(BandScaling):
    """(x - 127.5) / 255 of intensities 0 to 255; parameters are those of `BandScaling`."""

    def __init__(self, n_bands: int, cutout: int) -> None:
        super().__init__(n_bands, cutout)
        self._centre()

    def compress(self, images: Tensor) -> Tensor:
        """The intensities themselves."""
        return images

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set `brightness` from training images, given batch by batch; the scale is fixed."""
        super().fit(batches)
        self._centre()

    def _centre(self) -> None:
        self.mean.fill_(127.5)
        self.std.fill_(255.0)


SCALINGS = {"asinh": AsinhScaling, "lupton": LuptonScaling, "eight_bit": EightBitScaling}
