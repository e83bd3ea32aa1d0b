"""What a key has spent: in a period, between two dates, or over its last days."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from ..budgets import Scope
from ..currency import NANO, Rate, nano_to_coins_text, nano_to_usd_text
from ..stores.base import KeyRow
from .days import Day, days_of, last_days, today_in
from .key_budget import read_key_zone
from .keys import visible_key
from .operation import ADMIN_OR_KEY, Answer, Asked, Exact, NoBody, Operation, Query
from .problems import judged

if TYPE_CHECKING:
    from ..tracker import CostTracker
    from ..usage_report import ReportLine


class SpendAnswer(Answer):
    """What a key has spent. Plain numbers are USD for reading; strings are exact."""

    key_id: str
    period: Literal["daily", "weekly", "monthly", "custom"]
    period_start: datetime
    period_end: datetime
    zone: str
    total_requests: int
    total_tokens: int
    total_cost: float
    total_cost_usd: Exact
    total_cost_coins: Exact
    by_model: dict[str, float]
    by_model_coins: dict[str, Exact]
    by_provider: dict[str, float]
    by_provider_coins: dict[str, Exact]
    exchange_rate: float
    """Coins per USD, now."""


class UsageAnswer(SpendAnswer):
    """What a key has spent over its last days, today included."""

    period_days: int


class SpendQuery(Query):
    """`start_date` and `end_date` (both included) win over `period`; without `end_date` it is today."""

    period: Literal["daily", "weekly", "monthly"] = "daily"
    start_date: Day | None = None
    end_date: Day | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end_date is not None and self.start_date is None:
            raise ValueError("end_date needs start_date")
        return self


class UsageQuery(Query):
    days: Annotated[int, Field(ge=1, le=365)] = 30


async def get_spend(asked: Asked[SpendQuery, NoBody]) -> SpendAnswer:
    key, query, tracker = await visible_key(asked), asked.query, asked.desk.tracker
    zone = await read_key_zone(tracker, key.row)
    if query.start_date is None:
        first, last = days_of(query.period, zone, tracker.clock())
        return SpendAnswer(period=query.period, **await _spent(tracker, key.row, first, last, zone))
    last = query.end_date or max(today_in(zone, tracker.clock()), query.start_date)
    return SpendAnswer(period="custom", **await _spent(tracker, key.row, query.start_date, last, zone))


async def get_usage(asked: Asked[UsageQuery, NoBody]) -> UsageAnswer:
    key, days, tracker = await visible_key(asked), asked.query.days, asked.desk.tracker
    zone = await read_key_zone(tracker, key.row)
    first, last = last_days(days, zone, tracker.clock())
    spent = await _spent(tracker, key.row, first, last, zone)
    return UsageAnswer(period="custom", period_days=days, **spent)


async def _spent(tracker: CostTracker, row: KeyRow, first: date, last: date, zone: str) -> dict[str, Any]:
    with judged("start_date"):
        report = await tracker.usage_report(Scope(key=row.id), first=first, last=last, zone=zone)
    rate, total = report.rate, report.total
    return {
        "key_id": row.id,
        "period_start": report.period_start,
        "period_end": report.period_end,
        "zone": zone,
        "total_requests": total.requests,
        "total_tokens": total.input_tokens + total.output_tokens,
        "total_cost": total.cost_nano_usd / NANO,
        "total_cost_usd": nano_to_usd_text(total.cost_nano_usd),
        "total_cost_coins": nano_to_coins_text(total.cost_nano_usd, rate),
        "by_model": _by(report.by_model, lambda nano_usd: nano_usd / NANO),
        "by_model_coins": _by(report.by_model, _in_coins(rate)),
        "by_provider": _by(report.by_provider, lambda nano_usd: nano_usd / NANO),
        "by_provider_coins": _by(report.by_provider, _in_coins(rate)),
        "exchange_rate": report.exchange_rate,
    }


def _by(lines: Sequence[ReportLine], shown: Callable[[int], Any]) -> dict[str, Any]:
    return {line.value: shown(line.cost_nano_usd) for line in lines}


def _in_coins(rate: Rate) -> Callable[[int], str]:
    return lambda nano_usd: nano_to_coins_text(nano_usd, rate)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/billing/spend/{key_id}",
        name="get_spend",
        summary="What a key has spent in a period or between two dates, in the time zone of its budget.",
        handler=get_spend,
        query=SpendQuery,
        answer=SpendAnswer,
        who=ADMIN_OR_KEY,
        for_user=True,
    ),
    Operation(
        method="GET",
        path="/api/keys/{key_id}/usage",
        name="get_key_usage",
        summary="What a key has spent over its last days, today included.",
        handler=get_usage,
        query=UsageQuery,
        answer=UsageAnswer,
        who=ADMIN_OR_KEY,
        for_user=True,
    ),
)
