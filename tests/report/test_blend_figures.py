"""The completeness of blends, drawn by separation."""

import numpy as np

from surveyproc.evaluate.blends import found_blends
from surveyproc.report.blend_figures import draw_completeness
from surveyproc.report.sections.known_blends import BINS, _edges


def test_every_blend_is_in_a_bin_and_empty_bins_are_not_drawn():
    random = np.random.default_rng(0)
    blended = np.arange(300) % 2 == 0
    apart = np.where(blended, random.uniform(0.5, 4, 300), np.inf)
    p = random.uniform(0, 1, 300)
    edges = _edges(apart[blended])
    found = found_blends(p, blended, apart, edges)
    assert [row["n"] for row in found["by_separation"]] == [150 // BINS] * BINS
    drawn = draw_completeness(found, "radii")
    assert drawn == draw_completeness(found_blends(p, blended, apart, [*edges, 9.0]), "radii")
    assert drawn != draw_completeness(found_blends(p, blended))


def test_bins_of_few_separations():
    assert _edges(np.array([])) == []
    edges = _edges(np.array([2.0, 2.0]))
    assert edges[0] == 2.0 < edges[-1]
