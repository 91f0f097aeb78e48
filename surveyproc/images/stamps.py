"""One image of one object, from a file beside any survey: FITS, PNG or JPEG."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import InputError

COLOUR = (".png", ".jpg", ".jpeg")


def read_stamp(path: str | Path, bands: tuple[str, ...], side: int) -> NDArray[np.float32]:
    """The pixels of a file as a network of images takes them, float32, shape (band, y, x).

    Of a FITS file the first image, (band, y, x), or (y, x) of one band, in nanojansky a pixel; of
    a PNG or JPEG the channels in order, 0 to 255, its upper row last as in FITS.

    Parameters
    ----------
    path : str or Path
        The file.
    bands : tuple of str
        What the network reads, in order.
    side : int
        Pixels on a side that it reads.

    Raises
    ------
    InputError
        If it is no such file or damaged, or has another number of bands or pixels.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    pixels = _colours(path) if path.suffix.lower() in COLOUR else _fits(path)
    wanted = (len(bands), side, side)
    if pixels.shape != wanted:
        raise InputError(
            f"{path} has {_told(pixels.shape)}, and the model reads {_told(wanted)} "
            f"({', '.join(bands)}): cut or stack the image so"
        )
    return np.ascontiguousarray(pixels, np.float32)


def _told(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} bands of {shape[1]} x {shape[2]} pixels"


def _colours(path: Path) -> NDArray[np.float32]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no image that can be read: {error}") from error
    if mode not in ("RGB", "L"):
        raise InputError(
            f"{path} is of mode {mode}: 8 bits of red, green and blue, or of grey alone, are read; "
            "convert it (without alpha, palette or 16 bits)"
        )
    planes = np.atleast_3d(pixels).transpose(2, 0, 1)
    return planes[:, ::-1].astype(np.float32)


def _fits(path: Path) -> NDArray[np.float32]:
    from astropy.io import fits

    try:
        with warnings.catch_warnings(), fits.open(path) as hdus:
            warnings.simplefilter("ignore")
            found = [one.data for one in hdus if one.is_image and one.header["NAXIS"] > 0]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no FITS, PNG or JPEG that can be read: {error}") from error
    if not found or found[0] is None or found[0].ndim not in (2, 3):
        raise InputError(f"{path} has no image of (band, y, x) or (y, x)")
    planes = found[0] if found[0].ndim == 3 else found[0][None]
    return np.asarray(planes, np.float32)
