"""Our aperture magnitudes beside the magnitudes of the input catalog: bright, isolated sources.

Run after `surveyproc run survey.toml`: prints median difference (ours minus theirs) and scatter
(1.4826 x median absolute deviation) in every band.
"""

from pathlib import Path

import lsdb
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

from surveyproc import verbs
from surveyproc.config import SurveyConfig, load

BRIGHT = 21.5  # r magnitude
ISOLATED_ARCSEC = 6.0


def compare(config: SurveyConfig) -> list[tuple[str, int, float, float]]:
    """Band, number of sources, median difference and scatter in AB magnitudes."""
    sources = Table.read(config.resolve(config.catalog.source))
    released = lsdb.open_catalog(verbs.releases(config)["current"]["url"]).compute()
    ours = released.set_index("object_id").loc[sources["object_id"].astype("int64").tolist()]
    sky = SkyCoord(sources["ra"], sources["dec"], unit="deg")
    _, neighbour, _ = sky.match_to_catalog_sky(sky, nthneighbor=2)
    base = (
        (neighbour.arcsec > ISOLATED_ARCSEC)
        & (np.asarray(sources["mag_r"]) < BRIGHT)
        & (ours["photometry_flag"].to_numpy() == 0)
    )
    rows = []
    for band in config.images.bands:
        theirs = np.ma.filled(np.ma.asarray(sources[f"mag_{band}"], float), np.nan)
        flux = ours[f"flux_{band}"].to_numpy(float)
        error = ours[f"flux_err_{band}"].to_numpy(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            difference = 31.4 - 2.5 * np.log10(flux) - theirs
        good = difference[base & np.isfinite(difference) & (flux > 5 * error)]
        median = float(np.median(good))
        rows.append((band, len(good), median, 1.4826 * float(np.median(np.abs(good - median)))))
    return rows


if __name__ == "__main__":
    print(f"r < {BRIGHT}, nearest neighbour beyond {ISOLATED_ARCSEC} arcsec, unflagged")
    print("band     n   median  scatter")
    for band, n, median, scatter in compare(load(Path(__file__).parent / "survey.toml")):
        print(f"{band:>4} {n:5d}  {median:+.3f}   {scatter:.3f}")
