"""A sink that keeps the last records in memory: for tests, notebooks and the demo."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from askii_middleware.records import UsageRecord

from .base import DELIVERED, Delivery


class MemorySink:
    """Holds the newest `max_records` records in `records`, oldest first; `received` counts all there ever were."""

    def __init__(self, name: str = "memory", *, max_records: int = 10_000, max_batch: int = 100) -> None:
        self.name = name
        self.max_batch = max_batch
        self.records: deque[UsageRecord] = deque(maxlen=max_records)
        self.received = 0

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        self.records.extend(records)
        self.received += len(records)
        return Delivery((DELIVERED,) * len(records))

    async def close(self) -> None:
        """Nothing to close; the records stay readable."""
