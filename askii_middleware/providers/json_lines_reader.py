"""Streams of JSON objects, one a line, as they pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..usage import Report
from .base import StreamReader
from .fields import decode_object
from .json_lines import LineFramer


class JsonLinesReader(StreamReader):
    """Reads each line into a report. Bytes are passed on at once, as the same object.

    Subclasses read lines that add a piece of text and say nothing else in `_ordinary`, without decoding more than they
    need.
    """

    def __init__(self, absorb: Callable[[Report, Mapping[str, Any]], None]) -> None:
        self.report = Report()
        self._absorb = absorb
        self._framer = LineFramer()

    def feed(self, chunk: bytes) -> bytes:
        self._read(self._framer.push(chunk))
        return chunk

    def finish(self) -> bytes:
        self._read(self._framer.finish())
        return b""

    @property
    def unfinished(self) -> int:
        return self._framer.unfinished

    def _ordinary(self, line: bytes) -> bool:  # noqa: ARG002 - here nothing is
        """Count a line that adds text. False, and nothing counted, for any other line."""
        return False

    def _read(self, lines: list[bytes]) -> None:
        for line in lines:
            if not self._ordinary(line):
                answer = decode_object(line)
                if answer is not None:
                    self._absorb(self.report, answer)
