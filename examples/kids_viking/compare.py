"""Our magnitudes beside those of the input catalog, and the two kinds of redshifts side by side.

Run after `surveyproc run survey.toml`: prints median difference (ours minus theirs) and scatter
(1.4826 x median absolute deviation) of bright, isolated sources in every band; then how far the
redshifts of the network that sees images are from those of the catalog's network.
"""

from pathlib import Path

import lsdb
import numpy as np
import pandas as pd
from astropy.coordinates import SkyCoord
from astropy.table import Table

from surveyproc import verbs
from surveyproc.config import SurveyConfig, load
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.survey import Survey

BRIGHT = 21.5  # r magnitude
ISOLATED_ARCSEC = 6.0


def published(config: SurveyConfig) -> pd.DataFrame:
    """All rows of the published release."""
    return lsdb.open_catalog(verbs.releases(Survey(config)).current.url).compute()


def compare(config: SurveyConfig) -> list[tuple[str, int, float, float]]:
    """Band, number of sources, median difference and scatter in AB magnitudes."""
    sources = Table.read(config.resolve(config.catalog.source))
    ours = (
        published(config).set_index("object_id").loc[sources["object_id"].astype("int64").tolist()]
    )
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


def compare_redshifts(config: SurveyConfig) -> dict[str, float]:
    """Metrics of the images' redshifts as if the catalog's were the truth, without flagged rows."""
    rows = published(config)
    rows = rows[(rows.photoz_flag == 0) & (rows.photoz_images_flag == 0)]
    return redshift_metrics(rows.gaznet_1_z_median, rows.gaznet_c7_z_median)


if __name__ == "__main__":
    print(f"r < {BRIGHT}, nearest neighbour beyond {ISOLATED_ARCSEC} arcsec, unflagged")
    print("band     n   median  scatter")
    survey = load(Path(__file__).parent / "survey.toml")
    for band, n, median, scatter in compare(survey):
        print(f"{band:>4} {n:5d}  {median:+.3f}   {scatter:.3f}")
    found = compare_redshifts(survey)
    print(
        f"images against catalog, {found['n']} unflagged: NMAD {found['nmad']:.3f}, beyond 0.15 "
        f"{100 * found['outlier_fraction']:.0f} %, mean {found['bias']:+.3f}"
    )
