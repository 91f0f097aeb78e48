"""Contents of the small files of a HATS catalog; what leaves hold is the business of hats.py."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from surveyproc.store.storage import Store, digest
from surveyproc.store.temporary import temporary_folder

DATE = "hats_creation_date"
PROPERTIES = ("hats.properties", "properties")
METADATA = (
    "dataset/_metadata",
    "dataset/_common_metadata",
    "partition_info.csv",
    "point_map.fits",
    *PROPERTIES,
)
"""Files of a catalog of ours beside its leaves."""


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

    Raises
    ------
    StoreError
        If no temporary file can be written.
    """
    from cdshealpix import cdshealpix

    with temporary_folder() as folder:
        path = folder / "point_map.fits"
        if np.count_nonzero(histogram) < len(histogram) / 2:
            order = (len(histogram) // 12).bit_length() // 2
            _, pixels, values = cdshealpix.to_explicit(order, np.int64(0), histogram)
            cdshealpix.write_skymap_explicit(order, pixels, values, str(path))
        else:
            cdshealpix.write_skymap_implicit(histogram, str(path))
        return path.read_bytes()


def sums(store: Store, key: str) -> dict[str, str]:
    """SHA-256 of every file of a catalog of ours beside its leaves; empty where there is none.

    Of properties without the lines with a date: two commands that write the same catalog at once
    differ in them alone.
    """
    found = {name: store.read_if_there(f"{key}/{name}") for name in METADATA}
    for name in PROPERTIES:
        lines = (found[name] or b"").splitlines(keepends=True)
        found[name] = b"".join(one for one in lines if not one.startswith((b"#", DATE.encode())))
    return {name: digest(content) if content else "" for name, content in found.items()}
