"""The processes of `apart`: readers, and networks that compute what was read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.cloudpickle

from surveyproc.errors import SurveyError
from surveyproc.places.base import Computing, Divided


@dataclass(frozen=True)
class Note:
    """What a call of a process says beside what it leaves in the object store."""

    seconds: float = 0.0
    more: bool = True
    error: SurveyError | None = None


class Side:
    """A process that makes its worker when it is first called.

    Parameters
    ----------
    recipe : bytes
        Class of the worker and its arguments.
    """

    def __init__(self, recipe: bytes) -> None:
        self.recipe = recipe
        self.made: Divided | None = None

    def node(self) -> str:
        """The node on which it is."""
        return str(ray.get_runtime_context().get_node_id())

    def worker(self) -> Divided:
        """The worker."""
        if self.made is None:
            worker, arguments = ray.cloudpickle.loads(self.recipe)
            self.made = worker(*arguments)
            if ray.get_runtime_context().get_accelerator_ids().get("GPU"):
                self.made.device = "cuda"
        return self.made


class Reader(Side):
    """Reads one item after the other, part by part."""

    parts: Iterator[Any]

    @ray.method(num_returns=2)
    def read(self, given: tuple[Any] | None) -> tuple[Note, Any]:
        """The first part of an item that is given, or else the next one of the last item."""
        try:
            worker = self.worker()
            started = time.monotonic()
            if given:
                self.parts = worker.read(*given)
            part = next(self.parts)
        except StopIteration:
            return Note(more=False), None
        except SurveyError as error:
            return Note(error=error), None
        return Note(time.monotonic() - started), part


class Begun:
    """An item in a network, whose parts are computed in their order, as long as more are wanted."""

    def __init__(self, computing: Computing) -> None:
        self.computing, self.more, self.next = computing, True, 0
        self.early: dict[int, Any] = {}

    def take(self, index: int, part: Any) -> bool:
        """Compute a part when those before it are; whether more are wanted."""
        self.early[index] = part
        while self.next in self.early:
            part = self.early.pop(self.next)
            self.more = self.more and self.computing.take(part)
            self.next += 1
        return self.more


class Network(Side):
    """Computes the parts of several items, as they come. What is written is written beside it."""

    def __init__(self, recipe: bytes) -> None:
        super().__init__(recipe)
        self.begun: dict[int, Begun] = {}

    def take(self, number: int, index: int, payload: Any, part: Any) -> Note:
        """Compute a part of the item that is known by this number, when those before it are.

        Answers, and calls of a process with several threads, may overtake each other.
        """
        try:
            worker = self.worker()
            started = time.monotonic()
            if number not in self.begun:
                self.begun[number] = Begun(worker.begin(payload))
            more = self.begun[number].take(index, part)
        except SurveyError as error:
            return Note(error=error)
        return Note(time.monotonic() - started, more)

    @ray.method(concurrency_group="end")
    def end(self, number: int) -> Any:
        """The result of an item of which all parts were taken."""
        try:
            return self.begun.pop(number).computing.end()
        except SurveyError as error:
            return Note(error=error)

    def forget(self, number: int) -> None:
        """Leave an item that goes on elsewhere."""
        self.begun.pop(number, None)
