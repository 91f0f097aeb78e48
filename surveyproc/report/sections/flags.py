"""The flags of every product, and of single bands."""

from __future__ import annotations

from typing import Any

from surveyproc import schemas
from surveyproc.report.sections.base import Section


class Flags(Section):
    """How many objects have each flag of each product."""

    template = "flags.html"

    def values(self) -> dict[str, Any]:
        """`rows`: product, flag, meaning, number and share of objects."""
        current = self.shown.current
        meanings = schemas.flag_descriptions()
        rows = [
            {
                "product": product,
                "flag": name,
                "meaning": meanings[name],
                "objects": count,
                "share": count / max(current.rows, 1),
            }
            for product, counts in current.flags.items()
            for name, count in counts.items()
            if name != "any"
        ]
        return {"rows": rows}


class BandFlags(Section):
    """How many objects have each flag of each flag column of a band."""

    template = "band_flags.html"

    def values(self) -> dict[str, Any]:
        """`found`: the flags that occur; `columns`: column to objects with any and each of them."""
        columns = self.shown.current.band_flags
        counts = columns.values()
        found = [name for name in schemas.flags() if any(name in one for one in counts)]
        table = {
            column: [one.get(name, 0) for name in ("any", *found)]
            for column, one in columns.items()
        }
        return {"found": found, "columns": table}
