"""`askii budget …`: budgets that live in the ledger and win over declared ones."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from decimal import Decimal
from typing import Any

from .budgets import Budget, Scope
from .cli_open import opened_ledger
from .cli_output import plain_text, show
from .currency import nano_to_usd_text
from .errors import ConfigurationError
from .explaining import described_call
from .identity import Identity
from .settings import Settings
from .tracker import CostTracker


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Open the configured ledger, do one thing, close it."""
    async with opened_ledger(arguments.config) as ledger:
        return await _ACTIONS[action](ledger.tracker, ledger.settings, arguments)


async def _set(tracker: CostTracker, settings: Settings, arguments: argparse.Namespace) -> int:
    given: dict[str, Any] = {
        "zone": arguments.zone,
        "alert_at": arguments.alert_at,
        "soft": arguments.soft,
        "max_values": arguments.max_values,
        "enabled": arguments.enabled,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.usd is not None or arguments.coins is not None:
        usd = None if arguments.usd == "none" else arguments.usd
        limits = {"limit_usd": usd, "limit_coins": arguments.coins}
        budget = tracker.names.budget(Budget(scope=arguments.scope, period=arguments.period, **limits, **given))
    elif not given:
        arguments.wrong("give --usd or --coins, or what else is to change")
        return 2
    else:
        budget = replace(await _known(tracker, settings, arguments.scope, arguments.period), **given)
    await tracker.store.set_budget(budget)
    show(_row(budget, "store"), as_json=arguments.json)
    return 0


async def _known(tracker: CostTracker, settings: Settings, scope: str, period: str) -> Budget:
    """The budget of a scope and period as it is. Raises ConfigurationError where there is none."""
    key = f"{tracker.names.scope(Scope.parse(scope))}|{period}"
    declared = {budget.key: budget for budget in map(tracker.names.budget, settings.budgets)}
    found = await tracker.store.budget(key) or declared.get(key)
    if found is None:
        raise ConfigurationError(f"budget set: there is no budget {key!r} to change: give --usd or --coins")
    return found


async def _rm(tracker: CostTracker, _settings: Settings, arguments: argparse.Namespace) -> int:
    key = f"{tracker.names.scope(Scope.parse(arguments.scope))}|{arguments.period}"
    removed = await tracker.store.remove_budget(key)
    show({"removed": removed, "budget": key}, as_json=arguments.json)
    if not removed:
        print("askii: no such budget was set at run time; declared ones are removed in askii.toml", file=sys.stderr)
    return 0 if removed else 1


async def _status(tracker: CostTracker, _settings: Settings, arguments: argparse.Namespace) -> int:
    lines = await tracker.budget_enforcer.read(arguments.scope)
    show([line.table() for line in lines], as_json=arguments.json)
    return 0


async def _explain(tracker: CostTracker, _settings: Settings, arguments: argparse.Namespace) -> int:
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


async def _list(tracker: CostTracker, settings: Settings, arguments: argparse.Namespace) -> int:
    stored = {budget.key: budget for budget in await tracker.store.budgets()}
    rows = [_row(budget, "store") for budget in stored.values()]
    rows += [_row(budget, "config") for budget in settings.budgets if budget.key not in stored]
    show(sorted(rows, key=lambda row: (row["scope"], row["period"])), as_json=arguments.json)
    return 0


async def _reclaim(tracker: CostTracker, _settings: Settings, arguments: argparse.Namespace) -> int:
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


def _row(budget: Budget, source: str) -> dict[str, Any]:
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


_ACTIONS = {
    "set": _set,
    "rm": _rm,
    "status": _status,
    "list": _list,
    "explain": _explain,
    "reclaim": _reclaim,
}
