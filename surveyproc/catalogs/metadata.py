"""Contents of the small files of a HATS catalog; where they lie is the business of hats.py."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def properties_file(document: Mapping[str, str]) -> bytes:
    """A Java properties file; a backslash and a line break would be read as something else."""
    lines = ["#HATS catalog"]
    for key, value in document.items():
        text = re.sub(r"[\r\n]+", " ", str(value)).strip().replace("\\", "\\\\")
        lines.append(f"{key}={text}")
    return ("\n".join(lines) + "\n").encode()


def point_map(histogram: NDArray[np.int64]) -> bytes:
    """A FITS map of rows a HEALPix pixel (nested), which readers take as the coverage.

    As `hats.io.file_io.write_fits_image` writes it, by the library that it writes it with: to
    import hats takes seconds.
    """
    from cdshealpix import cdshealpix

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "point_map.fits"
        if np.count_nonzero(histogram) < len(histogram) / 2:
            order = (len(histogram) // 12).bit_length() // 2
            _, pixels, values = cdshealpix.to_explicit(order, np.int64(0), histogram)
            cdshealpix.write_skymap_explicit(order, pixels, values, str(path))
        else:
            cdshealpix.write_skymap_implicit(histogram, str(path))
        return path.read_bytes()
