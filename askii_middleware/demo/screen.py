"""What the demo shows while it runs, and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..budget_status import usd
from ..currency import nano_to_coins, nano_to_usd_text

if TYPE_CHECKING:
    from ..tracker import CostTracker
    from .lago import LagoLedger
    from .reconcile import Reconciliation
    from .traffic import Tenant


async def frame(
    tracker: CostTracker, lago: LagoLedger, tenants: list[Tenant], places: dict[str, str], left_s: float
) -> Group:
    """One picture of the running demo."""
    # Without lines between the columns: 80 characters are enough for all of it.
    table = Table(
        title="tenants and their daily budgets", title_justify="left", expand=True, box=SIMPLE_HEAD, pad_edge=False
    )
    for column in ("tenant", "used", "USD, coins", "served by", "calls"):
        table.add_column(column, no_wrap=True)
    windows, rate = tracker.index.windows(tracker.clock()), tracker.rates.current()
    for tenant in tenants:
        lines = await tracker.store.status(tracker.index.matches({"tenant": tenant.name}), windows, rate.ratio)
        spent = max((line.spent_nano_usd for line in lines), default=0)
        limit = min((line.limit_nano_usd for line in lines if line.limit_nano_usd is not None), default=0)
        share = spent / limit if limit else 0.0
        colour = "red" if tenant.refused else "yellow" if tenant.downgraded else "green"
        used = Text(f"{share:.1%}", style=colour)
        served = "\n".join(f"{model} {count}" for model, count in tenant.served.items()) or "-"
        table.add_row(
            Text(tenant.name, style="bold") + Text(f"\n{tenant.story}", style="dim"),
            used,
            f"{usd(spent):.4f} of {usd(limit).normalize():f}\n"
            f"{nano_to_coins(spent, rate):,.0f} of {nano_to_coins(limit, rate):,.0f}",
            served,
            "\n".join(_counts(tenant)),
        )
    waiting = sum((await tracker.store.pending()).values())
    text = Text()
    text.append(f"Lago stand-in: {len(lago.events)} events delivered, {waiting} waiting\n")
    for name, place in places.items():
        text.append(f"{name}: ", style="dim")
        text.append(f"{place}\n")
    text.append(f"simulated provider, no network; {left_s:.0f} s left, Ctrl-C ends it", style="dim")
    return Group(table, Panel(text, title="askii demo", title_align="left"))


def _counts(tenant: Tenant) -> list[str]:
    counts = [str(tenant.calls)]
    if tenant.downgraded:
        counts.append(f"{tenant.downgraded} moved")
    if tenant.refused:
        counts.append(f"{tenant.refused} refused")
    return counts


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
        ("exact charge in", f"{result.exact_coins.normalize():f}"),
        ("tenants above their limit", ", ".join(result.overspent_tenants) or "none"),
    ):
        table.add_row(name, figure)
    console.print(table)
    verdict = "ledger = records = events" if result.reconciled else "NOT reconciled"
    console.print(Text(verdict, style="bold green" if result.reconciled else "bold red"))
