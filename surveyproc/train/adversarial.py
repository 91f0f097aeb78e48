"""Adversarial validation: how far two sets of images differ (Khramtsov et al. 2022, section 4.1).

A network is trained to tell the images with labels (training) from those that it will be applied to
(inference). If it can, so can another network, whose figures on held-out training images then say
little of the inference set. The score of an image is the probability of training.

The paper contradicts itself on the test set: by its definition a high score means alike to the
training set, and yet it takes galaxies of score > 0.7 and calls them similar to the inference set,
and says that validation wants low scores. `score_split` does what is written, > 0.7, and has the
direction as a parameter: `above = False` takes the galaxies that look like the inference set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import InputError
from surveyproc.evaluate.votes import roc_area
from surveyproc.images.stamps import window
from surveyproc.models.inference import predict
from surveyproc.models.package import Package
from surveyproc.store.storage import Store
from surveyproc.train.loop import train
from surveyproc.train.stamps import from_arrays

THRESHOLD = 0.7
"""Score of the paper's test set."""

HELD_OUT = 0.25
"""Share of the images that accuracy is measured on."""

Images = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """What an adversarial network says of two sets.

    Attributes
    ----------
    package : Package
        The network; its classes are `training` and `inference`.
    accuracy : float
        On the held-out images; with sets of equal size 0.5 means that they are alike.
    area : float
        Under the curve of the score, over all images.
    training, inference : float32 ndarray, shape (n,)
        Scores of the two sets.
    """

    package: Package
    accuracy: float
    area: float
    training: NDArray[np.float32]
    inference: NDArray[np.float32]


def tell_apart(
    store: Store,
    name: str,
    training: Images,
    inference: Images,
    *,
    bands: Sequence[str],
    network: Mapping[str, Any],
    settings: Mapping[str, Any],
    fit_options: Mapping[str, Any] | None = None,
) -> Comparison:
    """Train a network to tell two sets of images apart, and score both.

    Parameters
    ----------
    store : Store
        Where the model and its training cube are kept.
    name : str
        Of the model.
    training, inference : float32 ndarray, shape (n, band, y, x)
        Larger than the network's cutout by the shift on each side.
    bands : sequence of str
        Names of the planes.
    network : mapping
        Settings of the architecture `morphology`; the paper has the backbone resnet101.
    settings : mapping
        Keys of `[products.training]`: epochs, batch_size, seed, ...
    fit_options : mapping, optional
        As of `train.loop.train`.

    Raises
    ------
    InputError
        If a set is too small, or the images do not fit the network.
    """
    images = np.concatenate([training, inference])
    labels = np.array(["training"] * len(training) + ["inference"] * len(inference), object)
    chosen = {"held_out_share": HELD_OUT, **settings}
    section = TrainingSection(source="", targets={"class": ["class"]}, **chosen)
    package = train(
        from_arrays(store, name, images, {"class": labels}, bands),
        settings=section,
        store=store,
        name=name,
        architecture="morphology",
        network=network,
        fit_options=fit_options,
        say=lambda line: None,
    )
    side = int(package.reads["cutout"])
    seen = np.stack([window(one, side, name) for one in images])
    score = predict(package.network(), None, images=seen)[0]["p_training"]
    return Comparison(
        package,
        accuracy=float(package.metrics["held_out"]["class"]["accuracy"]),
        area=roc_area(score, labels == "training"),
        training=score[: len(training)],
        inference=score[len(training) :],
    )


def score_split(
    score: ArrayLike,
    *,
    threshold: float = THRESHOLD,
    above: bool = True,
    most: int | None = None,
    seed: int = 0,
) -> NDArray[np.bool_]:
    """Labelled images to test with, by their adversarial score; see the module for the direction.

    Parameters
    ----------
    score : array_like of float, shape (n,)
        Probability of the training set; NaN is never taken.
    threshold : float
        Where to cut.
    above : bool
        Whether those of a higher score are taken (the paper's words), or those of a lower one.
    most : int, optional
        So many of them are drawn (the paper: 9,000); all by default.
    seed : int
        Of the draw.

    Returns
    -------
    bool ndarray, shape (n,)

    Raises
    ------
    InputError
        If no image, or every image, lies on that side.
    """
    values = np.asarray(score, np.float64)
    taken = np.flatnonzero(values > threshold if above else values < threshold)
    if not len(taken) or len(taken) == len(values):
        side = "above" if above else "below"
        raise InputError(
            f"adversarial score: {len(taken)} of {len(values)} images lie {side} {threshold:g}: "
            "choose another threshold"
        )
    if most is not None:
        taken = np.random.default_rng(seed).permutation(taken)[:most]
    mask = np.zeros(len(values), bool)
    mask[taken] = True
    return mask
