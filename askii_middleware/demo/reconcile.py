"""The demo's closing account: what the ledger charged, what the records say, and what the Lago stand-in would bill."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ..currency import NANO
from ..records import decode_record

if TYPE_CHECKING:
    from ..tracker import CostTracker
    from .lago import LagoLedger
    from .traffic import Tenant


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Every figure comes from where it stands: the ledger's own sums, its records, the stand-in's events."""

    calls: int
    downgraded: int
    refused: int
    ledger_nano_usd: int
    records_nano_usd: int
    records: int
    lago_events: int
    lago_coins: int
    record_coins: int
    exact_coins: Decimal
    subscriptions: int
    overspent_tenants: list[str]
    held_nano_usd: int

    @property
    def reconciled(self) -> bool:
        """The ledger, the records and the events agree, to the nano-USD and, per subscription, to the coin."""
        return (
            self.ledger_nano_usd == self.records_nano_usd
            and self.records == self.lago_events == self.calls
            and self.lago_coins == self.record_coins
            and abs(self.lago_coins - self.exact_coins) < max(self.subscriptions, 1)
            and self.held_nano_usd == 0
            and not self.overspent_tenants
        )

    def as_json(self) -> dict[str, Any]:
        """The object that `askii demo --json` prints."""
        return {
            "calls": self.calls,
            "downgraded": self.downgraded,
            "refused": self.refused,
            "ledger_nano_usd": self.ledger_nano_usd,
            "records_nano_usd": self.records_nano_usd,
            "lago_events": self.lago_events,
            "lago_coins": self.lago_coins,
            "reconciled": self.reconciled,
            "overspent_tenants": self.overspent_tenants,
        }


async def reconcile(tracker: CostTracker, lago: LagoLedger, tenants: list[Tenant]) -> Reconciliation:
    """Read all sides."""
    totals = await tracker.store.totals()
    coins, exact, subscriptions, position = 0, Decimal(0), set(), 0
    while batch := await tracker.store.records(position):
        position = batch[-1][0]
        for _, body in batch:
            record = decode_record(body)
            coins += record.askii_coins
            exact += Decimal(record.cost_nano_usd) * Decimal(record.exchange_rate) / NANO
            subscriptions.add(record.subscription)
    overspent = []
    for tenant in tenants:
        lines = await tracker.budget_enforcer.status(f"tenant={tenant.name}")
        if any(line.limit_usd is not None and line.spent_usd > line.limit_usd for line in lines):
            overspent.append(tenant.name)
    return Reconciliation(
        calls=totals.calls,
        downgraded=sum(tenant.downgraded for tenant in tenants),
        refused=sum(tenant.refused for tenant in tenants),
        ledger_nano_usd=totals.cost_nano_usd,
        records_nano_usd=totals.records_nano_usd,
        records=totals.records,
        lago_events=len(lago.events),
        lago_coins=int(sum(lago.coins(subscription) for subscription in subscriptions)),
        record_coins=coins,
        exact_coins=exact,
        subscriptions=len(subscriptions),
        overspent_tenants=overspent,
        held_nano_usd=totals.held_nano_usd,
    )
