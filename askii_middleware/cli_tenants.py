"""`askii tenant …`: who may not call at present, and why; a tenant's data, to hand out and to delete."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .cli_open import Opened, confirmed, opened_ledger
from .cli_output import lines_to, progress, show
from .errors import ConfigurationError
from .tenant_data import delete, read_export
from .tenants import TenantState


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Open the configured ledger, do one thing, close it."""
    async with opened_ledger(arguments.config) as ledger:
        try:
            return await _ACTIONS[action](ledger, arguments)
        except ValueError as error:
            raise ConfigurationError(f"tenant {action}: {error}") from None


async def _show(ledger: Opened, arguments: argparse.Namespace) -> int:
    states = await ledger.tracker.tenants.states()
    if arguments.tenant is not None:
        # What a tenant is suspended for may be several things; nothing at all is a state, too.
        mine = [state for state in states if state.tenant == arguments.tenant]
        rows = [_row(state) for state in mine] or [_active(arguments.tenant)]
    else:
        rows = [_row(state) for state in states]
    show(rows, as_json=arguments.json)
    return 0


async def _suspend(ledger: Opened, arguments: argparse.Namespace) -> int:
    await ledger.tracker.tenants.suspend(arguments.tenant, reason=arguments.reason)
    return await _show(ledger, arguments)


async def _resume(ledger: Opened, arguments: argparse.Namespace) -> int:
    resumed = await ledger.tracker.tenants.resume(arguments.tenant)
    show([_active(arguments.tenant)], as_json=arguments.json)
    if not resumed:
        print("askii: this tenant was not suspended", file=sys.stderr)
    return 0 if resumed else 1


async def _export(ledger: Opened, arguments: argparse.Namespace) -> int:
    lines = 0
    with lines_to(arguments.file, what="tenant export") as file, progress("lines") as on_progress:
        async for line in read_export(ledger.tracker, arguments.tenant):
            file.write(line + b"\n")
            lines += 1
            on_progress(lines)
    if not lines:
        print(f"askii: the ledger has nothing of a tenant {arguments.tenant!r}", file=sys.stderr)
    if arguments.file:
        show({"tenant": arguments.tenant, "lines": lines, "file": arguments.file}, as_json=arguments.json)
    return 0


async def _delete(ledger: Opened, arguments: argparse.Namespace) -> int:
    tenant = arguments.tenant
    if not arguments.yes:
        question = f"suspend tenant {tenant!r} and delete its keys, budgets, sums and what its records say of it?"
        if not await confirmed(question):
            print("askii: nothing was deleted", file=sys.stderr)
            return 1
    with progress("erasing") as on_progress:
        on_progress(0)
        erased = await delete(ledger.tracker, tenant)
    show({"tenant": tenant, **erased._asdict()}, as_json=arguments.json)
    declared = [row.id for row in ledger.settings.keys if row.tenant == tenant]
    if declared:
        print(
            f"askii: {len(declared)} keys of this tenant are declared in askii.toml, such as {declared[0]!r}: they are "
            "revoked; remove them there",
            file=sys.stderr,
        )
    return 0


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


_ACTIONS = {"show": _show, "suspend": _suspend, "resume": _resume, "export": _export, "delete": _delete}
