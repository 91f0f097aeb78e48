"""Results as JSON documents: what `--json` prints, and the records that lie in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

SUM = "record_sha256"
"""Key of a record's checksum."""


def document(value: Any) -> Any:
    """`value` with every dataclass in it as a dict, as JSON wants it.

    Left out are fields that are None by default, and are None: there is nothing to tell of them.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Found:
    ...     rows: int | None
    ...     why: str | None = None
    >>> document([Found(1, "many"), Found(None)])
    [{'rows': 1, 'why': 'many'}, {'rows': None}]
    """
    if is_dataclass(value) and not isinstance(value, type):
        held = [(one, getattr(value, one.name)) for one in fields(value)]
        return {
            one.name: document(found)
            for one, found in held
            if found is not None or one.default is not None
        }
    if isinstance(value, Mapping):
        return {key: document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [document(item) for item in value]
    return value


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its checksum in it.

    Examples
    --------
    >>> unsealed(sealed({"rows": 3}))
    {'rows': 3}
    """
    return {**value, SUM: _checksum(value)}


def unsealed(found: Any) -> Any:
    """What was sealed; anything else as it is.

    Raises
    ------
    ValueError
        If the checksum is another.
    """
    if not isinstance(found, dict) or SUM not in found:
        return found
    value = {key: item for key, item in found.items() if key != SUM}
    if found[SUM] != _checksum(value):
        raise ValueError("its checksum differs")
    return value


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
