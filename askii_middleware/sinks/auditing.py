"""What a sink can say about its receiver after everything was sent: for reconciliation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol, runtime_checkable

from askii_middleware.records import UsageRecord


class Line(NamedTuple):
    """One thing that is billed, as we sent it or as the receiver has it."""

    subscription: str
    id: str
    """Unique within its subscription and code."""
    code: str
    value: str
    """What is summed up; whole numbers in digits."""


@runtime_checkable
class Audited(Protocol):
    """A sink whose receiver tells what it has."""

    name: str

    def lines_of(self, record: UsageRecord) -> list[Line]:
        """What a record comes to; nothing where nothing is sent. Raises SinkError for what can never be billed."""
        ...

    def lines(
        self, subscription: str | None = None, *, from_s: float | None = None, to_s: float | None = None
    ) -> AsyncIterator[Line]:
        """What the receiver has, between two moments of use (Unix seconds, both included). Raises SinkError."""
        ...

    async def close(self) -> None: ...
