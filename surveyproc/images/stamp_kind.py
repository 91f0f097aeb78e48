"""What the stamps of a folder have in common: known without reading one, to plans and packages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import InputError

COLOURS = ("r", "g", "b")
"""Planes of colour images; of gri composites these are the bands i, r and g."""

FITS_ENDINGS = (".fits", ".fit", ".fits.gz", ".fits.fz")
ENDINGS = (".jpg", ".jpeg", ".png", *FITS_ENDINGS)

KIND = "stamps"
"""Key of a `StampKind` in the record of a training cube, and of a training."""

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class StampKind:
    """What all stamps of a folder have in common.

    Attributes
    ----------
    colour : bool
        Whether they are images of 8 bits, and no fluxes.
    planes, side : int
        Of the stamps as they are used.
    resize : int, optional
        Side to which they were resampled.
    """

    colour: bool
    planes: int
    side: int
    resize: int | None = None

    def check(self, pixels: Pixels, name: str, whose: str) -> None:
        """Refuse a stamp of another kind than those of `whose`; InputError says what differs."""
        if is_colour(name) != self.colour:
            kinds = ("fluxes (FITS)", "a colour image of 8 bits")
            raise InputError(
                f"{name} is {kinds[is_colour(name)]}, and {whose} {kinds[self.colour]}"
            )
        if len(pixels) != self.planes:
            raise InputError(f"{name} has {len(pixels)} bands, and {whose} {self.planes}")
        if pixels.shape != (self.planes, self.side, self.side):
            raise InputError(
                f"{name} has {sides(pixels)} pixels, and {whose} {self.side} x {self.side}: all "
                "stamps of a folder, and of a model, have one size; resize = N (training.resize) "
                "makes it so for JPEG and PNG"
            )


def is_colour(name: str) -> bool:
    """Whether a file is no FITS, by its ending."""
    return not name.lower().endswith(FITS_ENDINGS)


def sides(pixels: Pixels) -> str:
    """Width and height of planes, as messages tell them."""
    return f"{pixels.shape[2]} x {pixels.shape[1]}"
