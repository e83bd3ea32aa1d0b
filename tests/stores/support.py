"""A store with the client side that a tracker is to it: an index of budgets, a clock, and short names for commands."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec

from askii_middleware.admission import (
    Admission,
    BudgetState,
    Candidate,
    ExtendRequest,
    Extension,
    Match,
    ReserveRequest,
)
from askii_middleware.budgets import Budget, BudgetIndex
from askii_middleware.currency import Rate, parse_rate, split_coins
from askii_middleware.stores.base import (
    PARTITIONS,
    AggregateRow,
    Alert,
    Operation,
    Outcome,
    Settled,
    Settlement,
    Store,
    partition_of,
)

NOON_S = 1_767_268_800.0
"""2026-01-01T12:00Z."""
DAY_S = 86_400
COUNTER = "tenant=acme|daily|UTC|1767225600"
"""Tenant acme's counter at noon."""


class Clock:
    def __init__(self, now_s: float = NOON_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, by_s: float) -> None:
        self.now_s += by_s


def budget(scope: str, nano_usd: int | None, **options: Any) -> Budget:
    """A daily budget of so many nano-USD."""
    limit = None if nano_usd is None else Decimal(nano_usd).scaleb(-9)
    return Budget(scope=scope, limit_usd=limit, **options)


class Client:
    """Commands to a store, with defaults: tenant acme, model m, worker w, 100 nano-USD."""

    def __init__(self, store: Store, clock: Clock, declared: Sequence[Budget] = ()) -> None:
        self.store = store
        self.clock = clock
        self.declare(*declared)

    def declare(self, *budgets: Budget) -> None:
        self.index = BudgetIndex(budgets)
        self.index.version = 0

    async def refresh(self) -> None:
        self.index.update(*await self.store.forms())

    async def set(self, *budgets: Budget) -> None:
        for item in budgets:
            await self.store.set_budget(item)
        await self.refresh()

    def matches(self, tenant: str = "acme", **values: str) -> tuple[Match, ...]:
        return self.index.matches({"tenant": tenant, "model": "m", **values})

    def request(
        self,
        call_id: str,
        *holds: int,
        tenant: str = "acme",
        worker: str = "w",
        values: dict[str, str] | None = None,
        rate: str = "1000000",
        least: int | None = None,
        **options: Any,
    ) -> ReserveRequest:
        matches = self.matches(tenant, **(values or {}))
        candidates = tuple(Candidate(f"m{n}", hold, matches, least) for n, hold in enumerate(holds or (100,)))
        fields: dict[str, Any] = {
            "call_id": call_id,
            "worker": worker,
            "candidates": candidates,
            "windows": self.index.windows(self.clock.now_s),
            "rate": parse_rate(rate).ratio,
            "deadline_s": 600.0,
            "forms_version": self.index.version,
        }
        return ReserveRequest(**{**fields, **options})

    async def reserve(self, call_id: str, *holds: int, **options: Any) -> Admission:
        return await self.store.reserve(self.request(call_id, *holds, **options))

    async def extend(
        self,
        call_id: str,
        target: int,
        least: int | None = None,
        *,
        sequence: int = 1,
        tenant: str = "acme",
        values: dict[str, str] | None = None,
        rate: str = "1000000",
        at_s: float | None = None,
    ) -> Extension:
        """At least `least`, which is the target unless it is given. `at_s`: when the call was admitted."""
        return await self.store.extend(
            ExtendRequest(
                call_id=call_id,
                sequence=sequence,
                target_nano_usd=target,
                least_nano_usd=target if least is None else least,
                matches=self.matches(tenant, **(values or {})),
                windows=self.index.windows(self.clock.now_s if at_s is None else at_s),
                rate=parse_rate(rate).ratio,
            )
        )

    def settlement(
        self,
        call_id: str,
        cost: int = 100,
        *,
        tenant: str = "acme",
        subscription: str | None = None,
        model: str = "m",
        provider: str = "p",
        rate: str | Rate = "1000000",
        at_s: float | None = None,
        values: dict[str, str] | None = None,
        **options: Any,
    ) -> Settlement:
        rate = parse_rate(rate) if isinstance(rate, str) else rate
        at_s = self.clock.now_s if at_s is None else at_s
        coins, pico = split_coins(cost, rate)
        fields: dict[str, Any] = {
            "call_id": call_id,
            "admitted_at_s": at_s,
            "cost_nano_usd": cost,
            "matches": self.matches(tenant, **(values or {})),
            "windows": self.index.windows(at_s),
            "rate": rate.ratio,
            "subscription": tenant if subscription is None else subscription,
            "coins": coins,
            "pico_coins": pico,
            "tenant": tenant,
            "aggregates": (AggregateRow(f"tenant={tenant}", model, provider, 1, 10, 5, cost),),
            "record": msgspec.json.encode({"call_id": call_id, "cost_nano_usd": cost}),
        }
        return Settlement(**{**fields, **options})

    async def settle(self, call_id: str, cost: int = 100, **options: Any) -> Settled:
        return await self.store.settle(self.settlement(call_id, cost, **options))

    async def defer(self, call_id: str, key: str = "", *, for_s: float = 3600.0, payload: bytes = b"p") -> bool:
        """Under the key `k:<call id>`, unless another one is given."""
        until_s = self.clock.now_s + for_s
        return await self.store.defer(
            Operation(key=key or f"k:{call_id}", call_id=call_id, tenant="acme", until_s=until_s, payload=payload)
        )

    async def status(self, tenant: str = "acme", rate: str = "1000000", **values: str) -> list[BudgetState]:
        windows = self.index.windows(self.clock.now_s)
        return await self.store.status(self.matches(tenant, **values), windows, parse_rate(rate).ratio)

    async def spent_held(self, tenant: str = "acme") -> tuple[int, int]:
        """Of the only line that binds a tenant."""
        (state,) = await self.status(tenant)
        return state.spent_nano_usd, state.held_nano_usd

    async def spent_held_of(self, tenant: str) -> dict[str, tuple[int, int]]:
        """Of all lines that bind a tenant, by scope."""
        return {s.scope: (s.spent_nano_usd, s.held_nano_usd) for s in await self.status(tenant)}

    async def alerts(self) -> list[Alert]:
        """All that are kept, the oldest first."""
        return (await self.store.recent_alerts(1000))[::-1]

    async def deliver(self, sink: str, *outcomes: Outcome, owner: str = "me") -> None:
        """Write outcomes under the leases of all partitions, which the only owner gets."""
        leases = await self.store.lease(sink, owner, 60)
        assert await self.store.acknowledge(sink, leases, outcomes) == []

    async def waiting(self, sink: str, limit: int = 100, partitions: Sequence[int] = range(PARTITIONS)) -> list[str]:
        return [entry.call_id for entry in await self.store.fetch(sink, partitions, limit)]


ACME = partition_of("acme")


def delivered(seq: int, partition: int = ACME) -> Outcome:
    return Outcome(partition, seq, "delivered")


def again(seq: int, after_s: float = 0.0, partition: int = ACME, reason: str = "busy") -> Outcome:
    return Outcome(partition, seq, "again", reason, after_s)


def dead(seq: int, reason: str = "bad", partition: int = ACME) -> Outcome:
    return Outcome(partition, seq, "dead", reason)
