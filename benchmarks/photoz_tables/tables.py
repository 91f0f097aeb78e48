"""The tables of the contest: magnitudes, their errors, redshifts and the fixed test rows of each.

Test rows are chosen by rules fixed before any method saw them: whole sky pixels where positions are
known, since redshifts of one place go together; the file's own parts if it has some; a hash of the
photometry otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.table import Table
from numpy.typing import NDArray

from surveyproc.sky import healpix29
from surveyproc.train.data import sky_split

SPLIT_SEED, SPLIT_SHARE = 1000, 0.25
"""Of the test rows by sky pixels; those of benchmarks/photoz_zcosmos.py."""


@dataclass
class Task:
    """One contest.

    Attributes
    ----------
    name : str
        Of the table.
    bands : list of str
        Bands in order of wavelength; `reference` is the one RAIL's methods rest on.
    mag, err : float ndarray, shape (n, band)
        Magnitudes and their errors, NaN where missing.
    z : float ndarray, shape (n,)
        Spectroscopic redshifts.
    part : int ndarray, shape (n,)
        0 for training rows, 1 for test rows.
    group : int ndarray, shape (n,)
        Sky pixel or hash cell: rows of a group stay together however the rows are divided.
    grid : float ndarray
        Redshifts at which CDFs are compared.
    strata : dict of str to bool ndarray, shape (n,)
        Parts of the test rows reported one by one; all of them if there are none.
    errors : bool
        Whether our network reads the errors of the magnitudes.
    """

    name: str
    bands: list[str]
    reference: str
    mag: NDArray
    err: NDArray
    z: NDArray
    part: NDArray
    group: NDArray
    grid: NDArray
    strata: dict[str, NDArray] = field(default_factory=dict)
    errors: bool = True

    def development(self) -> Task:
        """The training rows alone, a fifth of their groups as test rows: for choosing settings."""
        keep = self.part == 0
        group = self.group[keep]
        part = held_groups(group, 0.2, "development").astype(int)
        columns = (column[keep] for column in (self.mag, self.err, self.z))
        return Task(self.name, self.bands, self.reference, *columns, part, group, self.grid)


def held_groups(group: NDArray, share: float, salt: str) -> NDArray:
    """Rows of as many whole groups, in the order of a hash, as hold `share` of the rows."""
    values, counts = np.unique(group, return_counts=True)
    keys = [hashlib.sha256(f"{salt}:{value}".encode()).digest() for value in values]
    order = np.array(sorted(range(len(values)), key=keys.__getitem__))
    before = np.cumsum(counts[order]) - counts[order]
    return np.isin(group, values[order[before < share * len(group)]])


def hash_cells(values: NDArray) -> NDArray:
    """One of a thousand cells for each row, from a hash of it: equal rows share a cell."""
    rows = np.ascontiguousarray(np.nan_to_num(values, nan=-1.0), dtype="<f8")
    digests = (hashlib.sha256(row.tobytes()).digest() for row in rows)
    return np.array([int.from_bytes(digest[:4], "big") % 1000 for digest in digests])


def sky_pixels(ra: NDArray, dec: NDArray) -> NDArray:
    """HEALPix pixels of the lowest order at which the rows occupy 40 of them, as `sky_split`."""
    finest = healpix29(ra, dec)
    orders = (finest >> (2 * (29 - order)) for order in range(14))
    return next(pixel for pixel in orders if len(np.unique(pixel)) >= 40)


def magnitudes(frame: pd.DataFrame, mags: list[str], errs: list[str]) -> tuple[NDArray, NDArray]:
    """Magnitudes and errors, NaN where the catalog holds a placeholder."""
    mag, err = (np.array(frame[names], dtype=float) for names in (mags, errs))
    gone = ~((mag > 0) & (mag <= 40))
    mag[gone] = np.nan
    err[gone | ~(err > 0)] = np.nan
    return mag, err


def mgs(data: Path) -> Task:
    """SDSS main galaxy sample (test data of MLZ, Carrasco Kind & Brunner 2013).

    Three tenths of the hash cells are test rows.
    """
    frame = pd.read_parquet(data / "sdss_mgs/sdss_mgs.parquet")
    bands = list("ugriz")
    mag, err = magnitudes(frame, bands, [f"e{band}" for band in bands])
    z, cells = frame.zs.to_numpy(float), hash_cells(mag)
    part = held_groups(cells, 0.3, "test").astype(int)
    grid = np.arange(0, 0.4001, 0.0004)
    return Task("sdss_mgs", bands, "r", mag, err, z, part, cells, grid)


def boss(data: Path, files: tuple[int, ...] = (0, 1), test: tuple[int, ...] = (2, 3)) -> Task:
    """BOSS DR10 (examples of ANNz2, Sadeh et al. 2016), split by its files.

    Depth and redshifts differ from file to file, so our network leaves out the errors here too:
    that was chosen by training on file 0 and testing on file 1, and the other way round
    (`across_files`).
    """
    frame = pd.read_parquet(data / "boss_dr10/boss_dr10.parquet")
    mag, err = magnitudes(frame, [f"MAG_{b}" for b in "UGRIZ"], [f"MAGERR_{b}" for b in "UGRIZ"])
    z = frame.Z.to_numpy(float)
    file, cells = frame.part.to_numpy(), hash_cells(mag)
    ok = (z > 0.005) & np.isfinite(mag).any(axis=1) & np.isin(file, [*files, *test])
    part = np.isin(file, test).astype(int)
    columns = (column[ok] for column in (mag, err, z, part, cells))
    grid = np.arange(0, 1.2003, 0.001)
    return Task("boss_dr10", list("ugriz"), "i", *columns, grid, errors=False)


def across_files(data: Path) -> list[Task]:
    """`boss` without its test rows: each of the two other files is tested once."""
    return [
        replace(boss(data, (one,), (other,)), name=f"boss_dr10, file {one} to {other}")
        for one, other in ((0, 1), (1, 0))
    ]


def zcosmos(data: Path) -> Task:
    """zCOSMOS-bright DR3 (Lilly et al. 2009), photometry of Ilbert et al. 2009.

    Secure redshifts outside the held-out sky pixels are training rows. The table is that of
    Crenshaw & Connolly 2020.

    "Off walls" are test redshifts that are rarer among the training rows than their surroundings
    of 0.1: the field is so narrow that test pixels share the redshift walls of training pixels.
    """
    frame = pd.read_parquet(data / "zcosmos_bright/zcosmos_west.parquet")
    bands = list("ubvgrizjk")
    mag, err = magnitudes(
        frame, [f"{b}_photzi25" for b in bands], [f"e{b}_photzi25" for b in bands]
    )
    ok = np.isfinite(mag).any(axis=1) & (frame.zpec.to_numpy() > 0)
    frame, mag, err = frame[ok], mag[ok], err[ok]
    ra, dec, z = (frame[name].to_numpy(float) for name in ("alpha", "delta", "zpec"))
    secure, held = frame.secure.to_numpy(bool), sky_split(ra, dec, SPLIT_SEED, SPLIT_SHARE)
    edges = np.arange(0.0, 3.005, 0.005)
    counts, _ = np.histogram(z[secure & ~held], edges)
    around = np.convolve(counts, np.full(20, 1 / 20), mode="same")
    cell = np.clip(np.digitize(z, edges) - 1, 0, len(counts) - 1)
    strata = {
        "secure": secure & held,
        "secure, off walls": secure & held & (counts[cell] < around[cell]),
        "other classes": ~secure & held,
    }
    keep = secure | held
    columns = (column[keep] for column in (mag, err, z, held.astype(int), sky_pixels(ra, dec)))
    grid = np.arange(0, 3.0005, 0.002)
    parts = {label: rows[keep] for label, rows in strata.items()}
    return Task("zcosmos_bright", bands, "i", *columns, grid, parts)


VVDS_GRID = np.arange(0, 5.001, 0.0025)


def vvds(data: Path) -> Task:
    """VVDS-Deep (Le Fevre et al. 2013), bands of two cameras that are rarely all at hand.

    Whole sky pixels are test rows.
    """
    frame = pd.read_parquet(data / "vvds_deep/vvds_deep.parquet")
    bands = ["u", "U", "B", "g", "V", "r", "R", "i", "I", "z"]
    older = {"U", "B", "V", "R", "I"}
    names = [f"{'CFH12K_' if b in older else ''}MAG_AUTO_{b.upper()}" for b in bands]
    mag, err = magnitudes(frame, names, [n.replace("MAG_", "MAGERR_") for n in names])
    ok = (frame.Z.to_numpy() > 0.005) & np.isfinite(mag).any(axis=1)
    ra, dec, z = (frame[name].to_numpy(float)[ok] for name in ("ALPHA", "DELTA", "Z"))
    part = sky_split(ra, dec, SPLIT_SEED, SPLIT_SHARE).astype(int)
    pixels = sky_pixels(ra, dec)
    return Task("vvds_deep", bands, "I", mag[ok], err[ok], z, part, pixels, VVDS_GRID)


DEEP_BANDS = ["u", "g", "r", "i2", "i", "z", "y"]


def deep(data: Path) -> Task:
    """DEEP2 and 3D-HST (Zhou et al. 2019), most rows without i2 or y.

    The table is that of Crenshaw & Connolly 2020; a quarter of the hash cells are test rows.
    """
    frame = Table.read(data / "deep2_3dhst/deep2_3dhst.fits").to_pandas()
    mag, err = magnitudes(frame, DEEP_BANDS, [f"{band}err" for band in DEEP_BANDS])
    err[err > 90] = np.nan
    z = frame.redshift.to_numpy(float)
    ok = np.isfinite(mag).any(axis=1) & (z > 0)
    mag, err, z = mag[ok], err[ok], z[ok]
    cells = hash_cells(mag)
    held = held_groups(cells, 0.25, "test")
    whole = np.isfinite(mag).all(axis=1)
    strata = {"all": held, "all bands": held & whole, "lacking bands": held & ~whole}
    grid = np.arange(0, 4.001, 0.002)
    return Task("deep2_3dhst", DEEP_BANDS, "i", mag, err, z, held.astype(int), cells, grid, strata)


def transfer(data: Path) -> Task:
    """Trained on all of DEEP2 and 3D-HST, tested on another survey, VVDS-Deep, without i2 and y.

    Our network leaves out the errors, whose meaning differs between surveys: that was chosen in
    `rehearsal`.
    """
    frame = pd.read_parquet(data / "vvds_deep/vvds_deep.parquet")
    names = [f"MAG_AUTO_{band}" for band in "UGRIZ"]
    mag, err = magnitudes(frame, names, [name.replace("MAG_", "MAGERR_") for name in names])
    ok = (frame.Z.to_numpy() > 0.005) & (np.isfinite(mag).sum(axis=1) >= 2)
    other = mag[ok], err[ok], frame.Z.to_numpy(float)[ok]
    return _to_survey("deep2_3dhst to vvds_deep", deep(data), "ugriz", *other)


def rehearsal(data: Path) -> Task:
    """`transfer` with every third galaxy of zCOSMOS-bright in the place of VVDS-Deep."""
    survey = zcosmos(data)
    at, some = [survey.bands.index(band) for band in "ugriz"], slice(None, None, 3)
    other = survey.mag[some, at], survey.err[some, at], survey.z[some]
    return _to_survey("deep2_3dhst to zcosmos_bright", deep(data), "ugriz", *other)


def _to_survey(name: str, source: Task, bands: str, mag: NDArray, err: NDArray, z: NDArray) -> Task:
    """All rows of a task to train with, rows of another survey that has fewer bands to test."""
    wide = np.full((2, len(z), len(source.bands)), np.nan)
    wide[:, :, [source.bands.index(band) for band in bands]] = mag, err
    return Task(
        name,
        source.bands,
        source.reference,
        np.concatenate([source.mag, wide[0]]),
        np.concatenate([source.err, wide[1]]),
        np.concatenate([source.z, z]),
        np.repeat([0, 1], [len(source.z), len(z)]),
        np.concatenate([source.group, np.full(len(z), -1)]),
        VVDS_GRID,
        errors=False,
    )


TASKS: dict[str, Callable[[Path], Task]] = {
    "mgs": mgs,
    "boss": boss,
    "zcosmos": zcosmos,
    "vvds": vvds,
    "deep": deep,
    "transfer": transfer,
}
