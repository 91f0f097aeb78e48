"""VOParquet 1.0: a VOTable without data in a Parquet footer gives units, UCDs and descriptions."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape, quoteattr

import pyarrow as pa

from surveyproc.schemas import Column

VERSION_KEY = b"IVOA.VOTable-Parquet.version"
CONTENT_KEY = b"IVOA.VOTable-Parquet.content"

# VOTable has no signed bytes and no unsigned numbers but the byte: the next wider type stands for
# them. Dates and times become text.
_DATATYPES = {
    "bool": "boolean",
    "uint8": "unsignedByte",
    "int8": "short",
    "int16": "short",
    "uint16": "int",
    "int32": "int",
    "uint32": "long",
    "int64": "long",
    "uint64": "long",
    "float32": "float",
    "float64": "double",
    "float": "float",
    "double": "double",
    "binary": "unsignedByte",
}


def footer(
    columns: Iterable[Column], longest: Mapping[str, int] | None = None
) -> dict[bytes, bytes]:
    """Key-value metadata of a Parquet footer that describes `columns`.

    `longest` names the length of the longest text in a column, where it is known: astropy reads
    text without a bound as objects, which it cannot join with the file's text.

    Written by hand and not by astropy, whose documents name its version: the same columns must
    give the same bytes.

    Examples
    --------
    >>> text = footer([Column("ra", "float64", unit="deg")])[CONTENT_KEY].decode()
    >>> '<FIELD ID="ra" name="ra" datatype="double" unit="deg"/>' in text
    True
    """
    known = longest or {}
    fields = "\n".join(_field(column, known.get(column.name)) for column in columns)
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">\n'
        f"<RESOURCE>\n<TABLE>\n{fields}\n</TABLE>\n</RESOURCE>\n</VOTABLE>\n"
    )
    return {VERSION_KEY: b"1.0", CONTENT_KEY: text.encode()}


def _field(column: Column, longest: int | None) -> str:
    datatype = _DATATYPES.get(column.dtype, "char")
    size = "*" if datatype == "char" or column.dtype == "binary" or column.length else ""
    if datatype == "char" and not column.length and longest is not None:
        size = f"{max(longest, 1)}*"
    attributes = {
        # astropy names columns by ID, and makes one up that differs where there is none.
        "ID": column.name if re.fullmatch(r"[A-Za-z_][\w.\-]*", column.name, re.ASCII) else "",
        "name": column.name,
        "datatype": datatype,
        "arraysize": size,
        "unit": column.unit,
        "ucd": column.ucd,
    }
    text = " ".join(f"{key}={quoteattr(value)}" for key, value in attributes.items() if value)
    if not column.description:
        return f"<FIELD {text}/>"
    return f"<FIELD {text}><DESCRIPTION>{escape(column.description)}</DESCRIPTION></FIELD>"


def field_metadata(document: bytes) -> dict[str, dict[str, str]]:
    """Unit, UCD and description of every FIELD by name; empty if `document` is not XML."""
    found: dict[str, dict[str, str]] = {}
    try:
        root = ET.fromstring(document)
    except ET.ParseError:
        return found
    for element in root.iter():
        if element.tag.rpartition("}")[2] != "FIELD":
            continue
        texts = [child.text for child in element if child.tag.endswith("DESCRIPTION")]
        found[element.get("name", "")] = {
            "unit": element.get("unit", ""),
            "ucd": element.get("ucd", ""),
            "description": (texts[0] or "").strip() if texts else "",
        }
    return found


def column_of(entry: pa.Field) -> Column:
    """A reader's field as a `Column`; a list of no fixed length gets length -1.

    Raises
    ------
    TypeError
        If the type has no name that Arrow understands (nested types).
    """
    dtype, length = entry.type, 0
    if isinstance(dtype, pa.FixedSizeListType):
        dtype, length = dtype.value_type, dtype.list_size
    elif isinstance(dtype, pa.ListType):
        dtype, length = dtype.value_type, -1
    name = {"float": "float32", "double": "float64"}.get(str(dtype), str(dtype))
    try:
        pa.type_for_alias(name)
    except ValueError as error:
        raise TypeError(f"{entry.name!r} is {entry.type}, which cannot be stored") from error
    metadata = {key.decode(): value.decode() for key, value in (entry.metadata or {}).items()}
    return Column(
        entry.name,
        name,
        unit=metadata.get("unit", ""),
        ucd=metadata.get("ucd", ""),
        description=metadata.get("description", ""),
        length=length,
    )
