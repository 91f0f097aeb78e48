"""Our networks on one table: an ensemble of the project's `tabm`, by the project's own code.

    python benchmarks/photoz_tables/ours.py [DATA]

prints how the inputs were chosen where the test rows come from elsewhere (`transfer`, `boss`): with
the errors, without, and, for another survey, without but with bands dropped at random in training,
on `tables.rehearsal` and `tables.across_files`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from score import crps
from tables import Task, across_files, rehearsal
from torch import Tensor

from surveyproc.evaluate.redshift import dz_nmad, scaled_error
from surveyproc.measure.magnitudes import flux_from_magnitude
from surveyproc.models.base import Network, build
from surveyproc.models.ensemble import Ensemble
from surveyproc.models.features import fit_scaling, network_inputs
from surveyproc.models.inference import predict
from surveyproc.models.tasks.pdf import MixtureOutput
from surveyproc.train.examples import BandDropout, Examples
from surveyproc.train.fit import FitSettings, fit

EPOCHS, BATCH, MEMBERS = 60, 128, 5


def cdf_on_grid(output: MixtureOutput, grid: NDArray) -> NDArray:
    """CDFs in z of the truncated mixtures, float32, shape (n, len(grid))."""
    x = torch.from_numpy(np.log1p(grid)).float()
    weights = output.log_weights.exp()
    below = (weights * torch.special.ndtr(-output.means / output.sigmas)).sum(1, keepdim=True)
    total = torch.zeros(len(weights), len(x))
    for k in range(weights.shape[1]):
        part = slice(k, k + 1)
        scaled = (x - output.means[:, part]) / output.sigmas[:, part]
        total += weights[:, part] * torch.special.ndtr(scaled)
    return ((total - below) / (1 - below)).clamp(0, 1).numpy()


def ours(
    task: Task, members: int = MEMBERS, **changes: object
) -> tuple[NDArray, dict[str, NDArray]]:
    """CDFs of the test rows on the task's grid, and their points: mode, median, mean of the PDF.

    Of the mean PDF of `members` networks, which learn from the same rows and differ by their seed.
    `changes` are fields of FitSettings, for experiments on development rows.
    """
    flux = flux_from_magnitude(task.mag)
    error = flux * np.log(10) / 2.5 * task.err
    train, test = task.part == 0, task.part == 1
    scaling = fit_scaling(flux[train], error[train], task.bands, errors=task.errors)
    features = torch.from_numpy(network_inputs(flux[train], scaling, error[train])[0])
    redshift = torch.from_numpy(task.z[train].astype(np.float32))
    networks = [_trained(task, features, redshift, seed=seed, **changes) for seed in range(members)]
    ensemble = Ensemble(networks)
    ensemble.eval()

    # `predict` hands out summaries; the scores want the PDFs, so they are taken on the way.
    kept: list[NDArray] = []
    ensemble.register_forward_hook(
        lambda *call: kept.append(cdf_on_grid(call[2]["redshift"], task.grid))
    )
    values, _ = predict(ensemble, scaling, flux[test], flux_err=error[test])
    cdf = np.concatenate(kept)[: int(test.sum())]
    return cdf, {key: values[f"z_{key}"] for key in ("mode", "median", "mean")}


def _trained(
    task: Task, features: Tensor, redshift: Tensor, *, seed: int, **changes: object
) -> Network:
    torch.manual_seed(seed)
    network = build("tabm", task.bands, {"errors": task.errors})
    network.set_targets({"redshift": redshift})
    options = {**network.fit_options, "epochs": EPOCHS, "batch_size": BATCH, "seed": seed}
    settings = FitSettings(**{**options, **changes})
    examples = Examples(
        reads=network.reads,
        tensors={"features": features},
        targets={"redshift": redshift},
        held_out=torch.zeros(len(redshift), dtype=torch.bool),
        cube=None,
        dropout=BandDropout(settings.dropped_rows, settings.dropped_bands),
        seed=seed,
    )
    for state in fit(network, examples, settings):
        best = state.best
    network.load_state_dict(best)
    return network


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else root.parent / "shared/data"
    torch.set_num_threads(1)
    dropped = {"dropped_rows": 0.5, "dropped_bands": 0.3}
    for task in (rehearsal(data), *across_files(data)):
        z = task.z[task.part == 1]
        print(f"{task.name:32s} CRPS    NMAD of the median")
        for name, errors, changes in (
            ("magnitudes and errors", True, {}),
            ("magnitudes", False, {}),
            ("magnitudes, some bands dropped", False, dropped),
        ):
            if changes and np.isfinite(task.mag).all():
                continue
            cdf, points = ours(replace(task, errors=errors), members=1, epochs=20, **changes)
            score = crps(cdf, task.grid, z).mean()
            nmad = float(dz_nmad(scaled_error(points["median"], z)))
            print(f"  {name:30s} {score:.5f}  {nmad:.5f}", flush=True)


if __name__ == "__main__":
    main()
