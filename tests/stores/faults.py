"""Load on a ledger that has to stay exact whatever happens to its server: many callers on a real tracker, and a look at
every budget all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from askii_middleware.budgets import Budget
from askii_middleware.errors import BudgetExceededError, StoreError
from askii_middleware.records import UsageRecord, decode_record
from askii_middleware.sinks.base import DELIVERED, Delivery
from askii_middleware.stores import open_store
from askii_middleware.tracker import CostTracker
from tests.support.service import PRICES, soon

from .processes import RealClock
from .support import Client

COST = 10 * 1_000 + 5 * 2_000
"""Of every call here, and what it holds: 10 tokens in and 5 out."""
CALLS, SHARE = 300, 200
"""So many are in the budget of all, and in that of each tenant."""
TENANTS = ("acme", "other")
LANES, LONG = 30, 6
"""Callers, and those of them whose calls are running when the ledger goes away, and end before it is back."""
TIMEOUT_S = 0.5
MARGIN_S = 2.0
"""For a busy machine, beyond the time-out."""


def _budget(scope: str, calls: int) -> Budget:
    return Budget(scope=scope, limit_usd=Decimal(calls * COST).scaleb(-9), period="total")


BUDGETS = (_budget("tenant=*", SHARE), _budget("global", CALLS))


class Receiver:
    """A sink that tells doubles by their id, as billing systems do."""

    name = "receiver"
    max_batch = 50

    def __init__(self) -> None:
        self.costs: dict[str, int] = {}

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        for record in records:
            assert self.costs.setdefault(record.call_id, record.cost_nano_usd) == record.cost_nano_usd
        return Delivery((DELIVERED,) * len(records))

    async def close(self) -> None:
        pass


class Load:
    """What thirty callers have met.

    Attributes:
        charged: ids of the calls that have ended.
        refused: calls that were refused because the ledger was away.
        slowest_s: the longest that an admission or a settlement has taken.
        looks: how often all limits were looked at.
    """

    def __init__(self, tracker: CostTracker, journal: Path, receiver: Receiver, looker: Client) -> None:
        self.tracker = tracker
        self._journal = journal
        self._long_calls_end = asyncio.Event()
        self.receiver = receiver
        self.looker = looker
        self.charged: list[str] = []
        self.refused = 0
        self.slowest_s = 0.0
        self.looks = 0

    async def has_charged(self, more: int) -> None:
        """Wait until so many more calls have ended."""
        wanted = len(self.charged) + more
        await soon(lambda: len(self.charged) >= wanted)

    async def has_refused(self, more: int = 1) -> None:
        """Wait until so many more calls were refused, and what running ones cost is in the journal."""
        wanted = self.refused + more
        await soon(lambda: self.refused >= wanted)
        self._long_calls_end.set()
        await soon(lambda: self._journal.read_bytes()[:1] == b"{")

    async def run(self, *harms: Callable[[Load], Awaitable[None]]) -> None:
        """Call until all is spent; do these harms meanwhile, each after some more calls."""
        looking = asyncio.create_task(self._keep_looking())

        async def harm() -> None:
            for do in harms:
                self._long_calls_end.clear()
                await self.has_charged(50)
                await do(self)
                self._long_calls_end.set()
            assert len(self.charged) < CALLS - 50, "too late to show how it goes on"

        try:
            async with asyncio.timeout(25):
                await asyncio.gather(harm(), *map(self._caller, range(LANES)))
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking

    async def _caller(self, lane: int) -> None:
        while True:
            block = self.tracker.track_tokens(TENANTS[lane % 2], "big", expected_input_tokens=10, max_output_tokens=5)
            try:
                usage = await self._timed(block.__aenter__())
            except BudgetExceededError as error:
                if error.reason == "spent":
                    return
                await asyncio.sleep(0.05)
            except StoreError:
                self.refused += 1
                await asyncio.sleep(0.05)
            else:
                await asyncio.sleep(0.01)
                if lane < LONG:
                    await self._long_calls_end.wait()
                usage["input_tokens"], usage["output_tokens"] = 10, 5
                await self._timed(block.__aexit__(None, None, None))
                self.charged.append(usage.call_id)

    async def _timed(self, step: Awaitable[Any]) -> Any:
        begun_s = time.monotonic()
        try:
            return await step
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun_s)

    async def _keep_looking(self) -> None:
        while True:
            with contextlib.suppress(StoreError):
                await self.look()
            await asyncio.sleep(0.01)

    async def look(self) -> None:
        for tenant in TENANTS:
            for state in await self.looker.status(tenant):
                assert state.limit_nano_usd is not None
                assert state.spent_nano_usd + state.held_nano_usd <= state.limit_nano_usd
        self.looks += 1

    async def assert_exact(self) -> None:
        """All was spent that could be, by these calls, each charged, recorded and delivered once; nothing is held, and
        nobody waited for longer than the time-out.
        """
        assert len(set(self.charged)) == len(self.charged) == CALLS
        expected = dict.fromkeys(self.charged, COST)
        await soon(lambda: not self.tracker._writer.waiting)
        await soon(self._nothing_is_held)
        assert await self.looker.store.totals() == (CALLS, CALLS * COST, CALLS, CALLS * COST, 0, 0)
        records = [decode_record(body) for _, body in await self.looker.store.records()]
        assert sorted((record.call_id, record.cost_nano_usd) for record in records) == sorted(expected.items())
        lines = {state.scope: state for tenant in TENANTS for state in await self.looker.status(tenant)}
        assert lines["global"].spent_nano_usd == CALLS * COST
        assert sum(lines[f"tenant={tenant}"].spent_nano_usd for tenant in TENANTS) == CALLS * COST
        await soon(lambda: self.receiver.costs == expected)
        await soon(self._nothing_waits)
        assert self.slowest_s < TIMEOUT_S + MARGIN_S
        assert self.looks

    async def _nothing_is_held(self) -> bool:
        return (await self.looker.store.totals()).held_nano_usd == 0

    async def _nothing_waits(self) -> bool:
        return not any((await self.looker.store.pending()).values())


@asynccontextmanager
async def load(url: str, folder: Path, *, direct_url: str | None = None) -> AsyncIterator[Load]:
    """Args:
    url: of the ledger, as the tracker reaches it.
    direct_url: as the one reaches it who looks.
    """
    first = open_store(direct_url or url)  # to make a schema takes longer than the time-out
    await first.open()
    await first.close()
    receiver, journal = Receiver(), folder / "journal"
    tracker = CostTracker(
        store=open_store(url, timeout_s=TIMEOUT_S),
        prices=PRICES,
        budgets=BUDGETS,
        sinks=[receiver],
        settle_timeout_s=TIMEOUT_S,
        journal_path=str(journal),
    )
    looker = Client(open_store(direct_url or url, timeout_s=TIMEOUT_S), RealClock(), BUDGETS)
    async with tracker:
        try:
            await looker.store.open()
            yield Load(tracker, folder / "journal.0", receiver, looker)
        finally:
            await looker.store.close()
    assert not list(folder.glob("journal*"))
