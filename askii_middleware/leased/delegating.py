"""A store that asks another one. What differs is overridden; what the operations promise stands in `Store`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..admission import BudgetState, Match, Window
from ..budgets import Budget
from ..stores.base import (
    Alert,
    CreditRow,
    DeadLetter,
    Drawn,
    DrawRequest,
    Entry,
    Erased,
    Item,
    KeyRow,
    Lease,
    Operation,
    Outcome,
    Place,
    Promotion,
    SpendRow,
    SpendSums,
    Store,
    Totals,
)


class DelegatingStore(Store):
    """Everything but opening, closing and what happens to calls."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = store.url

    async def ping(self) -> None:
        await self._store.ping()

    async def forms(self) -> tuple[int, list[tuple[str, str, str]]]:
        return await self._store.forms()

    async def operation(self, key: str) -> Operation | None:
        return await self._store.operation(key)

    async def overdue(self, limit: int) -> list[Operation]:
        return await self._store.overdue(limit)

    async def tend(self) -> None:
        await self._store.tend()

    async def draw(self, request: DrawRequest) -> Drawn:
        return await self._store.draw(request)

    async def promote(self, promotion: Promotion) -> None:
        await self._store.promote(promotion)

    async def credits(self) -> list[CreditRow]:
        return await self._store.credits()

    async def reclaim(self, scope: str | None = None) -> list[CreditRow]:
        return await self._store.reclaim(scope)

    async def set_budget(self, budget: Budget) -> None:
        await self._store.set_budget(budget)

    async def remove_budget(self, key: str) -> bool:
        return await self._store.remove_budget(key)

    async def budgets(self, *, after: str = "", limit: int | None = None, contains: str = "") -> list[Budget]:
        return await self._store.budgets(after=after, limit=limit, contains=contains)

    async def budgets_of(self, keys: Collection[str]) -> list[Budget]:
        return await self._store.budgets_of(keys)

    async def status_of(
        self, asked: Sequence[tuple[Match, ...]], windows: dict[str, tuple[Window, Window]], rate: tuple[int, int]
    ) -> list[list[BudgetState]]:
        return await self._store.status_of(asked, windows, rate)

    async def put_key(self, row: KeyRow) -> None:
        await self._store.put_key(row)

    async def keys(self, *, tenant: str | None = None, after: str = "", limit: int | None = None) -> list[KeyRow]:
        return await self._store.keys(tenant=tenant, after=after, limit=limit)

    async def key(self, key_id: str) -> KeyRow | None:
        return await self._store.key(key_id)

    async def find_key(self, sha256: str) -> KeyRow | None:
        return await self._store.find_key(sha256)

    async def spend_over(self, scopes: Sequence[str], edges_s: Sequence[float]) -> list[list[SpendRow]]:
        return await self._store.spend_over(scopes, edges_s)

    async def top_spend(self, prefix: str, start_s: float, end_s: float, limit: int) -> list[SpendSums]:
        return await self._store.top_spend(prefix, start_s, end_s, limit)

    async def latest(self, tenant: str | None, limit: int, *, before_seq: int | None = None) -> list[tuple[int, bytes]]:
        return await self._store.latest(tenant, limit, before_seq=before_seq)

    async def erase(self, tenant: str) -> Erased:
        return await self._store.erase(tenant)

    async def prune(self, *, records_before_s: float | None, aggregates_before_s: float | None, limit: int) -> int:
        return await self._store.prune(
            records_before_s=records_before_s, aggregates_before_s=aggregates_before_s, limit=limit
        )

    async def totals(self) -> Totals:
        return await self._store.totals()

    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        return await self._store.records(after_seq, limit)

    async def record(self, call_id: str) -> bytes | None:
        return await self._store.record(call_id)

    async def put_item(
        self, kind: str, name: str, value: bytes | None, *, until_s: float | None = None, only_new: bool = False
    ) -> bool:
        return await self._store.put_item(kind, name, value, until_s=until_s, only_new=only_new)

    async def items(self, kind: str) -> list[Item]:
        return await self._store.items(kind)

    async def item_versions(self) -> dict[str, int]:
        return await self._store.item_versions()

    async def register_sinks(self, names: Sequence[str]) -> None:
        await self._store.register_sinks(names)

    async def forget_sink(self, name: str) -> bool:
        return await self._store.forget_sink(name)

    async def lease(self, sink: str, owner: str, ttl_s: float) -> list[Lease]:
        return await self._store.lease(sink, owner, ttl_s)

    async def fetch(self, sink: str, partitions: Sequence[int], limit: int, *, early: bool = False) -> list[Entry]:
        return await self._store.fetch(sink, partitions, limit, early=early)

    async def acknowledge(
        self,
        sink: str,
        leases: Sequence[Lease],
        outcomes: Sequence[Outcome],
        *,
        retry_at_s: float = 0.0,
        failures: int = 0,
    ) -> list[int]:
        return await self._store.acknowledge(sink, leases, outcomes, retry_at_s=retry_at_s, failures=failures)

    async def places(self, sink: str) -> list[Place]:
        return await self._store.places(sink)

    async def pending(self) -> dict[str, int]:
        return await self._store.pending()

    async def dead_letters(self, sink: str, limit: int = 100) -> list[DeadLetter]:
        return await self._store.dead_letters(sink, limit)

    async def retry_dead(self, sink: str) -> int:
        return await self._store.retry_dead(sink)

    async def register_channels(self, names: Sequence[str]) -> None:
        await self._store.register_channels(names)

    async def fetch_alerts(self, channel: str, limit: int) -> list[Alert]:
        return await self._store.fetch_alerts(channel, limit)

    async def acknowledge_alerts(self, channel: str, token: int, through_seq: int) -> bool:
        return await self._store.acknowledge_alerts(channel, token, through_seq)

    async def recent_alerts(self, limit: int) -> list[Alert]:
        return await self._store.recent_alerts(limit)
