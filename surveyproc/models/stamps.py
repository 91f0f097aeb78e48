"""What a packaged network says of a folder of stamps, without a survey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.errors import InputError
from surveyproc.images.stamp_kind import ENDINGS, KIND, StampKind, is_colour
from surveyproc.images.stamps import decoded, window
from surveyproc.models.inference import IMAGE_BLOCK, predict
from surveyproc.models.package import Package
from surveyproc.schemas import nothing
from surveyproc.store.storage import Store


def stamp_kind(package: Package) -> StampKind | None:
    """What the stamps were like that a model learned from; None if it learned from no stamps."""
    held = package.document["training"].get(KIND)
    return None if held is None else StampKind(**held)


def predict_stamps(
    package: Package,
    folder: str,
    files: Sequence[str] | None = None,
    *,
    device: str = "cpu",
) -> dict[str, NDArray[Any]]:
    """The values of a network's tasks for image files.

    JPEG and PNG are resampled as those were that the model learned from, and a file of another size
    or kind than these has a problem. Of a model that learned from a survey's cutouts the middle of
    each FITS file is read.

    Parameters
    ----------
    package : Package
        A model that reads cutouts and no fluxes.
    folder : str
        Path or URL of the folder.
    files : sequence of str, optional
        Names in it; by default all JPEG, PNG and FITS files below it, sorted.
    device : str
        Torch device.

    Returns
    -------
    dict of ndarray, first axis n
        `file`; `problem`, which says what is wrong with the file, else empty; and the values by
        the names that `models.inference.predict` has for them. Of a file with a problem they are
        NaN, or empty.

    Raises
    ------
    InputError
        If the model reads anything else, or there is no file.
    """
    if package.reads["features"] or package.reads["reddening"] or not package.reads["cutout"]:
        raise InputError(f"model {package.name} does not do with images alone")
    source = Store(folder)
    names = list(files) if files is not None else sorted(source.sizes(""))
    if files is None:
        names = [one for one in names if one.lower().endswith(ENDINGS)]
    if not names:
        raise InputError(f"{folder}: there is no JPEG, PNG or FITS file")
    network = package.network()
    shape = (len(package.reads["images"]), int(package.reads["cutout"]))
    problems, parts = [], []
    # One that says that it learned from no stamps learned from fluxes.
    colour = KIND not in package.document["training"]
    kind = stamp_kind(package)
    found = decoded(source, names, kind.resize if kind else None)
    for start in range(0, len(names), IMAGE_BLOCK):
        block = names[start : start + IMAGE_BLOCK]
        images = np.full((len(block), shape[0], shape[1], shape[1]), np.nan, np.float32)
        for k, name in enumerate(block):
            problem = ""
            try:
                pixels = next(found)
                if isinstance(pixels, InputError):
                    raise pixels
                own = kind or StampKind(colour and is_colour(name), shape[0], pixels.shape[1])
                own.check(pixels, name, f"those that model {package.name} learned from")
                images[k] = window(pixels, shape[1], name)
            except InputError as error:
                problem = str(error)
            problems.append(problem)
        parts.append(predict(network, None, images=images, device=device)[0])
    values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    bad = np.array([bool(one) for one in problems])
    for column in values.values():
        column[bad] = nothing(column.dtype)
    return {"file": np.array(names, object), "problem": np.array(problems, object), **values}
