"""Answers of Gemini as they pass: events, one JSON array, or one object that is too large to collect.

`streamGenerateContent` answers with server-sent events (CRLF) where `alt=sse` asks for them, else with one JSON array
whose elements are the same chunks. Which of the two came is told by the first byte. Every chunk has a
`usageMetadata`; the counters start again with each round of tools that the server runs, and only the last one stands
for the whole, so each replaces the one before.
Source: recorded streams of AI Studio and Vertex, google-genai SDK 3.4 (`_api_client.py`) (2026-11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from ..usage import Report
from .base import StreamReader
from .fields import decode_json, decode_object
from .json_array import ArrayFramer
from .json_paths import EACH, Path, PathScanner
from .sse import SseReader

Absorb = Callable[[Report, Mapping[str, Any]], None]
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
MAX_FOUND = 10_000


class PathsReader(StreamReader):
    """Picks a few values out of a JSON object as it passes, however deep they are, and absorbs at its end an object
    that has nothing else.
    """

    def __init__(self, absorb: Absorb, paths: Iterable[Path]) -> None:
        self.report = Report()
        self._absorb = absorb
        self._scanner = PathScanner(paths)
        self._answer: dict[str, Any] = {}
        self._count = 0
        self._element = 0

    def feed(self, chunk: bytes) -> bytes:
        self._scanner.push(chunk)
        found, self._scanner.found = self._scanner.found, []
        for path, data, element in found[: MAX_FOUND - self._count]:
            self._count += 1
            try:
                value = decode_json(data)
            except (ValueError, RecursionError):
                continue  # no answer's own counts look like this; the call is then estimated
            fresh = EACH in path and element != self._element
            _put(self._answer, path, value, fresh=fresh)
            if fresh:
                self._element = element
        return chunk

    def finish(self) -> bytes:
        self._absorb(self.report, self._answer)
        self.report.finished = self._scanner.closed
        return b""


def _put(answer: dict[str, Any], path: Path, value: object, *, fresh: bool) -> None:
    """Set a value in an object; `fresh` if it is the first one of its array's element."""
    for step, after in pairwise(path):
        if after == EACH:
            elements = answer.setdefault(step, [])
            if fresh or not elements:
                elements.append({})
            answer = elements[-1]
        elif step != EACH:
            answer = answer.setdefault(step, {})
    answer[path[-1]] = value


class ArrayReader(StreamReader):
    """A stream that is one JSON array of chunks."""

    def __init__(self, absorb: Absorb) -> None:
        self.report = Report()
        self._absorb = absorb
        self._framer = ArrayFramer()

    def feed(self, chunk: bytes) -> bytes:
        for element in self._framer.push(chunk):
            answer = decode_object(element)
            if answer is not None:
                self._absorb(self.report, answer)
        return chunk

    def finish(self) -> bytes:
        self.report.finished = self.report.finished or self._framer.closed
        return b""

    @property
    def unfinished(self) -> int:
        return self._framer.unfinished

    def closing(self, event: bytes) -> bytes:
        return self._framer.separator + event.removeprefix(b"data: ").rstrip() + b"]"


class GeminiStreamReader(StreamReader):
    """A stream in whichever form it comes; space before it tells nothing."""

    def __init__(self, absorb: Absorb, paths: Iterable[Path]) -> None:
        self.report = Report()
        self._absorb = absorb
        self._paths = paths
        self._reader: StreamReader | None = None

    def feed(self, chunk: bytes) -> bytes:
        if self._reader is not None:
            return self._reader.feed(chunk)
        text = chunk.lstrip(_BOM + _SPACE)
        if text:
            if text[:1] == b"[":
                self._reader = ArrayReader(self._absorb)
            elif text[:1] == b"{":
                self._reader = PathsReader(self._absorb, self._paths)
            else:
                self._reader = SseReader(self._absorb)
            self._reader.report = self.report
            self._reader.feed(text)
        return chunk

    def finish(self) -> bytes:
        if self._reader is not None:
            self._reader.finish()
        return b""

    @property
    def unfinished(self) -> int:
        return 0 if self._reader is None else self._reader.unfinished

    def closing(self, event: bytes) -> bytes:
        return event if self._reader is None else self._reader.closing(event)
