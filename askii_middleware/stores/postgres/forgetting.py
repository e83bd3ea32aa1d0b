"""What is forgotten on PostgreSQL: old rows, and tenants."""

from __future__ import annotations

import msgspec

from ...budgets import scope_text
from ..base import Erased
from ..forgetting import DELETED, MARKED_S, PIECE, anonymous, check_erasable, naming, tombstone, waiting_error
from ..rules import hour_of
from .budgets import PostgresBudgets
from .keys import PostgresKeys
from .wire import encode

_decode_records = msgspec.json.Decoder(list[tuple[int, msgspec.Raw]]).decode
_decode_alerts = msgspec.json.Decoder(list[tuple[int, str]]).decode
_decode_scopes = msgspec.json.Decoder(list[str]).decode


class PostgresForgetting(PostgresBudgets, PostgresKeys):
    """See `Store`. Each piece of an erasure is a transaction of its own. Keys go last: with them goes the knowledge
    which scopes were the tenant's, so one that was cut short is finished by doing it again.
    """

    async def prune(self, *, records_before_s: float | None, aggregates_before_s: float | None, limit: int) -> int:
        count = 0
        if records_before_s is not None and limit > 0:
            count = await self._call("prune_records", float(records_before_s), MARKED_S, limit, self._now())
        if aggregates_before_s is not None and limit > count:
            count += await self._call("prune_aggregates", hour_of(aggregates_before_s), limit - count)
        return count

    async def erase(self, tenant: str) -> Erased:
        check_erasable(tenant)
        # What is settled from now on stays as it is: a sink may wait for it.
        through = await self._call("settled_through")
        sink = await self._call("waits_for", tenant, through)
        if sink is not None:
            raise waiting_error(tenant, sink)
        key_ids = [row.id for row in await self.keys(tenant=tenant)]
        records = await self._erase_records(tenant, through)
        aggregates = await self._erase_aggregates(tenant, key_ids)
        budgets = await self._erase_budgets(tenant, key_ids)
        for key_id in key_ids:
            await self.put_key(tombstone(key_id))
        return Erased(records, aggregates, len(key_ids), budgets)

    async def _erase_records(self, tenant: str, through: int) -> int:
        count = 0
        while found := _decode_records(await self._call("records_of", tenant, through, PIECE)):
            renamed = [(number, anonymous(bytes(record)).decode()) for number, record in found]
            await self._call("rename_records", DELETED, encode(renamed))
            count += len(found)
        return count

    async def _erase_aggregates(self, tenant: str, key_ids: list[str]) -> int:
        own = scope_text({"tenant": tenant})
        count = await self._move(own, scope_text({"tenant": DELETED}))
        for key_id in key_ids:
            count += await self._move(scope_text({"key": key_id}), None)
        while scopes := _decode_scopes(await self._call("scopes_of", f"{own},user=", PIECE)):
            for scope in scopes:
                count += await self._move(scope, None)
        return count

    async def _move(self, scope: str, to: str | None) -> int:
        count = 0
        while moved := await self._call("move_aggregates", scope, to, PIECE):
            count += moved
        return count

    async def _erase_budgets(self, tenant: str, key_ids: list[str]) -> int:
        """And alerts. Returns how many budgets."""
        is_named = naming(tenant, key_ids)
        after = 0
        while found := _decode_alerts(await self._call("alert_scopes", after, PIECE)):
            await self._call("drop_alerts", encode([number for number, scope in found if is_named(scope)]))
            after = found[-1][0]
        keys = [budget.key for budget in await self.budgets() if is_named(str(budget.scope))]
        return sum([await self.remove_budget(key) for key in keys])
