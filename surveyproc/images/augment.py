"""Augmentation of cutouts on the training device: turns, flips and shifts by whole pixels.

Nothing is interpolated: every pixel of the result is a pixel of the input, so that noise keeps its
statistics and a missing pixel stays missing.

The object's pixel is at index side // 2 of what comes in and at cutout // 2 of what goes out. A
window of odd side turns and flips about that pixel. A window of even side has no central pixel: its
mirror image would move the object from cutout // 2 to cutout // 2 - 1, so the window is cut one
pixel further along that axis, and the object stays. Only where the input ends there (no margin, or
a shift as large as the margin) does it stay where it is, and the object is one pixel lower.
"""

from __future__ import annotations

import torch
from torch import Tensor


def augment(images: Tensor, generator: torch.Generator, cutout: int) -> Tensor:
    """A random window of each object, turned and flipped at random.

    All objects draw for themselves: each of the eight turns and mirror images of the square is as
    likely, and so is every shift along x and along y within the margin, (side - cutout) // 2
    pixels. The object is within that margin of cutout // 2 afterwards, without a margin within one
    pixel.

    Parameters
    ----------
    images : Tensor, shape (n, band, side, side)
        On any device; float or not.
    generator : torch.Generator
        On the CPU, so that every device makes the same draws.
    cutout : int
        Side of the windows, at most `side`.

    Returns
    -------
    Tensor, shape (n, band, cutout, cutout)
        A copy on the device of `images`.

    Raises
    ------
    ValueError
        If `images` are not square or smaller than `cutout`.
    """
    n, bands, side, _ = images.shape
    start, spare = _start(images, cutout), side - cutout
    shift = spare // 2
    draws = torch.randint(-shift, shift + 1, (2, n, 1), generator=generator)
    coins = torch.randint(0, 2, (3, n, 1), generator=generator).bool()
    flips, turned = coins[:2], coins[2]
    first = start + draws + (flips if cutout % 2 == 0 else 0)
    first = first.clamp(0, spare)
    along = torch.arange(cutout)
    y, x = first + torch.where(flips, along.flip(0), along)
    # Flipped along either axis, then reflected in the diagonal: the eight elements of the group.
    plain = y[:, :, None] * side + x[:, None, :]
    place = torch.where(turned[:, :, None], plain.transpose(1, 2), plain)
    place = place.reshape(n, 1, -1).to(images.device).expand(-1, bands, -1)
    return images.flatten(2).gather(2, place).reshape(n, bands, cutout, cutout)


def centre(images: Tensor, cutout: int) -> Tensor:
    """The window without shift, turn or flip, for validation: a view.

    Parameters
    ----------
    images : Tensor, shape (n, band, side, side)
        The object's pixel at index side // 2.
    cutout : int
        Side of the windows, at most `side`.

    Returns
    -------
    Tensor, shape (n, band, cutout, cutout)
        The object's pixel at index cutout // 2.

    Raises
    ------
    ValueError
        If `images` are not square or smaller than `cutout`.
    """
    start = _start(images, cutout)
    return images[..., start : start + cutout, start : start + cutout]


def _start(images: Tensor, cutout: int) -> int:
    """First pixel of the window whose pixel cutout // 2 is the object's."""
    height, width = images.shape[-2:]
    if height != width or not 0 < cutout <= width:
        raise ValueError(f"no window of {cutout} pixels in images of {height} x {width}")
    return width // 2 - cutout // 2
