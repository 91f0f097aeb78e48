"""Every example in a docstring of the package says what happens."""

import doctest
import importlib
from pathlib import Path

import pytest

import surveyproc

PACKAGE = Path(surveyproc.__file__).parent

# Found by their text: to import all modules takes seconds, and a selection of tests would pay them.
EXAMPLES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): (
        text.count(">>> ")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in (text := path.read_text())
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_hold(name):
    found = doctest.testmod(importlib.import_module(name))
    # An example that the finder does not reach would pass for ever.
    assert (found.failed, found.attempted) == (0, EXAMPLES[name])
