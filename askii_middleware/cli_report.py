"""`askii report --reconcile`: do ledger, records and receivers agree?"""

from __future__ import annotations

import argparse
import contextlib
import sys
from datetime import UTC, datetime

from .budgets import scope_text
from .cli import show
from .errors import AskiiError, ConfigurationError
from .reconciler import HOUR_S, Reconciler, Reconciliation
from .settings import load_settings
from .tracker import CostTracker


async def report(arguments: argparse.Namespace) -> int:
    """Print what differs; 1 if anything does that is not merely on its way."""
    settings = load_settings(arguments.config)
    if settings.store.startswith("memory://"):
        raise ConfigurationError("store: memory:// lives inside one running process; this command cannot reach it")
    since_s = _moment(arguments.since)
    tracker = CostTracker.from_settings(settings)
    async with contextlib.AsyncExitStack() as stack:
        for sink in tracker.sinks:
            stack.push_async_callback(sink.close)
        stack.push_async_callback(tracker.store.close)
        await tracker.store.open()
        found = await Reconciler(
            tracker.store, tracker.sinks, now_s=tracker.clock(), since_s=since_s, tenant=arguments.tenant
        ).run()
        unknown = arguments.tenant is not None and not found.records and not await _is_known(tracker, arguments.tenant)
    if unknown:
        raise AskiiError(
            f"report: nothing was ever charged to a tenant {arguments.tenant!r}: there is nothing to compare"
        )
    if arguments.json:
        show(found.table(), as_json=True)
    else:
        _tell(found)
    return 0 if found.agrees else 1


async def _is_known(tracker: CostTracker, tenant: str) -> bool:
    return bool(await tracker.store.spend(scope_text({"tenant": tenant}), 0.0, tracker.clock() + HOUR_S))


def _tell(found: Reconciliation) -> None:
    rows = [{"where": "ledger", **difference._asdict()} for difference in found.ledger.listed]
    for sink in found.sinks:
        rows += [{"where": sink.sink, **difference._asdict()} for difference in sink.findings.listed]
    if rows:
        show(rows, as_json=False)
    for sink in found.sinks:
        counts = ", ".join(f"{count} {kind}" for kind, count in sink.findings.counts.items()) or "no difference"
        asked = "" if sink.audited else " (its receiver cannot be asked)"
        print(f"{sink.sink}: {sink.lines} lines, {sink.pending} waiting, {sink.dead} dead letters: {counts}{asked}")
    print(f"{found.records} records: {'reconciled' if found.agrees else 'NOT reconciled'}")
    if not found.sinks:
        print("askii: no sink is configured: only the ledger was looked at", file=sys.stderr)


def _moment(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"--since: {text!r} is not ISO 8601, such as 2026-01-31 or 2026-01-31T12:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
