"""What is forgotten before its time: old rows, and tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgspec

from ...budgets import scope_text
from ...errors import StoreError
from ..base import Erased, partition_of
from ..forgetting import DELETED, MARKED_S, PIECE, anonymous, check_erasable, naming, tombstone, waiting_error
from ..rules import hour_of
from .budgets import RedisBudgets
from .keys import RedisKeys
from .wire import text


class _Aside(msgspec.Struct):
    tenant: str


class _Scoped(msgspec.Struct):
    scope: str


_decode_aside = msgspec.msgpack.Decoder(_Aside).decode
_decode_alert = msgspec.json.Decoder(_Scoped).decode


class RedisForgetting(RedisBudgets, RedisKeys):
    """Each piece of an erasure is a script of its own. Keys go last: with them goes the knowledge which scopes were the
    tenant's, so one that was cut short is finished by doing it again.
    """

    async def prune(self, *, records_before_s: float | None, aggregates_before_s: float | None, limit: int) -> int:
        """See `Store.prune`. Aggregates go by whole days."""
        before_s: float | str = "" if records_before_s is None else float(records_before_s)
        day: int | str = "" if aggregates_before_s is None else hour_of(aggregates_before_s) // 24
        return int(await self._run("prune", (before_s, MARKED_S, day, limit))) if limit > 0 else 0

    async def erase(self, tenant: str) -> Erased:
        check_erasable(tenant)
        partition = partition_of(tenant)
        # What is settled from now on stays as it is: a sink may wait for it.
        through = int(await self._call("HGET", "meta", f"o{partition}") or 0)
        for sink in sorted(map(text, await self._call("SMEMBERS", "sinks"))):
            if await self._waits(sink, tenant, partition, through):
                raise waiting_error(tenant, sink)
        key_ids = [row.id for row in await self.keys(tenant=tenant)]
        records = await self._erase_records(tenant, partition, through)
        aggregates = await self._erase_aggregates(tenant, key_ids)
        budgets = await self._erase_budgets(tenant, key_ids)
        for key_id in key_ids:
            await self.put_key(tombstone(key_id))
        return Erased(records, aggregates, len(key_ids), budgets)

    # Records ------------------------------------------------------------------------------------------------------

    async def _entries(self, partition: int, after: int, through: int) -> AsyncIterator[list[tuple[int, Any]]]:
        """Pages of a partition's entries: places, and call, tenant and record among other fields. The last is short."""
        while True:
            start, end = f"({after}-0", f"{through}-0"
            found = await self._call("XRANGE", f"o:{partition}", start, end, "COUNT", PIECE) if after < through else []
            yield [(int(id_.partition(b"-")[0]), fields) for id_, fields in found]
            if len(found) < PIECE:
                return
            after = int(found[-1][0].partition(b"-")[0])

    async def _waits(self, sink: str, tenant: str, partition: int, through: int) -> bool:
        """Whether a sink has not got one of a tenant's records, be it for good."""
        cursor = b"0"
        while True:
            cursor, flat = await self._call("HSCAN", f"x:{sink}", cursor, "COUNT", PIECE)
            if any(_decode_aside(packed).tenant == tenant for packed in flat[1::2]):
                return True
            if cursor == b"0":
                break
        ahead = set(map(int, await self._call("SMEMBERS", f"xh:{sink}:{partition}")))
        position = int(await self._call("HGET", f"k:{sink}", f"p{partition}") or 0)
        async for page in self._entries(partition, position, through):
            if any(text(fields[3]) == tenant and place not in ahead for place, fields in page):
                return True
        return False

    async def _erase_records(self, tenant: str, partition: int, through: int) -> int:
        found = False
        async for page in self._entries(partition, 0, through):
            found = found or any(text(fields[3]) == tenant for _, fields in page)
        if not found:
            return 0
        owner, count = uuid4().hex, 0
        after: int | str = 0
        async for page in self._entries(partition, 0, through):
            own = [(place, anonymous(fields[5])) for place, fields in page if text(fields[3]) == tenant]
            last = page[-1][0] if len(page) == PIECE else ""
            changed = [part for pair in own for part in pair]
            if not await self._run("rewrite", (partition, owner, after, last, DELETED, *changed)):
                raise StoreError(f"tenant {tenant!r}: another erasure has begun: erase again after it")
            after, count = last or after, count + len(own)
        await self._run("rename_list", (tenant, DELETED))
        return count

    # Aggregates, budgets and alerts -------------------------------------------------------------------------------

    async def _days(self, scope: str) -> list[str]:
        return [text(day) for day in await self._call("ZRANGE", f"ad:{scope}", 0, -1)]

    async def _erase_aggregates(self, tenant: str, key_ids: list[str]) -> int:
        own, rest = scope_text({"tenant": tenant}), scope_text({"tenant": DELETED})
        days = await self._days(own)
        count = 0
        for day in days:
            for scope in await self._call("ZRANGE", f"t:d{day}:{own},user=", 0, -1):
                count += await self._run("take_day", (scope, day, ""))
        for key_scope in (scope_text({"key": key_id}) for key_id in key_ids):
            for day in await self._days(key_scope):
                count += await self._run("take_day", (key_scope, day, ""))
        for day in days:  # last: they lead to those of its users
            count += await self._run("take_day", (own, day, rest))
        return count

    async def _erase_budgets(self, tenant: str, key_ids: list[str]) -> int:
        """And alerts. Returns how many budgets."""
        is_named = naming(tenant, key_ids)
        start = "-"
        while found := await self._call("XRANGE", "alerts", start, "+", "COUNT", PIECE):
            for id_, fields in found:
                if is_named(_decode_alert(fields[1]).scope):
                    await self._call("ZREM", "alert_ends", id_.partition(b"-")[0])
                    await self._call("XDEL", "alerts", id_)
                    await self._call("HDEL", "alert_ids", fields[3])
            start = f"({text(found[-1][0])}"
        keys = [budget.key for budget in await self.budgets() if is_named(str(budget.scope))]
        return sum([await self.remove_budget(key) for key in keys])
