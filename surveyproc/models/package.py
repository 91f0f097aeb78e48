"""Model packages: `models/<name>/<version>/weights.safetensors` and `model.json` in a store.

The version is a hash of the content, so the same model always gets the same version and nothing is
written twice. `models/<name>/current.json` is written last; readers follow it. Only safetensors
are ever read: nothing is unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from surveyproc.errors import InputError, StoreError, UnreachableError
from surveyproc.models.features import FeatureScaling
from surveyproc.models.tasks.columns import Pixels, task_columns, task_pixels
from surveyproc.schemas import Column
from surveyproc.store import layout
from surveyproc.store.storage import Store, as_json, digest, fingerprint

# Planning reads packages but computes nothing: torch is imported where tensors are made.
if TYPE_CHECKING:
    from torch import Tensor

    from surveyproc.models.base import Network
    from surveyproc.models.tasks.base import Task

WEIGHTS, DOCUMENT, CURRENT = "weights.safetensors", "model.json", "current.json"
FORMAT = 5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")
_ONLY = "only safetensors packages are loaded, because a pickle can run any code"


class _Reads(BaseModel):
    """`inputs` of model.json: the fields of `models.base.Reads`, and the scale of the pixels."""

    features: list[str]
    images: list[str]
    cutout: NonNegativeInt
    reddening: bool
    errors: bool
    neighbours: NonNegativeInt = 0
    pixel_scale: float | None


class _Task(BaseModel):
    """One of the tasks; what else it holds depends on its kind."""

    name: str
    kind: str


class _Outputs(BaseModel):
    """`outputs` of model.json."""

    tasks: list[_Task]


class _Document(BaseModel):
    """What must be in model.json, so that a damaged one is named when it is read."""

    architecture: str
    settings: dict[str, Any]
    members: PositiveInt
    bands: list[str]
    inputs: _Reads
    absent_bands: Literal["mask", "refuse"]
    normalisation: dict[str, Any] | None
    outputs: _Outputs
    training: dict[str, Any]
    metrics: dict[str, Any]
    weights_sha256: str


@dataclass(frozen=True)
class Package:
    """One version of a trained model, in memory.

    Attributes
    ----------
    name, version : str
        Its place, `models/<name>/<version>/`; the version is a hash of the content.
    document : dict
        model.json: architecture, settings, bands, inputs, normalisation, outputs, training,
        metrics.
    weights : bytes
        The safetensors file.
    """

    name: str
    version: str
    document: dict[str, Any]
    weights: bytes = field(repr=False)

    @property
    def bands(self) -> tuple[str, ...]:
        """The model's bands, in order."""
        return tuple(self.document["bands"])

    @property
    def scaling(self) -> FeatureScaling | None:
        """How fluxes become inputs; None if the network reads no catalog."""
        normalisation = self.document["normalisation"]
        return None if normalisation is None else FeatureScaling.from_json(normalisation)

    @property
    def reads(self) -> Mapping[str, Any]:
        """What its network reads: the fields of `models.base.Reads`, under the model's bands."""
        inputs: dict[str, Any] = self.document["inputs"]
        return inputs

    @property
    def pixel_scale(self) -> float | None:
        """Arcsec a pixel of the cutouts it was trained on; None if it reads no images."""
        found = self.document["inputs"]["pixel_scale"]
        return None if found is None else float(found)

    @property
    def absent_bands(self) -> str:
        """What to do in a survey that lacks a band: `mask` (go on without) or `refuse`."""
        return str(self.document["absent_bands"])

    @property
    def tasks(self) -> tuple[Mapping[str, Any], ...]:
        """What its network is asked for: `name`, `kind` and what its columns need, of each task."""
        return tuple(self.document["outputs"]["tasks"])

    def columns(self, prefix: str) -> tuple[Column, ...]:
        """Columns of all its tasks, under names that begin with `prefix`."""
        return tuple(one for task in self.tasks for one in task_columns(task, prefix))

    def pixels(self, prefix: str) -> tuple[Pixels, ...]:
        """Arrays that it gives beside columns: name, shape of an object's, dtype."""
        return task_pixels(self.tasks, prefix)

    @property
    def metrics(self) -> dict[str, Any]:
        """What the model scored on the objects held out of its training."""
        return dict(self.document["metrics"])

    @property
    def training_fingerprint(self) -> str:
        """Hash of the data and settings it was trained with; empty if unknown."""
        return str(self.document["training"].get("fingerprint", ""))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The weights as tensors, by name."""
        return read_tensors(self.weights, f"model {self.name}@{self.version}: {WEIGHTS}")

    def begin(self, weights: Mapping[str, Tensor], member: int = 0) -> dict[str, Tensor]:
        """The weights of another network, with those of this one where their names are the same.

        Parameters
        ----------
        weights : mapping of str to Tensor
            The state_dict of the network that begins so.
        member : int
            Its number; it begins with network number `member` of this package, counted around.

        Raises
        ------
        InputError
            If no name is the same, or a shape differs.
        """
        count = int(self.document["members"])
        prefix = f"members.{member % count}." if count > 1 else ""
        own = {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }
        where = f"training.start: model {self.name}@{self.version}"
        shared = sorted(own.keys() & weights.keys())
        if not any(key.endswith("weight") for key in shared):
            raise InputError(f"{where} has no layer of this network: {min(weights)}, ...")
        for key in shared:
            if own[key].shape != weights[key].shape:
                raise InputError(
                    f"{where}: tensor {key!r} has shape {tuple(own[key].shape)}, the network "
                    f"that begins with it {tuple(weights[key].shape)}: give both the same settings"
                )
        return {**weights, **{key: own[key] for key in shared}}

    def network(self) -> Network:
        """The network with its weights, in evaluation mode.

        Raises
        ------
        InputError
            If a tensor is missing, unexpected or has the wrong shape; the message names it.
        ConfigError
            If the architecture is not installed.
        """
        from surveyproc.models.base import build
        from surveyproc.models.ensemble import Ensemble

        parts = self.document["architecture"], self.bands, self.document["settings"]
        members = [build(*parts) for _ in range(self.document["members"])]
        network = Ensemble(members) if len(members) > 1 else members[0]
        expected = network.state_dict()
        where = f"model {self.name}@{self.version}"
        for key in sorted({*expected, *self.tensors}):
            if key not in self.tensors:
                raise InputError(f"{where}: tensor {key!r} is missing from {WEIGHTS}")
            if key not in expected:
                raise InputError(f"{where}: {WEIGHTS} holds a tensor {key!r} of no layer")
            if expected[key].shape != self.tensors[key].shape:
                raise InputError(
                    f"{where}: tensor {key!r} has shape {tuple(self.tensors[key].shape)}, "
                    f"the architecture wants {tuple(expected[key].shape)}"
                )
            if not self.tensors[key].isfinite().all():
                raise InputError(f"{where}: tensor {key!r} holds non-finite values")
        network.load_state_dict(self.tensors)
        network.calibrations = {
            task["name"]: task["calibration"] for task in self.tasks if "calibration" in task
        }
        return network.eval()


def save_package(
    store: Store,
    name: str,
    *,
    architecture: str,
    settings: Mapping[str, Any],
    bands: Sequence[str],
    scaling: FeatureScaling | None,
    members: Sequence[Mapping[str, Tensor]],
    pixel_scale: float | None = None,
    absent_bands: Literal["mask", "refuse"] = "refuse",
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    calibrations: Mapping[str, Mapping[str, Any]] | None = None,
) -> Package:
    """Write a model and make it the current version of `name`.

    Parameters
    ----------
    store : Store
        The survey's root.
    name : str
        Name of the model: letters, digits, `_ . -`.
    architecture, settings :
        What `base.build` needs.
    bands : sequence of str
        The model's bands, as the architecture is built with them.
    scaling : FeatureScaling or None
        How fluxes become inputs; None if the network reads no catalog.
    members : sequence of mapping of str to Tensor
        The state_dict of the network, or of each network of an ensemble.
    pixel_scale : float, optional
        Arcsec a pixel of the cutouts that it was trained on.
    absent_bands : {'mask', 'refuse'}
        Whether the model may be applied in a survey that lacks a band: a network that was trained
        with bands left out may.
    training, metrics : mapping, optional
        JSON-able records kept in model.json; no timestamps, or equal models would differ.
    calibrations : mapping of str to mapping, optional
        By task, what `Task.fit_calibration` gave.

    Raises
    ------
    InputError
        If the name is not one, or a record holds something that is not JSON.
    """
    import safetensors.torch

    from surveyproc.models.base import build

    _check_name(name)
    network = build(architecture, bands, settings)
    tensors = ensemble_tensors(members)
    weights = safetensors.torch.save({key: t.detach().contiguous() for key, t in tensors.items()})
    document: dict[str, Any] = {
        "format": FORMAT,
        "architecture": architecture,
        "settings": dict(settings),
        "members": len(members),
        "bands": list(bands),
        "inputs": {**asdict(network.reads), "unit": "nJy", "pixel_scale": pixel_scale},
        "absent_bands": absent_bands,
        "normalisation": None if scaling is None else scaling.to_json(),
        "outputs": {"tasks": [_described(task, calibrations or {}) for task in network.tasks]},
        "training": dict(training or {}),
        "metrics": dict(metrics or {}),
        "weights_sha256": digest(weights),
    }
    try:
        version = fingerprint(document)
    except (TypeError, ValueError) as error:
        raise InputError(f"model {name}: its record is not JSON: {error}") from error
    place = layout.model(name, version)
    if _whole(store, name, version) is None:
        store.put(f"{place}/{WEIGHTS}", weights)
        store.put_json(f"{place}/{DOCUMENT}", document)
    set_current(store, name, version)
    return Package(name, version, json.loads(json.dumps(document)), weights)


def _described(task: Task, calibrations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A task's entry in model.json."""
    if task.name not in calibrations:
        return task.describe()
    return {**task.describe(), "calibration": dict(calibrations[task.name])}


def ensemble_tensors(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One network's tensors as they are; those of several under the names `Ensemble` has."""
    if len(members) == 1:
        return dict(members[0])
    return {
        f"members.{number}.{key}": tensor
        for number, member in enumerate(members)
        for key, tensor in member.items()
    }


def set_current(store: Store, name: str, version: str) -> None:
    """Make `version` the one that `load_package(store, name)` gives; rewrites nothing if it is."""
    pointer = f"{layout.model(name)}/{CURRENT}"
    # As bytes: a damaged pointer is replaced like any other.
    if store.read_if_there(pointer) != as_json({"version": version}):
        store.put_json(pointer, {"version": version})


def trained_by(store: Store, name: str) -> str:
    """The survey that trained the current version of `name`; empty if that cannot be told."""
    try:
        version = (store.read_json(f"{layout.model(name)}/{CURRENT}") or {}).get("version")
        document = store.read_json(f"{layout.model(name, str(version))}/{DOCUMENT}") or {}
    except UnreachableError:
        raise
    except StoreError:
        return ""  # a damaged package is trained anew
    return str(document.get("training", {}).get("survey", ""))


def package_versions(store: Store, name: str) -> list[str]:
    """Versions of `name` that are complete, sorted."""
    _check_name(name)
    names = store.names(layout.model(name))
    return [v for v in names if store.exists(f"{layout.model(name, v)}/{DOCUMENT}")]


def find_trained(store: Store, name: str, training_fingerprint: str) -> Package | None:
    """The version of `name` that was trained with that fingerprint, if there is a whole one."""
    for version in package_versions(store, name):
        # Looked for in the text first: reading the weights of all versions would take long.
        text = store.read_if_there(f"{layout.model(name, version)}/{DOCUMENT}") or b""
        if training_fingerprint.encode() not in text:
            continue
        found = _whole(store, name, version)
        if found is not None and found.training_fingerprint == training_fingerprint:
            return found
    return None


def _whole(store: Store, name: str, version: str) -> Package | None:
    """A version, if it is there and undamaged."""
    try:
        return load_package(store, f"{name}@{version}")
    except InputError:
        return None


def load_package(store: Store, reference: str) -> Package:
    """Read a model package.

    Parameters
    ----------
    store : Store
        The survey's root.
    reference : str
        `name` (its current version), `name@version`, or the path or URL of a package's folder, or
        of the folder of all its versions (the current one then): anything with a slash.

    Raises
    ------
    InputError
        If there is no such package, it is a pickle, is corrupt, or lacks a key.
    """
    if PurePosixPath(reference).suffix.lower() in _PICKLES:
        raise InputError(f"model {reference}: {_ONLY}; export it with surveyproc train")
    if "/" in reference:
        folder = reference.rstrip("/").removesuffix(f"/{WEIGHTS}").removesuffix(f"/{DOCUMENT}")
        current = (Store(folder).read_json(CURRENT) or {}).get("version")
        if current is not None:
            _check_name(str(current))
            return _read(Store(folder), f"{current}/", _folder_name(f"{folder}/{current}"), None)
        return _read(Store(folder), "", _folder_name(folder), None)
    name, _, version = reference.partition("@")
    _check_name(name)
    if version:
        _check_name(version)
    else:
        pointer = store.read_json(f"{layout.model(name)}/{CURRENT}")
        if pointer is None:
            known = ", ".join(store.names(layout.MODELS)) or "none"
            raise InputError(
                f"no model is called {name!r} under {store.url_of('models')} (there are: {known}); "
                "`surveyproc train` makes it"
            )
        version = str(pointer.get("version", ""))
        _check_name(version)
    return _read(store, f"{layout.model(name, version)}/", name, version)


def _read(store: Store, prefix: str, name: str, version: str | None) -> Package:
    where = store.url_of(prefix.rstrip("/"))
    try:
        document = store.read_json(prefix + DOCUMENT)
    except UnreachableError:
        raise
    except StoreError as error:
        raise InputError(str(error)) from error
    if not isinstance(document, dict):
        pickles = [n for n in store.names(prefix.rstrip("/")) if n.lower().endswith(_PICKLES)]
        if pickles:
            raise InputError(f"model {where}: {pickles[0]}: {_ONLY}")
        why = "there is no" if document is None else "there is no JSON object in"
        raise InputError(f"model {where}: {why} {DOCUMENT}")
    if document.get("format") != FORMAT:
        raise InputError(
            f"model {where}: format {document.get('format')!r} is not {FORMAT}: train it anew"
        )
    try:
        _Document.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"model {where}: {DOCUMENT}: {key}: {first['msg']}") from error
    if version is None:
        version = fingerprint(document)
    elif version != fingerprint(document):
        raise InputError(f"model {where}: {DOCUMENT} was changed after it was written")
    try:
        weights = store.read(prefix + WEIGHTS)
    except UnreachableError:
        raise
    except StoreError as error:
        raise InputError(f"model {where}: {error}") from error
    refuse_pickle(weights, f"{where}/{WEIGHTS}")
    if digest(weights) != document["weights_sha256"]:
        raise InputError(f"model {where}: {WEIGHTS} is not the file that {DOCUMENT} describes")
    package = Package(name, version, document, weights)
    wanted = tuple(document["inputs"]["features"])
    if (package.scaling.bands if package.scaling else ()) != wanted:
        raise InputError(f"model {where}: inputs.features and normalisation.bands differ")
    try:
        package.columns("")
    except InputError as error:
        raise InputError(f"model {where}: {DOCUMENT}: {error}") from error
    return package


def refuse_pickle(data: bytes, where: str) -> None:
    """Raise InputError if `data` is a pickle, also inside a zip as torch.save writes it."""
    # A safetensors file begins with the length of its JSON header, then '{'.
    if data[:2] == b"PK" or (data[:1] == b"\x80" and data[8:9] != b"{"):
        raise InputError(f"{where}: this is a pickle; {_ONLY}")


def read_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises
    ------
    InputError
        If `data` is a pickle or is corrupt.
    """
    import safetensors.torch

    refuse_pickle(data, where)
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{where}: corrupt safetensors file: {error}") from error


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a model name: letters, digits, '_', '.', '-' only")


def _folder_name(folder: str) -> str:
    """Name of a package given by its folder: `.../<name>/<version>`, else the folder's name."""
    parts = [part for part in folder.split("/") if part]
    hashed = len(parts) > 1 and re.fullmatch(r"[0-9a-f]{16}", parts[-1])
    name = parts[-2] if hashed else parts[-1]
    _check_name(name)
    return name
