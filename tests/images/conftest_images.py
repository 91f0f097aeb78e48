"""Small real FITS files and survey configurations for the image tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from surveyproc.config import SurveyConfig

WCS_CARDS: dict[str, Any] = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CUNIT1": "deg",
    "CUNIT2": "deg",
    "CRPIX1": 50.5,
    "CRPIX2": 40.5,
    "CRVAL1": 10.0,
    "CRVAL2": 2.0,
    "CDELT1": -1e-4,
    "CDELT2": 1e-4,
}


def header(tile: str = "T1", band: str = "g", zeropoint: Any = 30.0, **cards: Any) -> fits.Header:
    """A header with WCS, tile, band and zero point; a card of None is left out."""
    values = {**WCS_CARDS, "OBJECT": tile, "FILTER": band, "MAGZERO": zeropoint, **cards}
    return fits.Header([(key, value) for key, value in values.items() if value is not None])


def pixels(seed: int = 0, shape: tuple[int, int] = (80, 100)) -> np.ndarray:
    return np.random.default_rng(seed).normal(5, 2, shape).astype(np.float32)


def write(path: Path, data: np.ndarray | None = None, **cards: Any) -> Path:
    """A plain FITS image of 80 x 100 pixels."""
    head = header(**cards)
    fits.PrimaryHDU(pixels() if data is None else data, head).writeto(path, overwrite=True)
    return path


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., SurveyConfig]:
    def make(
        tiles: Sequence[str] = ("*.fits*",),
        bands: Sequence[str] = ("g", "r"),
        root: str = "store",
        name: str = "t",
        **images: Any,
    ) -> SurveyConfig:
        return SurveyConfig.model_validate(
            {
                "survey": {"name": name, "root": root},
                "images": {"tiles": list(tiles), "bands": list(bands), **images},
                "catalog": {"source": "none"},
                "base": str(tmp_path),
            }
        )

    return make
