"""What a network makes of an object before it decides, as a task without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from surveyproc.models.tasks.base import Task
from surveyproc.models.tasks.codes import Codes, code_length, code_type


class EmbeddingTask(Task):
    """A vector for each object, shape (n, length), for searches by likeness. Nothing is learned.

    It is written as at most 64 bytes (`codes.Codes`), fitted when the network is trained. Of
    vectors of more than 32 numbers that loses some near neighbours.

    Parameters
    ----------
    length : int
        Of the vector.
    name : str
        Name of the task and its column.
    """

    kind: ClassVar[str] = "embedding"

    def __init__(self, length: int, *, name: str = "embedding") -> None:
        self.length, self.name = length, name
        self.fitted: Codes = Codes(length)

    def describe(self) -> dict[str, Any]:
        """With `vector`, the length of the vector, and `length` and `dtype` of its code."""
        code = {"length": code_length(self.length), "dtype": code_type(self.length).name}
        return {"name": self.name, "kind": self.kind, "vector": self.length, **code}

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """That of the first network: each has axes of its own, whose mean would say nothing."""
        return outputs[0]

    def values(self, output: Tensor) -> dict[str, NDArray[Any]]:
        """The codes, (n, code_length); their type's least number where the vector is not finite."""
        return {self.name: self.fitted(output).cpu().numpy()}

    def fit(self, outputs: NDArray[np.float32]) -> None:
        """Fit the codes to vectors of the training set, shape (n, length)."""
        self.fitted.fit(outputs)
