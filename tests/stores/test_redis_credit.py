"""What a ledger in Redis keeps of credit and of settled calls once they are over, and the order of its refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.stores.base import DeadWorkerError, StaleFormsError, UnwritableError
from askii_middleware.stores.redis import RedisStore

from .credit_support import draw, promote, settle_from, use
from .support import DAY_S, Client, Clock, budget, delivered


@pytest.fixture
async def ledger(redis_url: str, clock: Clock) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_url, clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def caller(ledger: RedisStore, clock: Clock) -> Client:
    await ledger.heartbeat("w", 300 * DAY_S)
    return Client(ledger, clock)


async def test_a_counter_without_an_end_forgets_what_dead_workers_have_used_up(
    ledger: RedisStore, caller: Client
) -> None:
    await caller.set(budget("tenant=*", MAX_NANO_USD, period="total"))
    (state,) = await caller.status()
    for n in range(20):
        worker = f"v{n}"
        await ledger.heartbeat(worker, 60)
        drawn = await draw(caller, 1, 100, holder=worker)
        await settle_from(caller, f"call{n}", 100 if n else 60, use(drawn, holder=worker))
        caller.clock.advance(61)
    fields = await ledger._call("HKEYS", f"c:{state.counter}")
    assert sorted(name for name in fields if name[:2] in (b"g:", b"u:")) == [b"g:v0", b"g:v19", b"u:v0", b"u:v19"]
    (row,) = await ledger.credits()
    assert (row.holder, row.granted_nano_usd, row.used_nano_usd) == ("v0", 100, 60)


async def test_an_amount_out_of_range_is_looked_at_after_what_memory_looks_at_first(
    ledger: RedisStore, caller: Client
) -> None:
    await caller.set(budget("tenant=*", 1000))
    drawn = await draw(caller, 1, 100)
    beyond = 1 << 70
    for amount in (-1, MAX_NANO_USD + 1, beyond):
        with pytest.raises(StaleFormsError):
            await draw(caller, 2, amount, forms_version=99)
        with pytest.raises(DeadWorkerError):
            await draw(caller, 2, amount, holder="nobody")
        with pytest.raises(UnwritableError):
            await draw(caller, 2, amount)
        with pytest.raises(UnwritableError):
            await draw(caller, 2, 10, returns=(("tenant=acme|daily|UTC|0", amount),))
        with pytest.raises(DeadWorkerError):
            await promote(caller, "a", amount, use(drawn, holder="nobody"), drawn)
        with pytest.raises(UnwritableError):
            await promote(caller, "a", amount, use(drawn), drawn)
    await promote(caller, "a", 100, use(drawn), drawn)
    await promote(caller, "a", beyond, use(drawn), drawn)
    assert await caller.spent_held() == (0, 100)


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_call_is_a_duplicate_for_as_long_as_its_record_is_kept(
    ledger: RedisStore, caller: Client, is_late: bool
) -> None:
    await caller.set(budget("tenant=*", 1000))
    await ledger.register_sinks(["s"])
    await caller.reserve("a", 100, deadline_s=60.0)
    caller.clock.advance(61 if is_late else 0)
    first = await caller.settle("a", 100, rate="3e10")
    assert (first.coins, first.late, first.duplicate) == (3000, is_late, False)
    assert await ledger._call("DEL", "d:a") == 1  # as it expires after 25 hours
    assert await caller.settle("a", 100) == first._replace(duplicate=True)
    assert (await ledger.totals()).records == 1
    await caller.deliver("s", delivered(1))
    caller.clock.advance(8 * DAY_S)
    await ledger.heartbeat("w", 300 * DAY_S)
    assert not (await caller.settle("a", 100)).duplicate
