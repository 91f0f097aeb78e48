"""Stamps: image files of one object each, JPEG or PNG in colour, or FITS of any bands.

Colour images give their planes r, g, b as intensities 0 to 255. FITS stamps are a cube with axes
(band, y, x), or a plane of one band, in nanojansky or another unit of flux density, which BUNIT
tells: the first HDU that holds any pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.io import fits
from PIL import Image, UnidentifiedImageError

from surveyproc.child import Talk
from surveyproc.errors import DiedError, InputError
from surveyproc.images.stamp_kind import Pixels, StampKind, is_colour, sides
from surveyproc.places.base import DEATHS
from surveyproc.store.storage import Store


class DamagedStampError(InputError):
    """A file that holds no whole image."""


def decoded(
    source: Store, names: Sequence[str], resize: int | None = None
) -> Iterator[Pixels | InputError]:
    """The pixels of one file after the other, or what is wrong with it.

    Another process reads the next one while this one is used, and may die of it.

    Parameters
    ----------
    source : Store
        The folder.
    names : sequence of str
        In it.
    resize : int, optional
        As in `decode_stamp`.

    Raises
    ------
    StoreError
        If a file cannot be read.
    DiedError
        If process after process dies: it is hardly the files then.
    """
    talk, deaths = None, 0
    try:
        for number, name in enumerate(names):
            talk = talk or Talk(_decode, source, names[number:], resize)
            try:
                (found,) = talk.hear(name)
            except DiedError as error:
                talk.close()
                talk, deaths = None, deaths + 1
                if deaths == DEATHS:
                    raise
                yield DamagedStampError(str(error))
                continue
            deaths = 0
            if number + 1 < len(names):
                talk.say(None)
            yield found
    finally:
        if talk is not None:
            talk.close()


def _decode(
    source: Store, names: Sequence[str], resize: int | None
) -> Generator[tuple[Pixels | InputError], None, None]:
    """The other side of `decoded`."""
    for name in names:
        try:
            data = source.read_if_there(name)
            if data is None:
                raise InputError(f"{name}: there is no such file")
            yield (decode_stamp(data, name, resize),)
        except InputError as error:
            yield (error,)


def decode_stamp(data: bytes, name: str, resize: int | None = None) -> Pixels:
    """The pixels of one file.

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        What it is called, for messages; its ending tells FITS from the others.
    resize : int, optional
        Side in pixels to which the image is resampled (Lanczos), which FITS stamps are not.

    Returns
    -------
    float32 ndarray, shape (band, side, side)
        Intensities 0 to 255, or nJy, NaN where there is no pixel. The first row is that of the
        file: FITS has it at the bottom and others at the top, which no network of ours minds.

    Raises
    ------
    DamagedStampError
        If the file holds no image, or not all of it.
    InputError
        If the image is not square, or one of another kind: grey, with an alpha channel, of a
        palette, of 16 bits, or FITS of another unit or number of axes.
    """
    if not is_colour(name):
        if resize:
            raise InputError(f"{name}: training.resize is for JPEG and PNG; cut FITS stamps anew")
        pixels = _fits(data, name)
    else:
        pixels = _colour(data, name, resize)
    if pixels.shape[1] != pixels.shape[2]:
        raise InputError(f"{name}: stamps are square, and this one has {sides(pixels)} pixels")
    return pixels


def _colour(data: bytes, name: str, resize: int | None) -> Pixels:
    # Pillow makes 8 bits of 16 without a word; the depth is in the header's fixed place.
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 24 and data[24] == 16:
        raise InputError(
            f"{name}: a PNG of 16 bits a plane, and colour images have 8: convert it, or save the "
            "fluxes as FITS"
        )
    try:
        with warnings.catch_warnings():
            # What Pillow warns of is an image of more pixels than any stamp has.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data)) as opened:
                image: Image.Image = opened
                if image.mode != "RGB":
                    raise InputError(
                        f"{name}: an image of mode {image.mode} "
                        f"({_MODES.get(image.mode, 'not three colours')}); stamps are RGB"
                    )
                if resize and image.size[0] == image.size[1]:
                    image = image.resize((resize, resize), Image.Resampling.LANCZOS)
                planes = np.asarray(image, np.float32)
    except InputError:
        raise
    except (
        UnidentifiedImageError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
    ) as error:
        raise DamagedStampError(f"{name}: {error}") from error
    return np.ascontiguousarray(planes.transpose(2, 0, 1))


_MODES = {
    "L": "grey",
    "1": "black and white",
    "P": "a palette",
    "RGBA": "with an alpha channel",
    "LA": "grey with an alpha channel",
    "CMYK": "colours of print",
    "I;16": "grey of 16 bits",
}


def _fits(data: bytes, name: str) -> Pixels:
    try:
        with warnings.catch_warnings():
            # A file that is cut short is an error.
            warnings.simplefilter("error")
            with fits.open(BytesIO(data), memmap=False) as hdus:
                found = next((one for one in hdus if getattr(one, "shape", ())), None)
                if found is None or not found.is_image:
                    raise DamagedStampError(f"{name}: the file holds no image")
                values: Any = np.asarray(found.data, np.float32)
                unit = str(found.header.get("BUNIT", "")).strip()
    except InputError:
        raise
    except Exception as error:
        raise DamagedStampError(f"{name}: {error}") from error
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3:
        raise InputError(f"{name}: {values.ndim} axes; FITS stamps have (band, y, x), or (y, x)")
    try:
        factor = units.Unit(unit).to("nJy") if unit else 1.0
    except (ValueError, units.UnitsError) as error:
        raise InputError(f"{name}: BUNIT {unit!r} is no flux density a pixel: {error}") from error
    pixels: Pixels = values * np.float32(factor)
    return pixels


def window(pixels: Pixels, side: int, name: str) -> Pixels:
    """The central `side` x `side` pixels, the object's at index side // 2.

    Raises
    ------
    InputError
        If the stamp is smaller.
    """
    own = pixels.shape[-1]
    if own < side:
        raise InputError(
            f"{name} has {own} pixels on a side, and {side} are wanted: the network's cutout, and "
            "in training training.shift on each side"
        )
    start = own // 2 - side // 2
    return pixels[:, start : start + side, start : start + side]


def read_stamp(
    path: str | Path, bands: Sequence[str], side: int, kind: StampKind | None = None
) -> Pixels:
    """What a network that reads these bands takes of a file, shape (band, side, side).

    Parameters
    ----------
    path : str or Path
        The file.
    bands : sequence of str
        Of the network, in its order.
    side : int
        Of its cutouts.
    kind : StampKind, optional
        Of the stamps that it learned from; None if it learned from a survey's cutouts.

    Raises
    ------
    InputError
        As `decode_stamp` and `window`, and if there is no such file, or it is of another kind: a
        network of a survey's cutouts takes fluxes of its bands.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if kind is None and is_colour(path.name):
        raise InputError(
            f"{path}: a colour image of 8 bits, and the model has learned from fluxes in "
            f"{', '.join(bands)}: give a FITS file with these planes, nJy or with BUNIT"
        )
    (pixels,) = decoded(Store(str(path.parent)), [path.name], kind.resize if kind else None)
    if isinstance(pixels, InputError):
        raise pixels
    if len(pixels) != len(bands):
        raise InputError(
            f"{path} has {len(pixels)} bands, and the model reads {len(bands)} ({', '.join(bands)})"
        )
    if kind is not None:
        kind.check(pixels, str(path), "those that the model learned from")
    return np.ascontiguousarray(window(pixels, side, str(path)))
