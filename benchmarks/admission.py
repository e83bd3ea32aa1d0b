"""What an admission costs in memory: by position of the fitting candidate, by number of tenants, and in bytes.

Run: `python -m benchmarks.admission`. Prints a table; targets are in its last column.
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from decimal import Decimal
from functools import partial
from typing import Any

from askii_middleware import CostTracker
from askii_middleware.admission import Candidate, ReserveRequest
from askii_middleware.budgets import Budget, BudgetIndex
from askii_middleware.currency import parse_rate, split_coins
from askii_middleware.stores.base import AggregateRow, Settlement
from askii_middleware.stores.memory import MemoryStore

NOW_S = 1_767_268_800.0
RATE = parse_rate("1000000")
ROUNDS = 7
CALLS = 2_000
TENANTS = 1_000_000
WORKER = "w"
SCOPES = ("tenant=*", "tenant=*,model=*", "team=*", "user=*", "model=*", "global")
IDENTITY = {"tenant": "acme", "team": "research", "user": "ann"}
MODELS = ("gpt-4o", "gpt-4o-mini", "local-llama")


def budgets(*scopes: str) -> list[Budget]:
    return [Budget(scope=scope, limit_usd=Decimal(1_000_000)) for scope in scopes]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """A memory store never suspends, so no loop is needed and none is measured."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the memory store suspended")


def request(call_id: str, candidates: tuple[Candidate, ...], index: BudgetIndex) -> ReserveRequest:
    return ReserveRequest(
        call_id=call_id,
        worker=WORKER,
        candidates=candidates,
        windows=index.windows(NOW_S),
        rate=RATE.ratio,
        deadline_s=600.0,
        forms_version=0,
    )


def settlement(call_id: str, tenant: str, index: BudgetIndex, cost: int = 100) -> Settlement:
    coins, pico = split_coins(cost, RATE)
    return Settlement(
        call_id=call_id,
        admitted_at_s=NOW_S,
        cost_nano_usd=cost,
        matches=index.matches({"tenant": tenant}),
        windows=index.windows(NOW_S),
        rate=RATE.ratio,
        subscription=tenant,
        coins=coins,
        pico_coins=pico,
        tenant=tenant,
        aggregates=(AggregateRow(f"tenant={tenant}", "gpt-4o", "openai", 1, 10, 5, cost),),
        record=b'{"call_id":"%s","cost_nano_usd":%d}' % (call_id.encode(), cost),
    )


def best(*measures: Callable[[], float]) -> list[float]:
    """Each measure's best round. They take turns, so that a change of the machine's speed hits all of them."""
    rounds = [[measure() for measure in measures] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def admission(fitting: int) -> Callable[[], float]:
    """Measures microseconds for one `reserve` of three candidates over six budgets each, of which one fits."""
    index = BudgetIndex(budgets(*SCOPES))
    store = MemoryStore(clock=lambda: NOW_S)
    run(store.heartbeat(WORKER, 1e9))
    too_much = 10**15 + 1
    candidates = tuple(
        Candidate(model, 100 if n == fitting else too_much, index.matches({**IDENTITY, "model": model}))
        for n, model in enumerate(MODELS)
    )

    def measure() -> float:
        requests = [request(f"{time.monotonic_ns()}-{n}", candidates, index) for n in range(CALLS)]
        began = time.thread_time()
        for one in requests:
            admitted = run(store.reserve(one))
        taken = time.thread_time() - began
        assert admitted.candidate == fitting
        for one in requests:
            run(store.release(one.call_id))
        return taken / CALLS * 1e6

    return measure


def ledger(tenants: int, index: BudgetIndex) -> MemoryStore:
    """A ledger in which so many tenants have spend today, and nothing else: neither records nor markers of calls."""
    store = MemoryStore(clock=lambda: NOW_S)
    run(store.heartbeat(WORKER, 1e9))
    for n in range(tenants):
        run(store.settle(settlement(f"first-{n}", f"tenant-{n}", index, cost=10_000 + n)))
        if not n % 1000 or n == tenants - 1:
            store._outbox._stored.clear()
            store._done.clear()
    return store


def on_the_store(tenants: int) -> Callable[[], float]:
    """Measures microseconds for matching, reserving and settling a call, each of another one of so many tenants; one
    budget on `tenant=*`.
    """
    index = BudgetIndex(budgets("tenant=*"))
    store = ledger(tenants, index)
    names = [f"tenant-{n * 7919 % tenants}" for n in range(CALLS)]

    def measure() -> float:
        mark = time.monotonic_ns()
        began = time.thread_time()
        for n, name in enumerate(names):
            call_id = f"{mark}-{n}"
            matches = index.matches({"tenant": name})
            run(store.reserve(request(call_id, (Candidate("gpt-4o", 100, matches),), index)))
            run(store.settle(settlement(call_id, name, index)))
        return (time.thread_time() - began) / CALLS * 1e6

    return measure


def in_code(tenants: int, loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Measures microseconds for one `track_tokens` block of a tracker, else like `on_the_store`."""
    declared = budgets("tenant=*")
    tracker = CostTracker(store=ledger(tenants, BudgetIndex(declared)), budgets=declared, clock=lambda: NOW_S)
    names = [f"tenant-{n * 7919 % tenants}" for n in range(CALLS)]

    async def calls() -> float:
        async with tracker:
            began = time.thread_time()
            for name in names:
                async with tracker.track_tokens(
                    name, "gpt-4o", expected_input_tokens=100, max_output_tokens=100
                ) as usage:
                    usage["input_tokens"], usage["output_tokens"] = 90, 80
            return (time.thread_time() - began) / CALLS * 1e6

    return lambda: loop.run_until_complete(calls())


def bytes_per_tenant(tenants: int) -> float:
    """Of a tenant with spend today: its counter, its carry of coins, and the aggregates of one model."""
    index = BudgetIndex(budgets("tenant=*"))
    ledger(100, index)  # what is made once
    gc.collect()
    tracemalloc.start()
    store = ledger(tenants, BudgetIndex(budgets("tenant=*")))
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del store
    return used / tenants


def show(what: str, figure: float, unit: str, target: str) -> None:
    print(f"{what:<62}{figure:>9.2f} {unit:<6}{target:>12}")


def main() -> None:
    first, second, last = best(admission(0), admission(1), admission(2))
    show("reserve, 6 budgets, 3 candidates: the first fits", first, "µs", "<= 10")
    show("reserve, 6 budgets, 3 candidates: the second fits", second, "µs", "")
    show("reserve, 6 budgets, 3 candidates: the last fits", last, "µs", "<= 20")
    show(
        f"memory of a tenant with spend today, of {TENANTS // 10:,}", bytes_per_tenant(TENANTS // 10), "bytes", "<= 500"
    )
    loop = asyncio.new_event_loop()
    for what, measure in (
        ("match, reserve, settle", on_the_store),
        ("a track_tokens block", partial(in_code, loop=loop)),
    ):
        ten, million = measure(10), measure(TENANTS)
        gc.collect()
        gc.freeze()  # as a service does after its start: a collection is not to walk the tenants
        few, many = best(ten, million)
        gc.unfreeze()
        show(f"{what}: 10 tenants", few, "µs", "")
        show(f"{what}: {TENANTS:,} tenants", many, "µs", "")
        show(f"{what}: ratio", many / few, "", "<= 1.20")
        del ten, million
    loop.close()


if __name__ == "__main__":
    main()
