"""The real SExtractor on blends, cold and hot, if it is installed (Debian: `source-extractor`)."""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits

from surveyproc.measure.classical_blends import COLD, HOT, Detection

NAMES = ("source-extractor", "sex")
KERNEL = "CONV NORM\n1 2 1\n2 4 2\n1 2 1\n"
COLUMNS = "X_IMAGE\nY_IMAGE\nFLUX_AUTO\n"


def program() -> str | None:
    """What SExtractor is called here, if it is."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def sources(image: np.ndarray, how: Detection, command: str) -> np.ndarray:
    """x, y (pixels, from 0) and FLUX_AUTO of its sources, shape (n, 3)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fits.writeto(folder / "image.fits", image.astype(np.float32))
        (folder / "kernel.conv").write_text(KERNEL)
        (folder / "columns.param").write_text(COLUMNS)
        options = {
            "CATALOG_NAME": "found.cat",
            "CATALOG_TYPE": "ASCII",
            "PARAMETERS_NAME": "columns.param",
            "FILTER_NAME": "kernel.conv",
            "DETECT_THRESH": how.threshold,
            "ANALYSIS_THRESH": how.threshold,
            "DETECT_MINAREA": how.pixels,
            "DEBLEND_MINCONT": how.contrast,
            "DEBLEND_NTHRESH": how.levels,
            "VERBOSE_TYPE": "QUIET",
        }
        words = [str(word) for key, value in options.items() for word in (f"-{key}", value)]
        subprocess.run([command, "image.fits", *words], cwd=folder, check=True, capture_output=True)
        text = (folder / "found.cat").read_text()
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return np.array(rows, float).reshape(-1, 3) - [1.0, 1.0, 0.0]


def fluxes(image: np.ndarray, radius: float, companion: tuple[float, float]) -> np.ndarray:
    """FLUX_AUTO of the central galaxy and its companion; NaN where not found. As `sep`'s answer."""
    command = program()
    assert command is not None
    found = sources(image, COLD, command)
    if len(found) < 2:
        found = sources(image, HOT, command)
    flux = np.full(2, np.nan)
    if not len(found):
        return flux
    found = found[np.argsort(-found[:, 2])[:2]]
    middle = image.shape[-1] // 2
    to_centre = np.hypot(found[:, 0] - middle, found[:, 1] - middle)
    if len(found) == 1:
        flux[0 if to_centre[0] < 0.5 * radius else 1] = found[0, 2]
        return flux
    dy, dx = companion
    to_companion = np.hypot(found[:, 0] - middle - dx, found[:, 1] - middle - dy)
    straight = to_centre[0] + to_companion[1] <= to_centre[1] + to_companion[0]
    flux[:] = found[:, 2] if straight else found[::-1, 2]
    return flux


def seconds_so_far() -> float:
    """Seconds of a core that this process and those it started have taken."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in parts)
