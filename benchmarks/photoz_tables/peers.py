"""The peers: two regressors of scikit-learn, each with PDFs, and two methods of RAIL.

Every method learns from the same rows as our network. The regressors see what it sees (asinh
magnitudes, colours and errors; missing values as NaN, which both handle), RAIL's methods the
magnitudes and errors under RAIL's own treatment of non-detections. Two settings each; each
regressor once with the errors of magnitudes and once (`_flux`) with logarithms of flux errors.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from tables import Task

from surveyproc.measure.magnitudes import flux_from_magnitude
from surveyproc.models.features import fit_scaling, log_errors, magnitudes_and_colours

TREES = 300
FOLDS, BINS = 5, 8
_LOWER = np.array([0.01, 0.025, 0.05, 0.1, 0.16, 0.25, 0.33, 0.42])
LEVELS = np.concatenate([_LOWER, [0.5], 1 - _LOWER[::-1]])
Prediction = tuple[NDArray, NDArray | None]
"""CDFs of the test rows on the task's grid, and the method's own point estimates if it has some."""


def features(task: Task, of_flux: bool) -> NDArray:
    """Asinh magnitudes, adjacent colours and errors, of the fluxes or magnitudes, of all rows."""
    flux = flux_from_magnitude(task.mag)
    error = flux * np.log(10) / 2.5 * task.err
    train = task.part == 0
    softening = fit_scaling(flux[train], error[train], task.bands).softening
    errors = log_errors(flux, error) if of_flux else task.err
    return np.concatenate([magnitudes_and_colours(flux, softening), errors], axis=1)


def forest(task: Task, leaf: int, of_flux: bool = False) -> Prediction:
    """Quantile regression forest (Meinshausen 2006): a test row weighs the training rows by how
    often it shares a leaf with them."""
    x, train, test = features(task, of_flux), task.part == 0, task.part == 1
    order = np.argsort(task.z[train])
    z = task.z[train][order]
    model = RandomForestRegressor(TREES, min_samples_leaf=leaf, max_features=0.5, random_state=0)
    model.fit(x[train], task.z[train])
    leaves, wanted = model.apply(x[train])[order], model.apply(x[test])
    weights = np.zeros((int(test.sum()), len(z)), np.float32)
    for tree in range(TREES):
        by_leaf = np.argsort(leaves[:, tree], kind="stable")
        known = leaves[by_leaf, tree]
        first = np.searchsorted(known, wanted[:, tree], "left")
        last = np.searchsorted(known, wanted[:, tree], "right")
        for row, (a, b) in enumerate(zip(first, last, strict=True)):
            weights[row, by_leaf[a:b]] += 1.0 / (b - a)
    sums = np.pad(np.cumsum(weights, axis=1) / TREES, ((0, 0), (1, 0)))
    return sums[:, np.searchsorted(z, task.grid, side="right")], model.predict(x[test])


def boosted_quantiles(task: Task, of_flux: bool = False) -> Prediction:
    """Gradient boosting of each of 17 quantiles; the CDF is linear between them."""
    x, train, test = features(task, of_flux), task.part == 0, task.part == 1
    found = np.empty((int(test.sum()), len(LEVELS)))
    for column, level in enumerate(LEVELS):
        model = HistGradientBoostingRegressor(
            loss="quantile",
            quantile=float(level),
            learning_rate=0.06,
            max_iter=200,
            max_leaf_nodes=15,
            l2_regularization=1.0,
        )
        found[:, column] = model.fit(x[train], task.z[train]).predict(x[test])
    found.sort(axis=1)
    ends = (2 * found[:, :1] - found[:, 2:3], found, 2 * found[:, -1:] - found[:, -3:-2])
    knots = np.concatenate(ends, axis=1) + 1e-9 * np.arange(len(LEVELS) + 2)
    levels = np.concatenate([[0.0], LEVELS, [1.0]])
    return np.stack([np.interp(task.grid, row, levels) for row in knots]), None


def boosted_point(task: Task, of_flux: bool = False) -> Prediction:
    """Gradient boosting of ln(1 + z); PDFs from its residuals on rows it had not seen.

    A second boosting predicts the size of the residuals; those of similar size, in units of it,
    make the PDF.
    """
    x, train, test = features(task, of_flux), task.part == 0, task.part == 1
    known, wanted, y = x[train], x[test], np.log1p(task.z[train])
    cells, cell = np.unique(task.group[train], return_inverse=True)
    fold = (np.random.default_rng(0).permutation(len(cells)) % FOLDS)[cell]

    def point_model(seed: int) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            learning_rate=0.05, max_iter=400, early_stopping=True, random_state=seed
        )

    def size_model(seed: int) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            loss="absolute_error", learning_rate=0.05, max_leaf_nodes=15, random_state=seed
        )

    def unseen(make: Callable[[int], HistGradientBoostingRegressor], target: NDArray) -> NDArray:
        out = np.empty(len(target))
        for k in range(FOLDS):
            out[fold == k] = (
                make(k).fit(known[fold != k], target[fold != k]).predict(known[fold == k])
            )
        return out

    residual = y - unseen(point_model, y)
    log_size = np.log(np.abs(residual) + 1e-4)
    size = unseen(size_model, log_size)
    point = point_model(0).fit(known, y).predict(wanted)
    point_size = size_model(0).fit(known, log_size).predict(wanted)
    edges = np.quantile(size, np.linspace(0, 1, BINS + 1)[1:-1])
    in_bin, wanted_bin = np.digitize(size, edges), np.digitize(point_size, edges)
    cdf = np.empty((len(wanted), len(task.grid)))
    for k in range(BINS):
        units = np.sort(residual[in_bin == k] / np.exp(size[in_bin == k]))
        rows = wanted_bin == k
        at = (np.log1p(task.grid) - point[rows, None]) / np.exp(point_size[rows, None])
        cdf[rows] = np.searchsorted(units, at) / len(units)
    return cdf, np.expm1(point)


def rail(task: Task, python: str, method: str, **settings: object) -> Prediction:
    """A method of RAIL, in the interpreter that has it; `settings` are those of its informer.

    The few highest redshifts of VVDS-Deep are kept from it: its basis spans the range of redshifts
    and would waste itself on them.
    """
    train, test = task.part == 0, task.part == 1
    z = task.z[train]
    top = 1.02 * float(np.quantile(z, 0.995) if task.name == "vvds_deep" else z.max())
    train[np.flatnonzero(train)[z >= top]] = False
    common = {"reference": task.bands.index(task.reference), "zmax": top}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.savez(
            place / "in.npz",
            mag=task.mag[train],
            err=task.err[train],
            z=task.z[train],
            mag_test=task.mag[test],
            err_test=task.err[test],
            grid=task.grid,
        )
        (place / "job.json").write_text(
            json.dumps({"method": method, "settings": settings, **common})
        )
        script = Path(__file__).with_name("rail_peer.py")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([python, script, place], check=True, env=environment, capture_output=True)
        return np.load(place / "out.npy"), None


def sigma_floor(task: Task) -> float:
    """Narrowest Gaussian that RAIL's neighbours may try: below the scatter of the table."""
    return {"sdss_mgs": 0.004, "boss_dr10": 0.008}.get(task.name, 0.005)


SKLEARN: dict[str, dict[str, Callable[[Task], Prediction]]] = {
    "random forest": {
        "rf2": lambda task: forest(task, 2),
        "rf5": lambda task: forest(task, 5),
        "rf2_flux": lambda task: forest(task, 2, of_flux=True),
        "rf5_flux": lambda task: forest(task, 5, of_flux=True),
    },
    "gradient boosting": {
        "hgbq": boosted_quantiles,
        "hgbp": boosted_point,
        "hgbq_flux": lambda task: boosted_quantiles(task, of_flux=True),
        "hgbp_flux": lambda task: boosted_point(task, of_flux=True),
    },
}
RAIL: dict[str, dict[str, Callable[[Task, str], Prediction]]] = {
    "FlexZBoost": {
        "fzb": lambda task, python: rail(task, python, "flexzboost"),
        "fzb_err": lambda task, python: rail(task, python, "flexzboost", include_mag_err=True),
    },
    "k nearest": {
        "knn": lambda task, python: rail(task, python, "knn"),
        "knn_tuned": lambda task, python: rail(
            task,
            python,
            "knn",
            nneigh_min=8,
            nneigh_max=16,
            ngrid_sigma=6,
            sigma_grid_min=sigma_floor(task),
            sigma_grid_max=0.05,
        ),
    },
}
"""Methods, and the settings that each is tried with."""
