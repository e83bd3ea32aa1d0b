"""`tracker.usage_report`: what a span of days has cost, by user, model, provider and day."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from .aggregates import EVERYTHING
from .budgets import Scope, day_start_s, scope_text
from .currency import Rate, RateSource, nano_to_coins_text, nano_to_usd_text
from .errors import ConfigurationError
from .names import ModelNames
from .stores.base import SpendRow, Store

MAX_DAYS: Final = 400
MAX_LINES: Final = 1000
HOUR_S: Final = 3600
AGGREGATED: Final = ((), ("tenant",), ("key",), ("user",), ("team",), ("tenant", "user"))
"""The shapes of scopes whose spend is kept."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the beginning of a formula; the last four are `=+-@` in full width."""


@dataclass(frozen=True, slots=True)
class ReportLine:
    """One part of a report: all calls of one user, model, provider, tenant or day."""

    value: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """What a scope has cost between two days, both included, as the days are in `zone`. Costs are integer nano-USD; in
    coins at the current rate. Sums are kept by UTC hours: where a zone's days do not begin with one, `period_start`
    and `period_end` say which hours were counted.
    """

    scope: str
    zone: str
    period_start: datetime
    period_end: datetime
    exchange_rate: float
    rate: Rate
    """The same, exactly."""
    total: ReportLine
    by_day: tuple[ReportLine, ...]
    """Every day of the span, also those without calls; `value` is the ISO date."""
    by_model: tuple[ReportLine, ...]
    by_provider: tuple[ReportLine, ...]
    by_user: tuple[ReportLine, ...]
    """The most expensive 1,000; only of everything and of a tenant."""
    by_tenant: tuple[ReportLine, ...]
    """The most expensive 1,000; only of everything."""

    @property
    def parts(self) -> dict[str, tuple[ReportLine, ...]]:
        """The lines by what they are about."""
        return {
            "day": self.by_day,
            "model": self.by_model,
            "provider": self.by_provider,
            "user": self.by_user,
            "tenant": self.by_tenant,
        }

    def line(self, line: ReportLine) -> dict[str, Any]:
        """A line as JSON has it; amounts are exact decimal strings."""
        return {
            "value": line.value,
            "requests": line.requests,
            "input_tokens": line.input_tokens,
            "output_tokens": line.output_tokens,
            "cost_usd": nano_to_usd_text(line.cost_nano_usd),
            "cost_askii_coins": nano_to_coins_text(line.cost_nano_usd, self.rate),
        }

    def table(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "scope": self.scope,
            "zone": self.zone,
            "period_start": self.period_start.isoformat(),
            "period_end": self.period_end.isoformat(),
            "exchange_rate": self.exchange_rate,
            "total": self.line(self.total),
            **{f"by_{part}": [self.line(line) for line in lines] for part, lines in self.parts.items()},
        }


def report_csv(report: UsageReport) -> str:
    """A report as comma-separated values (RFC 4180), the total first. What a spreadsheet would run as a formula is
    written as text, with an apostrophe before it.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    columns = ("value", "requests", "input_tokens", "output_tokens", "cost_usd", "cost_askii_coins")
    writer.writerow(("part", *columns))
    for part, lines in {"total": (report.total,), **report.parts}.items():
        for line in lines:
            told = report.line(line)
            # A credit's minus is a number's own.
            writer.writerow((part, csv_text(line.value), *(told[column] for column in columns[1:])))
    return file.getvalue()


def csv_text(value: str) -> str:
    """Text that others have chosen, for a spreadsheet."""
    return f"'{value}" if value.startswith(_FORMULA) else value


def hours_edge(at_s: float) -> int:
    """The first UTC hour that begins at a moment or after it: sums over a span hold the hours that begin in it."""
    return -int(-at_s // HOUR_S) * HOUR_S


def aggregated(scope: Scope) -> tuple[str, ...]:
    """The scopes whose hourly sums together are a scope's spend. Raises ValueError where none are kept."""
    if scope.shape not in AGGREGATED:
        raise ValueError(
            "spend is kept for everything ('global'), one tenant, key, user or team, and for a tenant's user, not for "
            f"{scope.text!r}"
        )
    # As in the ledger: a value, never a wildcard.
    return (scope_text({name: getattr(scope, name) for name in scope.shape}),) if scope.shape else EVERYTHING


class UsageReports(ABC):
    """Mixed into `CostTracker`."""

    store: Store
    names: ModelNames
    rates: RateSource
    clock: Callable[[], float]

    @abstractmethod
    async def ready(self) -> None:
        """Open the ledger if it is not open yet. Raises StoreError."""

    async def usage_report(
        self, scope: Scope | str = "global", *, first: date, last: date, zone: str = "UTC"
    ) -> UsageReport:
        """The report of everything, or of one tenant, key, user or team, or of a tenant's user. Raises ValueError for
        other scopes, for a span of more than 400 days and for a zone that is none, StoreError.
        """
        await self.ready()
        return await self.read_report(scope, first=first, last=last, zone=zone)

    async def read_report(self, scope: Scope | str, *, first: date, last: date, zone: str) -> UsageReport:
        """`usage_report` of a store that is open, without starting anything."""
        try:
            scope = Scope.parse(scope) if isinstance(scope, str) else scope
            days = _days(first, last)
            edges = [hours_edge(day_start_s(day, zone)) for day in (*days, last + timedelta(days=1))]
        except (ConfigurationError, OverflowError) as error:
            raise ValueError(f"report: {error}") from None
        scopes = aggregated(scope)
        spans = await self.store.spend_over(scopes, edges)
        rate = self.rates.current()
        rows = [row for span in spans for row in span]
        return UsageReport(
            scope=scope_text({name: getattr(scope, name) for name in scope.shape}),
            zone=zone,
            period_start=datetime.fromtimestamp(edges[0], UTC),
            period_end=datetime.fromtimestamp(edges[-1], UTC),
            exchange_rate=rate.value,
            rate=rate,
            total=_sum("total", rows),
            by_day=tuple(_sum(day.isoformat(), span) for day, span in zip(days, spans, strict=True)),
            by_model=_by(rows, lambda row: row.model),
            by_provider=_by(rows, lambda row: row.provider),
            by_user=await self._top(scope, "user", edges),
            by_tenant=await self._top(scope, "tenant", edges),
        )

    async def _top(self, scope: Scope, name: str, edges: Sequence[int]) -> tuple[ReportLine, ...]:
        if scope.shape and (scope.shape != ("tenant",) or name == "tenant"):
            return ()
        prefix = f"{scope_text({'tenant': str(scope.tenant)})},{name}=" if scope.shape else f"{name}="
        found = await self.store.top_spend(prefix, edges[0], edges[-1], MAX_LINES)
        return tuple(ReportLine(sums.value, *sums[1:]) for sums in found)


def _days(first: date, last: date) -> list[date]:
    count = (last - first).days + 1
    if not 1 <= count <= MAX_DAYS:
        raise ConfigurationError(f"{first} to {last} is no span of 1 to {MAX_DAYS} days, both ends included")
    return [first + timedelta(days=n) for n in range(count)]


def _sum(value: str, rows: Iterable[SpendRow]) -> ReportLine:
    sums = [0, 0, 0, 0]
    for row in rows:
        for place, amount in enumerate(row[2:]):
            sums[place] += amount
    return ReportLine(value, *sums)


def _by(rows: Iterable[SpendRow], of: Callable[[SpendRow], str]) -> tuple[ReportLine, ...]:
    """The most expensive first."""
    groups: dict[str, list[SpendRow]] = defaultdict(list)
    for row in rows:
        groups[of(row)].append(row)
    lines = (_sum(value, found) for value, found in groups.items())
    return tuple(sorted(lines, key=lambda line: (-line.cost_nano_usd, line.value)))


def lines_of(report: UsageReport) -> Iterator[dict[str, Any]]:
    """All lines as rows of one table, with what each is about."""
    for part, lines in {"total": (report.total,), **report.parts}.items():
        for line in lines:
            yield {"part": part, **report.line(line)}
