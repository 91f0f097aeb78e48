"""Images of one object from files: what fits is read as it is, the rest is named."""

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from surveyproc.errors import InputError
from surveyproc.images.stamp_kind import StampKind
from surveyproc.images.stamps import read_stamp

COLOUR = StampKind(colour=True, planes=3, side=8)
RGB = ("g", "r", "i")


def colours(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def test_channels_are_bands_and_the_middle_is_taken(tmp_path):
    pixels = colours()
    Image.fromarray(pixels).save(tmp_path / "one.png")
    found = read_stamp(tmp_path / "one.png", RGB, 6, COLOUR)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[1], pixels[1:7, 1:7, 1])


def test_fits_of_planes_and_of_one_plane(tmp_path):
    planes = np.random.default_rng(1).normal(size=(3, 8, 8))
    planes[0, 0, 0] = np.nan
    later = [fits.PrimaryHDU(), fits.ImageHDU(planes)]
    fits.HDUList(later).writeto(tmp_path / "three.fits")
    np.testing.assert_array_equal(
        read_stamp(tmp_path / "three.fits", RGB, 8), planes.astype(np.float32)
    )
    fits.PrimaryHDU(planes[1]).writeto(tmp_path / "one.fits")
    assert read_stamp(str(tmp_path / "one.fits"), ("r",), 8).shape == (1, 8, 8)


def write_bad(path, kind):
    if kind == "alpha":
        Image.fromarray(np.dstack([colours(), colours()[:, :, :1]])).save(path)
    elif kind == "deep":
        Image.fromarray(colours()[:, :, 0].astype(np.uint16)).save(path)
    elif kind == "cut short":
        Image.fromarray(np.tile(colours(), (8, 8, 1))).save(path)
        path.write_bytes(path.read_bytes()[:600])
    elif kind == "text":
        path.write_text("no image")
    elif kind == "table":
        fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])]).writeto(path)
    elif kind == "small":
        Image.fromarray(colours()).save(path)
    elif kind == "one plane":
        fits.PrimaryHDU(np.ones((8, 8))).writeto(path)
    elif kind == "grey":
        Image.fromarray(colours()[:, :, 0]).save(path)


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        ("a.png", "alpha", "alpha"),
        ("a.png", "deep", "16 bits"),
        ("a.jpg", "cut short", "Truncated"),
        ("a.png", "text", "cannot identify"),
        ("a.fits", "text", "a.fits"),
        ("a.fits", "table", "no image"),
        ("a.png", "small", "has 8 pixels on a side, and 16 are wanted"),
        ("a.png", "grey", "grey"),
        ("a.fits", "one plane", "has 1 bands, and the model reads 3"),
        ("a.png", "none", "there is no such file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, kind, match):
    write_bad(tmp_path / name, kind)
    learned = COLOUR if name != "a.fits" else None
    with pytest.raises(InputError, match=match):
        read_stamp(tmp_path / name, RGB, 16 if kind == "small" else 8, learned)


def test_a_model_of_fluxes_takes_no_colours(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a colour image of 8 bits, and the model has learned"):
        read_stamp(tmp_path / "a.png", RGB, 8)
