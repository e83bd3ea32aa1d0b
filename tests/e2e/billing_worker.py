"""Workers that record calls and bill them, until somebody kills them: `python -m tests.e2e.billing_worker JSON`.

Each is an ordinary tracker over a store whose every operation may fail, before or after it was done. A worker has one
of `slots` shares of the calls, in their order; the next worker with that share goes on where the last one was killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from random import Random
from typing import Any, NamedTuple, TypeVar

import msgspec

from askii_middleware.currency import RATE_VARIABLE
from askii_middleware.delivery import DeliveryLoop
from askii_middleware.errors import AskiiError
from askii_middleware.pricing import ModelPrice
from askii_middleware.records import UsageRecord
from askii_middleware.sinks.base import Delivery
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.stores import open_store
from askii_middleware.tracker import CostTracker
from tests.support.lago_server import KEY
from tests.support.service import FaultyStore

T = TypeVar("T")
INPUT_NANO_USD, OUTPUT_NANO_USD = 1_000, 2_000
PRICES = {"big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2)}
RATES = ("1000000", "150000", "1234567.25", "0.15", "3.7e6", "99")
"""Coins per USD: of most of these, no call comes to whole coins."""
SUBSCRIPTIONS = 12
TENANTS = {f"tenant-{n}": f"subscription-{n % SUBSCRIPTIONS}" for n in range(40)}
"""Several tenants to one subscription: they share its carry, but not their partition."""
FAULTY = ("settle", "heartbeat", "pending", "lease", "fetch", "acknowledge")


class Plan(msgspec.Struct):
    """What a test tells its workers.

    Attributes:
        store, lago: URLs.
        journal: where charges wait while the store fails.
        slots: shares of the calls.
        fault: how likely each operation of the store fails.
    """

    store: str
    lago: str
    journal: str
    records: int
    slots: int
    fault: float


class PlannedCall(NamedTuple):
    """Call number `n`: always the same."""

    call_id: str
    tenant: str
    rate: str
    input_tokens: int
    output_tokens: int

    @property
    def nano_usd(self) -> int:
        return self.input_tokens * INPUT_NANO_USD + self.output_tokens * OUTPUT_NANO_USD


def planned(n: int) -> PlannedCall:
    chance = Random(n)
    tokens = chance.randrange(700), chance.randrange(300)
    return PlannedCall(f"call-{n:06d}", f"tenant-{chance.randrange(len(TENANTS))}", chance.choice(RATES), *tokens)


class FlakyStore(FaultyStore):
    """Fails at random."""

    def __init__(self, inner: Any, chance: Random, fault: float) -> None:
        super().__init__(inner)
        self._chance = chance
        self._fault = fault

    async def _do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        if operation in FAULTY and self._chance.random() < self._fault:
            self.faults[operation] = [self._chance.choice(["fail", "after"])]
        return await super()._do(operation, *args, **kwargs)


class HastySink(LagoSink):
    """Never waits as long as it should: a refused key would be looked at again after a minute."""

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        delivery = await super().send(records)
        return delivery if delivery.pause_s is None else delivery._replace(pause_s=min(delivery.pause_s, 0.1))


async def work(plan: Plan, slot: int, seed: int) -> None:
    chance = Random(seed)
    store = FlakyStore(open_store(plan.store), chance, plan.fault)  # type: ignore[abstract]
    sink = HastySink(plan.lago, KEY, max_batch=25, timeout_s=0.3)
    tracker = CostTracker(
        store=store, sinks=[sink], prices=PRICES, journal_path=plan.journal, subscription_of=TENANTS, alert_channels=()
    )
    # As ever, but with the patience of a test: what a dead worker held is free for others soon.
    tracker._session._new_delivery = lambda owner: DeliveryLoop(
        *(store, [sink]),
        owner=owner,
        lease_s=0.8,
        send_timeout_s=0.6,
        idle_s=0.02,
        linger_s=0.01,
        base_backoff_s=0.01,
        max_backoff_s=0.1,
        random=chance,
    )
    await again(tracker.start)
    await record(tracker, plan, slot)
    await asyncio.Event().wait()


async def again(ask: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Ask until there is an answer."""
    while True:
        try:
            return await ask(*args, **kwargs)
        except AskiiError:
            await asyncio.sleep(0.01)


async def record(tracker: CostTracker, plan: Plan, slot: int) -> None:
    """Charge the calls of this share, from the first that is not in the ledger. Those before it that are not there
    either wait in the journals of the dead.
    """
    mine = [planned(n) for n in range(slot, plan.records, plan.slots)]
    low, high = 0, len(mine)
    while low < high:
        middle = (low + high) // 2
        known = await again(tracker.store.record, mine[middle].call_id) is not None
        low, high = (middle + 1, high) if known else (low, middle)
    for call in mine[low:]:
        os.environ[RATE_VARIABLE] = call.rate
        tokens = {"input_tokens": call.input_tokens, "output_tokens": call.output_tokens}
        await again(tracker.record_usage, call.tenant, "big", **tokens, call_id=call.call_id)
        await asyncio.sleep(0)


def breed(plan: Plan) -> None:
    """Fork workers, so that none loads Python anew. A line `SLOT SEED` kills the one that has this slot, if any, and
    starts the next; its process id is printed when that is done.
    """
    children: dict[int, int] = {}
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            slot, seed = map(int, line.split())
            assert kill(children.pop(slot, None)), "the worker ended by itself"
            child = os.fork()
            if child == 0:
                try:
                    asyncio.run(work(plan, slot, seed))
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            children[slot] = child
            print(child, flush=True)
    finally:  # none of them may keep the pipe open that a test reads from
        for child in children.values():
            kill(child)


def kill(child: int | None) -> bool:
    """False: it was dead."""
    if child is None:
        return True
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


async def load(plan: Plan) -> None:
    """Import here what each of them would import."""
    import_module("anyio._backends._asyncio")
    await LagoSink(plan.lago, KEY).close()
    for url in ("memory://", plan.store):
        tracker = CostTracker(store=url, prices=PRICES, alert_channels=())
        await tracker.start()
        await tracker.stop()


def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    asyncio.run(load(plan))
    breed(plan)


if __name__ == "__main__":
    main()
