"""A training as its workers need to know it.

What they read lies in the training's folder: `data.safetensors` (all rows) and
`start-<k>.safetensors` (network k before its first step), the same bytes whenever the same training
is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError

from surveyproc.errors import InputError, StoreError
from surveyproc.models.base import Network, build
from surveyproc.models.package import read_tensors
from surveyproc.store.storage import Store
from surveyproc.train.cube import TrainingCube
from surveyproc.train.examples import BandDropout, Examples
from surveyproc.train.fit import FitSettings, FitState

DATA = "data.safetensors"
TARGET = "target/"
"""Begins the names of the targets among the tensors of the data."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; everything else lies in the folder.

    Attributes
    ----------
    root, folder : str
        The store, and the training's folder in it.
    architecture, bands, network :
        What `build` needs.
    fit : FitSettings
        Of network 0; network k has its seed plus k.
    folds : int
        Network k holds out the rows of fold k % folds.
    cube : tuple of str, or None
        The training cube's own store, and its key there.
    """

    root: str
    folder: str
    architecture: str
    bands: tuple[str, ...]
    network: dict[str, Any]
    fit: FitSettings
    folds: int
    cube: tuple[str, str] | None

    def load(self, number: int) -> tuple[Network, Examples, FitSettings]:
        """Network before its first step, examples and settings of one network.

        Raises
        ------
        StoreError
            If a file of the folder is damaged; it is removed.
        """
        store = Store(self.root)
        settings = replace(self.fit, seed=self.fit.seed + number)
        network = build(self.architecture, self.bands, self.network)
        start = f"{self.folder}/start-{number}.safetensors"
        network.load_state_dict(_tensors_of(store, start))
        tensors = _tensors_of(store, f"{self.folder}/{DATA}")
        targets = {
            name.removeprefix(TARGET): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(TARGET)
        }
        held_out = tensors.pop("fold") == number % self.folds
        cube = None
        if self.cube is not None:
            root, key = self.cube
            cube = TrainingCube.open(Store(root), key)
        examples = Examples(
            reads=network.reads,
            tensors=tensors,
            targets=targets,
            held_out=held_out,
            cube=cube,
            dropout=BandDropout(settings.dropped_rows, settings.dropped_bands),
            seed=settings.seed,
            distortion=settings.distortion,
            shift=settings.shift,
        )
        return network, examples, settings


def _tensors_of(store: Store, key: str) -> dict[str, torch.Tensor]:
    """What a file of the folder holds; a damaged one is removed, so that it is made anew."""
    try:
        return read_tensors(store.read(key), key)
    except InputError as error:
        store.remove(key)
        raise StoreError(
            f"{store.url_of(key)}: damaged, and removed ({error}); repeat the command"
        ) from error


def saved_state(data: bytes | None) -> FitState | None:
    """The state to go on from; None, which is to begin anew, if there is none or it is damaged."""
    try:
        return FitState.from_bytes(data) if data else None
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def deterministic() -> Iterator[None]:
    """One thread, and sums in a fixed order, so that the same steps give the same weights."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)


def history_key(folder: str, number: int) -> str:
    """Where the losses of a network's epochs lie while it is trained."""
    return f"{folder}/history-{number}.json"


def histories(store: Store, folder: str) -> dict[int, list[dict[str, float]]]:
    """Network to the losses of its epochs, as far as they were saved."""
    found = {}
    for name in store.names(folder):
        if name.startswith("history-"):
            number = int(name.removeprefix("history-").removesuffix(".json"))
            found[number] = list(store.read_json(f"{folder}/{name}") or [])
    return found
