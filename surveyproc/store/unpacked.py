"""Temporary files with what packed files hold."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from surveyproc.errors import StoreError

RESERVE = 1 << 30
"""Bytes that stay free on the disk of the temporary folder."""
LOOK_EVERY = 64 << 20


def write_unpacked(pieces: Iterable[bytes], held: IO[bytes], url: str) -> None:
    """Write pieces to a temporary file as long as its disk has room for others.

    A packed file may be a thousand times smaller than what it holds.

    Parameters
    ----------
    pieces : iterable of bytes
        What is unpacked.
    held : binary stream
        The temporary file; it has a name.
    url : str
        Of the packed file, for the message.

    Raises
    ------
    StoreError
        If less than `RESERVE` would be left.
    """
    folder, written, looked = Path(held.name).parent, 0, 0
    for piece in pieces:
        if not written or written - looked >= LOOK_EVERY:
            looked = written
            if shutil.disk_usage(folder).free < RESERVE + LOOK_EVERY:
                raise StoreError(
                    f"{url}: {folder} has less than {RESERVE >> 30} GB left after "
                    f"{written / 1e9:.2f} GB of it were unpacked; make room there, or set TMPDIR "
                    "to a folder of a larger disk"
                )
        held.write(piece)
        written += len(piece)
