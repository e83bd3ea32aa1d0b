"""Server-sent events as they pass: framing by push, and the reader most streaming APIs share.

Framing follows the WHATWG rules (HTML standard, section 9.2.6): lines end in LF, CRLF or CR in any mixture, a blank
line ends an event, `data` lines of one event are joined by LF, a line that begins with a colon is a comment. An
event that the stream's end leaves without its blank line counts here, because providers do end so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from ..usage import Report
from .base import StreamReader
from .fields import DECODE_ERRORS, decode_object

MAX_EVENT_BYTES = 16_777_216
"""Events with text have a few hundred bytes. One with an image, and its usage behind that, has some megabytes."""
_MAX_EVENT_LINES = 100_000
"""Each line that is kept takes some 100 bytes more than it has."""
MAX_LESSONS = 4
_PROBE = b"0123456789abcdef"
_BOM = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Bytes that belong together: one event, or a stretch that is too long to be read as one."""

    raw: bytes
    """As received, the ending blank line included."""
    data: bytes | None
    """The event's data; None where it has none, or is not interpreted."""


class Framer:
    """Splits a stream into blocks; their `raw` parts joined are the stream. Holds one unfinished event at most, and
    of that at most `max_event_bytes`: a longer one is passed on in parts without being read.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.idle = True
        """Nothing is held back: the next byte begins an event."""
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()  # a line without its end
        self._raw: list[bytes] = []  # finished lines of the unfinished event
        self._data: list[bytes] = []
        self._size = 0
        self._passing = False  # inside an event that is too long
        self._mid_line = False  # the first bytes of the current line were passed on

    @property
    def unfinished(self) -> int:
        """Bytes of the unfinished event; 0 inside one that is too long, of which nothing is held back."""
        return 0 if self.idle or self._passing else self._size + len(self._line)

    def push(self, chunk: bytes) -> list[Block]:
        """The blocks that these bytes complete."""
        if (
            self.idle
            and chunk[-2:] == b"\n\n"
            and chunk[:1] != b"\n"
            and b"\r" not in chunk
            and b"\n\n\n" not in chunk
            and len(chunk) <= self._max_event_bytes
        ):
            return [_whole(event + b"\n\n") for event in chunk[:-2].split(b"\n\n")]
        if self._line:
            self._line += chunk
            if b"\n" not in chunk and b"\r" not in chunk and self._line[-len(chunk) - 1] != 0x0D:
                return self._overflow() if self._size + len(self._line) > self._max_event_bytes else []
            chunk = bytes(self._line)
            self._line.clear()
        blocks: list[Block] = []
        lines = chunk.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # a final CR may yet turn out to be half of a CRLF
            self._line += lines.pop()
        for line in lines:
            self._take(line, blocks)
        if self._passing or self._too_long(len(self._line)):
            blocks += self._overflow()
        self.idle = not (self._line or self._raw or self._passing)
        return blocks

    def finish(self) -> list[Block]:
        """What the end of the stream leaves."""
        blocks: list[Block] = []
        if self._line:
            line = bytes(self._line)
            self._line.clear()
            self._take(line, blocks)
        if self._raw:
            blocks.append(self._end())
        self.idle = True
        return blocks

    def _take(self, line: bytes, blocks: list[Block]) -> None:
        self._raw.append(line)
        self._size += len(line)
        content = line.rstrip(b"\r\n")
        if not content and not self._mid_line:
            blocks.append(self._end())
        elif not self._passing:
            if content.startswith(_BOM):
                content = content[3:]
            if content.startswith(b"data:"):
                self._data.append(content[6:] if content[5:6] == b" " else content[5:])
        self._mid_line = False

    def _end(self) -> Block:
        # An event that came at once is read or not as if it had come in pieces: its size alone decides.
        unread = self._passing or self._too_long(0) or not self._data
        data = None if unread else b"\n".join(self._data)
        block = Block(b"".join(self._raw), data)
        self._raw.clear()
        self._data.clear()
        self._size = 0
        self._passing = False
        return block

    def _too_long(self, line_bytes: int) -> bool:
        """Whether the finished lines of the event, with so many bytes of the next one, are too much of it."""
        return self._size + line_bytes > self._max_event_bytes or len(self._raw) > _MAX_EVENT_LINES

    def _overflow(self) -> list[Block]:
        """Pass on what is held of an event that is too long, except a final CR."""
        held = b"".join(self._raw) + self._line
        self._line.clear()
        self._raw.clear()
        self._data.clear()
        self._size = 0
        self._passing = True
        if held.endswith(b"\r"):
            self._line += b"\r"
            held = held[:-1]
        if held:
            self._mid_line = not held.endswith((b"\n", b"\r"))
        return [Block(held, None)] if held else []


def _whole(raw: bytes) -> Block:
    """One complete event whose lines end in LF."""
    if raw[:6] == b"data: " and raw.find(b"\n", 6) == len(raw) - 2:
        return Block(raw, raw[6:-2])
    lines = [line.removeprefix(_BOM) for line in raw.split(b"\n")]
    data = [line[6:] if line[5:6] == b" " else line[5:] for line in lines if line.startswith(b"data:")]
    return Block(raw, b"\n".join(data) if data else None)


class SseReader(StreamReader):
    """Reads a stream of JSON events into a report. Bytes are passed on at once, as the same object.

    Most chunks are exactly one event that adds a piece of text. Subclasses name the prefixes of such chunks and read
    their data in `_ordinary`, without framing and without decoding more than they need; that the rest of a chunk is
    one line proves that there is no second event in it. All others take the general way.

    Nearly all of these differ in nothing but the piece. What stands before and behind it is learnt from one of them,
    and of the next only the piece is read: between the same bytes, a piece without quotes, backslashes and control
    characters can mean nothing else than the one that was decoded there.
    """

    _prefixes: ClassVar[frozenset[bytes]] = frozenset()
    _max_event_bytes: ClassVar[int] = MAX_EVENT_BYTES

    def __init__(self, absorb: Callable[[Report, Mapping[str, Any]], None]) -> None:
        self.report = Report()
        self._absorb = absorb
        self._framer = Framer(self._max_event_bytes)
        self._before: bytes | None = None
        """What ordinary chunks begin with, and `_behind` what they end with; None: not learnt (yet)."""
        self._behind = b""
        self._used = False
        self._lessons = MAX_LESSONS

    def feed(self, chunk: bytes) -> bytes:
        if self._framer.idle and self._like_the_last(chunk):
            return chunk
        if chunk[-2:] == b"\n\n" and self._framer.idle:
            start = chunk.find(b"{")
            data = chunk[start:-2]
            # JSON may hold raw line ends as space, but what follows one is data only where its line says so.
            if chunk[:start] in self._prefixes and b"\n" not in data and b"\r" not in data and self._ordinary(data):
                self._learn(chunk, data)
                return chunk
        for block in self._framer.push(chunk):
            if block.data is not None and not self._ordinary(block.data):
                self._event(block.data)
        return chunk

    def finish(self) -> bytes:
        for _, data in self._framer.finish():
            if data is not None:
                self._event(data)
        return b""

    @property
    def unfinished(self) -> int:
        return self._framer.unfinished

    def _like_the_last(self, chunk: bytes) -> bool:
        """Count a chunk that differs from the one that was learnt from in its piece only. False: any other chunk."""
        before = self._before
        if before is None or not chunk.startswith(before) or not chunk.endswith(self._behind):
            return False
        piece = chunk[len(before) : -len(self._behind)]
        if b'"' in piece or b"\\" in piece or not piece.isascii():
            return False
        text = piece.decode()
        if not text or not text.isprintable():
            return False
        self._used = True
        report = self.report
        report.visible_bytes += len(text)
        report.visible_deltas += 1
        if report.text is not None:
            report.text.append(text)
        return True

    def _learn(self, chunk: bytes, data: bytes) -> None:
        """Take an ordinary chunk as the model of those to come. Where chunks never resemble the last one (some carry
        random padding), learning ends.
        """
        if not self._lessons:
            return
        if not self._used:
            self._lessons -= 1
        self._before, self._used = None, False
        piece = self._piece_of(data) if self._lessons else None
        if piece is None or not piece.isascii() or not piece:
            return
        head = len(chunk) - len(data) - 2
        at = data.find(b'"%b"' % piece.encode()) + 1
        rest = data[at + len(piece) :]
        # The same text may stand elsewhere, too: only where another one is read in its place, is it the piece.
        try:
            found = self._piece_of(data[:at] + _PROBE + rest)
        except DECODE_ERRORS:  # it was the name of a member
            return
        if at and found == _PROBE.decode():
            self._before, self._behind = chunk[: head + at], rest + b"\n\n"

    def _piece_of(self, data: bytes) -> str | None:  # noqa: ARG002 - here nothing is ordinary
        """The text of an ordinary event that adds one piece; None for every other event."""
        return None

    def _ordinary(self, data: bytes) -> bool:  # noqa: ARG002 - here nothing is
        """Count an event that adds text and says nothing else. False, and nothing counted, for any other event."""
        return False

    def _event(self, data: bytes) -> Mapping[str, Any] | None:
        if data == b"[DONE]":
            self.report.finished = True
            return None
        event = decode_object(data)
        if event is not None:
            self._absorb(self.report, event)
        return event
