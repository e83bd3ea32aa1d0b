"""What the guides ask about a key, answered by one of our trackers on its own event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..admission import fitting
from ..api.key_budget import read_key_budget
from ..budgets import Scope
from ..currency import NANO, nano_to_coins, usd_to_nano
from ..identity import Identity
from ..stores.base import KeyRow
from .shapes import KeyBudget

if TYPE_CHECKING:
    from ..api.key_budget import KeyBudget as Line
    from ..tracker import CostTracker

ALERT_AT = 0.8
"""The share of its limit from which on a budget that names none is worth an alert."""
RECENT = 1000
"""How many of the ledger's alerts are looked through for one key's."""


async def row_of(tracker: CostTracker, key_id: str, otherwise: str) -> KeyRow:
    """A key as the ledger or the configuration has it. One that nobody declared or created is paid for by the tenant
    `otherwise`.
    """
    await tracker.ready()
    found = await tracker.keys.get(key_id)
    return KeyRow(id=key_id, sha256="", tenant=otherwise) if found is None else found.row


async def identity(tracker: CostTracker, key_id: str, otherwise: str) -> Identity:
    """Who uses a key."""
    return _identity(await row_of(tracker, key_id, otherwise))


def _identity(row: KeyRow) -> Identity:
    return Identity(tenant=row.tenant, key=row.id, user=row.user, team=row.team, tags=row.tags)


async def fits(tracker: CostTracker, key_id: str, otherwise: str, usd: float) -> bool:
    """Whether a call that costs so much would be admitted now: by all budgets that bind the key, and whoever may not
    call at all. Where nothing is enforced, always. Raises ValueError for what is no amount.
    """
    row, nano_usd = await row_of(tracker, key_id, otherwise), usd_to_nano(usd)
    if not _enforced(tracker, row):
        return True
    expired = row.expires_at_s is not None and tracker.clock() >= row.expires_at_s
    if row.revoked or expired or tracker.tenants.find(row.tenant) is not None:
        return False
    return fitting(await tracker.budget_lines(_identity(row).dimensions()), nano_usd) is not None


def _enforced(tracker: CostTracker, row: KeyRow) -> bool:
    return tracker.modes.of(row.tenant) == "enforce"


async def standing(tracker: CostTracker, key_id: str, otherwise: str) -> KeyBudget:
    """How a key stands. Raises StoreError."""
    row = await row_of(tracker, key_id, otherwise)
    line = await read_key_budget(tracker, row)
    limit, left = line.limit_nano_usd, line.left_nano_usd
    threshold = min(line.budget.alert_at if line.budget is not None else (), default=ALERT_AT)
    used = 0.0 if limit is None else (line.spent_nano_usd / limit if limit else 1.0)
    triggered = limit is not None and used >= threshold
    return KeyBudget(
        key_id=key_id,
        current_spend=line.spent_nano_usd / NANO,
        current_spend_askii_coins=float(nano_to_coins(line.spent_nano_usd, tracker.rates.current())),
        max_budget=None if limit is None else limit / NANO,
        remaining=None if left is None else left / NANO,
        period=line.period,
        resets_at=line.resets_at,
        percent_used=used * 100,
        alert_threshold=threshold,
        alert_triggered=triggered,
        alert_sent=triggered and await _reported(tracker, key_id, line, threshold),
        can_make_request=line.can_make_request or not _enforced(tracker, row),
    )


async def _reported(tracker: CostTracker, key_id: str, line: Line, threshold: float) -> bool:
    """Whether the crossing stands among the ledger's alerts, which go to the configured channels."""
    scope, period, limit = Scope(key=key_id).text, line.period, line.limit_nano_usd
    return any(
        (alert.scope, alert.period, alert.limit_nano_usd) == (scope, period, limit)
        and alert.share_ppm >= round(threshold * 1_000_000)
        and alert.resets_at_s >= line.resets_at.timestamp()
        for alert in await tracker.store.recent_alerts(RECENT)
    )
