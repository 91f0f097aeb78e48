"""What a network makes of an object before it decides, as a task without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor

from surveyproc.models.tasks.base import Task


class EmbeddingTask(Task):
    """A vector for each object, shape (n, length), for searches by likeness. Nothing is learned.

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

    def describe(self) -> dict[str, Any]:
        """With `length`."""
        return {"name": self.name, "kind": self.kind, "length": self.length}

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """That of the first network: each has axes of its own, whose mean would say nothing."""
        return outputs[0]

    def values(self, output: Tensor) -> dict[str, NDArray[Any]]:
        """The vectors, (n, length)."""
        return {self.name: output.float().cpu().numpy()}
