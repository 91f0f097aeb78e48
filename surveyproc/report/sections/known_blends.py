"""Networks of blends against the truth of the artificial ones that they were tested with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.config import SurveyConfig
from surveyproc.config.kinds import kind_of
from surveyproc.config.sections import ModelSection
from surveyproc.errors import InputError
from surveyproc.evaluate.blends import (
    blend_metrics,
    found_blends,
    galaxy_names,
    mask_overlaps,
    overlap_bias,
    shared_pixels,
)
from surveyproc.measure.classical_blends import classical_fluxes
from surveyproc.models.package import load_package
from surveyproc.report import blend_figures
from surveyproc.report.sections.base import Section
from surveyproc.store.storage import Store
from surveyproc.train.blends import BlendTruth, blend_truth, open_blends
from surveyproc.train.cube import TrainingCube

MOST = 512
"""Blends of a test that are looked at."""
PICTURES, BINS = 4, 3
CLASSICAL = "sep"


def tested(config: SurveyConfig, kind: str) -> Iterator[tuple[ModelSection, TrainingCube]]:
    """Products of a kind that were trained with blends, and the cube of their test if it is there.

    It lies beside that of the training, and shares no galaxy with it.
    """
    for section in config.networks:
        training = section.training
        if kind_of(section.name, section.kind) != kind or not (training and training.of_blends):
            continue
        url = config.resolve(str(training.images)).rstrip("/")
        try:
            yield section, open_blends(f"{url.rpartition('/')[0]}/test")
        except InputError:
            continue


class KnownBlends(Section):
    """Figures of every network of blends, and of every blend probability."""

    template = "known_blends.html"

    def values(self) -> dict[str, Any]:
        """`models`: `name`, `n`, `figures` (text and PNG), `metrics` by method and galaxy."""
        config = self.shown.config
        store = Store(config.root)
        models = []
        for section, cube in tested(config, "deblend"):
            truth, images, masks = _some(cube)
            values, truth = _predicted(store, config, section, images, truth)
            models.append(_fluxes(section.name, cube, truth, images, masks, values))
        for section, cube in tested(config, "blend_probability"):
            truth, images, _ = _some(cube)
            blended = cube.index["target_class"].to_numpy()[: len(images)] == "blend"
            values, _ = _predicted(store, config, section, images, truth)
            apart = truth.separation[:, 0]
            found = found_blends(values["p_blend"], blended, apart, _edges(apart[blended]))
            figure = blend_figures.draw_completeness(found, "half-light radii")
            drawn = ("completeness against rejected, by separation", figure)
            models.append(
                {"name": section.name, "n": found["n"], "figures": [drawn], "metrics": []}
            )
        return {"models": models}


def _some(cube: TrainingCube) -> tuple[BlendTruth, NDArray[np.float32], NDArray[np.float32]]:
    """Truth, images and masks of the first blends of a cube."""
    whole = blend_truth(cube)
    n, parts, count = min(MOST, cube.n), [], 0
    for number in range(cube.shards):
        if count >= n:
            break
        parts.append(cube.read(number))
        count += len(parts[-1])
    planes = np.concatenate(parts)[:n]
    truth = BlendTruth(**{name: values[:n] for name, values in vars(whole).items()})
    return truth, planes[:, : len(cube.bands)], planes[:, len(cube.bands) :]


def _edges(apart: NDArray[np.float64]) -> list[float]:
    """Of equally filled bins; the last holds the farthest."""
    if not len(apart):
        return []
    edges = np.quantile(apart, np.linspace(0, 1, BINS + 1))
    edges[-1] = np.nextafter(edges[-1], np.inf)
    return [float(one) for one in np.unique(edges)]


def _predicted(
    store: Store,
    config: SurveyConfig,
    section: ModelSection,
    images: NDArray[np.float32],
    truth: BlendTruth,
) -> tuple[dict[str, NDArray[Any]], BlendTruth]:
    """What the model says of the centres of the stamps, and the truth in its order of galaxies."""
    from surveyproc.models.inference import predict

    model = config.resolve(section.model) if "/" in section.model else section.model
    network = load_package(store, model).network()
    centres = _centre(images, network.reads.cutout)
    if network.reads.neighbours:
        truth = truth.nearest_first()
    return predict(network, None, images=centres, places=truth.places)[0], truth


def _centre(planes: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    start = planes.shape[-1] // 2 - side // 2
    return planes[..., start : start + side, start : start + side]


@dataclass(frozen=True)
class _Classical:
    """Fluxes of pairs by `classical_fluxes`, shape (n, 2), and numbers of sources, (n,)."""

    flux: NDArray[np.float64]
    sources: NDArray[np.int64]


def _classical(images: NDArray[np.float32], truth: BlendTruth) -> _Classical:
    found = [
        classical_fluxes(image, radius, (float(shift[0]), float(shift[1])))
        for image, radius, shift in zip(images, truth.radius[:, 0], truth.shift[:, 1], strict=True)
    ]
    return _Classical(np.array([one for one, _ in found]), np.array([one for _, one in found]))


def _fluxes(
    name: str,
    cube: TrainingCube,
    truth: BlendTruth,
    images: NDArray[np.float32],
    masks: NDArray[np.float32],
    values: dict[str, NDArray[Any]],
) -> dict[str, Any]:
    band = cube.bands.index(cube.record["select"])
    galaxies = truth.flux.shape[1]
    names = galaxy_names(galaxies)
    rows = (truth.parent >= 0).all(axis=1)
    truth = BlendTruth(**{key: one[rows] for key, one in vars(truth).items()})
    true = np.where(truth.flux[..., band] > 0, truth.flux[..., band], np.nan)
    outputs = [f"flux_{one}_{cube.bands[band]}" for one in names]
    found = {name: np.stack([values[one][rows] for one in outputs], axis=1).astype(np.float64)}
    every = np.ones(true.shape, bool)
    chosen = {one: every & (np.arange(galaxies) == k) for k, one in enumerate(names)}
    drawn = []
    if galaxies == 2:
        classical = _classical(images[rows, band], truth)
        found[CLASSICAL] = classical.flux
        pairs = every & (classical.sources == 2)[:, None]
        groups = {f"{CLASSICAL} finds two": pairs, f"{CLASSICAL} does not": ~pairs}
        drawn.append(
            ("by what is detected (6)", blend_figures.draw_magnitudes(true, found, groups))
        )
    contrast, apart = "magnitude difference", "distance in half-light radii"
    drawn = [
        ("magnitudes (5)", blend_figures.draw_magnitudes(true, found, chosen)),
        *drawn,
        (f"{contrast} (7)", blend_figures.draw_binned(true, found, truth.contrast, contrast)),
        (f"{apart} (8)", blend_figures.draw_binned(true, found, truth.separation, apart)),
    ]
    if (truth.kind != "").any():
        figure = blend_figures.draw_by_kind(true, found, truth.contrast, truth.kind, contrast)
        drawn.append(("types (9)", figure))
    told = [
        {"method": method, "galaxy": one, **blend_metrics(flux[:, k], true[:, k])}
        for method, flux in found.items()
        for k, one in enumerate(names)
    ]
    if "masks" in values:
        side = values["masks"].shape[-1]
        maps = values["masks"][rows, -galaxies:]
        true_maps = _centre(masks[rows], side)
        overlaps = mask_overlaps(maps, true_maps)
        few = slice(0, PICTURES)
        stamps = _centre(images[rows, band], side)[few]
        pictures = blend_figures.draw_masks(stamps, true_maps[few], maps[few], overlaps[few])
        bias = overlap_bias(shared_pixels(maps), shared_pixels(true_maps))
        drawn += [
            ("masks (10)", pictures),
            (f"IoU (11); overlap bias {bias:+.3f}", blend_figures.draw_overlaps(overlaps)),
        ]
    return {"name": name, "n": int(rows.sum()), "figures": drawn, "metrics": told}
