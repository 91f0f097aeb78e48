"""Columns, units, UCDs and flag bits of every table we write, read from the files in schemas/."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from surveyproc.errors import ConfigError

AB_ZEROPOINT_NJY = 31.4
"""AB magnitude of 1 nJy, the unit of every flux: 2.5 log10(3631 Jy / 1 nJy)."""


def nothing(dtype: np.dtype[Any]) -> float | int | str:
    """What values of a network hold where nothing could be predicted: NaN, the smallest, or ""."""
    if dtype.kind == "f":
        return np.nan
    return int(np.iinfo(dtype).min) if dtype.kind == "i" else ""


@dataclass(frozen=True)
class Column:
    """One column of a catalog.

    Attributes
    ----------
    name : str
        Name on disk.
    dtype : str
        A numpy-like scalar type: bool, int32, int64, float32, float64, string.
    unit : str
        VOUnit string; empty if the column has none.
    ucd : str
        Unified content descriptor (IVOA UCD1+).
    description : str
        One sentence.
    length : int
        Values a row: 0 for a scalar column, n for a list of n.
    range : tuple of float or None
        Values outside (low, high) stop a release at the range gate.
    default : bool
        Whether LSDB loads the column when a reader names none.
    searched : bool
        Whether the release has an index beside the column, by which rows like another are found.
        It is a list of int8 whose Euclidean distances say how alike two rows are.
    sparse : bool
        Whether most objects may be without a value: the gate of nulls lets the column pass.
    """

    name: str
    dtype: str
    unit: str = ""
    ucd: str = ""
    description: str = ""
    length: int = 0
    range: tuple[float, float] | None = None
    default: bool = True
    searched: bool = False
    sparse: bool = False

    @property
    def missing(self) -> float | int:
        """What stands for null in arrays: NaN; in lists of signed numbers the smallest; else 0."""
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            return np.nan
        return int(np.iinfo(dtype).min) if dtype.kind == "i" and self.length else 0

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type on disk."""
        scalar = pa.type_for_alias(self.dtype)
        return pa.list_(scalar) if self.length else scalar


def _schema_file(name: str) -> str:
    packaged = files("surveyproc") / "_schemas" / f"{name}.toml"
    if packaged.is_file():
        return packaged.read_text()
    return (Path(__file__).parent.parent / "schemas" / f"{name}.toml").read_text()


@cache
def _document(name: str) -> Mapping[str, list[dict[str, object]]]:
    return tomllib.loads(_schema_file(name))


def aperture_name(radius: float) -> str:
    """How column names spell the radius of an aperture.

    Examples
    --------
    >>> aperture_name(2.0), aperture_name(0.75)
    ('2p0', '0p75')
    """
    return np.format_float_positional(radius, trim="0").replace(".", "p")


def load(
    name: str,
    *,
    bands: Iterable[str] = (),
    model: str = "",
    product: str = "",
    apertures: Sequence[float] = (),
    task: str = "",
    labels: Iterable[str] = (),
) -> tuple[Column, ...]:
    """Columns of the schema file `schemas/<name>.toml`, in file order.

    A column whose name holds `{band}` is repeated for every band (all columns of one band together
    are not required: the file's order is kept and bands vary fastest), one whose name holds
    `{aperture}` for every aperture but the first, one whose name holds `{label}` for every label;
    `{model}`, `{product}`, `{task}` and `{radius}` (of the aperture) are replaced once.

    Parameters
    ----------
    name : str
        A product (`photometry`, `photoz`) or `object` (the columns every catalog begins with).
    bands : iterable of str
        Bands that fill `{band}`.
    model : str
        Column prefix that fills `{model}`.
    product : str
        Name of the product that fills `{product}`; `name` by default.
    apertures : sequence of float
        Radii in arcsec.
    task : str
        Name of a network's task that fills `{task}`; `name` by default.
    labels : iterable of str
        Names of a task's outputs that fill `{label}`.
    """
    columns: list[Column] = []
    bands, labels = tuple(bands), tuple(labels)
    for entry in _document(name)["column"]:
        template = str(entry["name"])
        radii = apertures[1:] if "{aperture}" in template else apertures[:1] or (0.0,)
        bands_here = bands if "{band}" in template else ("",)
        labels_here = labels if "{label}" in template else ("",)
        for radius, band, label in itertools.product(radii, bands_here, labels_here):
            text = {
                key: str(entry.get(key, ""))
                .replace("{band}", band)
                .replace("{model}", model)
                .replace("{product}", product or name)
                .replace("{task}", task or name)
                .replace("{label}", label)
                .replace("{aperture}", aperture_name(radius))
                .replace("{radius}", f"{radius:g}")
                for key in ("name", "dtype", "unit", "ucd", "description")
            }
            limits = entry.get("range")
            columns.append(
                Column(
                    **text,
                    length=int(str(entry.get("length", 0))),
                    range=(float(limits[0]), float(limits[1]))
                    if isinstance(limits, list)
                    else None,
                    default=bool(entry.get("default", True)),
                    searched=bool(entry.get("searched", False)),
                    sparse=bool(entry.get("sparse", False)),
                )
            )
    return tuple(columns)


@cache
def pdf_levels() -> tuple[float, ...]:
    """Probabilities of the quantiles in the column `{model}_z_quantiles`, increasing."""
    (levels,) = [entry["levels"] for entry in _document("photoz")["column"] if "levels" in entry]
    assert isinstance(levels, list)
    return tuple(float(level) for level in levels)


def redshift_columns(names: Iterable[str]) -> list[str]:
    """The redshift of every model among the columns: its median, or its point if it has no PDF.

    Examples
    --------
    >>> redshift_columns(["a_z_point", "b_z_median", "b_z_point"])
    ['b_z_median', 'a_z_point']
    """
    known = list(names)
    medians = [name for name in known if name.endswith("_z_median")]
    points = [name for name in known if name.endswith("_z_point")]
    alone = [one for one in points if one.replace("_z_point", "_z_median") not in medians]
    return medians + alone


def flag_columns(product: str, columns: Iterable[Column]) -> list[str]:
    """The flag columns among those of a product: of the row, and of single bands."""
    own = f"{product}_flag"
    return [one.name for one in columns if one.name == own or one.name.startswith(f"{own}_")]


@cache
def flags() -> Mapping[str, int]:
    """Flag names to their bit masks (1, 2, 4, ...); the same bits serve every `<product>_flag`."""
    return {str(flag["name"]): 1 << int(str(flag["bit"])) for flag in _document("flags")["flag"]}


@cache
def flag_descriptions() -> Mapping[str, str]:
    """Flag names to one sentence each."""
    return {str(flag["name"]): str(flag["description"]) for flag in _document("flags")["flag"]}


def flag(*names: str) -> int:
    """The bits of the named flags, or-ed.

    Raises
    ------
    ConfigError
        If schemas/flags.toml declares no such flag.
    """
    bits = 0
    for name in names:
        if name not in flags():
            raise ConfigError(f"flag {name!r} is not declared in schemas/flags.toml")
        bits |= flags()[name]
    return bits


def source_name(name: str) -> str:
    """What a column of the source is called where we write one of that name ourselves."""
    return f"source_{name}"


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """Arrow schema of `columns`, every field nullable, without metadata."""
    return pa.schema([pa.field(column.name, column.arrow_type) for column in columns])
