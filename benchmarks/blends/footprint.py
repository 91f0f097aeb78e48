"""What deblending does to the photometric redshifts of a crowded footprint, against its truth.

    python benchmarks/blends/footprint.py FOLDER [--objects 8000] [--share 0.25] [--epochs 12]

A survey is simulated of whose objects half lie in pairs, 0.3 to 2 arcsec apart. Pairs nearer than
the PSF is wide (0.7 arcsec) are one object of the catalog, in the centroid of their light: blends
that nobody recognised; their truth is the brighter galaxy's. Artificial blends are drawn from the
same population (another seed) with the survey's bands, PSFs, noise and pixels. True fluxes are
those in the photometry's aperture of the galaxy alone, without noise, so that deblended and other
fluxes are one system. Then all is the survey's own: `ingest`, `train` and `run` with `photometry`,
`blend_probability`, `deblend` and four `photoz`: fed by the photometry or, where there are any, by
deblended fluxes, and trained with the isolated galaxies, or with all, that have a spectroscopic
redshift.

Printed of galaxies without one: NMAD, outliers (|dz| > 0.15) and the share within the central 68 %
of the PDF, isolated and blended, with and without the objects flagged `unrecognised_blend`; errors
by bootstrap. Then what fluxes and colours are worth, and how many blends the probability finds.

What was made is kept in FOLDER: a run that is repeated goes on. One core, 20 minutes by default.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from astropy.table import Table
from scipy.spatial import cKDTree

from surveyproc import schemas, verbs
from surveyproc.config import load
from surveyproc.evaluate.blends import REJECTED, blend_metrics, found_blends
from surveyproc.evaluate.bootstrap import bootstrap
from surveyproc.evaluate.redshift import dz_nmad, dz_outlier_fraction
from surveyproc.measure.aperture import aperture_weights
from surveyproc.simulate import draw, simulate
from surveyproc.simulate.bands import PIXEL_SCALE, Band, choose
from surveyproc.simulate.blends import Rule
from surveyproc.simulate.galaxies import half_light
from surveyproc.simulate.parents import Parents
from surveyproc.simulate.population import BLEND_RADIUS, Pairs, Population, populate
from surveyproc.simulate.tables import APERTURE
from surveyproc.simulate.tiles import field_side
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train.blends import BlendCounts, write_blends

BANDS = ("r", "u", "g", "i", "z", "y")
"""That of the selection first. Without H, which the last simulated tile lacks."""
NEAREST, RESOLVED = 0.3, 0.7
"""Arcsec between the galaxies of a pair; less than the second, and they are one object."""
SIDE, MARGIN = 32, 12
"""Pixels; of the second a companion is moved, and brings its wings along."""
MASK_SIGMA = 1.5
RESAMPLES = 500
LABELS = ("alone", "all")
"""What the redshift networks are trained with: boolean columns of labels.parquet."""
PRODUCTS = """
[survey]
name = "crowded"
root = "./store"

[images]
tiles = ["tiles/*.fits"]
bands = [{bands}]
file_pattern = '(?P<tile>[^_/]+)_(?P<band>[^_./]+)(?:\\.(?P<kind>weight))?\\.fits$'

[catalog]
source = "catalog.fits"
partition_rows = {rows}

[run]
place = "here"
workers = 1

[[products]]
name = "photometry"
aperture = {aperture}

[[products]]
name = "blend_probability"
model = "tells"
architecture = "morphology"
architecture_settings = {{ cutout = {side}, average = true }}
radius = {radius}

[products.training]
images = "unseen/blends/train"
epochs = {probability_epochs}
shift = 4
zoom = 1.0

[[products]]
name = "deblend"
model = "parts"
architecture = "{network}"
architecture_settings = {{ cutout = {side}, width = {width}, dense = [128, 128] }}
radius = {radius}
probability = 0.75

[products.training]
images = "blends/blends/train"
epochs = {epochs}
batch_size = {batch}
learning_rates = [1e-3]
"""
PHOTOZ = """
[[products]]
name = "photoz_{name}"
model = "{name}"
architecture = "gaznet-c{bands}"
{fluxes}

[products.training]
source = "labels.parquet"
id = "object_id"
redshift = "z"
select = "{labels}"
epochs = 30
batch_size = 128
members = 2
"""


@dataclass(frozen=True)
class Stamps:
    """Objects alone, without noise, about the pixel in the middle.

    `images` (n, band, side, side) in nJy, `flux` (n, band) in the photometry's aperture.
    """

    images: np.ndarray
    flux: np.ndarray


def quiet(band: Band) -> Band:
    return replace(band, depth=60.0)


def in_nanojansky(band: Band) -> float:
    return float(10 ** ((schemas.AB_ZEROPOINT_NJY - band.zeropoint) / 2.5))


def bands_of() -> list[Band]:
    found = {band.name: band for band in choose(BANDS)}
    return [found[name] for name in BANDS]


def stamps(mag: np.ndarray, shapes: np.ndarray, side: int, seed: int) -> Stamps:
    """Magnitudes (n, band) and shapes as `draw.draw` wants them to images and fluxes."""
    rng = np.random.default_rng(seed)
    offsets = rng.uniform(-0.5, 0.5, (len(mag), 2))
    images = np.empty((len(mag), len(BANDS), side, side), np.float32)
    for number, band in enumerate(bands_of()):
        flux = 10 ** ((schemas.AB_ZEROPOINT_NJY - mag[:, number]) / 2.5)
        for row in range(len(mag)):
            x, y = side // 2 + offsets[row : row + 1].T
            images[row, number] = draw.draw(
                side, quiet(band), x, y, flux[row : row + 1], shapes[row : row + 1], rng
            )
    weights = aperture_weights(offsets, APERTURE / PIXEL_SCALE)
    half = weights.shape[-1] // 2
    part = slice(side // 2 - half, side // 2 + half + 1)
    return Stamps(images, np.einsum("nbyx,nyx->nb", images[:, :, part, part], weights))


def shapes_of(people: Population) -> np.ndarray:
    return np.stack([people.radius, people.sersic, people.axis_ratio, people.angle], axis=1)


def parents(options: argparse.Namespace) -> tuple[Parents, np.ndarray]:
    """Other galaxies and stars of the survey's population, and the noise of its pixels."""
    rng = np.random.default_rng([options.seed, 1])
    people = populate(options.parents, field_side(options.parents), bands_of(), rng)
    made = stamps(people.mag, shapes_of(people), SIDE + 2 * MARGIN, options.seed)
    noise = np.array([band.sky_sigma * in_nanojansky(band) for band in bands_of()])
    found = Parents(
        images=made.images,
        flux=made.flux,
        mask=made.images[:, 0] > MASK_SIGMA * noise[0],
        radius=half_light(made.images[:, 0], made.images[:, 0].sum(axis=(1, 2))),
        kind=np.array(people.type_names()),
        bands=BANDS,
        select=0,
        psf=np.full(len(people.z), np.nan),
    )
    return found, noise[None]


def write_artificial(folder: Path, options: argparse.Namespace) -> None:
    """Blends to deblend, and blends that no catalog tells from galaxies alone."""
    near = {"magnitudes": 6.0, "least": 0.0, "most": 100.0}
    wanted = {
        "blends": (Rule(**near, within=9.0), 0.2, options.blends),
        "unseen": (Rule(**near, within=RESOLVED / PIXEL_SCALE), 0.5, options.rows),
    }
    if all(Store(str(folder / name)).exists("blends/test/cube.json") for name in wanted):
        return
    found, noise = parents(options)
    for name, (rule, isolated, rows) in wanted.items():
        write_blends(
            Store(str(folder / name)), found, BlendCounts(rows, rows // 10), rule=rule,
            isolated=isolated, noise=noise, pixel_scale=PIXEL_SCALE, seed=options.seed,
        )  # fmt: skip


def write_catalog(folder: Path) -> None:
    """`catalog.fits`, as a detection would give it, and `labels.parquet`."""
    truth = pq.read_table(folder / "truth.parquet")
    sources = Table.read(folder / "sources.fits")
    ra, dec = truth["ra"].to_numpy(), truth["dec"].to_numpy()
    place = sky_arcsec(ra, dec)
    mag, ids = truth["mag_r"].to_numpy(), truth["object_id"].to_numpy()
    near = cKDTree(place).query_pairs(RESOLVED, output_type="ndarray")
    first, second = near[:, 0], near[:, 1]
    swapped = mag[second] < mag[first]
    bright, faint = np.where(swapped, second, first), np.where(swapped, first, second)
    share = 1 / (1 + 10 ** (0.4 * (mag[faint] - mag[bright])))
    east = (ra[faint] - ra[bright] + 180) % 360 - 180
    sources["ra"][bright] = (sources["ra"][bright] + share * east) % 360
    sources["dec"][bright] += share * (dec[faint] - dec[bright])
    seen = ~np.isin(ids, ids[faint])
    sources[seen].write(folder / "catalog.fits", overwrite=True)
    unseen = np.isin(ids, ids[bright])
    spec, blended = truth["spec"].to_numpy(), truth["blended"].to_numpy()
    columns = {name: truth[name] for name in ("object_id", "ra", "dec", "z")}
    columns |= {
        "alone": spec & ~blended,
        "all": spec & seen,
        "test": truth["test"].to_numpy() & seen,
        "recognised": blended & seen & ~unseen,
        "unrecognised": unseen,
        "separation": cKDTree(place).query(place, k=2)[0][:, 1],
    }
    pq.write_table(pa.table(columns), folder / "labels.parquet")


def sky_arcsec(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Flat offsets of a small field across RA = 0."""
    east = ((ra + 180) % 360 - 180) * np.cos(np.radians(dec))
    return 3600 * np.stack([east, dec], axis=1)


def opened(folder: Path, options: argparse.Namespace) -> Survey:
    text = PRODUCTS.format(
        bands=", ".join(f'"{one}"' for one in BANDS), rows=options.objects // 4,
        aperture=APERTURE, side=SIDE, radius=BLEND_RADIUS + 0.1, epochs=options.epochs,
        probability_epochs=options.probability_epochs,
        network=options.network, width=options.width, batch=options.batch,
    )  # fmt: skip
    for labels in LABELS:
        for name, fluxes in ((labels, ""), (f"{labels}_deblended", 'fluxes = "deblend"')):
            text += PHOTOZ.format(name=name, fluxes=fluxes, labels=labels, bands=len(BANDS))
    path = folder / "crowded.toml"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return Survey(load(path))


def rows_of(url: str) -> pa.Table:
    leaves = sorted(Path(url).glob("dataset/**/Npix=*.parquet"))
    return pa.concat_tables([pq.read_table(leaf) for leaf in leaves]).sort_by("object_id")


@dataclass(frozen=True)
class Redshifts:
    """dz and whether the central 68 % hold the truth, of some objects."""

    dz: np.ndarray
    within: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Redshifts:
        return Redshifts(self.dz[rows], self.within[rows])

    def told(self, seed: int) -> str:
        if len(self.dz) < 10:
            return f"{len(self.dz):5d}"

        def metrics(dz: np.ndarray, within: np.ndarray) -> np.ndarray:
            return np.stack([dz_nmad(dz), dz_outlier_fraction(dz), within.mean(axis=-1)])

        one = metrics(self.dz, self.within)
        error = bootstrap(metrics, [self.dz, self.within], RESAMPLES, seed).std(axis=-1)
        cells = [f"{a:7.4f} +- {b:6.4f}" for a, b in zip(one, error, strict=True)]
        return f"{len(self.dz):5d} {'  '.join(cells)}"


def redshifts(rows: pa.Table, name: str, true: np.ndarray) -> Redshifts:
    z, low, high = (
        rows[f"{name}_{one}"].to_numpy().astype(np.float64)
        for one in ("z_median", "z_err68_low", "z_err68_high")
    )
    with np.errstate(invalid="ignore"):
        within = ((low <= true) & (true <= high)).astype(np.float64)
        return Redshifts((z - true) / (1 + true), within)


def samples_of(labels: pa.Table, contrast: np.ndarray) -> dict[str, np.ndarray]:
    """Objects by what is beside them; recognised ones also by how bright that is."""
    near, unseen = labels["recognised"].to_numpy(), labels["unrecognised"].to_numpy()
    return {
        "isolated": ~(near | unseen),
        "recognised": near,
        "recognised, neighbour brighter by 1 mag": near & (contrast > 1),
        "recognised, within 1 mag": near & (np.abs(contrast) <= 1),
        "recognised, neighbour fainter by 1 mag": near & (contrast < -1),
        "unrecognised": unseen,
        "blended": near | unseen,
        "all": np.ones(len(near), bool),
    }


def redshift_table(
    rows: pa.Table,
    labels: pa.Table,
    samples: dict[str, np.ndarray],
    options: argparse.Namespace,
) -> None:
    true, test = (labels[name].to_numpy().astype(float) for name in ("z", "test"))
    bit = schemas.flag("unrecognised_blend")
    flagged = (rows["blend_probability_flag"].to_numpy() & bit) > 0
    deblended = np.isfinite(fluxes(rows, "deblend_flux")).all(axis=1)
    found = {
        f"{labels_}{how}": redshifts(rows, f"{labels_}{how}", true)
        for labels_ in LABELS
        for how in ("", "_deblended")
    }
    known = (test > 0) & np.all([np.isfinite(one.dz) for one in found.values()], axis=0)
    print("photo-z: n, NMAD, |dz| > 0.15, within the central 68 %")
    for sample, inside in samples.items():
        share = deblended[known & inside].mean(), flagged[known & inside].mean()
        print(f" {sample}: {share[0]:.3f} deblended, {share[1]:.3f} flagged unrecognised_blend")
        for kept, rows_ in (
            ("", known & inside),
            (", flagged left out", known & inside & ~flagged),
        ):
            if kept and not flagged[known & inside].any():
                continue
            for name, one in found.items():
                print(f"  {name + kept:34s} {one[rows_].told(options.seed)}", flush=True)
            for labels_ in LABELS:
                pair = [found[f"{labels_}{how}"][rows_] for how in ("", "_deblended")]
                print(f"  {labels_}, deblended less photometry: {differences(*pair, options.seed)}")


def differences(one: Redshifts, other: Redshifts, seed: int) -> str:
    """Paired, 95 %."""
    if len(one.dz) < 10:
        return ""

    def change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.stack([dz_nmad(b) - dz_nmad(a), dz_outlier_fraction(b) - dz_outlier_fraction(a)])

    low, high = np.percentile(
        bootstrap(change, [one.dz, other.dz], RESAMPLES, seed), [2.5, 97.5], -1
    )
    return f"NMAD {low[0]:+.4f} to {high[0]:+.4f}, outliers {low[1]:+.4f} to {high[1]:+.4f} (95 %)"


def fluxes(rows: pa.Table, start: str) -> np.ndarray:
    columns = [rows[f"{start}_{band}"].to_numpy() for band in BANDS]
    return np.stack(columns, axis=1).astype(np.float64)


def contrasts(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Magnitude in r less that of the nearest other object."""
    truth = pq.read_table(folder / "truth.parquet").sort_by("object_id")
    place = sky_arcsec(truth["ra"].to_numpy(), truth["dec"].to_numpy())
    mag = truth["mag_r"].to_numpy()
    nearest = cKDTree(place).query(place, k=2)[1][:, 1]
    return (mag - mag[nearest])[np.isin(truth["object_id"].to_numpy(), ids)]


def flux_table(
    folder: Path, rows: pa.Table, samples: dict[str, np.ndarray], options: argparse.Namespace
) -> None:
    """Aperture photometry beside deblended fluxes, of galaxies that have both."""
    truth = pq.read_table(folder / "truth.parquet").sort_by("object_id")
    chosen = np.isin(truth["object_id"].to_numpy(), rows["object_id"].to_numpy())
    truth = truth.filter(pa.array(chosen))
    some = np.flatnonzero(
        samples["blended"] & np.isfinite(fluxes(rows, "deblend_flux")).all(axis=1)
    )
    mag = np.stack([truth[f"mag_{band}"].to_numpy() for band in BANDS], axis=1)[some]
    names = ("half_light_radius", "sersic_n", "axis_ratio", "position_angle")
    shapes = np.stack([truth[name].to_numpy() for name in names], axis=1)[some]
    true = stamps(mag, shapes, SIDE, options.seed).flux
    colours = [BANDS.index(one) for one in "gri"]
    print(
        "fluxes: n, MAPE %, median and scatter of dm, |dm| > 0.75, within one error; "
        "scatter of g - r, r - i"
    )
    for sample in [one for one in samples if one.startswith(("recognised", "unrecognised"))]:
        inside = samples[sample][some]
        if not inside.any():
            continue
        for name, start in (("aperture", "flux"), ("deblended", "deblend_flux")):
            kind = f"{start.removesuffix('flux')}flux_err"
            flux, error = fluxes(rows, start)[some][inside], fluxes(rows, kind)[some][inside]
            for number, band in enumerate(BANDS):
                told = blend_metrics(flux[:, number], true[inside, number], error[:, number])
                cells = (
                    f"{told['n']:5d} {told['mape_flux']:8.2f} {told['median']:+.3f} "
                    f"{told['std']:.3f} {told['outliers']:.3f} {told['coverage']:.3f}"
                )
                if number == 0:
                    with np.errstate(invalid="ignore"):
                        dm = -2.5 * np.log10(flux[:, colours] / true[inside][:, colours])
                    spread = [
                        dz_nmad(one[np.isfinite(one)])
                        for one in (dm[:, 0] - dm[:, 1], dm[:, 1] - dm[:, 2])
                    ]
                    cells += f"; {spread[0]:.3f} {spread[1]:.3f}"
                print(f"  {sample} {name:10s} {band} {cells}", flush=True)


def probability_table(rows: pa.Table, labels: pa.Table) -> None:
    """Unrecognised blends against isolated objects, stars too."""
    p = rows["blend_probability"].to_numpy()
    blend = labels["unrecognised"].to_numpy()
    some = blend | ~labels["recognised"].to_numpy()
    edges = (NEAREST, 0.4, 0.5, 0.6, RESOLVED)
    found = found_blends(p[some], blend[some], labels["separation"].to_numpy()[some], edges)
    print(
        f"found, of {found['blends']} unrecognised blends among {found['n']} objects, by the share "
        "of others rejected"
    )
    curve = zip(REJECTED, found["completeness"], strict=True)
    print("  " + ", ".join(f"{share:g}: {one:.3f}" for share, one in curve))
    for row in found["by_separation"]:
        at = row["completeness"][REJECTED.index(0.1)]
        print(f"  {row['low']:g} to {row['high']:g} arcsec, {row['n']}: {at:.3f} at 10 % rejected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, default=8000)
    parser.add_argument("--share", type=float, default=0.25, help="of them, that are companions")
    parser.add_argument("--parents", type=int, default=4000, help="galaxies of artificial blends")
    parser.add_argument("--blends", type=int, default=20000, help="artificial ones to train with")
    parser.add_argument("--rows", type=int, default=8000, help="of the probability's training")
    parser.add_argument(
        "--network", default="forced_blend2flux", choices=["forced_blend2flux", "blend2flux"]
    )
    parser.add_argument("--width", type=int, default=32, help="filters of it")
    parser.add_argument("--epochs", type=int, default=12, help="of it")
    parser.add_argument("--batch", type=int, default=32, help="of it")
    parser.add_argument("--probability-epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = options.folder.absolute()
    wanted = {key: one for key, one in vars(options).items() if key != "folder"}
    store = Store(str(folder))
    if (held := store.read_json("footprint.json")) not in (None, wanted):
        sys.exit(f"{folder} was made with {json.dumps(held)}: choose another folder")
    store.put_json("footprint.json", wanted)
    torch.set_num_threads(1)
    started = time.monotonic()

    def say(step: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {step}", flush=True)

    say("simulate")
    if not (folder / "survey.toml").exists():
        pairs = Pairs(options.share, NEAREST)
        simulate(
            folder, objects=options.objects, seed=options.seed, bands=BANDS, pairs=pairs, workers=1
        )
    if not (folder / "labels.parquet").exists():
        write_catalog(folder)
    say("artificial blends")
    write_artificial(folder, options)
    survey = opened(folder, options)
    say("ingest")
    verbs.ingest(survey)
    for section in survey.config.networks:
        say(f"train {section.name}")
        verbs.train(survey, section.name)
    say("run")
    rows = rows_of(verbs.run(survey).url)
    say("done")
    labels = pq.read_table(folder / "labels.parquet").sort_by("object_id")
    labels = labels.filter(pa.array(np.isin(labels["object_id"].to_numpy(), rows["object_id"])))
    samples = samples_of(labels, contrasts(folder, rows["object_id"].to_numpy()))
    redshift_table(rows, labels, samples, options)
    flux_table(folder, rows, samples, options)
    probability_table(rows, labels)


if __name__ == "__main__":
    main()
