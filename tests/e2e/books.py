"""Reading a ledger from outside, while others write it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from askii_middleware.records import UsageRecord, decode_record
from askii_middleware.stores import open_store
from askii_middleware.stores.base import Store

PATIENCE_S = 10.0


class Books:
    """An open ledger."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def records(self) -> dict[str, UsageRecord]:
        """All records by call id."""
        found: dict[str, UsageRecord] = {}
        position = 0
        while batch := await self.store.records(position):
            position = batch[-1][0]
            for record in (decode_record(body) for _, body in batch):
                assert record.call_id not in found
                found[record.call_id] = record
        return found

    async def record(self, call_id: str) -> UsageRecord:
        """The record of a call, which is written after its client's last byte."""
        async with asyncio.timeout(PATIENCE_S):
            while call_id not in (found := await self.records()):
                await asyncio.sleep(0.01)
        return found[call_id]

    async def settle_down(self) -> None:
        """Wait until nothing is held."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.store.totals()).held_nano_usd:
                await asyncio.sleep(0.01)

    async def check(self) -> int:
        """The ledger's sums are those of its records; the sum in nano-USD."""
        records = await self.records()
        totals = await self.store.totals()
        spent = sum(record.cost_nano_usd for record in records.values())
        assert (totals.calls, totals.cost_nano_usd) == (len(records), spent)
        assert (totals.records, totals.records_nano_usd) == (len(records), spent)
        return spent


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Books]:
    store = open_store(url)
    await store.open()
    try:
        yield Books(store)
    finally:
        await store.close()
