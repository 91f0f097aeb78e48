"""Augmentation of cutouts on the training device.

Turns, flips and shifts move whole pixels (`augment`): every pixel of the result is a pixel of the
input, so that noise keeps its statistics and a missing pixel stays missing. Networks that look at
shapes want zooms and turns by any angle too (`zoom`, `turn`), and those that must do with fainter
and smaller galaxies than they were shown want them dimmed and shrunk (`recede`); all three
interpolate.

The object's pixel is at index side // 2 of what comes in and at cutout // 2 of what goes out. A
window of odd side turns and flips about that pixel. A window of even side has no central pixel: its
mirror image would move the object from cutout // 2 to cutout // 2 - 1, so the window is cut one
pixel further along that axis, and the object stays. Where the input ends there (no margin, or a
shift as large as the margin) that line comes from the other edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Distortion:
    """What is done to the windows of a training beside turns, flips and shifts.

    Khramtsov et al. 2022: zoom = 1.2; with the adversarial augmentation (eq. 2) also dimming =
    (0.6, 1) and shrinking = (0.5, 1).

    Attributes
    ----------
    zoom : float
        Each axis of an object is enlarged by a factor of its own, evenly between 1 and this.
    dimming, shrinking : tuple of float
        Bounds of k and m of eq. 2, drawn evenly for each object.
    turning : float
        Largest angle by which an object is turned, either way, degrees (ours).
    """

    zoom: float = 1.0
    dimming: tuple[float, float] = (1.0, 1.0)
    shrinking: tuple[float, float] = (1.0, 1.0)
    turning: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Distorted copies of images, shape (n, band, side, side); draws are made on the CPU."""
        n = len(images)
        if self.turning:
            angles = math.radians(self.turning) * (2 * torch.rand(n, generator=generator) - 1)
            images = turn(images, angles)
        if self.zoom > 1.0:
            draws = torch.rand(2, 2, n, generator=generator)
            factors = 1.0 + (self.zoom - 1.0) * draws[0]
            images = zoom(images, factors, draws[1])
        bounds = torch.tensor([self.dimming, self.shrinking])
        if (bounds != 1.0).any():
            low, high = bounds.T[:, :, None]
            k, m = low + (high - low) * torch.rand(2, n, generator=generator)
            images = recede(images, k, m)
        return images


def augment(
    images: Tensor, generator: torch.Generator, cutout: int, shift: int | None = None
) -> Tensor:
    """A random window of each object, turned and flipped at random.

    All objects draw for themselves: each of the eight turns and mirror images of the square is as
    likely, and so is every shift along x and along y within `shift` pixels. The object is within
    that of cutout // 2 afterwards.

    Parameters
    ----------
    images : Tensor, shape (n, band, side, side)
        On any device; float or not.
    generator : torch.Generator
        On the CPU, so that every device makes the same draws.
    cutout : int
        Side of the windows, at most `side`.
    shift : int, optional
        At most the margin, (side - cutout) // 2, which is the default.

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
    start, margin = _start(images, cutout), (side - cutout) // 2
    shift = margin if shift is None else min(shift, margin)
    draws = torch.randint(-shift, shift + 1, (2, n, 1), generator=generator)
    coins = torch.randint(0, 2, (3, n, 1), generator=generator).bool()
    flips, turned = coins[:2], coins[2]
    first = start + draws + (flips if cutout % 2 == 0 else 0)
    along = torch.arange(cutout)
    y, x = (first + torch.where(flips, along.flip(0), along)) % side
    # Flipped along either axis, then reflected in the diagonal: the eight elements of the group.
    plain = y[:, :, None] * side + x[:, None, :]
    place = torch.where(turned[:, :, None], plain.transpose(1, 2), plain)
    place = place.reshape(n, 1, -1).to(images.device).expand(-1, bands, -1)
    return images.flatten(2).gather(2, place).reshape(n, bands, cutout, cutout)


def turn(images: Tensor, angles: Tensor) -> Tensor:
    """Turn images about their middle by any angle; mirror images fill the corners.

    Parameters
    ----------
    images : float Tensor, shape (n, band, side, side)
        Not finite = missing.
    angles : float Tensor, shape (n,)
        Radians, from the y axis (up) to the x axis.

    Returns
    -------
    float Tensor, shape (n, band, side, side)
        Bilinear means of four pixels; a pixel is missing if most of what it is made of is.
    """
    cos, sin = angles.cos(), angles.sin()
    zero = torch.zeros_like(angles)
    rows = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(rows.to(images), list(images.shape), align_corners=False)
    known = images.isfinite()

    def sampled(planes: Tensor) -> Tensor:
        return functional.grid_sample(
            planes, grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )

    return _of_known(sampled(images.where(known, 0.0)), known, sampled)


def zoom(images: Tensor, factors: Tensor, places: Tensor) -> Tensor:
    """Enlarge each axis and cut a window of the old size out (Khramtsov et al. 2022, section 4.2).

    Parameters
    ----------
    images : float Tensor, shape (n, band, side, side)
        Not finite = missing.
    factors : float Tensor, shape (2, n)
        Along y and x, at least 1.
    places : float Tensor, shape (2, n)
        Where the window lies: 0 at the first pixel, 1 at the last one that leaves it whole.

    Returns
    -------
    float Tensor, shape (n, band, side, side)
        A pixel is missing if most of what it is made of is.
    """
    side = images.shape[-1]
    inside = torch.arange(side) + 0.5
    first = places * (factors - 1.0) * side
    sources = (inside + first[..., None]) / factors[..., None] - 0.5
    return _resampled(images, sources, torch.ones_like(factors))


def scaled(images: Tensor, steps: Tensor, offsets: Tensor, side: int) -> Tensor:
    """Images on pixels of other sizes, one size an image.

    A pixel of the result that is larger than those given is the mean of what it covers, weighted by
    a triangle; a smaller one is interpolated.

    Parameters
    ----------
    images : float Tensor, shape (n, band, given, given)
        The object near index given // 2; not finite = missing.
    steps : float Tensor, shape (n,)
        Side of a pixel of the result in pixels of `images`, above 0.
    offsets : float Tensor, shape (n, 2)
        (y, x) of the object less that of pixel given // 2.
    side : int
        Of the result, in its pixels.

    Returns
    -------
    float Tensor, shape (n, band, side, side)
        The object at index side // 2. A pixel is missing if most of what it is made of is, or
        if it lies beyond the image.
    """
    given = images.shape[-1]
    places = (torch.arange(side) - side // 2)[None] * steps[:, None]
    sources = given // 2 + offsets.T[..., None] + places
    widths = steps.clamp(min=1.0).expand(2, -1)
    found = _resampled(images, sources, widths)
    inside = (sources > -0.5) & (sources < given - 0.5)
    y, x = inside.to(images.device)
    return found.where((y[:, :, None] & x[:, None, :])[:, None], torch.nan)


def magnified(images: Tensor, factor: float) -> Tensor:
    """Images, shape (n, band, side, side), enlarged about their middle, as `zoom` does it."""
    factors = torch.full((2, len(images)), factor)
    return zoom(images, factors, torch.full_like(factors, 0.5))


def recede(images: Tensor, k: Tensor, m: Tensor) -> Tensor:
    """The galaxies as if they were farther away: k S(I, m) (Khramtsov et al. 2022, eq. 2).

    S shrinks an image about its middle to m times its side and fills the border by mirror images.
    A pixel of the result is the mean of the pixels that it covers, weighted by a triangle.

    Parameters
    ----------
    images : float Tensor, shape (n, band, side, side)
        Not finite = missing.
    k, m : float Tensor, shape (n,)
        Factors of brightness and size, 0 < m <= 1.

    Returns
    -------
    float Tensor, shape (n, band, side, side)
        A pixel is missing if most of what it is made of is.
    """
    side = images.shape[-1]
    from_middle = torch.arange(side) - (side - 1) / 2
    sources = from_middle / m[:, None] + (side - 1) / 2
    # Folded at the outer edges of the first and last pixels, as often as it takes.
    beyond = (sources + 0.5).remainder(2 * side)
    folded = torch.minimum(beyond, 2 * side - beyond) - 0.5
    both = folded.expand(2, -1, -1)
    shrunk = _resampled(images, both, (1.0 / m).expand(2, -1))
    return shrunk * k.to(images.device)[:, None, None, None]


def _resampled(images: Tensor, sources: Tensor, widths: Tensor) -> Tensor:
    """Triangle-weighted means of the pixels about `sources`, shape (2, n, side): y, then x.

    `widths`, shape (2, n), is half the base of the triangle, in pixels of the input.
    """
    distance = (sources[..., None] - torch.arange(images.shape[-1])).abs()
    weights = (1.0 - distance / widths[..., None, None]).clamp(min=0.0)
    y, x = (weights / weights.sum(dim=-1, keepdim=True)).to(images.device, images.dtype)
    known = images.isfinite()

    def sampled(planes: Tensor) -> Tensor:
        return torch.einsum("nyv,nbvu,nxu->nbyx", y, planes, x)

    return _of_known(sampled(images.where(known, 0.0)), known, sampled)


def _of_known(mean: Tensor, known: Tensor, sampled: Callable[[Tensor], Tensor]) -> Tensor:
    """`mean`, sampled with 0 for missing pixels, over the share that is known, image by image.

    A pixel is missing where less than half of what it is made of is known. All shapes are
    (n, band, y, x).
    """
    whole = known.flatten(1).all(dim=1)
    if bool(whole.all()):
        return mean
    share = sampled(known.to(mean.dtype))
    some = (mean / share).where(share >= 0.5, torch.nan)
    # Shares of whole images are 1 but for rounding, and what an image gives must not depend on
    # whether another one beside it is whole.
    return mean.where(whole[:, None, None, None], some)


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
