"""Streams whose events are larger than memory should hold, such as images in base64 with their usage behind them: of
each event only a few top-level members are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..usage import Report
from .base import StreamReader
from .fields import decode_json
from .jsonscan import TopLevelScanner

_BOM = b"\xef\xbb\xbf"
_DATA = b"data:"


class LargeEventReader(StreamReader):
    """Reads server-sent events of any size. Lines end and events are framed as in `sse`; bytes pass on at once, as the
    same object.
    """

    def __init__(self, absorb: Callable[[Report, Mapping[str, Any]], None], members: frozenset[str]) -> None:
        self.report = Report()
        self._absorb = absorb
        self._members = members
        self._scanner: TopLevelScanner | None = None
        """Reads the data of the current event, once it has any."""
        self._start = b""
        """The first bytes of the current line, until they show what it is."""
        self._in_data: bool | None = None
        """What the current line is: data or something else; None: not known yet."""
        self._after_cr = False

    def feed(self, chunk: bytes) -> bytes:
        data = chunk[1:] if self._after_cr and chunk[:1] == b"\n" else chunk
        if chunk:
            self._after_cr = chunk[-1:] == b"\r"
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        for index, piece in enumerate(data.split(b"\n")):
            if index:
                self._end_line()
            if piece:
                self._take(piece)
        return chunk

    def finish(self) -> bytes:
        self._end_line()
        self._end_event()
        return b""

    def _take(self, piece: bytes) -> None:
        if self._in_data is None:
            start = (self._start + piece).removeprefix(_BOM)
            if len(start) < len(_DATA):
                self._start += piece
                return
            self._start = b""
            self._in_data = start.startswith(_DATA)
            piece = start[len(_DATA) :]
        if self._in_data:
            if self._scanner is None:
                self._scanner = TopLevelScanner(self._members)
            self._scanner.push(piece)

    def _end_line(self) -> None:
        if self._in_data is None and not self._start:
            self._end_event()
        elif self._in_data and self._scanner is not None:
            self._scanner.push(b"\n")
        self._start = b""
        self._in_data = None

    def _end_event(self) -> None:
        scanner, self._scanner = self._scanner, None
        answer: dict[str, Any] = {}
        if scanner is None or not scanner.closed:
            return
        for member in scanner.members:
            try:
                answer[member.key] = decode_json(member.value)
            except (ValueError, RecursionError):
                continue  # no count looks like this; the call is then estimated
        if answer:
            self._absorb(self.report, answer)
