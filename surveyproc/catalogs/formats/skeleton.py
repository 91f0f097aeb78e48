"""A VOTable without its data: which tables there are, and what a service says of its answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO
from xml.parsers import expat

from surveyproc.catalogs.formats.base import damaged
from surveyproc.errors import InputError

CHUNK_BYTES = 1 << 20
# Of all that is not data.
MARKUP_LIMIT = 16 << 20
_DATA = ("TABLEDATA", "BINARY", "BINARY2", "FITS", "PARQUET")


@dataclass
class Part:
    """One TABLE of a document.

    Attributes
    ----------
    name, identifier : str
        Its name and ID; empty if it has none.
    columns : list of str
        Names of its FIELDs.
    serialization : str
        TABLEDATA, BINARY, BINARY2, FITS, PARQUET; empty if it has no data.
    span : tuple of int
        Where in the markup (`Skeleton.markup`) it begins, and where its data would.
    footer : bytes
        The closing tags of what is open there.
    closing : bytes
        The tag that ends the data; empty if they are (`<TABLEDATA/>`).
    start : int
        Byte of the document at which the data begin.
    """

    name: str
    identifier: str
    columns: list[str] = field(default_factory=list)
    serialization: str = ""
    span: tuple[int, int] = (0, 0)
    footer: bytes = b""
    closing: bytes = b""
    start: int = 0


class Skeleton:
    """Reads a document, all but the data of its tables, which are passed over as bytes.

    Attributes
    ----------
    parts : list of Part
        Its tables in order.
    status : dict of str to str
        What INFO elements called QUERY_STATUS say, by their value, with their text: OK, OVERFLOW,
        ERROR. A service may say one of the latter two behind the rows.

    Raises
    ------
    expat.ExpatError
        If it is not XML, or ends too soon.
    InputError
        If what is not data is longer than 16 MiB, or a table's data end too soon.
    """

    def __init__(self, stream: IO[bytes], url: str) -> None:
        self._url = url
        self.parts: list[Part] = []
        self.status: dict[str, str] = {}
        self._open: list[str] = []
        # All that is not data, and where in it tables begin and end.
        self._markup = bytearray()
        self._tables: list[tuple[int, int]] = []
        self._skip = False
        self._saying: str | None = None
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        if hasattr(self._parser, "SetReparseDeferralEnabled"):
            # A tag must be told when it is read: what follows it is passed over.
            self._parser.SetReparseDeferralEnabled(False)
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._read(stream)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._open.append(tag)
        local = tag.rpartition(":")[2]
        if local == "TABLE":
            begin = self._parser.CurrentByteIndex
            part = Part(attributes.get("name", ""), attributes.get("ID", ""), span=(begin, begin))
            self.parts.append(part)
        elif local == "FIELD" and self.parts:
            self.parts[-1].columns.append(attributes.get("name") or attributes.get("ID", ""))
        elif local == "INFO" and attributes.get("name", "").upper() == "QUERY_STATUS":
            self._saying = attributes.get("value", "").upper()
            self.status[self._saying] = ""
        elif local in _DATA and self.parts and not self.parts[-1].serialization:
            part = self.parts[-1]
            part.serialization = local
            part.span = (part.span[0], self._parser.CurrentByteIndex)
            # What is binary cannot be cut: without its element the table has no data.
            part.footer = _closing(self._open if local == "TABLEDATA" else self._open[:-1])
            part.closing = f"</{tag}".encode()
            self._skip = True

    def _end(self, tag: str) -> None:
        self._open.pop()
        local = tag.rpartition(":")[2]
        if local == "TABLE":
            part, end = self.parts[-1], self._parser.CurrentByteIndex
            self._tables.append((part.span[0], self._markup.index(b">", end) + 1))
            if not part.serialization:
                part.span = (part.span[0], end)
                part.footer = _closing([*self._open, tag])
        elif local == "INFO":
            self._saying = None

    def _text(self, text: str) -> None:
        if self._saying is not None:
            self.status[self._saying] += text

    def _read(self, stream: IO[bytes]) -> None:
        tags = _Tags(stream, self._url)
        for piece in tags:
            self._markup += piece
            if len(self._markup) > MARKUP_LIMIT:
                raise InputError(
                    f"{self._url}: what is not data in it is longer than 16 MiB; is it a VOTable?"
                )
            self._parser.Parse(piece, False)
            if self._skip:
                self._skip = False
                part = self.parts[-1]
                part.start = tags.place
                if piece.endswith(b"/>"):
                    part.closing = b""
                else:
                    tags.skip_to(part.closing)
        self._parser.Parse(b"", True)

    def header(self, part: Part) -> bytes:
        """The document from its beginning to the data of `part`, without the tables before it."""
        begin, end = part.span
        kept, place = b"", 0
        for first, last in self._tables:
            if last > begin:
                break
            kept += self._markup[place:first]
            place = last
        opening = b"<TABLEDATA>"
        if part.closing:
            opening = part.closing.replace(b"</", b"<") + b">"
        data = opening if part.serialization == "TABLEDATA" else b""
        return bytes(kept + self._markup[place:end]) + data


def _closing(tags: list[str]) -> bytes:
    return b"".join(f"</{tag}>".encode() for tag in reversed(tags))


class _Tags:
    """A document in pieces that end with a tag, and the way past what is between two tags."""

    def __init__(self, stream: IO[bytes], url: str) -> None:
        self._stream, self._url, self._held, self.place = stream, url, b"", 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            end = _data_tag_end(self._held)
            if end < 0:
                more = self._stream.read(CHUNK_BYTES // 16)
                if not more:
                    if self._held:
                        yield self._take(len(self._held))
                    return
                self._held += more
                if len(self._held) > MARKUP_LIMIT:
                    yield self._take(len(self._held))
                continue
            yield self._take(end)

    def _take(self, count: int) -> bytes:
        taken, self._held = self._held[:count], self._held[count:]
        self.place += count
        return taken

    def skip_to(self, closing: bytes) -> None:
        """Pass over everything before `closing`.

        Raises
        ------
        InputError
            If it never comes.
        """
        while (at := self._held.find(closing)) < 0:
            keep = min(len(self._held), len(closing) - 1)
            self._take(len(self._held) - keep)
            more = self._stream.read(CHUNK_BYTES)
            if not more:
                raise damaged(self._url, "it ends before its table does")
            self._held += more
        self._take(at)


_DATA_TAG = re.compile(
    rb"<(?:[\w.\-]+:)?(?:TABLEDATA|BINARY2?|FITS|PARQUET)(?:\s[^<>]*)?/?>", re.ASCII
)


def _data_tag_end(held: bytes) -> int:
    """Where the first tag that opens a table's data ends; -1 if none is whole."""
    match = _DATA_TAG.search(held)
    return match.end() if match else -1
