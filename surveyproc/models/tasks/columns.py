"""Columns and pixels of tasks, from a package's description of them. Needs no torch.

A plan must know the columns of a release, and imports no network. So model.json lists the tasks
(`Task.describe`), and what their columns depend on; a kind that is not known here lists its columns
itself: `columns`, fields of `schemas.Column`, in whose names `{model}` stands for the model's
prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from surveyproc import schemas
from surveyproc.errors import InputError
from surveyproc.schemas import Column

Pixels = tuple[str, tuple[int, ...], str]
"""Name, shape of an object's array, and dtype of what is no column."""


def column_name(text: str) -> str:
    """Any text as part of a column's name.

    Examples
    --------
    >>> column_name("Type Ia"), column_name("E/S0")
    ('Type_Ia', 'E_S0')
    """
    return re.sub(r"[^A-Za-z0-9_]", "_", text)


def task_columns(task: Mapping[str, Any], prefix: str) -> tuple[Column, ...]:
    """Columns of one task of a package.

    Parameters
    ----------
    task : mapping
        Its entry in model.json.
    prefix : str
        That of the model's columns.

    Raises
    ------
    InputError
        If the kind is unknown and the entry lists no columns, or it is damaged.
    """
    kind, name = str(task.get("kind")), str(task.get("name"))
    try:
        if "columns" in task:
            return tuple(_explicit(one, prefix) for one in task["columns"])
        if kind == "redshift":
            every = schemas.load("photoz", model=prefix, product="")[:-1]
            return every if task["pdf"] else every[:1]
        if kind == "classes":
            labels = [column_name(one) for one in task["classes"]]
            return schemas.load("classes", model=prefix, task=name, labels=labels)
        if kind == "redshift_by_class":
            labels = [column_name(one) for one in task["classes"]]
            return schemas.load("photoz_by_class", model=prefix, labels=labels)
        if kind in ("votes", "fluxes"):
            found = schemas.load(kind, model=prefix, task=name, labels=task["names"])
            more = schemas.load("fluxes_apart", model=prefix) if task.get("apart") else ()
            return (*found, *more)
        if kind == "embedding":
            (one,) = schemas.load("embedding", model=prefix, task=name)
            told = f"{one.description} The vector has {int(task['vector'])} numbers."
            dtype, length = str(task.get("dtype", one.dtype)), int(task["length"])
            return (replace(one, dtype=dtype, length=length, description=told),)
        if kind == "masks":
            return ()
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"outputs.tasks: task {name!r}: {error!r}") from error
    raise InputError(f"outputs.tasks: task {name!r} is of kind {kind!r} and lists no columns")


def task_pixels(tasks: Iterable[Mapping[str, Any]], prefix: str) -> tuple[Pixels, ...]:
    """Arrays that the tasks of a package give beside columns."""
    return tuple(
        (f"{prefix}_{task['name']}", (len(task["names"]), *task["shape"]), "float32")
        for task in tasks
        if task["kind"] == "masks"
    )


def _explicit(document: Mapping[str, Any], prefix: str) -> Column:
    limits = document.get("range")
    made = Column(**{**document, "range": None if limits is None else (limits[0], limits[1])})
    return replace(made, name=made.name.replace("{model}", prefix))
