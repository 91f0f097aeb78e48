"""Cutouts as wide as objects are: windows of so many half-light radii on a network's pixels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from surveyproc.config.sections import ScaledSection
from surveyproc.errors import ConfigError
from surveyproc.products.base import Batch


def window(section: ScaledSection, side: int, cutout: int) -> int:
    """Side of what must be read, pixels of the survey, for cutouts of `side` pixels.

    Parameters
    ----------
    section : ScaledSection
        What they are as wide as.
    side : int
        Of the scaled cutouts; a training wants more than `cutout`, to shift them.
    cutout : int
        Side that is `section.times` sizes wide.

    Examples
    --------
    >>> window(ScaledSection(column="r50", times=8, largest=100), 50, 50)
    102
    """
    # The object is off the central pixel by half of one, and the last pixels are interpolated.
    return math.ceil(section.largest * side / cutout) + 2


def scaled_cutouts(
    batch: Batch, section: ScaledSection, side: int, cutout: int, name: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A batch's cutouts on other pixels, as many to an object's size for all objects.

    Parameters
    ----------
    batch : Batch
        With images of at least `window` pixels, and the section's column.
    section, side, cutout :
        As for `window`.
    name : str
        Of the product, for the message.

    Returns
    -------
    images : float32 ndarray, shape (n, band, side, side)
        Nanojansky a pixel of the survey, the object at the middle of pixel side // 2. All missing
        where the size is no positive number.
    cut_off : bool ndarray, shape (n,)
        Objects too large for `section.largest`: seen in a window of that.

    Raises
    ------
    ConfigError
        If the survey has no images.
    """
    # Planning needs a product's inputs, not torch.
    import torch

    from surveyproc.images.augment import scaled

    if batch.images is None or batch.pixel_scale is None or batch.offsets is None:
        raise ConfigError(f"products.{name}.scaled: the survey has no images")
    size = np.asarray(batch.columns[section.column], np.float64)
    with np.errstate(invalid="ignore"):
        wide = section.times * size / batch.pixel_scale
        known = wide > 0
        cut_off = wide > section.largest
    step = np.where(known, np.minimum(wide, section.largest), 1.0) / cutout
    images = scaled(
        torch.from_numpy(np.ascontiguousarray(batch.images)),
        torch.from_numpy(step.astype(np.float32)),
        torch.from_numpy(batch.offsets[:, ::-1].astype(np.float32).copy()),
        side,
    ).numpy()
    images[~known] = np.nan
    return images, cut_off
