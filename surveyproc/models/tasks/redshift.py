"""The redshift as a task: a point estimate, and perhaps a PDF."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from surveyproc import schemas
from surveyproc.config.sections import TrainingSection
from surveyproc.errors import InputError
from surveyproc.evaluate.pdf import pdf_metrics
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.models.tasks.base import Float, Labels, Target, Task, Values, finite
from surveyproc.models.tasks.pdf import PdfOutput

Loss = Callable[[Any, Tensor], Tensor]


class RedshiftTask(Task):
    """Redshifts, from outputs that are mixtures, bins, or another `pdf.PdfOutput`.

    Parameters
    ----------
    loss : callable
        Loss of each object, shape (n,), of an output and the true redshifts, (n,).
    pdf : bool
        Whether there is a PDF beside the point estimate.
    redshifts : tuple of float
        Lowest and highest redshift that the network can be trained with.
    weight : float
        Of the loss.
    """

    kind: ClassVar[str] = "redshift"
    name = "redshift"
    targets = (Target("redshift"),)

    def __init__(
        self,
        loss: Loss,
        *,
        pdf: bool = True,
        redshifts: tuple[float, float] = (0.0, 20.0),
        weight: float = 1.0,
    ) -> None:
        self._loss, self.pdf, self.redshifts, self.weight = loss, pdf, redshifts, weight

    def describe(self) -> dict[str, Any]:
        """With `pdf`."""
        return {"name": self.name, "kind": self.kind, "pdf": self.pdf}

    def loss(self, output: PdfOutput, targets: Mapping[str, Tensor]) -> Tensor:
        """The loss that it was given, 0 where the redshift is missing."""
        redshift = targets["redshift"]
        known = redshift.isfinite()
        # Any redshift will do where none is known: its loss is not counted.
        return self._loss(output, redshift.where(known, self.redshifts[0])).where(known, 0.0)

    def average(self, outputs: Sequence[Any]) -> Any:
        """The mean of the PDFs and of the point estimates."""
        return type(outputs[0]).average(outputs)

    def values(self, output: PdfOutput) -> dict[str, NDArray[Any]]:
        """Columns of schemas/photoz.toml; without a PDF the point estimate alone."""
        point = {"z_point": output.redshift().float().cpu().numpy()}
        if not self.pdf:
            return point
        pdf = output.summarise()
        return point | {
            "z_median": pdf.median,
            "z_mean": pdf.mean,
            "z_mode": pdf.mode,
            "z_err68_low": pdf.low,
            "z_err68_high": pdf.high,
            "z_quantiles": pdf.quantiles,
        }

    def encode(self, labels: Labels, settings: TrainingSection) -> dict[str, Float]:
        """Redshifts between the limits of the settings, themselves out of range; else NaN.

        Raises
        ------
        InputError
            Also if some of these lie outside of what the network can be trained with.
        """
        encoded = super().encode(labels, settings)
        low, high = settings.redshifts
        z = encoded["redshift"]
        with np.errstate(invalid="ignore"):
            z = np.where((z > low) & (z < high), z, np.nan)
            wrong = (z < self.redshifts[0]) | (z > self.redshifts[1])
        if wrong.any():
            raise InputError(
                f"{int(wrong.sum())} of {int(np.isfinite(z).sum())} training redshifts lie outside "
                f"the range of the network, {self.redshifts[0]:g} to {self.redshifts[1]:g}; the "
                f"first is {z[wrong][0]:g}: leave them out with training.redshifts, or set the "
                "network's bins"
            )
        return {"redshift": z}

    def metrics(self, values: Values, targets: Mapping[str, Float]) -> dict[str, Any]:
        """`redshift_metrics` of `point` and `median`, `pdf_metrics` as `pdf`."""
        true = targets["redshift"]
        found: dict[str, Any] = {
            kind: redshift_metrics(values[f"z_{kind}"], true)
            for kind in (("point", "median") if self.pdf else ("point",))
        }
        if self.pdf:
            found["pdf"] = pdf_metrics(values["z_quantiles"], schemas.pdf_levels(), true)
        return finite(found)
