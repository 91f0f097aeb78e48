"""Fluxes and errors of real fields against photutils on the original files.

    python benchmarks/fluxes_against_photutils.py ../shared/data

Each field is ingested and measured as a survey of its own. photutils measures the same positions on
the files as they are, with their own pixels and WCS, in the same apertures and annuli in arcsec. A
line for each field, aperture and band:

- objects and median ratio of the fluxes (ours over theirs) with its standard deviation over
  bootstrap samples, bright (over 50 sigma) and faint (3 to 20 sigma), and the median ratio of their
  errors;
- the scatter of flux over error at places without a source, ours and theirs, which is 1 where
  pixels share no noise and no source was missed. Half the distance between the 15.9 and 84.1
  percentiles.

Objects count if no pixel in the aperture is masked or outside the image. The field `gama` has three
bands with pixels of their own, of which ours moves two to the finest grid; `gama alone` are the
same two, each a survey without the others.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import lsdb
import numpy as np
import sep
from astropy.io import fits
from astropy.stats import SigmaClip
from astropy.table import Table, vstack
from astropy.wcs import WCS
from photutils.aperture import ApertureStats, CircularAnnulus, CircularAperture, aperture_photometry
from scipy.ndimage import binary_dilation

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.measure.aperture import annulus_for
from surveyproc.survey import Survey

BRIGHT, FAINT = 50.0, (3.0, 20.0)
BLANKS = 400
WINGS = 4
"""Pixels around a detected source that are no blank sky."""
DECAM_NAME = r"(?P<tile>c4d_\d+_\d+)_oo(?P<kind>[iwd])_(?P<band>[grz])_"


@dataclass
class Exposure:
    """One band of one tile, as its files have it, in nanojansky."""

    band: str
    image: np.ndarray
    wcs: WCS
    variance: np.ndarray | None = None
    bad: np.ndarray | None = None

    @property
    def scale(self) -> float:
        """Arcsec a pixel in the middle, distortion included."""
        ny, nx = self.image.shape
        x, y = (nx - 1) / 2, (ny - 1) / 2
        left, right, low, high = (
            self.wcs.pixel_to_world(a, b)
            for a, b in ((x - 0.5, y), (x + 0.5, y), (x, y - 0.5), (x, y + 0.5))
        )
        return float(np.sqrt(left.separation(right).arcsec * low.separation(high).arcsec))


@dataclass
class Field:
    """A survey of one or more tiles, and what photutils is to measure."""

    name: str
    settings: str
    apertures: list[float]
    exposures: list[Exposure]
    sources: Table | None = None
    measured: list[Table] = field(default_factory=list)


def read(path: Path, number: int = 0) -> tuple[np.ndarray, WCS]:
    with fits.open(path) as hdus, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hdu = next(hdu for hdu in hdus[number:] if hdu.data is not None)
        return hdu.data.astype(np.float64), WCS(hdu.header)


def njy(zeropoint: float) -> float:
    return 10 ** ((31.4 - zeropoint) / 2.5)


def kids_viking(data: Path) -> Iterator[Field]:
    folder = data / "kids_viking_field"
    bands = ["u", "g", "r", "i", "Z", "Y", "J", "H", "Ks"]
    exposures = []
    for band in bands:
        # Of two tiles the larger; objects that ours takes from the other one are left out.
        path = folder / "tiles" / f"KV_A_{band}.fits.fz"
        image, wcs = read(path)
        with fits.open(path) as hdus:
            zeropoint = hdus[1].header["MAGZERO"]
        exposures.append(Exposure(band, image * njy(zeropoint), wcs))
    table = Table.read(folder / "sources.fits")
    yield Field(
        "kids_viking",
        f'tiles = ["{folder}/tiles/KV_A_*.fits.fz"]\nbands = {bands}\n'
        "zeropoint_range = [-1.0, 45.0]\n",
        [1.5, 3.0],
        exposures,
        Table({"ra": np.asarray(table["ra"]), "dec": np.asarray(table["dec"])}),
    )


def gama(data: Path) -> Iterator[Field]:
    folder = data / "gama_field"
    zeropoints = {"NUV": 20.08, "r": 0.0, "K": 30.0}
    files = {"NUV": "GALEX_NUV", "r": "VST_r", "K": "VISTA_K"}

    def of(name: str, bands: list[str]) -> Field:
        exposures = []
        for band in bands:
            image, wcs = read(folder / f"{files[band]}.fits")
            exposures.append(Exposure(band, image * njy(zeropoints[band]), wcs))
        named = ", ".join(f"{band} = {zeropoints[band]}" for band in bands)
        paths = [str(folder / f"{files[band]}.fits") for band in bands]
        return Field(
            name,
            f"tiles = {paths}\nbands = {bands}\nfile_pattern = '_(?P<band>NUV|r|K)\\.fits'\n"
            f"zeropoints = {{ {named} }}\n",
            [1.5, 6.0],
            exposures,
        )

    yield of("gama", list(files))
    yield of("gama alone", ["NUV"])
    yield of("gama alone", ["K"])


def decam(data: Path, folder: Path) -> Iterator[Field]:
    with tarfile.open(data / "decam_exposures" / "decam_grz_exposures.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    for listed in sorted(folder.glob("testcase*/survey-ccds-1.fits.gz")):
        for ccd in Table.read(listed):
            band = str(ccd["filter"]).strip()
            zeropoint = float(ccd["ccdzpt"] + 2.5 * np.log10(ccd["exptime"]))
            name = str(ccd["image_filename"]).strip()
            path = listed.parent / "images" / name
            image, wcs = read(path)
            weight, _ = read(Path(str(path).replace("_ooi_", "_oow_")))
            mask, _ = read(Path(str(path).replace("_ooi_", "_ood_")))
            with np.errstate(divide="ignore"):
                variance = njy(zeropoint) ** 2 / weight
            bad = (mask != 0) | (weight <= 0)
            pattern = str(path).replace("_ooi_", "_oo[iwd]_")
            yield Field(
                "decam",
                f'tiles = ["{pattern}"]\nbands = ["{band}"]\n'
                f"file_pattern = '{DECAM_NAME}'\nzeropoints = {{ {band} = {zeropoint!r} }}\n",
                [1.0, 1.5],
                [Exposure(band, image * njy(zeropoint), wcs, variance, bad)],
            )


def detect(exposure: Exposure) -> tuple[Table, np.ndarray]:
    """Sources of an image, and its pixels that belong to one."""
    image = np.ascontiguousarray(exposure.image)
    back = sep.Background(image, mask=exposure.bad)
    found, segments = sep.extract(
        image - back.back(), 1.5, err=back.rms(), mask=exposure.bad, segmentation_map=True
    )
    ra, dec = exposure.wcs.all_pix2world(found["x"], found["y"], 0)
    return Table({"ra": ra, "dec": dec}), binary_dilation(segments > 0, iterations=WINGS)


def positions(one: Field, seed: int = 1) -> Table:
    """Sources and blank places, `blank` telling which."""
    seen = [detect(exposure) for exposure in one.exposures]
    sources = one.sources if one.sources is not None else vstack([table for table, _ in seen])
    rng = np.random.default_rng(seed)
    first = min(one.exposures, key=lambda exposure: exposure.scale)
    ny, nx = first.image.shape
    x, y = rng.uniform(0, nx - 1, 20_000), rng.uniform(0, ny - 1, 20_000)
    ra, dec = first.wcs.all_pix2world(x, y, 0)
    free = np.ones(len(ra), bool)
    for exposure, (_, taken) in zip(one.exposures, seen, strict=True):
        px, py = exposure.wcs.all_world2pix(ra, dec, 0)
        aperture = CircularAperture(
            np.stack([px, py], axis=-1), max(one.apertures) / exposure.scale
        )
        sums = aperture_photometry(taken.astype(float), aperture)["aperture_sum"]
        free &= np.nan_to_num(np.asarray(sums), nan=1.0) == 0
    chosen = np.flatnonzero(free)[:BLANKS]
    blank = Table({"ra": ra[chosen], "dec": dec[chosen]})
    sources["blank"], blank["blank"] = False, True
    table = vstack([sources, blank])
    table["object_id"] = np.arange(len(table))
    return table


def theirs(
    exposure: Exposure, table: Table, arcsec: float, finest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, error and whether all pixels of the aperture are good, by photutils.

    `finest` are the arcsec a pixel of the tile, in whose pixels ours chooses the annulus.
    """
    xy = np.stack(exposure.wcs.all_world2pix(table["ra"], table["dec"], 0), axis=-1)
    radius = arcsec / exposure.scale
    inner, outer = np.array(annulus_for(arcsec / finest)) * finest / exposure.scale
    unusable = ~np.isfinite(exposure.image)
    if exposure.bad is not None:
        unusable |= exposure.bad
    ring = ApertureStats(
        exposure.image,
        CircularAnnulus(xy, inner, outer),
        mask=unusable,
        sigma_clip=SigmaClip(sigma=3, maxiters=5),
        sum_method="center",
    )
    level = np.asarray(ring.median)
    count = np.asarray(ring.center_aper_area.value)
    circle = CircularAperture(xy, radius)
    ones = np.ones_like(exposure.image)
    noise = ones if exposure.variance is None else np.sqrt(exposure.variance)
    noise = np.where(unusable, 0.0, noise)
    sums = aperture_photometry(exposure.image, circle, error=noise, mask=unusable)
    area = np.asarray(aperture_photometry(ones, circle, mask=unusable)["aperture_sum"])
    flux = np.asarray(sums["aperture_sum"]) - level * area
    scatter = np.asarray(ring.mad_std)
    pixels = np.asarray(sums["aperture_sum_err"]) * (
        1 if exposure.variance is not None else scatter
    )
    error = np.sqrt(pixels**2 + (area * scatter) ** 2 * np.pi / 2 / count)
    return flux, error, np.isclose(area, circle.area)


def ours(one: Field, table: Table, folder: Path) -> Table:
    """What a run publishes."""
    table.write(folder / "sources.fits", overwrite=True)
    (folder / "survey.toml").write_text(
        f'[survey]\nname = "{one.name.replace(" ", "_")}"\nroot = "./store"\n'
        f"[images]\n{one.settings}"
        '[catalog]\nsource = "sources.fits"\n'
        f'[[products]]\nname = "photometry"\naperture = {one.apertures}\n'
        "[gates]\nmax_null_share = 1.0\n"
    )
    config = load(folder / "survey.toml")
    verbs.ingest(Survey(config))
    rows = lsdb.open_catalog(verbs.run(Survey(config)).url).compute()
    return rows.set_index("object_id").loc[list(table["object_id"])]


def scatter(values: np.ndarray) -> float:
    return (
        float(np.subtract(*np.percentile(values, [84.13447, 15.86553])) / 2)
        if len(values)
        else np.nan
    )


def measure(one: Field, folder: Path) -> Iterator[tuple[str, float, str, dict[str, np.ndarray]]]:
    table = positions(one)
    rows = ours(one, table, folder)
    finest = min(exposure.scale for exposure in one.exposures)
    for place, arcsec in enumerate(one.apertures):
        suffix = f"_{arcsec:.1f}".replace(".", "p") if place else ""
        for exposure in one.exposures:
            flux, error, complete = theirs(exposure, table, arcsec, finest)
            mine = rows[f"flux_{exposure.band}{suffix}"].to_numpy(float)
            err = rows[f"flux_err_{exposure.band}{suffix}"].to_numpy(float)
            good = complete & np.isfinite(mine) & np.isfinite(flux)
            yield (
                one.name,
                arcsec,
                exposure.band,
                {
                    "ratio": (mine / flux)[good],
                    "errors": (err / error)[good],
                    "snr": (flux / error)[good],
                    "pull": (mine / err)[good],
                    "blank": np.asarray(table["blank"])[good],
                },
            )


def line(name: str, arcsec: float, band: str, found: dict[str, np.ndarray]) -> str:
    snr, blank = found["snr"], found["blank"]
    bright = ~blank & (snr > BRIGHT)
    faint = ~blank & (snr > FAINT[0]) & (snr < FAINT[1])
    text = f"{name:<12}{arcsec:5.1f} {band:>4}"
    rng = np.random.default_rng(1)
    for chosen in (bright, faint):
        ratio, errors = found["ratio"][chosen], found["errors"][chosen]
        if not len(ratio):
            text += f"{0:6d}" + " " * 25
            continue
        drawn = np.median(rng.choice(ratio, (2000, len(ratio))), axis=1).std()
        text += f"{len(ratio):6d} {np.median(ratio):8.4f} {drawn:7.4f} {np.median(errors):8.3f}"
    return (
        text + f"{blank.sum():6d} {scatter(found['pull'][blank]):6.3f} {scatter(snr[blank]):6.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="the folder of the shared data")
    data = parser.parse_args().data.absolute()
    print(
        f"{'field':<11}arcsec band     n   bright     +-    errors     n    faint     +-    errors "
        "blank  pulls photutils"
    )
    with tempfile.TemporaryDirectory() as name:
        for kind, fields in enumerate(
            (decam(data, Path(name) / "decam"), gama(data), kids_viking(data))
        ):
            merged: dict[tuple[str, float, str], list[dict[str, np.ndarray]]] = {}
            for number, one in enumerate(fields):
                folder = Path(name) / f"survey{kind}-{number}"
                folder.mkdir()
                for *key, found in measure(one, folder):
                    merged.setdefault(tuple(key), []).append(found)
            for key, parts in merged.items():
                joined = {what: np.concatenate([part[what] for part in parts]) for what in parts[0]}
                print(line(*key, joined), flush=True)


if __name__ == "__main__":
    main()
