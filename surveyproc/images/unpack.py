"""Tile-compressed planes: CFITSIO unpacks them, in a process that may die of it.

The other side imports little, so that it is there in a sixth of a second.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import fitsio
from fitsio.hdu import ImageHDU

from surveyproc.child import Talk
from surveyproc.errors import DiedError, StoreError


class Unpacker:
    """Pixels of compressed images, of any number of files, by one process.

    It is started when it is first needed. The files stay open until `close`.
    """

    def __init__(self) -> None:
        self._talk: Talk | None = None

    def sizes(self, path: str, hdu: int, where: str) -> tuple[int, ...]:
        """Lengths of the axes as CFITSIO sees them, numpy's order; empty if it is no image.

        Raises
        ------
        OSError, ValueError
            What fitsio raises.
        StoreError
            If its process dies; the message has `where`.
        """
        found: tuple[int, ...] = self._ask(where, path, hdu, None)
        return found

    def pixels(self, path: str, hdu: int, window: tuple[slice, ...], where: str) -> Any:
        """A part of an image, a slice for each axis; raises what `sizes` does."""
        return self._ask(where, path, hdu, window)

    def _ask(self, where: str, *request: Any) -> Any:
        try:
            if self._talk is None:
                self._talk = Talk(_unpack, request)
            else:
                self._talk.say(request)
            answer = self._talk.hear(where)
        except DiedError as error:
            self.close()
            # It may have been memory, so the tile is tried again when the command is.
            raise StoreError(str(error)) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Close the files."""
        if self._talk is not None:
            self._talk.close()
            self._talk = None


def _unpack(request: Any) -> Generator[Any, Any, None]:
    """The other side of `Unpacker`: what is asked for, or the error that fitsio raised."""
    hdus: dict[tuple[str, int], Any] = {}
    while True:
        path, number, window = request
        try:
            if (path, number) not in hdus:
                # CFITSIO takes brackets and `+1` at the end of a name for instructions, and fitsio
                # puts the environment's variables into it.
                with open(path, "rb") as stream:
                    hdus[path, number] = fitsio.FITS(f"/dev/fd/{stream.fileno()}")[number]
            hdu = hdus[path, number]
            if window is not None:
                answer = hdu[window]
            else:
                answer = tuple(hdu.get_dims())[::-1] if isinstance(hdu, ImageHDU) else ()
        except (OSError, ValueError) as error:
            answer = error
        request = yield answer
