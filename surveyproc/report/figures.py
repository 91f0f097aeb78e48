"""How the figures of the report look, and what their sections share."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

INK, ACCENT, SOFT = "#1b2a41", "#2f6f9f", "#9ab8cf"
plt.rcParams.update(
    {
        "font.size": 10,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)


def colours(n: int) -> list[Any]:
    """`n` colours: the accent, then those that are told from it."""
    return [ACCENT, *plt.get_cmap("Dark2")(np.arange(1, max(n, 1)))][:n]


def floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers as float64, shape (n,); NaN where null."""
    values: NDArray[np.float64] = column.to_numpy().astype(float)
    return values


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG, closed; equal figures give equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()
