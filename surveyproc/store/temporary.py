"""A folder for what libraries can only read from a file, or write to one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surveyproc.errors import store_error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of the local disk that is gone after the block.

    Raises
    ------
    StoreError
        If it cannot be made, or not be written to.
    """
    try:
        with tempfile.TemporaryDirectory(
            prefix="surveyproc-", ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)
    except OSError as error:
        raise store_error(error, "a temporary file (set TMPDIR to a folder with room)") from error
