"""The first lines of a table of text: comments, delimiter, names; and a stream without them."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import IO, Any

from surveyproc.errors import InputError

BOM = b"\xef\xbb\xbf"
# No line is longer, and of the first ones no more are looked at.
HEAD_BYTES = 4 << 20
HEAD_LINES = 50
_DELIMITERS = ",\t;|"
_BLANKS = re.compile(rb"[ \t]+")
_COMMENT_LINES = re.compile(rb"^#[^\n]*(?:\n|\Z)", re.MULTILINE)
_OUTER_BLANKS = re.compile(rb"^[ \t]+|[ \t]+(?=\r?$)", re.MULTILINE)


@dataclass(frozen=True)
class TextHead:
    """How a table of text begins.

    Attributes
    ----------
    names : list of str
        Names of the columns, without blanks around them.
    delimiter : str
        Of fields; a blank stands for any number of blanks and tabs.
    start : int
        Byte at which the rows begin.
    """

    names: list[str]
    delimiter: str
    start: int


def text_head(stream: IO[bytes], url: str) -> TextHead:
    """The line of names and the delimiter of a table of text.

    Lines that begin with # before the names are comments, except one that has the names of columns
    whose first row follows. The delimiter is the one of comma, tab, semicolon and bar that cuts
    the names and the first rows into equally many fields, else blanks if these do.

    Raises
    ------
    InputError
        If there is no line of names, or two delimiters would do.
    """
    read = stream.read(HEAD_BYTES)
    whole = len(read) < HEAD_BYTES
    place = len(BOM) if read.startswith(BOM) else 0
    lines: list[str] = []
    starts: list[int] = []
    while place < len(read) and len(lines) < HEAD_LINES:
        end = read.find(b"\n", place)
        if end < 0 and not whole:
            break
        end = len(read) if end < 0 else end + 1
        starts.append(place)
        lines.append(read[place:end].decode("utf-8", "replace").rstrip("\r\n"))
        place = end
    starts.append(place)
    first = next((i for i, line in enumerate(lines) if line.strip() and line[0] != "#"), None)
    comments = [i for i, line in enumerate(lines[:first]) if line.startswith("#")]
    if first is None and not comments:
        raise InputError(f"{url}: no line of column names in its first {len(read)} bytes")
    rows = [] if first is None else [x for x in lines[first:] if x.strip() and x[0] != "#"]
    # A commented line of names: what follows it is a row already.
    if comments and (not rows or any(_is_number(x) for x in _fields(rows[0], _cut(rows, url)))):
        names = lines[comments[-1]].lstrip("#").strip()
        delimiter = _cut([names, *rows], url)
        found = _fields(names, delimiter)
        if not rows or len(found) == len(_fields(rows[0], delimiter)):
            return TextHead(found, delimiter, starts[comments[-1] + 1])
    assert first is not None
    delimiter = _cut(rows, url)
    found = _fields(rows[0], delimiter)
    if all(_is_number(name) for name in found):
        raise InputError(
            f"{url}: no line of column names: the first line is {lines[first][:80]!r}; put one "
            "before it"
        )
    return TextHead(found, delimiter, starts[first + 1])


def _cut(lines: list[str], url: str) -> str:
    """The delimiter of a line of names and some rows; a comma where there is one column."""
    lines = lines[: HEAD_LINES // 2]
    present = [mark for mark in _DELIMITERS if len(_fields(lines[0], mark)) > 1]
    fitting = [mark for mark in present if len({len(_fields(x, mark)) for x in lines}) == 1]
    if len(fitting) > 1:
        raise InputError(
            f"{url}: its fields may be separated by {fitting[0]!r} or by {fitting[1]!r}; write it "
            "with commas"
        )
    if fitting or present:
        # Rows that do not fit are for the parser to name.
        return (fitting or present)[0]
    counts = {len(line.split()) for line in lines}
    blanks = len(counts) == 1 and counts != {1} and not any('"' in line for line in lines)
    return " " if blanks else ","


def _fields(line: str, delimiter: str) -> list[str]:
    if delimiter == " ":
        return line.split()
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return [line]  # a field longer than any has: the delimiter is another one


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Lines(io.RawIOBase):
    """The lines of a stream without those that begin with #, or with single blanks, or both."""

    def __init__(self, stream: IO[bytes], *, comments: bool, blanks: bool) -> None:
        self._stream, self._comments, self._blanks = stream, comments, blanks
        self._ready, self._rest = b"", b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what is left, as far as it goes."""
        while not self._ready:
            read = self._stream.read(1 << 20)
            lines, newline, rest = (self._rest + read).rpartition(b"\n")
            self._rest = rest
            if len(rest) > HEAD_BYTES:
                raise OSError(f"a line has more than {HEAD_BYTES >> 20} MB")
            if not read:
                lines, newline, self._rest = lines + newline + rest, b"", b""
                if not lines:
                    return 0
            self._ready = self._changed(lines + newline)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _changed(self, lines: bytes) -> bytes:
        if self._comments and (lines.startswith(b"#") or b"\n#" in lines):
            lines = _COMMENT_LINES.sub(b"", lines)
        if self._blanks:
            lines = _BLANKS.sub(b" ", _OUTER_BLANKS.sub(b"", lines))
        return lines

    def close(self) -> None:
        """Close the stream too."""
        self._stream.close()
        super().close()
