"""Fluxes of blended pairs: the networks beside sep, SExtractor and scarlet2, on the same blends.

    python benchmarks/blends/contest.py FOLDER --stamps isolated_galaxies_9band_64px_uJy.npz \
        --scarlet /somewhere/bin/python

Two test sets: blends of stamps of real galaxies (r band, 64 x 64 pixels, no galaxy both trained
with and tested) and of galaxies drawn at the resolution of a space telescope (128 x 128). The
paper's networks know no centres; `forced` ones (forced_blend2flux) are given the true ones, as
scarlet2 is, with the PSF; sep and SExtractor find them and are told which source is which galaxy.
Fluxes of sep are isophotal: as the paper, which gave them a zero point of their own, we scale them
(`scaled`), by the median of what is lost of the blends that the networks hold out. Times are those
of one core.

What was trained and found is kept in FOLDER: a run that is repeated goes on. With `--train` the
networks named are trained and asked, on a GPU where there is one, and that is all, so that several
runs may share out the networks, on another machine too: the table needs `answer-*.npz` in
FOLDER/SET.
`--widths 256 --filters 32 --blends 25000 --epochs 70` are the paper's sizes; the defaults end in
minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import sextractor_peer
import torch

from surveyproc.config.sections import TrainingSection
from surveyproc.evaluate.blends import binned_blends, blend_metrics, blends_by_kind, galaxy_names
from surveyproc.evaluate.bootstrap import bootstrap
from surveyproc.measure.classical_blends import classical_fluxes
from surveyproc.models.base import build, count_parameters
from surveyproc.models.inference import IMAGE_BLOCK, device_here, predict
from surveyproc.models.package import Package
from surveyproc.simulate.blends import Rule
from surveyproc.simulate.draw import psf
from surveyproc.simulate.galaxies import Sky, drawn
from surveyproc.simulate.parents import Parents, from_stamps
from surveyproc.store.storage import Store
from surveyproc.train.blends import BlendCounts, blend_training_set, blend_truth, write_blends
from surveyproc.train.cube import SHARD, TrainingCube
from surveyproc.train.loop import train

# The paper's MAPE on the flux, std and outliers over all its blends (released catalogue, both
# galaxies); its SExtractor finds 8,464 of 9,552.
PAPER = {
    "blend2flux": (8.12, 0.129, 0.17),
    "blend2mask2flux": (7.63, 0.122, 0.10),
    "sep, scaled": (38.30, 0.697, 15.65),
}
CONTRASTS = (-2.0, -1.33, -0.67, 0.0, 0.67, 1.33, 2.0)
SEPARATIONS = (0.0, 1.0, 2.0, 3.0, 5.0, 100.0)
REAL_FWHM, OTHER_FWHM = {"r": 2.2}, 3.0
"""Of the KiDS stamps' PSF, pixels of 0.3 arcsec."""
PSF_SIDE = 41


def parents_of(name: str, options: argparse.Namespace) -> tuple[Parents, np.ndarray | None]:
    if name == "drawn":
        skies = tuple(Sky() for _ in options.drawn_bands)
        found = drawn(options.parents, skies=skies, bands=options.drawn_bands, seed=options.seed)
        return found, np.array([[sky.sigma for sky in skies]])
    with np.load(options.stamps) as held:
        names = [str(band) for band in held["bands"]]
        images = held["images"][:, [names.index(band) for band in options.bands]] * 1e3
    select = "r" if "r" in options.bands else options.bands[0]
    return from_stamps(images, tuple(options.bands), select, seed=options.seed), None


def blends_of(name: str, store: Store, options: argparse.Namespace) -> list[TrainingCube]:
    """Training and test, made once."""
    keys = ["blends", "test", "galaxies", "seed"]
    keys += ["parents", "drawn_bands"] if name == "drawn" else ["bands"]
    wanted = {key: getattr(options, key) for key in keys}
    if store.read_json("contest.json") == wanted:
        return [TrainingCube.open(store, f"blends/{part}") for part in ("train", "test")]
    parents, noise = parents_of(name, options)
    # Few real galaxies give more blends if each may be turned.
    rule = Rule(turn=name == "real")
    counts = BlendCounts(options.blends, options.test)
    made = write_blends(
        store, parents, counts, rule=rule, galaxies=options.galaxies, noise=noise, seed=options.seed
    )
    store.put_json("contest.json", wanted)
    return list(made)


def networks(cube: TrainingCube, options: argparse.Namespace) -> dict[str, tuple[Any, ...]]:
    """Architecture, settings and more of `training` by name; blend2mask2flux begins with the U-Net.

    blend2flux in all widths, and in the one that has as many parameters as blend2mask2flux;
    forced_blend2flux in its own.
    """
    side = {"cutout": cube.cutout, "galaxies": options.galaxies}
    maps = side | {"filters": options.filters, "depth": options.depth, "up": 2}
    head = {"width": options.head, "dense": [2 * options.head] * 3}
    both = ("blend2mask2flux", maps | head, {"start": "unet"})
    found = {
        f"blend2flux-{one}": ("blend2flux", side | {"width": one}, {}) for one in options.widths
    }
    for one in options.forced:
        found[f"forced-{one}"] = ("forced_blend2flux", side | {"width": one}, {})
    if options.equal:
        wanted = parameters(cube, *both[:2])
        widths = range(8, 1024, 8)
        off = [abs(parameters(cube, "blend2flux", side | {"width": w}) - wanted) for w in widths]
        width = widths[int(np.argmin(off))]
        found["blend2flux, equal"] = ("blend2flux", side | {"width": width}, {})
    return found | {"unet": ("unet", maps, {}), "blend2mask2flux": both}


def parameters(cube: TrainingCube, architecture: str, settings: dict[str, Any]) -> int:
    with torch.device("meta"):
        return count_parameters(build(architecture, cube.bands, settings))


def trained(cube: TrainingCube, name: str, options: argparse.Namespace) -> Package:
    architecture, settings, more = networks(cube, options)[name]
    section = TrainingSection(
        source="",
        epochs=options.epochs,
        batch_size=options.batch,
        learning_rates=[options.rate],
        seed=options.seed,
        members=1 if name == "unet" else options.members,
        precision=options.precision,
        shift=0,
        **more,
    )
    return train(
        blend_training_set(cube, fluxes=name != "unet", told=name.startswith("forced")),
        settings=section,
        store=cube.store,
        name=name.replace(", ", "-"),
        architecture=architecture,
        network=settings,
    )


Answer = dict[str, Any]
"""`flux`, `error`, `raw` (errors before calibration); `masks`, the metrics of masks."""


def answered(
    name: str, cubes: list[TrainingCube], folder: Path, options: argparse.Namespace
) -> Answer:
    """What a network says of the test blends; it is trained if nobody did so before."""
    train_cube, test_cube = cubes
    path = folder / f"answer-{name.replace(', ', '-')}.npz"
    images, truth = pixels(test_cube, np.arange(test_cube.n)), blend_truth(test_cube)
    seen = float(np.abs(images[:100]).sum(dtype=np.float64))
    how = {
        key: getattr(options, key) for key in ("epochs", "batch", "rate", "members", "precision")
    }
    if not path.exists():
        started = time.perf_counter()
        if name == "blend2mask2flux":
            trained(train_cube, "unet", options)
        package = trained(train_cube, name, options)
        seconds = time.perf_counter() - started
        masks = package.metrics["held_out"].get("masks", {})
        told = {"masks": masks, "trained in": round(seconds), "device": device_here()}
        told["parameters"] = parameters(train_cube, *networks(train_cube, options)[name][:2])
        places = truth.nearest_first().places
        found = {} if name == "unet" else of_network(package, images, places, options)
        if name.startswith("forced"):
            back = np.argsort(truth.nearest, axis=1)[..., None]
            found = {key: np.take_along_axis(one, back, axis=1) for key, one in found.items()}
        np.savez(path, told=json.dumps(told), how=json.dumps(how), seen=seen, **found)
    with np.load(path) as held:
        if not np.isclose(held["seen"], seen):
            sys.exit(f"{path}: of other blends than those of this run")
        told = json.loads(str(held["told"])) | json.loads(str(held["how"]))
        print(f"  {name}: {told}", flush=True)
        return {
            **told,
            **{key: held[key] for key in held.files if key not in ("told", "how", "seen")},
        }


def pixels(cube: TrainingCube, rows: np.ndarray) -> np.ndarray:
    """Images of some blends, in order, shard by shard: all of a training would fill the memory."""
    bands = len(cube.bands)
    parts = [
        cube.read(int(number))[rows[rows // SHARD == number] % SHARD, :bands]
        for number in np.unique(rows // SHARD)
    ]
    return np.concatenate(parts)


def of_network(
    package: Package, images: np.ndarray, places: np.ndarray, options: argparse.Namespace
) -> Answer:
    """Fluxes and errors (n, k, band)."""
    network = package.network()
    task = network.tasks[0]
    calibrations, network.calibrations = network.calibrations, {}
    values, _ = predict(network, None, images=images, places=places, device=device_here())

    def stacked(kind: str, held: Any) -> np.ndarray:
        columns = np.stack([held[f"{kind}_{name}"] for name in task.names], axis=1)
        return columns.reshape(len(images), options.galaxies, -1).astype(np.float64)

    scaled = task.calibrated(values, calibrations[task.name])
    return {
        "flux": stacked("flux", values),
        "error": stacked("flux_err", scaled),
        "raw": stacked("flux_err", values),
    }


def seconds_of(cube: TrainingCube, images: np.ndarray, architecture: str, settings: Any) -> float:
    """Seconds a blend of one thread of this machine; whatever the weights are."""
    torch.set_num_threads(1)
    network = build(architecture, cube.bands, settings).eval()
    # A block is computed whole, however many blends are in it.
    block = np.resize(images, (IMAGE_BLOCK, *images.shape[1:]))
    places = np.zeros((IMAGE_BLOCK, network.reads.neighbours, 2))
    times = []
    for _ in range(3):
        started = time.process_time()
        predict(network, None, images=block, places=places)
        times.append(time.process_time() - started)
    return min(times) / IMAGE_BLOCK


def of_sep(images: np.ndarray, radius: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, float]:
    """Fluxes (n, 2) in the first band, and seconds a blend."""
    started = time.process_time()
    found = [
        classical_fluxes(image, float(own[0]), tuple(move[1]))[0]
        for image, own, move in zip(images[:, 0], radius, shift, strict=True)
    ]
    return np.stack(found), (time.process_time() - started) / len(images)


def of_sextractor(
    images: np.ndarray, radius: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, float]:
    started = sextractor_peer.seconds_so_far()
    found = [
        sextractor_peer.fluxes(image, float(own[0]), tuple(move[1]))
        for image, own, move in zip(images[:, 0], radius, shift, strict=True)
    ]
    seconds = (sextractor_peer.seconds_so_far() - started) / len(images)
    return np.stack(found), seconds


def of_scarlet(folder: Path, given: dict[str, np.ndarray], python: str) -> tuple[np.ndarray, float]:
    """Fluxes (n, k, band), and the median of the seconds a blend: jax compiles in some of them."""
    n = len(given["images"])
    path, answer = folder / f"scarlet-in-{n}.npz", folder / f"scarlet-{n}.npz"
    if path.exists():
        with np.load(path) as held:
            alike = held.files == list(given) and all(
                np.array_equal(held[key], one) for key, one in given.items()
            )
        if not alike:
            answer.unlink(missing_ok=True)
    if not answer.exists():
        np.savez(path, **given)
        peer = Path(__file__).with_name("scarlet_peer.py")
        subprocess.run([python, str(peer), str(path), str(answer)], check=True)
    with np.load(answer) as held:
        return held["flux"], float(np.median(held["seconds"]))


def psf_image(fwhm: float) -> np.ndarray:
    """The Moffat PSF of drawn galaxies, on pixels as theirs, of flux 1."""
    image = psf(fwhm).drawImage(nx=PSF_SIDE, ny=PSF_SIDE, scale=1.0).array
    return image / image.sum()


def line(name: str, flux: np.ndarray, true: np.ndarray, seconds: float, note: str = "") -> str:
    """One row of the table: central and companion apart, then both."""
    parts = [blend_metrics(flux[:, k], true[:, k]) for k in range(true.shape[1])]
    both = blend_metrics(flux.ravel(), true.ravel())
    apart = " / ".join(f"{one['mape_flux']:6.2f}" for one in parts)
    # The paper's is 256 wide.
    paper = PAPER.get(name.removesuffix("-256"))
    beside = "" if paper is None else f" | paper {paper[0]:.2f} {paper[1]:.3f} {paper[2]:.2f}"
    return (
        f"  {name:18s} {both['n']:6d} {both['n_missing']:5d}  {apart}  {both['mape_flux']:7.2f} "
        f"{both['mape_magnitude']:6.2f} {both['mean']:+7.3f} {both['std']:6.3f} "
        f"{100 * both['outliers']:6.2f} {seconds:9.5f}{beside}{note}"
    )


HEAD = (
    f"  {'':18s} {'n':>6s} {'lost':>5s}  MAPE flux by galaxy      both   on m    mean    std"
    "  out %   s/blend (one core) | paper: MAPE, std, outliers %"
)


def errors_table(truth: Any, flux: np.ndarray, error: np.ndarray, raw: np.ndarray) -> None:
    """Share of fluxes within their errors, before and after the calibration."""
    f, t = flux[..., 0].ravel(), truth.flux[..., 0].ravel()
    after, before = error[..., 0].ravel(), raw[..., 0].ravel()
    total = [blend_metrics(f, t, one)["coverage"] for one in (before, after)]
    print(f"    within one error: {total[0]:.3f} before calibration, {total[1]:.3f} after")
    for what, by, edges in (
        ("magnitude less the other's", truth.contrast, CONTRASTS),
        ("separation, radii", truth.separation, SEPARATIONS),
    ):
        rows = [binned_blends(f, t, by.ravel(), edges, one) for one in (before, after)]
        cells = [
            f"{a['low']:g}..{a['high']:g}: {a['coverage']:.2f} {b['coverage']:.2f} (n {a['n']})"
            for a, b in zip(*rows, strict=True)
            if a["n"]
        ]
        print(f"    {what}: {', '.join(cells)}")


def contest(name: str, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(str(folder))
    train_cube, test_cube = blends_of(name, store, options)
    print(f"{name}: {train_cube.n} blends to train with, {test_cube.n} of the test", flush=True)
    cubes = [train_cube, test_cube]
    every = networks(train_cube, options)
    wanted = every if options.networks is None else options.networks
    names = [one for one in every if one in wanted]
    found = {one: answered(one, cubes, folder, options) for one in names}
    if options.train:
        return {}
    images, truth = pixels(test_cube, np.arange(test_cube.n)), blend_truth(test_cube)
    true = truth.flux[..., 0]
    answers: dict[str, tuple[np.ndarray, float]] = {}
    for one in [one for one in names if one != "unet"]:
        seconds = seconds_of(train_cube, images, *every[one][:2])
        answers[one] = found[one]["flux"][..., 0], seconds
    if options.galaxies == 2:
        flux, seconds = of_sep(images, truth.radius, truth.shift)
        held = train_cube.index["held_out"].to_numpy().astype(bool)
        known = blend_truth(train_cube)
        some = np.flatnonzero(held)[:1000]
        stamps = pixels(train_cube, some)
        there, _ = of_sep(stamps, known.radius[some], known.shift[some])
        factor = float(np.nanmedian(known.flux[some, :, 0] / there))
        answers["sep"] = flux, seconds
        answers["sep, scaled"] = factor * flux, seconds
        if sextractor_peer.program() is None:
            print("  SExtractor is not installed (source-extractor, sex): left out")
        else:
            part = slice(options.peers)
            answers["SExtractor"] = of_sextractor(
                images[part], truth.radius[part], truth.shift[part]
            )
    if options.scarlet is None:
        print("  scarlet2: no environment is named (--scarlet): left out")
    else:
        part = slice(options.peers)
        corner = images[part, :, :10, :10].reshape(len(images[part]), len(test_cube.bands), -1)
        sigma = (
            np.median(np.abs(corner - np.median(corner, axis=2, keepdims=True)), axis=2) * 1.4826
        )
        real = [REAL_FWHM.get(band, OTHER_FWHM) for band in test_cube.bands]
        widths = [Sky().fwhm for _ in test_cube.bands] if name == "drawn" else real
        given = {
            "images": images[part],
            "sigma": sigma,
            "centres": images.shape[-1] // 2 + truth.shift[part],
            "psf": np.stack([psf_image(one) for one in widths]),
        }
        flux, seconds = of_scarlet(folder, given, options.scarlet)
        answers["scarlet2"] = flux[..., 0], seconds
    print(HEAD)
    for one, (flux, seconds) in answers.items():
        print(line(one, flux, true[: len(flux)], seconds))
    least = min(len(flux) for flux, _ in answers.values())
    if least < len(true):
        print(f"  on the first {least} blends, which all answered:")
        for one, (flux, seconds) in answers.items():
            print(line(one, flux[:least], true[:least], seconds))
    for one, paper in {"unet": "0.82 -0.05", "blend2mask2flux": "0.70 +0.31"}.items():
        if one in names:
            masks = found[one]["masks"]
            means = f"IoU {masks['iou']:.3f}, overlap bias {masks['overlap_bias']:+.3f}"
            print(f"  masks of {one}, rows held out: {means} | paper {paper}")
    share = {one: np.abs(answers[one][0] / true - 1).mean(axis=1) for one in names if one != "unet"}
    masked = share.get("blend2mask2flux")
    for one, other in share.items() if masked is not None else ():
        if other is masked:
            continue
        gains = bootstrap(lambda a, b: (b - a).mean(axis=-1), [other, masked], 2000, options.seed)
        low, high = 100 * np.percentile(gains, [2.5, 97.5])
        print(f"  MAPE of blend2mask2flux less {one}'s: {low:+.2f} to {high:+.2f} (95 %, paired)")
    for network in share:
        flux, error, raw = (found[network][key] for key in ("flux", "error", "raw"))
        print(f"  {network}:")
        errors_table(truth, flux, error, raw)
        for k, galaxy in enumerate(galaxy_names(options.galaxies)):
            kinds = blends_by_kind(flux[:, k, 0], true[:, k], truth.kind[:, k])
            cells = [f"{kind or 'all'} {one['mape_flux']:.2f}" for kind, one in kinds.items()]
            print(f"    MAPE by type, {galaxy}: {', '.join(cells)}")
    return {
        one: {**blend_metrics(flux.ravel(), true[: len(flux)].ravel()), "seconds": seconds}
        for one, (flux, seconds) in answers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=["real", "drawn"], choices=["real", "drawn"])
    parser.add_argument("--stamps", type=Path, help="npz of real galaxies, for the set `real`")
    parser.add_argument("--bands", nargs="+", default=["r"], help="of the stamps")
    parser.add_argument("--drawn-bands", nargs="+", default=["F160W"])
    parser.add_argument("--parents", type=int, default=2000, help="galaxies to draw")
    parser.add_argument("--blends", type=int, default=2000)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--galaxies", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="+", default=[16], help="of blend2flux")
    parser.add_argument("--forced", type=int, nargs="*", default=[], help="of forced_blend2flux")
    parser.add_argument("--head", type=int, default=8, help="filters behind the masks")
    parser.add_argument("--equal", action="store_true", help="a blend2flux of as many parameters")
    parser.add_argument("--networks", nargs="*", help="names, as printed; by default all")
    parser.add_argument("--train", action="store_true", help="networks, or only blends; no table")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--filters", type=int, default=8, help="filters of the U-Net")
    parser.add_argument("--depth", type=int, default=5, help="levels of the U-Net")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--peers", type=int, default=50, help="test blends of the slow methods")
    parser.add_argument("--scarlet", metavar="PYTHON", help="of an environment with scarlet2")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if "real" in options.sets and options.stamps is None:
        sys.exit("--stamps names the file of real galaxies, or --sets drawn does without")
    found = {name: contest(name, options) for name in options.sets}
    (options.folder / "contest.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
