"""Reading plain JSON answers: whole ones, and ones that are too large to collect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..usage import Report
from .base import StreamReader
from .fields import decode_json, decode_members, decode_object
from .jsonscan import TopLevelScanner

Absorb = Callable[[Report, Mapping[str, Any]], None]


MAX_KEPT_BYTES = 1 << 20
"""Up to here an answer is kept and read at once when it is whole, which costs a fortieth of looking at it in pieces."""


class BodyReader(StreamReader):
    """Picks the few top-level members that matter out of a JSON answer as it passes. Small answers are kept until they
    are whole; of larger ones only these members are, each of bounded length, so memory does not grow with the answer.
    """

    def __init__(self, absorb: Absorb, members: frozenset[str]) -> None:
        self._report = Report()
        self._absorb = absorb
        self._members = members
        self._kept: bytearray | None = bytearray()
        """All that has passed, as long as it is small; None once it is read in pieces."""
        self._scanner: TopLevelScanner | None = None
        self._answer: dict[str, Any] = {}

    @property
    def report(self) -> Report:  # type: ignore[override]  # reading is put off until it is asked for
        if self._kept:
            self._scan(b"")
        return self._report

    def feed(self, chunk: bytes) -> bytes:
        if self._kept is not None and len(self._kept) + len(chunk) <= MAX_KEPT_BYTES:
            self._kept += chunk
        else:
            self._scan(chunk)
        return chunk

    def finish(self) -> bytes:
        head = decode_members(bytes(self._kept), self._members) if self._kept else None
        if head is None:
            self._scan(b"")
            self._report.finished = self._scanner is not None and self._scanner.closed
        else:
            self._kept = None
            self._absorb(self._report, head)
            self._report.finished = True
        return b""

    def _scan(self, chunk: bytes) -> None:
        """Read on in pieces, beginning with what was kept."""
        if self._scanner is None:
            self._scanner = TopLevelScanner(self._members)
        if self._kept is not None:
            chunk, self._kept = bytes(self._kept) + chunk, None
        self._scanner.push(chunk)
        if self._scanner.members:
            self._read(self._scanner)

    def _read(self, scanner: TopLevelScanner) -> None:
        found, scanner.members = scanner.members, []
        for member in found:
            try:
                self._answer[member.key] = decode_json(member.value)
            except (ValueError, RecursionError):
                continue  # no answer's own counts look like this; the call is then estimated
        # Members say things about each other, so all are read together, as often as there are new ones: what is read
        # of an answer is then the same however it was split.
        fresh = Report()
        self._absorb(fresh, self._answer)
        fresh.finished = False
        for name in Report.__struct_fields__:
            setattr(self._report, name, getattr(fresh, name))


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
