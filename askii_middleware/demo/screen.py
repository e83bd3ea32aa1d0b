"""What the demo shows while it runs, and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..currency import nano_to_coins_text, nano_to_usd_text

if TYPE_CHECKING:
    from ..tracker import CostTracker
    from .lago import LagoLedger
    from .reconcile import Reconciliation
    from .traffic import Tenant

BAR_CELLS = 10


async def frame(
    tracker: CostTracker, lago: LagoLedger, tenants: list[Tenant], places: dict[str, str], left_s: float
) -> Group:
    """One picture of the running demo."""
    table = Table(title="tenants and their daily budgets", title_justify="left", expand=True)
    for column in ("tenant", "spend against limit", "in USD and Askii Coins", "served by"):
        table.add_column(column)
    for column in ("calls", "downgraded", "refused"):
        table.add_column(column, justify="right")
    windows, rate = tracker.index.windows(tracker.clock()), tracker.rates.current()
    for tenant in tenants:
        lines = await tracker.store.status(tracker.index.matches({"tenant": tenant.name}), windows, rate.ratio)
        spent = max((line.spent_nano_usd for line in lines), default=0)
        limit = min((line.limit_nano_usd for line in lines if line.limit_nano_usd is not None), default=0)
        share = spent / limit if limit else 0.0
        colour = "red" if tenant.refused else "yellow" if tenant.downgraded else "green"
        filled = min(round(share * BAR_CELLS), BAR_CELLS)
        bar = Text("█" * filled, style=colour) + Text("░" * (BAR_CELLS - filled), style="dim") + f" {share:6.1%}"
        served = "\n".join(f"{model} {count}" for model, count in tenant.served.items()) or "-"
        table.add_row(
            Text(tenant.name, style="bold") + Text(f"\n{tenant.story}", style="dim"),
            bar,
            f"{nano_to_usd_text(spent)} of {nano_to_usd_text(limit)} USD\n"
            f"{nano_to_coins_text(spent, rate)} of {nano_to_coins_text(limit, rate)}",
            served,
            str(tenant.calls),
            str(tenant.downgraded),
            str(tenant.refused),
        )
    waiting = sum((await tracker.store.pending()).values())
    text = Text()
    text.append(f"Lago stand-in: {len(lago.events)} events delivered, {waiting} waiting\n")
    for name, place in places.items():
        text.append(f"{name}: ", style="dim")
        text.append(f"{place}\n")
    text.append(f"simulated provider, no network; {left_s:.0f} s left, Ctrl-C ends it", style="dim")
    return Group(table, Panel(text, title="askii demo", title_align="left"))


def closing(console: Console, result: Reconciliation) -> None:
    """The reconciliation, for people."""
    table = Table(title="reconciliation", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, figure in (
        ("calls charged", f"{result.calls}"),
        ("calls downgraded to a fallback model", f"{result.downgraded}"),
        ("calls refused", f"{result.refused}"),
        ("charged in the ledger", f"{nano_to_usd_text(result.ledger_nano_usd)} USD"),
        ("sum of the usage records", f"{nano_to_usd_text(result.records_nano_usd)} USD"),
        ("usage records", f"{result.records}"),
        ("events at the Lago stand-in", f"{result.lago_events}"),
        ("coins in the records", f"{result.record_coins:,}"),
        ("coins the Lago stand-in would bill", f"{result.lago_coins:,}"),
        ("exact charge in coins", f"{result.exact_coins.normalize():f}"),
        ("tenants above their limit", ", ".join(result.overspent_tenants) or "none"),
    ):
        table.add_row(name, figure)
    console.print(table)
    verdict = "ledger = records = events" if result.reconciled else "NOT reconciled"
    console.print(Text(verdict, style="bold green" if result.reconciled else "bold red"))
