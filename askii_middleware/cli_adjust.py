"""`askii adjust` and `askii reprice`: corrections of what was charged."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from typing import Any

from .cli_open import opened_ledger
from .cli_output import progress, show
from .currency import nano_to_usd_text
from .errors import ConfigurationError
from .repricing import Repriced
from .tracker import CostTracker


async def run_action(action: str, arguments: argparse.Namespace) -> int:
    """Open the configured ledger, correct, close it."""
    async with opened_ledger(arguments.config) as ledger:
        return await _ACTIONS[action](ledger.tracker, arguments)


async def _adjust(tracker: CostTracker, arguments: argparse.Namespace) -> int:
    try:
        done = await tracker.write_adjustment(
            arguments.tenant,
            arguments.usd,
            reason=arguments.reason,
            ref=arguments.ref,
            adjustment_id=arguments.id,
            allow_beyond=arguments.force,
        )
    except ValueError as error:
        raise ConfigurationError(f"adjust: {error}") from None
    record = done.record
    show(
        {
            "id": done.adjustment_id,
            "call_id": record.call_id,
            "tenant": record.tenant,
            "subscription": record.subscription,
            "usd": nano_to_usd_text(record.cost_nano_usd),
            "askii_coins": record.askii_coins,
            "reason": record.reason,
            "reference": record.reference,
            "timestamp": record.timestamp,
            "repeated": done.repeated,
        },
        as_json=arguments.json,
    )
    if done.repeated:
        print("askii: this was done before, so nothing was changed; another --id does it once more", file=sys.stderr)
    elif not await tracker.store.pending():
        print("askii: no sink is registered in this ledger, so no sink will ever bill this", file=sys.stderr)
    return 0


async def _reprice(tracker: CostTracker, arguments: argparse.Namespace) -> int:
    since = _moment("--since", arguments.since)
    until = None if arguments.until is None else _moment("--until", arguments.until)
    with progress("records read") as on_progress:
        done = await tracker.write_repricing(
            arguments.model,
            since=since,
            until=until,
            tenant=arguments.tenant,
            dry_run=arguments.dry_run,
            on_progress=on_progress,
        )
    if not done.found:
        whose = "" if arguments.tenant is None else f" of the tenant {arguments.tenant[:64]!r}"
        raise ConfigurationError(
            f"reprice: no record{whose} in this span has the model {arguments.model[:64]!r} ({done.read} records read)"
        )
    lines = [
        {"tenant": tenant, "model": model, "calls": each.calls, "usd": nano_to_usd_text(each.nano_usd)}
        for (tenant, model), each in sorted(done.sums.items())
    ]
    if arguments.json:
        show(_table(done, lines), as_json=True)
        return 0
    if lines:
        show(lines, as_json=False)
    would = "would get adjustments" if done.dry_run else "got adjustments"
    print(f"{done.adjusted} calls {would} of {nano_to_usd_text(done.nano_usd)} USD in all; {done.unchanged} need none")
    if done.capped:
        print(f"{done.capped} calls get a smaller credit, or none: credits by hand have left no more of their charge")
    for why, skipped in done.skipped.items():
        more = ", …" if skipped.count > len(skipped.examples) else ""
        print(f"not priced again: {skipped.count} records: {why} ({', '.join(skipped.examples)}{more})")
    return 0


def _table(done: Repriced, lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "dry_run": done.dry_run,
        "records_read": done.read,
        "adjusted": done.adjusted,
        "usd": nano_to_usd_text(done.nano_usd),
        "unchanged": done.unchanged,
        "capped": done.capped,
        "sums": lines,
        "skipped": [
            {"reason": why, "count": skipped.count, "examples": skipped.examples}
            for why, skipped in done.skipped.items()
        ],
    }


def _moment(option: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"reprice: {option} takes a date or a moment such as 2026-01-31 or 2026-01-31T12:00:00Z, not {text[:64]!r}"
        ) from None


_ACTIONS = {"adjust": _adjust, "reprice": _reprice}
