"""Reading plain JSON answers: whole ones, and ones that are too large to collect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..usage import Report
from .base import StreamReader
from .fields import decode_json, decode_members, decode_object
from .jsonscan import TopLevelScanner

Absorb = Callable[[Report, Mapping[str, Any]], None]


class BodyReader(StreamReader):
    """Picks the few top-level members that matter out of a JSON answer as it passes. Holds these, each of bounded
    length, so memory does not grow with the answer.
    """

    def __init__(self, absorb: Absorb, members: frozenset[str]) -> None:
        self.report = Report()
        self._absorb = absorb
        self._scanner = TopLevelScanner(members)
        self._answer: dict[str, Any] = {}

    def feed(self, chunk: bytes) -> bytes:
        self._scanner.push(chunk)
        if self._scanner.members:
            self._read()
        return chunk

    def finish(self) -> bytes:
        self.report.finished = self._scanner.closed
        return b""

    def _read(self) -> None:
        found, self._scanner.members = self._scanner.members, []
        for member in found:
            try:
                self._answer[member.key] = decode_json(member.value)
            except (ValueError, RecursionError):
                continue  # no answer's own counts look like this; the call is then estimated
        self._absorb(self.report, self._answer)
        self.report.finished = False


def read_body(absorb: Absorb, members: frozenset[str], body: bytes) -> Report:
    """A whole answer. One that no parser takes (cut off, for example) still gives what stands in its top level.

    Mostly the few top-level members that matter say everything; the generated content is decoded only where they do
    not, to be counted.
    """
    report = Report()
    head = decode_members(body, members)
    if head is not None:
        absorb(report, head)
        if report.usage is not None:
            report.finished = True
            return report
    answer = decode_object(body)
    if answer is None:
        reader = BodyReader(absorb, members)
        reader.feed(body)
        reader.finish()
        return reader.report
    report = Report()
    absorb(report, answer)
    report.finished = True
    return report
