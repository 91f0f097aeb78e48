"""The product `deblend` on a real blend of the HSC survey, and a picture of what it found.

    python benchmarks/blends/hsc.py FOLDER hsc_cosmos_35.npz

The file has one scene in g, r, i, z, y with its noise, PSFs and seven peaks, and no truth. The
networks learn from drawn galaxies with PSFs of those widths, that noise and pixels of 0.168 arcsec:
U-Net, then blend2mask2flux, of pairs, for the masks; forced_blend2flux, told of two neighbours, of
three galaxies, for the fluxes. FOLDER/hsc.png shows the scene, what `sep` detects in it, and of
every object its cutout and both masks; the fluxes are printed beside those of an aperture. A run
that is repeated goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import sep
import torch
import zarr
from astropy.io import fits
from astropy.visualization import make_lupton_rgb

from surveyproc import schemas, verbs
from surveyproc.config import load
from surveyproc.simulate.blends import Rule
from surveyproc.simulate.galaxies import Sky, drawn
from surveyproc.simulate.tiles import tangent
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train.blends import BlendCounts, write_blends

SCALE, ZEROPOINT = 0.168, 27.0
SIDE = 32
RADIUS = 2.68
SURVEY = """
[survey]
name = "hsc"
root = "./store"
[images]
tiles = ["tiles/*.fits"]
bands = ["g", "r", "i", "z", "y"]
file_pattern = '(?P<tile>[^_/]+)_(?P<band>[^_./]+)(?:\\.(?P<kind>weight))?\\.fits$'
[catalog]
source = "peaks.csv"
[run]
place = "here"
[gates]
max_null_share = 1.0
[[products]]
name = "photometry"
aperture = 0.7
[[products]]
name = "network_masks"
model = "unet"
architecture_settings = {{ cutout = {side}, depth = 4, filters = 12 }}
[products.training]
images = "blends/blends/train"
epochs = {epochs}
learning_rates = [1e-3]
[[products]]
name = "deblend"
model = "blend2mask2flux"
radius = {radius}
masks = true
[products.architecture_settings]
cutout = {side}
depth = 4
filters = 12
up = 3
width = 32
dense = [128, 128]
mask_weight = 100.0
[products.training]
images = "blends/blends/train"
start = "unet"
epochs = {flux_epochs}
learning_rates = [1e-3]
[[products]]
name = "deblend_forced"
model = "forced_blend2flux"
architecture_settings = {{ cutout = {side}, galaxies = 3, width = 32 }}
radius = {radius}
[products.training]
images = "three/blends/train"
epochs = {forced_epochs}
"""


def write_survey(folder: Path, scene: dict[str, np.ndarray], options: argparse.Namespace) -> Survey:
    """Tiles, catalog, artificial blends and survey.toml."""
    bands = [str(band) for band in scene["filters"]]
    (folder / "tiles").mkdir(parents=True, exist_ok=True)
    wcs = tangent(150.0, 2.0, SCALE, 1.0)
    for band, image, variance in zip(bands, scene["images"], scene["variance"], strict=True):
        for end, data in (("", image), (".weight", 1 / variance)):
            hdu = fits.PrimaryHDU(np.ascontiguousarray(data, np.float32), wcs.to_header())
            hdu.header.update(OBJECT="scene", FILTER=band, MAGZERO=ZEROPOINT)
            hdu.writeto(folder / f"tiles/scene_{band}{end}.fits", overwrite=True)
    ra, dec = wcs.wcs_pix2world(scene["catalog"]["x"], scene["catalog"]["y"], 0)
    places = enumerate(zip(ra.tolist(), dec.tolist(), strict=True), start=1)
    rows = [f"{number},{one!r},{other!r}" for number, (one, other) in places]
    (folder / "peaks.csv").write_text("\n".join(["object_id,ra,dec", *rows]) + "\n")
    (folder / "survey.toml").write_text(
        SURVEY.format(
            side=SIDE,
            epochs=options.epochs,
            flux_epochs=options.flux_epochs,
            radius=RADIUS,
            forced_epochs=options.forced_epochs,
        )
    )
    if not Store(str(folder / "three")).exists("blends/test/cube.json"):
        unit = 10 ** ((schemas.AB_ZEROPOINT_NJY - ZEROPOINT) / 2.5)
        skies = [
            Sky(width(psf), float(np.sqrt(np.median(variance))) * unit)
            for psf, variance in zip(scene["psfs"], scene["variance"], strict=True)
        ]
        for band, sky in zip(bands, skies, strict=True):
            print(f"{band}: PSF of {sky.fwhm:.2f} pixels, noise of {sky.sigma:.2f} nJy")
        parents = drawn(
            options.parents, side=SIDE + 16, skies=skies, bands=bands, seed=options.seed
        )
        for name, galaxies in (("blends", 2), ("three", 3)):
            write_blends(
                Store(str(folder / name)), parents,
                BlendCounts(options.blends, options.blends // 10),
                rule=Rule(magnitudes=4.0, least=0.0, most=100.0, within=SIDE / 2),
                galaxies=galaxies, noise=np.array([[sky.sigma for sky in skies]]),
                pixel_scale=SCALE, seed=options.seed,
            )  # fmt: skip
    return Survey(load(folder / "survey.toml"))


def width(psf: np.ndarray) -> float:
    """FWHM in pixels: of the circle as large as what is brighter than half."""
    return float(2 * np.sqrt((psf > psf.max() / 2).sum() / np.pi))


def picture(folder: Path, scene: dict[str, np.ndarray], rows: dict, masks: np.ndarray) -> None:
    bands = [str(band) for band in scene["filters"]]
    images = dict(zip(bands, scene["images"], strict=True))
    colour = make_lupton_rgb(images["i"], images["r"], images["g"], stretch=0.5, Q=8)
    found, segments = sep.extract(
        np.ascontiguousarray(images["i"], np.float64), 3.0,
        err=float(np.sqrt(np.median(scene["variance"][bands.index("i")]))),
        segmentation_map=True,
    )  # fmt: skip
    x, y = scene["catalog"]["x"], scene["catalog"]["y"]
    figure, axes = plt.subplots(len(x) + 1, 3, figsize=(9, 3 * (len(x) + 1)))
    for axis in axes[0]:
        axis.imshow(colour, origin="lower")
    axes[0, 0].plot(x, y, "w+")
    axes[0, 0].set_title("gri, peaks of the catalog")
    for k, place in enumerate(zip(x, y, strict=True)):
        axes[0, 0].annotate(str(k + 1), place, color="w", xytext=(3, 3), textcoords="offset points")
    axes[0, 1].contour(segments > 0, [0.5], colors="w", linewidths=0.5)
    axes[0, 1].plot(found["x"], found["y"], "rx")
    axes[0, 1].set_title(f"sep: {len(found)} sources in i")
    axes[0, 2].set_title("central masks on the scene")
    half = SIDE // 2
    padded = np.pad(colour, ((half, half), (half, half), (0, 0)))
    for k, (one, other) in enumerate(np.round(np.stack([x, y], axis=1)).astype(int)):
        whole = np.zeros((len(colour) + SIDE, colour.shape[1] + SIDE))
        whole[other : other + SIDE, one : one + SIDE] = masks[k, 0]
        inside = whole[half:-half, half:-half]
        if inside.any():
            axes[0, 2].contour(inside, [0.5], colors=[f"C{k}"])
        stamp = padded[other : other + SIDE, one : one + SIDE]
        for axis, mask in zip(axes[k + 1], (None, masks[k, 0], masks[k, 1]), strict=True):
            axis.imshow(stamp, origin="lower")
            axis.plot(half, half, "w+")
            if mask is not None and mask.any():
                axis.contour(mask, [0.5], colors="w")
        axes[k + 1, 0].set_title(
            f"{k + 1}: blendedness {rows['deblend_blendedness'][k]:.2f}, "
            f"signs {rows['deblend_signs'][k]}, {rows['names'][k]}",
            fontsize=8,
        )
        axes[k + 1, 1].set_title(f"central, {masks[k, 0].sum()} pixels", fontsize=8)
        axes[k + 1, 2].set_title(f"companion, {masks[k, 1].sum()} pixels", fontsize=8)
    for axis in axes.ravel():
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(folder / "hsc.png", dpi=70)


def named(flag: int) -> str:
    return " ".join(name for name, bit in schemas.flags().items() if flag & bit) or "no flag"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--parents", type=int, default=2000)
    parser.add_argument("--blends", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=15, help="of the U-Net")
    parser.add_argument("--flux-epochs", type=int, default=4, help="of blend2mask2flux")
    parser.add_argument("--forced-epochs", type=int, default=12, help="of forced_blend2flux")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder.absolute()
    with np.load(options.scene) as held:
        scene = {name: held[name] for name in held.files}
    survey = write_survey(folder, scene, options)
    verbs.ingest(survey)
    for name, one in verbs.train(survey).items():
        print(name, one.metrics["held_out"].get("masks"), flush=True)
    release = Path(verbs.run(survey).url)
    (leaf,) = release.glob("dataset/**/Npix=*.parquet")
    table = pq.read_table(leaf)
    order = np.argsort(table["object_id"].to_numpy())
    rows = {name: table[name].to_numpy()[order] for name in table.column_names if name != "tile"}
    rows["names"] = [named(flag) for flag in rows["deblend_flag"]]
    group = zarr.open_group(str(release / "pixels" / "deblend_masks"), mode="r")
    ((_, array),) = group.arrays()
    masks = array[:][order]
    print("fluxes in nJy, deblended +- error (aperture of 0.7 arcsec)")
    for name in ("deblend", "deblend_forced"):
        print(name)
        for k in range(len(order)):
            cells = []
            for band in (str(one) for one in scene["filters"]):
                flux, error, aperture = (
                    rows[f"{start}_{band}"][k]
                    for start in (f"{name}_flux", f"{name}_flux_err", "flux")
                )
                cells.append(f"{band} {flux:6.0f} +- {error:5.0f} ({aperture:6.0f})")
            print(f"{k + 1} {', '.join(cells)}; {named(rows[f'{name}_flag'][k])}")
    picture(folder, scene, rows, masks)


if __name__ == "__main__":
    main()
