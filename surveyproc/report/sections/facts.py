"""The release in numbers."""

from __future__ import annotations

from typing import Any

from surveyproc.report.sections.base import Section


class Facts(Section):
    """Objects, partitions, speed, what was rejected, and the flagged share of each product."""

    template = "facts.html"

    def values(self) -> dict[str, Any]:
        """`current`, and `flagged`: product to the share of objects with any flag."""
        current = self.shown.current
        rows = max(current.rows, 1)
        flagged = {product: counts["any"] / rows for product, counts in current.flags.items()}
        return {"current": current, "flagged": flagged}
