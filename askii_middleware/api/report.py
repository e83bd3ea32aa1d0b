"""Reports over days, as JSON and as CSV for spreadsheets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from ..budgets import scope_text
from ..currency import Rate, nano_to_coins_text, nano_to_usd_text
from ..usage_report import ReportLine, UsageReport, report_csv
from .access import Admin, KeyHolder, Principal
from .days import Day, today_in
from .operation import ADMIN_OR_KEY, Answer, Asked, Download, Exact, NoBody, Operation, Query, Text, file_part
from .problems import judged, not_found


class ReportLineAnswer(Answer):
    """One part of a report. Amounts are exact."""

    value: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: Exact
    cost_askii_coins: Exact


class ReportAnswer(Answer):
    """What a scope has cost between two days, both included. Coins are at the rate of now."""

    scope: str
    zone: str
    period_start: datetime
    period_end: datetime
    exchange_rate: float
    total: ReportLineAnswer
    by_day: tuple[ReportLineAnswer, ...]
    by_model: tuple[ReportLineAnswer, ...]
    by_provider: tuple[ReportLineAnswer, ...]
    by_user: tuple[ReportLineAnswer, ...]
    by_tenant: tuple[ReportLineAnswer, ...]


class ReportQuery(Query):
    """`scope`: `global`, or one tenant, key, user or team; a key's holder has its own, and an admin for a user that
    user's. Both days are included; without them it is the month so far.
    """

    scope: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    start_date: Day | None = None
    end_date: Day | None = None
    zone: Text = "UTC"
    format: Literal["json", "csv"] = "json"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end_date is not None and self.start_date is None:
            raise ValueError("end_date needs start_date")
        return self


async def get_report(asked: Asked[ReportQuery, NoBody]) -> ReportAnswer | Download:
    query, tracker = asked.query, asked.desk.tracker
    scope = _scope(asked.principal, query.scope)
    with judged("zone"):
        today = today_in(query.zone, tracker.clock())
    first = query.start_date or today.replace(day=1)
    last = query.end_date or max(today, first)
    with judged("scope"):
        report = await tracker.usage_report(scope, first=first, last=last, zone=query.zone)
    rate = report.rate
    if query.format == "csv":
        name = f"askii-report-{file_part(report.scope)}-{first}-{last}.csv"
        return Download("text/csv", name, _csv(report))
    return ReportAnswer(
        scope=report.scope,
        zone=report.zone,
        period_start=report.period_start,
        period_end=report.period_end,
        exchange_rate=report.exchange_rate,
        total=_line(report.total, rate),
        by_day=tuple(_line(line, rate) for line in report.by_day),
        by_model=tuple(_line(line, rate) for line in report.by_model),
        by_provider=tuple(_line(line, rate) for line in report.by_provider),
        by_user=tuple(_line(line, rate) for line in report.by_user),
        by_tenant=tuple(_line(line, rate) for line in report.by_tenant),
    )


def _scope(principal: Principal, asked_for: str | None) -> str:
    """What is reported; 404 for what this caller may not see."""
    if isinstance(principal, KeyHolder):
        own = scope_text({"key": principal.row.id})
    elif isinstance(principal, Admin) and principal.user is not None:
        own = scope_text({"user": principal.user})
    else:
        return asked_for or "global"
    if asked_for not in (None, own):
        raise not_found()
    return own


def _line(line: ReportLine, rate: Rate) -> ReportLineAnswer:
    return ReportLineAnswer(
        value=line.value,
        requests=line.requests,
        input_tokens=line.input_tokens,
        output_tokens=line.output_tokens,
        cost_usd=nano_to_usd_text(line.cost_nano_usd),
        cost_askii_coins=nano_to_coins_text(line.cost_nano_usd, rate),
    )


async def _csv(report: UsageReport) -> AsyncIterator[bytes]:
    yield report_csv(report).encode("utf-8", "replace")


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/billing/report",
        name="get_report",
        summary="What a scope has cost, by day, model, provider, user and tenant; JSON or CSV.",
        handler=get_report,
        query=ReportQuery,
        answer=ReportAnswer,
        who=ADMIN_OR_KEY,
        for_user=True,
        downloads=("text/csv",),
    ),
)
