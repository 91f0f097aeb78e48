"""How to open the release."""

from __future__ import annotations

from typing import Any

from surveyproc.report.sections.base import Section


class Opening(Section):
    """The lines that load the catalog with LSDB."""

    template = "opening.html"

    def values(self) -> dict[str, Any]:
        """`line`: what to type."""
        url = self.shown.current.url
        line = f"import lsdb; lsdb.open_catalog({url!r}).compute()"
        if "://" in url:
            # Told a plain `s3://` URL, hats takes the bucket for a public one.
            line = f"import lsdb, upath; lsdb.open_catalog(upath.UPath({url!r})).compute()"
        return {"line": line}
