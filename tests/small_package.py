"""A model package that was never trained."""

import numpy as np
import torch

from surveyproc.models.base import build
from surveyproc.models.features import fit_scaling
from surveyproc.models.package import save_package

SETTINGS = {"widths": [8] * 8, "components": 2}


def save(store, name="m", seed=0, **record):
    torch.manual_seed(seed)
    flux = np.exp(np.random.default_rng(0).normal(5, 1, (50, 4)))
    return save_package(
        store,
        name,
        architecture="gaznet-c4",
        settings=SETTINGS,
        bands=tuple("ugri"),
        scaling=fit_scaling(flux, None, tuple("ugri")),
        members=[build("gaznet-c4", "ugri", SETTINGS).state_dict()],
        **record,
    )
