"""Values in the guides' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class BudgetPeriod(StrEnum):
    """Over what a key's budget runs, and its spend is asked for. Days begin at midnight UTC, weeks on Mondays."""

    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    YEARLY = "yearly"
    TOTAL = "total"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyBudget:
    """How a key stands. Amounts in USD; None where there is no limit.

    Attributes:
        current_spend: what is spent in the window of the key's own budget, of several the tightest; without one, on
            this UTC day.
        remaining: of that budget, what is neither spent nor held.
        percent_used: of the limit, by what is spent.
        alert_threshold: the share of the limit from which on `alert_triggered`.
        alert_sent: whether the ledger has reported that crossing to the configured channels.
        can_make_request: whether nothing refuses the key's next call: a budget of its own, of its tenant, user or
            team, a suspension, a revocation.
    """

    key_id: str
    current_spend: float
    current_spend_askii_coins: float
    max_budget: float | None
    remaining: float | None
    period: str
    resets_at: datetime
    percent_used: float
    alert_threshold: float
    alert_triggered: bool
    alert_sent: bool
    can_make_request: bool
