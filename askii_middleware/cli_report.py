"""`askii report`: what was charged; with `--reconcile` whether ledger, records and receivers agree."""

from __future__ import annotations

import argparse
import contextlib
import sys
from datetime import UTC, date, datetime
from decimal import Decimal

from .budgets import scope_text, zone_of
from .cli_open import Opened, opened_ledger, shown_time
from .cli_output import progress, show
from .currency import NANO, nano_to_coins_text
from .errors import AskiiError, ConfigurationError
from .reconciler import HOUR_S, Reconciler, Reconciliation
from .retention import DAY_S
from .settings_retention import RetentionSettings
from .tracker import CostTracker
from .usage_report import lines_of, report_csv


async def run_action(_action: str, arguments: argparse.Namespace) -> int:
    """Open the configured ledger, report, close it."""
    check_options(arguments)
    async with opened_ledger(arguments.config) as ledger:
        if arguments.reconcile:
            return await _reconcile(ledger, arguments)
        return await _usage(ledger.tracker, arguments)


def check_options(arguments: argparse.Namespace) -> None:
    """Raise ConfigurationError for options of the other report."""
    theirs = ("since", "tenant") if not arguments.reconcile else ("scope", "from", "to", "zone", "csv")
    given = [name for name in theirs if getattr(arguments, name)]
    if given:
        only = "without" if arguments.reconcile else "with"
        name = given[0] if given[0] == "scope" else f"--{given[0]}"
        raise ConfigurationError(f"report: {name} counts only {only} --reconcile")
    if arguments.csv and arguments.json:
        raise ConfigurationError("report: give --csv or --json, not both")


async def _usage(tracker: CostTracker, arguments: argparse.Namespace) -> int:
    zone = arguments.zone or "UTC"
    today = datetime.fromtimestamp(tracker.clock(), zone_of(zone)).date()
    last = _day("--to", arguments.to) or today
    first = _day("--from", getattr(arguments, "from")) or last.replace(day=1)
    try:
        found = await tracker.read_report(arguments.scope or "global", first=first, last=last, zone=zone)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    if arguments.csv:
        sys.stdout.write(report_csv(found))
    elif arguments.json:
        show(found.table(), as_json=True)
    else:
        show(list(lines_of(found)), as_json=False)
        coins = Decimal(nano_to_coins_text(NANO, found.rate))
        print(f"{found.scope}, {first} to {last} ({zone}); 1 USD is {coins:,f} coins")
    return 0


async def _reconcile(ledger: Opened, arguments: argparse.Namespace) -> int:
    """Print what differs; 1 if anything does that is not merely on its way."""
    tracker, since_s = ledger.tracker, _moment(arguments.since)
    kept_s = _kept_since_s(ledger.settings.retention, tracker.clock())
    if since_s < kept_s:
        since_s = kept_s
        print(f"askii: calls before {shown_time(kept_s)} are left out: [retention] lets them go", file=sys.stderr)
    async with contextlib.AsyncExitStack() as stack:
        for sink in tracker.sinks:
            stack.push_async_callback(sink.close)
        with progress("records read") as on_progress:
            found = await Reconciler(
                *(tracker.store, tracker.sinks),
                now_s=tracker.clock(),
                since_s=since_s,
                tenant=arguments.tenant,
                on_progress=on_progress,
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


def _kept_since_s(retention: RetentionSettings, now_s: float) -> float:
    """Since when neither records nor sums can have been dropped, however long the comparison takes; 0: ever."""
    days = [kept for kept in (retention.records_days, retention.aggregates_days) if kept is not None]
    return (now_s - min(days) * DAY_S) // HOUR_S * HOUR_S + 3 * HOUR_S if days else 0.0


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


def _day(option: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"report: {option} takes a day such as 2026-01-31, not {text[:64]!r}") from None
