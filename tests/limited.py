"""What others wrote, read with a limit of memory, in a process that the tests talk with."""

import gc
import resource
from pathlib import Path

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.errors import SurveyError
from surveyproc.images.stamps import decode_stamp
from surveyproc.models.package import load_package, read_tensors
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.verbs import evaluation

MORE = 1 << 30
"""Bytes beyond those that the process has taken already."""


def read(kind, path):
    """Yields what was said of the file."""
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_taken() + MORE, before[1]))
    try:
        said = KINDS[kind](Path(path))
    except SurveyError as error:
        said = f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    yield said


def _taken():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))


def _ingest(path):
    done = verbs.ingest(Survey(load(path)))
    return "\n".join([*done.tiles.problems, f"{done.tiles.written} tiles", *done.catalog.notes])


def _foreign(path):
    found = evaluation.find_catalog(Survey(load(path.parent / "survey.toml")), str(path))
    evaluation.hats.position_columns(found.store, found.key)
    return ", ".join(evaluation.column_names(found))


KINDS = {
    "ingest": _ingest,
    "foreign": _foreign,
    "stamp": lambda path: str(decode_stamp(path.read_bytes(), path.name).shape),
    "survey": lambda path: str(load(path).survey),
    "model": lambda path: load_package(Store(str(path.parent)), str(path)).version,
    "tensors": lambda path: ", ".join(read_tensors(path.read_bytes(), path.name)),
}
