"""A tracker over either store with a clock to turn, and stores that fail on command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.budgets import Budget
from askii_middleware.errors import StoreError
from askii_middleware.pricing import ModelPrice
from askii_middleware.records import UsageRecord, decode_record
from askii_middleware.stores import open_store
from askii_middleware.stores.base import Store
from askii_middleware.tracker import CostTracker

NOW_S = 1_767_225_600.0
"""2026-01-01T00:00:00Z."""
PRICES = {
    "big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2, max_output_tokens=1000, context_window=100_000),
    "small": ModelPrice(input_usd_per_mtok="0.1", output_usd_per_mtok="0.2", max_output_tokens=1000),
    "free": ModelPrice(input_usd_per_mtok=0, output_usd_per_mtok=0, max_output_tokens=1000),
}
"""A token of `big` costs 1,000 nano-USD in and 2,000 out; one of `small` a tenth of it."""

both_stores = pytest.mark.parametrize("kind", ["memory", "sqlite"])


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def url_of(kind: str, folder: Path) -> str:
    return "memory://" if kind == "memory" else f"sqlite:///{folder / 'ledger.db'}"


def make_tracker(store: str | Store, *, clock: Clock | None = None, **options: Any) -> CostTracker:
    defaults: dict[str, Any] = {"prices": PRICES, "budgets": [Budget(scope="tenant=*", limit_usd=1)]}
    return CostTracker(store=store, clock=clock or Clock(), **{**defaults, **options})


@asynccontextmanager
async def opened(kind: str, folder: Path, **options: Any) -> AsyncIterator[CostTracker]:
    async with make_tracker(url_of(kind, folder), **options) as tracker:
        yield tracker


async def records_of(tracker: CostTracker) -> list[UsageRecord]:
    return [decode_record(record) for _, record in await tracker.store.records()]


async def amounts(tracker: CostTracker, scope: str = "tenant=acme") -> tuple[int, int]:
    """Spent and held of a scope's only budget, in nano-USD."""
    (line,) = await tracker.budget_enforcer.status(scope)
    return int(line.spent_usd.scaleb(9)), int(line.held_usd.scaleb(9))


async def assert_balanced(tracker: CostTracker, *, held: int = 0) -> None:
    """The ledger, its records and its counters say the same, and nothing more is held than should be."""
    totals = await tracker.store.totals()
    assert (totals.calls, totals.cost_nano_usd) == (totals.records, totals.records_nano_usd)
    assert totals.held_nano_usd == held


async def soon(condition: Callable[[], Any], *, timeout_s: float = 10.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while True:
            held = condition()
            if isinstance(held, Awaitable):
                held = await held
            if held:
                return
            await asyncio.sleep(0.002)


async def cancelled_at(step: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Run work in a task and cancel it after so many turns of the loop. Whether there was still something to cancel."""
    task = asyncio.create_task(work)
    for _ in range(step):
        await asyncio.sleep(0)
    cancelled = task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return cancelled


class FaultyStore(Store):
    """Another store, with faults. `faults[operation]` holds what happens at its next calls, in order:

    - `"fail"`: StoreError, nothing done;
    - `"after"`: done, and StoreError all the same;
    - `"hang"`: nothing done, and no answer;
    - `"hang after"`: done, and no answer;
    - an exception: raised, nothing done;
    - `"ok"`: nothing of the kind.

    With `down` every operation fails. `turns` of the loop pass before and after every operation.
    """

    def __init__(self, inner: Store, *, turns: int = 0) -> None:
        self.inner = inner
        self.url = inner.url
        self.turns = turns
        self.down = False
        self.faults: dict[str, list[str | BaseException]] = {}
        self.calls: list[str] = []

    async def _do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(operation)
        waiting = self.faults.get(operation)
        fault = waiting.pop(0) if waiting else "ok"
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if isinstance(fault, BaseException):
            raise fault
        if self.down or fault == "fail":
            raise StoreError("the store is away (as the test wants it)")
        if fault == "hang":
            await asyncio.Event().wait()
        result = await getattr(self.inner, operation)(*args, **kwargs)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if fault == "after":
            raise StoreError("the answer was lost (as the test wants it)")
        if fault == "hang after":
            await asyncio.Event().wait()
        return result


def _forward(operation: str) -> Any:
    async def call(self: FaultyStore, *args: Any, **kwargs: Any) -> Any:
        return await self._do(operation, *args, **kwargs)

    return call


for _name in (*Store.__abstractmethods__, "tend"):
    setattr(FaultyStore, _name, _forward(_name))
FaultyStore.__abstractmethods__ = frozenset()


def faulty(kind: str, folder: Path, clock: Clock, *, turns: int = 0) -> FaultyStore:
    return FaultyStore(open_store(url_of(kind, folder), clock=clock), turns=turns)  # type: ignore[abstract]
