"""All metrics of one matched sample as one JSON-able document."""

from __future__ import annotations

from collections.abc import Mapping
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


def summarise(
    z_pred: Float,
    z_true: Float,
    *,
    good: NDArray[np.bool_] | None = None,
    binned: Mapping[str, Float],
    quantiles: Float | None = None,
    levels: Levels = (),
    threshold: float = OUTLIER_THRESHOLD,
) -> dict[str, Any]:
    """Point metrics with standard errors, in bins of given quantities, and PDF metrics.

    Parameters
    ----------
    z_pred, z_true : float64 ndarray, shape (n,)
        Predicted and true redshifts.
    good : bool ndarray, shape (n,), optional
        Objects without a flag.
    binned : mapping of str to float64 ndarray, shape (n,)
        Quantities to bin in, up to `MOST_BINS` bins of equal counts each.
    quantiles : float ndarray, shape (n, m), optional
        PDFs, see `surveyproc.evaluate.pdf`.
    levels : sequence of float, shape (m,)
        Probabilities of the quantiles.
    threshold : float
        |dz| above which an object is an outlier; reported beside `OUTLIER_THRESHOLDS`.

    Returns
    -------
    dict
        `threshold`, that of `outlier_fraction`; `thresholds`, those of `outlier_fractions`; `all`
        and, given `good`, `unflagged`: the keys of `redshift_metrics`, `bootstrap_errors` and
        `outlier_fractions`; `bins`: for each quantity the rows of `binned_metrics`, none if it does
        not vary; given `quantiles`, `pdf`: `levels`, and `all` and `unflagged` with the keys of
        `pdf_metrics`.
    """
    samples = {"all": np.ones(len(z_true), bool)}
    if good is not None:
        samples["unflagged"] = good
    thresholds = list(dict.fromkeys((*OUTLIER_THRESHOLDS, threshold)))
    document: dict[str, Any] = {"threshold": threshold, "thresholds": thresholds, "bins": {}}
    for name, rows in samples.items():
        inner = (z_pred[rows], z_true[rows])
        document[name] = {
            **redshift_metrics(*inner, threshold),
            **bootstrap_errors(*inner, threshold),
            **outlier_fractions(*inner, thresholds),
        }
    for name, column in binned.items():
        bins = min(MOST_BINS, max(1, len(z_true) // LEAST_IN_BIN))
        edges = equal_count_edges(column, bins)
        document["bins"][name] = (
            binned_metrics(z_pred, z_true, column, edges, threshold, thresholds=thresholds)
            if len(edges) > 1
            else []
        )
    if quantiles is not None:
        document["pdf"] = {"levels": list(levels)} | {
            name: pdf_metrics(quantiles[rows], levels, z_true[rows])
            for name, rows in samples.items()
        }
    return document
