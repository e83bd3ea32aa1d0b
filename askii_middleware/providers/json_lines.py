"""Newline-delimited JSON as it passes: framing by push.

A line ends in LF or CRLF (github.com/ndjson/ndjson-spec, jsonlines.org); the end of the stream ends the last one too.
JSON itself holds no raw line ends, so a line is exactly one value.
"""

from __future__ import annotations

MAX_LINE_BYTES = 1_048_576


class LineFramer:
    """Splits a stream into its lines. Holds one unfinished line at most, and of that at most `max_line_bytes`: a longer
    one is left out.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.left_out = 0
        """How many lines were too long."""
        self._max_line_bytes = max_line_bytes
        self._line = bytearray()
        self._passing = False  # inside a line that is too long

    @property
    def unfinished(self) -> int:
        """Bytes of the unfinished line; 0 inside one that is too long."""
        return len(self._line)

    def push(self, chunk: bytes) -> list[bytes]:
        """The lines that these bytes complete, without their ends; empty ones are left out."""
        if b"\n" not in chunk:
            self._hold(chunk)
            return []
        first, *middle, last = chunk.split(b"\n")
        self._hold(first)
        lines = self.finish() + [line for piece in middle for line in self._kept(piece)]
        self._hold(last)
        return lines

    def finish(self) -> list[bytes]:
        """The line that the end of the stream leaves."""
        lines = [] if self._passing else self._kept(bytes(self._line))
        self._line.clear()
        self._passing = False
        return lines

    def _kept(self, line: bytes) -> list[bytes]:
        line = line.removesuffix(b"\r")
        if len(line) > self._max_line_bytes:
            self.left_out += 1
            return []
        return [line] if line else []

    def _hold(self, piece: bytes) -> None:
        if self._passing or not piece:
            return
        self._line += piece
        if len(self._line) > self._max_line_bytes + 1:  # one more for the CR that may yet turn out to be an end's half
            self._line.clear()
            self._passing = True
            self.left_out += 1
