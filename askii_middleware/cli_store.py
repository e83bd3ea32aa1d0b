"""`askii budget …` and `askii keys …`: what lives in the store and wins over the configuration."""

from __future__ import annotations

import argparse
import sys
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from .budgets import Budget, Scope
from .cli import plain_text, show
from .currency import nano_to_usd_text
from .errors import ConfigurationError
from .explaining import described_call
from .identity import Identity
from .keys import hash_secret, new_secret
from .settings import Settings, load_settings
from .stores.base import KeyRow
from .tracker import CostTracker


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Open the configured ledger, do one thing, close it."""
    settings = load_settings(arguments.config)
    if settings.store.startswith("memory://"):
        raise ConfigurationError("store: memory:// lives inside one running process; this command cannot reach it")
    tracker = CostTracker.from_settings(settings)
    await tracker.store.open()
    try:
        tracker.index.update(*await tracker.store.forms())
        return await _ACTIONS[action](tracker, settings, arguments)
    finally:
        await tracker.store.close()


async def _budget_set(tracker: CostTracker, _settings: Settings, arguments: argparse.Namespace) -> int:
    usd = None if arguments.usd in (None, "none") else arguments.usd
    budget = Budget(
        scope=arguments.scope,
        limit_usd=usd,
        limit_coins=arguments.coins,
        period=arguments.period,
        zone=arguments.zone,
        alert_at=tuple(arguments.alert_at or ()),
        soft=arguments.soft,
        max_values=arguments.max_values,
    )
    budget = tracker.names.budget(budget)
    await tracker.store.set_budget(budget)
    show(_budget_row(budget, "store"), as_json=arguments.json)
    return 0


async def _budget_rm(tracker: CostTracker, _settings: Settings, arguments: argparse.Namespace) -> int:
    key = f"{tracker.names.scope(Scope.parse(arguments.scope))}|{arguments.period}"
    removed = await tracker.store.remove_budget(key)
    show({"removed": removed, "budget": key}, as_json=arguments.json)
    if not removed:
        print("askii: no such budget was set at run time; declared ones are removed in askii.toml", file=sys.stderr)
    return 0 if removed else 1


async def _budget_status(tracker: CostTracker, _settings: Settings, arguments: argparse.Namespace) -> int:
    lines = await tracker.budget_enforcer.read(arguments.scope)
    show([line.table() for line in lines], as_json=arguments.json)
    return 0


async def _budget_explain(tracker: CostTracker, _settings: Settings, arguments: argparse.Namespace) -> int:
    fields = {name: getattr(arguments, name) for name in ("key", "user", "team", "end_user")}
    try:
        explanation = await tracker.read_explanation(
            Identity(tenant=arguments.tenant, tags=tuple(arguments.tag or ()), **fields),
            described_call(
                arguments.model,
                input_tokens=arguments.input_tokens,
                output_tokens=arguments.output_tokens,
                stream=arguments.stream,
            ),
        )
    except ValueError as error:
        raise ConfigurationError(f"budget explain: {error}") from None
    if arguments.json:
        show(explanation.table(), as_json=True)
        return 0
    print(f"{explanation.mode} ({explanation.mode_why}): {explanation.why}")
    for candidate in explanation.candidates:
        print(f"\n{candidate.model}: {candidate.verdict}: {candidate.why}")
        show([line.table() for line in candidate.budgets], as_json=False)
    return 0


async def _budget_list(tracker: CostTracker, settings: Settings, arguments: argparse.Namespace) -> int:
    stored = {budget.key: budget for budget in await tracker.store.budgets()}
    rows = [_budget_row(budget, "store") for budget in stored.values()]
    rows += [_budget_row(budget, "config") for budget in settings.budgets if budget.key not in stored]
    show(sorted(rows, key=lambda row: (row["scope"], row["period"])), as_json=arguments.json)
    return 0


async def _budget_reclaim(tracker: CostTracker, _settings: Settings, arguments: argparse.Namespace) -> int:
    scope = None if arguments.scope is None else str(tracker.names.scope(Scope.parse(arguments.scope)))
    rows = [
        {
            "counter": row.counter,
            "worker": row.holder,
            "reclaimed_usd": nano_to_usd_text(row.granted_nano_usd - row.used_nano_usd),
        }
        for row in await tracker.store.reclaim(scope)
    ]
    show(rows, as_json=arguments.json)
    return 0


def _budget_row(budget: Budget, source: str) -> dict[str, Any]:
    terms = budget.terms
    return {
        "scope": str(budget.scope),
        "period": budget.period,
        "zone": budget.zone,
        "limit_usd": None if terms.limit_nano_usd is None else nano_to_usd_text(terms.limit_nano_usd),
        "limit_coins": None if terms.limit_coins is None else plain_text(Decimal(terms.limit_coins)),
        "alert_at": ",".join(f"{share:g}" for share in budget.alert_at) or None,
        "soft": budget.soft,
        "max_values": terms.max_values,
        "enabled": budget.enabled,
        "source": source,
    }


async def _keys_add(tracker: CostTracker, settings: Settings, arguments: argparse.Namespace) -> int:
    try:
        Identity(tenant=arguments.tenant, key=arguments.id, user=arguments.user, team=arguments.team)
    except ValueError as error:
        raise ConfigurationError(f"keys add: {error}") from None
    if arguments.id in {row.id for row in (*settings.keys, *await tracker.store.keys())}:
        raise ConfigurationError(f"a key with the id {arguments.id!r} exists: name another, or revoke it")
    secret = new_secret()
    row = KeyRow(
        id=arguments.id or f"key_{uuid.uuid4().hex[:12]}",
        sha256=hash_secret(secret),
        tenant=arguments.tenant,
        user=arguments.user,
        team=arguments.team,
    )
    await tracker.store.put_key(row)
    show({**_key_row(row, "store"), "secret": secret, "sha256": row.sha256}, as_json=arguments.json)
    print("askii: the secret is shown only now; the ledger keeps its hash", file=sys.stderr)
    return 0


async def _keys_revoke(tracker: CostTracker, settings: Settings, arguments: argparse.Namespace) -> int:
    rows = {row.id: row for row in (*settings.keys, *await tracker.store.keys())}
    row = rows.get(arguments.id)
    if row is None:
        raise ConfigurationError(f"no key has the id {arguments.id!r}; askii keys list shows all")
    values = {name: getattr(row, name) for name in row.__struct_fields__}
    await tracker.store.put_key(KeyRow(**{**values, "revoked": True}))
    show({"id": row.id, "revoked": True}, as_json=arguments.json)
    return 0


async def _keys_list(tracker: CostTracker, settings: Settings, arguments: argparse.Namespace) -> int:
    stored = {row.id: row for row in await tracker.store.keys()}
    rows = [_key_row(row, "store") for row in stored.values()]
    rows += [_key_row(row, "config") for row in settings.keys if row.id not in stored]
    show(sorted(rows, key=lambda row: str(row["id"])), as_json=arguments.json)
    return 0


def _key_row(row: KeyRow, source: str) -> dict[str, Any]:
    expires = row.expires_at_s
    return {
        "id": row.id,
        "tenant": row.tenant,
        "user": row.user,
        "team": row.team,
        "models": ",".join(row.models) or None,
        "expires_at": None if expires is None else datetime.fromtimestamp(expires, UTC).isoformat(),
        "revoked": row.revoked,
        "source": source,
    }


_ACTIONS = {
    "budget_set": _budget_set,
    "budget_rm": _budget_rm,
    "budget_status": _budget_status,
    "budget_list": _budget_list,
    "budget_explain": _budget_explain,
    "budget_reclaim": _budget_reclaim,
    "keys_add": _keys_add,
    "keys_revoke": _keys_revoke,
    "keys_list": _keys_list,
}
