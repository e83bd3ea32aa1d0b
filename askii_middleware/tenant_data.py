"""A tenant's data: to hand out, and to delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .budgets import Budget, Scope, scope_text
from .currency import nano_to_usd_text
from .identity import Identity
from .stores.base import Erased, KeyRow, Store
from .stores.forgetting import check_erasable, tombstone

if TYPE_CHECKING:
    from .tenants import TenantState
    from .tracker import CostTracker

PAGE: Final = 1000
DAY_S: Final = 86_400
REASON: Final = "its data was deleted"

_encode = msgspec.json.Encoder().encode


class _Whose(msgspec.Struct):
    tenant: str = ""


_whose = msgspec.json.Decoder(_Whose).decode


async def exported(tracker: CostTracker, tenant: str) -> AsyncIterator[bytes]:
    """All that the ledger has of a tenant, as JSON objects without line breaks, each with `kind`: keys (without
    digests), budgets, suspensions, sums by day (UTC) and model, and the usage records. Bounded memory. Raises
    ValueError for what is no tenant, StoreError.
    """
    await tracker.ready()
    async for line in read_export(tracker, tenant):
        yield line


async def read_export(tracker: CostTracker, tenant: str) -> AsyncIterator[bytes]:
    """`exported` of a store that is open, without starting anything."""
    Identity(tenant=tenant)  # its bounds are a tenant's bounds
    store, after = tracker.store, ""
    while rows := await store.keys(tenant=tenant, after=after, limit=PAGE):
        for row in rows:
            yield _encode(_key(row))
        after = rows[-1].id
    named, after = scope_text({"tenant": tenant}), ""
    while budgets := await store.budgets(contains=named, after=after, limit=PAGE):
        for budget in budgets:
            if isinstance(budget.scope, Scope) and budget.scope.tenant == tenant:
                yield _encode(_budget(budget))
        after = budgets[-1].key
    for state in await tracker.tenants.states():
        if state.tenant == tenant:
            yield _encode(_suspension(state))
    async for line in _sums(store, tenant, tracker.clock()):
        yield line
    seq = 0
    while records := await store.records(seq, PAGE):
        for _, record in records:
            if _whose(record).tenant == tenant:
                yield record  # a usage record says its kind itself
        seq = records[-1][0]


async def deleted(tracker: CostTracker, tenant: str) -> Erased:
    """Suspend a tenant, erase what the ledger has of it and revoke its declared keys; what its sums and open deliveries
    need stays, without names. So do the sums of users and teams, which are names across tenants. Calls that run
    meanwhile are charged when they end, so delete again after `max_call_s` where some may run.

    Raises StoreError while records wait for a sink: deliver or forget them first. The tenant is suspended then, so that
    no more come, and nothing is erased. Raises ValueError for what is no tenant.
    """
    await tracker.ready()
    return await delete(tracker, tenant)


async def delete(tracker: CostTracker, tenant: str) -> Erased:
    """`deleted` in a store that is open, without starting anything."""
    check_erasable(tenant)
    await tracker.tenants.suspend(tenant, reason=REASON)
    try:
        erased = await tracker.store.erase(tenant)
        await _revoke_declared(tracker, tenant)
        return erased
    finally:
        tracker.keys.directory.forget()
        tracker.index.update(*await tracker.store.forms())


async def _revoke_declared(tracker: CostTracker, tenant: str) -> None:
    """The ids of stored keys stay, so that they open nothing and nobody else gets them; so must those that only the
    configuration knows, whose secrets would open again as soon as the tenant is resumed.
    """
    for row in tracker.keys.directory.declared.values():
        if row.tenant == tenant and await tracker.store.key(row.id) is None:
            await tracker.store.put_key(tombstone(row.id))


async def _sums(store: Store, tenant: str, now_s: float) -> AsyncIterator[bytes]:
    """The newest year first, until nothing is left before it."""
    scopes = (scope_text({"tenant": tenant}),)
    end_s = int(now_s) // DAY_S * DAY_S + DAY_S
    while end_s > 0:
        start_s = max(end_s - 366 * DAY_S, 0)
        edges = list(range(start_s, end_s + 1, DAY_S))
        for day_s, rows in zip(edges, await store.spend_over(scopes, edges), strict=False):
            for row in rows:
                yield _encode(
                    {
                        "kind": "day",
                        "day": _time(day_s)[:10],
                        "model": row.model,
                        "provider": row.provider,
                        "requests": row.requests,
                        "input_tokens": row.input_tokens,
                        "output_tokens": row.output_tokens,
                        "cost_usd": nano_to_usd_text(row.cost_nano_usd),
                    }
                )
        (before,) = await store.spend_over(scopes, (0, start_s))
        end_s = start_s if before else 0


def _key(row: KeyRow) -> dict[str, Any]:
    return {
        "kind": "key",
        "id": row.id,
        "name": row.name,
        "user": row.user,
        "team": row.team,
        "tags": row.tags,
        "models": row.models,
        "created_at": None if row.created_at_s is None else _time(row.created_at_s),
        "expires_at": None if row.expires_at_s is None else _time(row.expires_at_s),
        "revoked": row.revoked,
    }


def _budget(budget: Budget) -> dict[str, Any]:
    terms = budget.terms
    return {
        "kind": "budget",
        "scope": str(budget.scope),
        "period": budget.period,
        "zone": budget.zone,
        "limit_usd": None if terms.limit_nano_usd is None else nano_to_usd_text(terms.limit_nano_usd),
        "limit_coins": terms.limit_coins,
        "enabled": budget.enabled,
    }


def _suspension(state: TenantState) -> dict[str, Any]:
    return {"kind": "suspension", "cause": state.cause, "reason": state.reason, "at": state.at, "about": state.about}


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()
