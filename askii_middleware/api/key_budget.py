"""The one budget that a key is shown with: the enabled one on the key with the least left, of several periods."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from ..admission import BudgetState
from ..budgets import PERIODS, Budget, scope_text, window
from ..errors import LAST_S
from ..known_budgets import Source, budgets_on
from ..stores.base import KeyRow

if TYPE_CHECKING:
    from ..tracker import CostTracker


class KeyBudget(NamedTuple):
    """A key's budget, and how it stands.

    Attributes:
        budget: on the key itself, or on each key; None: there is neither.
        source: `store`, `config` or None.
        spent_nano_usd: in the budget's present window; of the UTC day where there is no budget.
        left_nano_usd: neither spent nor held; None without a limit.
        can_make_request: whether nothing refuses the key's next call.
    """

    budget: Budget | None
    source: Source | None
    period: str
    zone: str
    spent_nano_usd: int
    held_nano_usd: int
    limit_nano_usd: int | None
    resets_at: datetime
    can_make_request: bool

    @property
    def left_nano_usd(self) -> int | None:
        if self.limit_nano_usd is None:
            return None
        return max(self.limit_nano_usd - max(self.spent_nano_usd, 0) - self.held_nano_usd, 0)


async def read_key_budget(tracker: CostTracker, row: KeyRow, period: str | None = None) -> KeyBudget:
    """How a key's budget stands, that of one period or the tightest. Raises StoreError."""
    await tracker.ready()
    lines = await tracker.read_lines(
        {"tenant": row.tenant, "key": row.id, "user": row.user, "team": row.team, "tag": row.tags or None}
    )
    own = scope_text({"key": row.id})
    known = await _budgets_of(tracker, own)
    mine = [line for line in lines if line.scope == own and period in (None, line.period)]
    tightest = min(mine, key=_tightness, default=None)
    budget, source = _chosen(known, period if tightest is None else tightest.period)
    now_s = tracker.clock()
    if tightest is None:
        shown = period if budget is None else budget.period
        return await _unlined(tracker, row, budget, source, shown or "daily", now_s, _admits(tracker, row, lines))
    return KeyBudget(
        budget=budget,
        source=source,
        period=tightest.period,
        zone=tightest.counter.rsplit("|", 2)[1],
        spent_nano_usd=tightest.spent_nano_usd,
        held_nano_usd=tightest.held_nano_usd,
        limit_nano_usd=tightest.limit_nano_usd,
        resets_at=datetime.fromtimestamp(min(tightest.resets_at_s, LAST_S), UTC),
        can_make_request=_admits(tracker, row, lines),
    )


async def read_key_zone(tracker: CostTracker, row: KeyRow) -> str:
    """The time zone in which a key's days are: that of its budget, else UTC. Raises StoreError."""
    budget, _ = _chosen(await _budgets_of(tracker, scope_text({"key": row.id})), None)
    return "UTC" if budget is None else budget.zone


async def _unlined(
    tracker: CostTracker,
    row: KeyRow,
    budget: Budget | None,
    source: Source | None,
    period: str,
    now_s: float,
    admits: bool,
) -> KeyBudget:
    """Without a budget in force there is no counter: what was spent is known from the hourly sums."""
    zone = "UTC" if budget is None else budget.zone
    start_s, end_s = window(period, zone, now_s)
    spent = await tracker.store.spend(scope_text({"key": row.id}), start_s, end_s)
    limit = None if budget is None else budget.terms.limit_nano_usd
    return KeyBudget(
        budget=budget,
        source=source,
        period=period,
        zone=zone,
        spent_nano_usd=sum(each.cost_nano_usd for each in spent),
        held_nano_usd=0,
        limit_nano_usd=limit,
        resets_at=datetime.fromtimestamp(min(end_s, LAST_S), UTC),
        can_make_request=admits,
    )


def _admits(tracker: CostTracker, row: KeyRow, lines: Iterable[BudgetState]) -> bool:
    expired = row.expires_at_s is not None and tracker.clock() >= row.expires_at_s
    if row.revoked or expired or tracker.tenants.find(row.tenant) is not None:
        return False
    return all(line.soft or line.remaining_nano_usd is None or line.remaining_nano_usd > 0 for line in lines)


def _tightness(line: BudgetState) -> tuple[float, int]:
    left = line.remaining_nano_usd
    return (float("inf") if left is None else left, _rank(line.period))


def _rank(period: str) -> int:
    return PERIODS.index(period) if period in PERIODS else len(PERIODS)


async def _budgets_of(tracker: CostTracker, own: str) -> dict[tuple[str, str], tuple[Budget, Source]]:
    """The budgets on a key and on each key, by scope and period, with where they come from."""
    return {
        (scope, each.budget.period): (each.budget, each.source)
        for scope in (own, "key=*")
        for each in await budgets_on(tracker, scope)
    }


def _chosen(
    known: dict[tuple[str, str], tuple[Budget, Source]], period: str | None
) -> tuple[Budget, Source] | tuple[None, None]:
    """The budget that governs the period: the key's own unless it is disabled, then that of each key."""
    found = [pair for (_, each), pair in known.items() if period in (None, each)]
    found.sort(key=lambda pair: (not pair[0].enabled, str(pair[0].scope) == "key=*", _rank(pair[0].period)))
    return found[0] if found else (None, None)
