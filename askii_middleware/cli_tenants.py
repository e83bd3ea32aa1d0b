"""`askii tenant …`: who may not call at present, and why."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .cli import show
from .errors import ConfigurationError
from .settings import load_settings
from .tenants import TenantBook, TenantState
from .tracker import CostTracker


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Open the configured ledger, do one thing, close it."""
    settings = load_settings(arguments.config)
    if settings.store.startswith("memory://"):
        raise ConfigurationError("store: memory:// lives inside one running process; this command cannot reach it")
    tracker = CostTracker.from_settings(settings)
    await tracker.store.open()
    try:
        return await _ACTIONS[action](tracker.tenants, arguments)
    finally:
        await tracker.store.close()


async def _show(tenants: TenantBook, arguments: argparse.Namespace) -> int:
    states = await tenants.states()
    if arguments.tenant is not None:
        # What a tenant is suspended for may be several things; nothing at all is a state, too.
        mine = [state for state in states if state.tenant == arguments.tenant]
        rows = [_row(state) for state in mine] or [_active(arguments.tenant)]
    else:
        rows = [_row(state) for state in states]
    show(rows, as_json=arguments.json)
    return 0


async def _suspend(tenants: TenantBook, arguments: argparse.Namespace) -> int:
    try:
        await tenants.suspend(arguments.tenant, reason=arguments.reason)
    except ValueError as error:
        raise ConfigurationError(f"tenant suspend: {error}") from None
    return await _show(tenants, arguments)


async def _resume(tenants: TenantBook, arguments: argparse.Namespace) -> int:
    resumed = await tenants.resume(arguments.tenant)
    show([_active(arguments.tenant)], as_json=arguments.json)
    if not resumed:
        print("askii: this tenant was not suspended", file=sys.stderr)
    return 0 if resumed else 1


def _row(state: TenantState) -> dict[str, Any]:
    return {
        "tenant": state.tenant,
        "state": state.state,
        "by": state.cause,
        "at": state.at,
        "reason": state.reason,
    }


def _active(tenant: str) -> dict[str, Any]:
    return {"tenant": tenant, "state": "active", "by": None, "at": None, "reason": None}


_ACTIONS = {"show": _show, "suspend": _suspend, "resume": _resume}
