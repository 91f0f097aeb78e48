"""All metrics of one matched sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.evaluate.bootstrap import Float
from surveyproc.evaluate.pdf import Levels, pdf_metrics
from surveyproc.evaluate.redshift import (
    OUTLIER_THRESHOLD,
    OUTLIER_THRESHOLDS,
    binned_metrics,
    bootstrap_errors,
    equal_count_edges,
    outlier_fractions,
    redshift_metrics,
)

MOST_BINS = 8
LEAST_IN_BIN = 20
"""Objects a bin, on average, below which there are fewer bins."""


@dataclass(frozen=True, kw_only=True)
class SampleMetrics:
    """What predicted redshifts are worth.

    Attributes
    ----------
    threshold : float
        That of `outlier_fraction`.
    thresholds : list of float
        Those of `outlier_fractions`.
    all : dict
        The keys of `redshift_metrics`, `bootstrap_errors` and `outlier_fractions`.
    bins : dict of str to list of dict
        For each quantity the rows of `binned_metrics`; none if it does not vary.
    unflagged : dict, optional
        As `all`, of the objects without a flag.
    recognised : dict, optional
        As `all`, without the objects that look like blends which the catalog took for one.
    pdf : dict, optional
        `levels`, and the names of all samples with the keys of `pdf_metrics`.
    """

    threshold: float
    thresholds: list[float]
    all: dict[str, Any]
    bins: dict[str, list[dict[str, Any]]]
    unflagged: dict[str, Any] | None = None
    recognised: dict[str, Any] | None = None
    pdf: dict[str, Any] | None = None

    @property
    def samples(self) -> dict[str, dict[str, Any]]:
        """`all`, and `unflagged` and `recognised` if they are there."""
        more = {"unflagged": self.unflagged, "recognised": self.recognised}
        return {"all": self.all} | {name: one for name, one in more.items() if one}


def sample_metrics(
    z_pred: Float,
    z_true: Float,
    *,
    good: NDArray[np.bool_] | None = None,
    recognised: NDArray[np.bool_] | None = None,
    binned: Mapping[str, Float],
    quantiles: Float | None = None,
    levels: Levels = (),
    threshold: float = OUTLIER_THRESHOLD,
) -> SampleMetrics:
    """Point metrics with standard errors, in bins of given quantities, and PDF metrics.

    Parameters
    ----------
    z_pred, z_true : float64 ndarray, shape (n,)
        Predicted and true redshifts.
    good : bool ndarray, shape (n,), optional
        Objects without a flag.
    recognised : bool ndarray, shape (n,), optional
        Objects that are no unrecognised blends.
    binned : mapping of str to float64 ndarray, shape (n,)
        Quantities to bin in, up to `MOST_BINS` bins of equal counts each.
    quantiles : float ndarray, shape (n, m), optional
        PDFs, see `surveyproc.evaluate.pdf`.
    levels : sequence of float, shape (m,)
        Probabilities of the quantiles.
    threshold : float
        |dz| above which an object is an outlier; reported beside `OUTLIER_THRESHOLDS`.
    """
    samples = {"all": np.ones(len(z_true), bool)}
    if good is not None:
        samples["unflagged"] = good
    if recognised is not None:
        samples["recognised"] = recognised
    thresholds = list(dict.fromkeys((*OUTLIER_THRESHOLDS, threshold)))
    points: dict[str, dict[str, Any]] = {}
    for name, rows in samples.items():
        inner = (z_pred[rows], z_true[rows])
        points[name] = {
            **redshift_metrics(*inner, threshold),
            **bootstrap_errors(*inner, threshold),
            **outlier_fractions(*inner, thresholds),
        }
    bins = {}
    for name, column in binned.items():
        most = min(MOST_BINS, max(1, len(z_true) // LEAST_IN_BIN))
        edges = equal_count_edges(column, most)
        bins[name] = (
            binned_metrics(z_pred, z_true, column, edges, threshold, thresholds=thresholds)
            if len(edges) > 1
            else []
        )
    pdf: dict[str, Any] | None = None
    if quantiles is not None:
        pdf = {"levels": list(levels)} | {
            name: pdf_metrics(quantiles[rows], levels, z_true[rows])
            for name, rows in samples.items()
        }
    return SampleMetrics(
        threshold=threshold,
        thresholds=thresholds,
        bins=bins,
        pdf=pdf,
        all=points["all"],
        unflagged=points.get("unflagged"),
        recognised=points.get("recognised"),
    )
