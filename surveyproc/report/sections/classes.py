"""Classes of a network: how many objects have each, and what the probabilities are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveyproc.catalogs.labels import Matches, read_labels
from surveyproc.config.sections import LabelsSection, TrainingSection
from surveyproc.evaluate.calibration import calibration_error, reliability
from surveyproc.evaluate.classes import class_metrics
from surveyproc.evaluate.roc import mean_area, roc
from surveyproc.models.tasks.columns import column_name
from surveyproc.report import figures
from surveyproc.report.sections.base import Pass, Section, Shown


def class_columns(names: Iterable[str]) -> dict[str, list[str]]:
    """The prefix of every model with classes to its columns of probabilities.

    Examples
    --------
    >>> class_columns(["m_p_star", "m_p_galaxy", "m_class", "n_p_0"])
    {'m': ['m_p_star', 'm_p_galaxy']}
    """
    known = list(names)
    models = [name.removesuffix("_class") for name in known if name.endswith("_class")]
    found = {one: [name for name in known if name.startswith(f"{one}_p_")] for one in models}
    return {one: columns for one, columns in found.items() if columns}


class Classes(Section):
    """Objects of every class, of every model."""

    template = "classes.html"

    def __init__(self, shown: Shown) -> None:
        super().__init__(shown)
        self.counts = {one: Counter[str]() for one in class_columns(shown.columns)}

    def gather(self) -> Iterator[Pass]:
        """One pass that counts."""
        yield [f"{one}_class" for one in self.counts], self._count

    def values(self) -> dict[str, Any]:
        """`classes`: the figure; `models`: `name`, and `rows` of class and number."""
        models = [
            {"name": f"{one}_class", "rows": sorted(counts.items())}
            for one, counts in self.counts.items()
        ]
        return {"classes": draw_counts(self.counts), "models": models}

    def _count(self, table: pa.Table) -> None:
        for one, counts in self.counts.items():
            for entry in pc.value_counts(table[f"{one}_class"]).to_pylist():
                counts[entry["values"] or "unknown"] += entry["counts"]


class KnownClasses(Section):
    """Every model that has probabilities of the classes that the [truth] table names."""

    template = "known_classes.html"

    def __init__(self, shown: Shown) -> None:
        super().__init__(shown)
        config = shown.config
        assert config.truth is not None
        self.columns = class_columns(shown.columns)
        every = [name for columns in self.columns.values() for name in columns]
        self.matches = Matches(read_labels(_as_targets(config.truth), config), every)

    def gather(self) -> Iterator[Pass]:
        """One pass; kept are the objects that match a label."""
        yield self.matches.reads, self.matches.add

    def values(self) -> dict[str, Any]:
        """`models`: `name`, `figure`, `metrics` of those that know any of the labels' classes.

        And `learned`, the products whose networks were trained with labels of the same table.
        """
        found, targets = self.matches.found()
        labels = np.array([_text(one) for one in targets["class"]], object)
        models = []
        for one, columns in self.columns.items():
            names = [column.removeprefix(f"{one}_p_") for column in columns]
            p = np.stack([found[column] for column in columns], axis=1)
            rows = np.isin(labels, names) & np.isfinite(p).all(axis=1)
            if not rows.any():
                continue
            place = {name: number for number, name in enumerate(names)}
            index = np.array([place[label] for label in labels[rows]])
            metrics = class_metrics(p[rows], index, names) | {
                "area": mean_area(p[rows], index),
                "calibration_error": calibration_error(p[rows], index),
            }
            figure = draw_known(p[rows], index, names)
            models.append({"name": f"{one}_class", "figure": figure, "metrics": metrics})
        return {"models": models, "learned": self._learned()}

    def _learned(self) -> list[str]:
        config = self.shown.config
        assert config.truth is not None
        table = config.resolve(config.truth.source)
        return [
            one.name
            for one in config.networks
            if one.training and one.training.source and config.resolve(one.training.source) == table
        ]


def _as_targets(truth: LabelsSection) -> TrainingSection:
    """The classes of the [truth] table as the targets of a task are read."""
    position = {key: getattr(truth, key) for key in ("table", "ra", "dec", "select", "radius")}
    return TrainingSection(source=truth.source, targets={"class": [str(truth.classes)]}, **position)


def _text(label: Any) -> str:
    """A label as columns of classes spell it; numbers as tasks do."""
    return column_name(label if isinstance(label, str) else f"{label or 0:g}")


def draw_counts(counts: dict[str, Counter[str]]) -> bytes:
    """A bar for each class of each model; a PNG."""
    names = sorted({name for one in counts.values() for name in one})
    figure, axis = plt.subplots(figsize=(4.7, 3.4))
    width = 0.8 / max(len(counts), 1)
    for place, ((model, own), colour) in enumerate(
        zip(counts.items(), figures.colours(len(counts)), strict=True)
    ):
        where = np.arange(len(names)) + (place + 0.5) * width - 0.4
        axis.bar(where, [own[name] for name in names], width, color=colour, label=model)
    axis.set_xticks(np.arange(len(names)), names)
    axis.set_ylabel("objects")
    axis.legend(frameon=False, fontsize=8)
    return figures.png(figure)


def draw_known(p: NDArray[np.float64], index: NDArray[np.int64], names: Sequence[str]) -> bytes:
    """Reliability and ROC of every class against the rest; a PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.8))
    for place, (name, colour) in enumerate(zip(names, figures.colours(len(names)), strict=True)):
        curve = reliability(p[:, place], index == place)
        left.plot(curve["probability"], curve["share"], "o-", ms=4, color=colour, label=name)
        if 0 < (index == place).sum() < len(index):
            line = roc(p[:, place], index == place)
            right.plot(line.false_positive, line.true_positive, color=colour, label=name)
    for axis, labels in (
        (left, ("probability of the class", "share that is of the class")),
        (right, ("share of the others called so", "share of the class called so")),
    ):
        axis.plot([0, 1], [0, 1], color=figures.INK, lw=0.8, ls="--")
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
    left.legend(frameon=False, fontsize=8)
    return figures.png(figure)
