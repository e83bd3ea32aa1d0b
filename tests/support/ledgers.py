"""A ledger to look into after requests have passed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from askii_middleware import AskiiMiddleware, Budget, CostTracker
from askii_middleware.pricing import ModelPrice
from askii_middleware.records import UsageRecord, decode_record
from askii_middleware.stores.base import Store, Totals

from .asgi import App

START_S = 1_767_225_600.0
"""2026-01-01T00:00:00Z."""
PRICES = {
    # 1,000 nano-USD for each token of a prompt, 10,000 for each of an answer; mini costs a tenth.
    "big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10),
    "mini": ModelPrice(input_usd_per_mtok="0.1", output_usd_per_mtok=1),
    "free": ModelPrice(input_usd_per_mtok=0, output_usd_per_mtok=0),
}


class Clock:
    """Unix seconds that stand still until moved."""

    def __init__(self, now_s: float = START_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class Ledger:
    """A running tracker, and what became of the calls it admitted."""

    def __init__(self, tracker: CostTracker, clock: Clock) -> None:
        self.tracker = tracker
        self.clock = clock
        self.settled: list[str] = []
        self.released: list[str] = []
        self.held: list[str] = []
        self.slow: asyncio.Event | None = None
        """Where set, settlements wait for it."""
        store: Any = tracker.store
        settle, at_once, release, reserve = store.settle, store.settle_at_once, store.release, store.reserve

        async def spy_settle(settlement: Any) -> Any:
            if self.slow is not None:
                await self.slow.wait()
            self.settled.append(settlement.call_id)
            return await settle(settlement)

        def spy_at_once(settlement: Any) -> Any:
            if settlement.call_id in self.settled:  # called by `settle`, or a second time: the store will tell
                return at_once(settlement)
            settled = None if self.slow is not None else at_once(settlement)
            if settled is not None:
                self.settled.append(settlement.call_id)
            return settled

        async def spy_release(call_id: str) -> None:
            self.released.append(call_id)
            await release(call_id)

        async def spy_reserve(request: Any) -> Any:
            admission = await reserve(request)
            if admission.candidate is not None:
                self.held.append(request.call_id)
            return admission

        store.settle, store.settle_at_once, store.release, store.reserve = (
            spy_settle,
            spy_at_once,
            spy_release,
            spy_reserve,
        )

    def around(self, app: App, **options: Any) -> AskiiMiddleware:
        """The middleware in front of `app`; every request is tenant acme's unless `options` say otherwise."""
        if "identify" not in options and "identity" not in options and "default_tenant" not in options:
            options["identify"] = lambda _scope: "acme"
        return AskiiMiddleware(app, tracker=self.tracker, **options)

    async def records(self) -> list[UsageRecord]:
        await self.idle()
        return [decode_record(record) for _, record in await self.tracker.store.records()]

    async def record(self) -> UsageRecord:
        """The only record there is, with nothing held beside it."""
        (record,) = await self.records()
        assert (await self.totals()).held_nano_usd == 0
        self.check_once()
        return record

    def check_once(self) -> None:
        """No call was settled twice, released twice, or both."""
        ends = self.settled + self.released
        assert len(ends) == len(set(ends)), ends

    async def nothing_happened(self) -> bool:
        """No charge, no hold left."""
        records, totals = await self.records(), await self.totals()
        return not records and totals.held_nano_usd == 0

    async def totals(self) -> Totals:
        return await self.tracker.store.totals()

    async def idle(self) -> None:
        """Let the writes that nobody waits for come to their end."""
        await asyncio.sleep(0)
        await self.tracker._writer.drain(5)

    async def spent(self, scope: str = "tenant=acme") -> int:
        rows = await self.tracker.store.spend(scope, 0, 2 * START_S)
        return sum(row.cost_nano_usd for row in rows)

    def metric(self, name: str, **labels: str) -> float:
        self.tracker.metrics.flush()
        return self.tracker.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def ledger(
    store: str | Store = "memory://", *, clock: Clock | None = None, **options: Any
) -> AsyncIterator[Ledger]:
    """A tracker with round prices and a budget of 10 USD a day for every tenant. A store comes with its clock."""
    clock = clock or Clock()
    settings: dict[str, Any] = {"budgets": [Budget(scope="tenant=*", limit_usd=10)], "prices": PRICES}
    tracker = CostTracker(store=store, clock=clock, **{**settings, **options})
    async with tracker:
        yield Ledger(tracker, clock)
