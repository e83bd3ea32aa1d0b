"""What a span of days has cost, exactly, by day, model, provider, user and tenant."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.budgets import Scope, day_start_s
from askii_middleware.currency import RATE_VARIABLE, parse_rate
from askii_middleware.identity import Identity
from askii_middleware.tracker import CostTracker
from askii_middleware.usage_report import ReportLine, UsageReport, csv_text, hours_edge, report_csv

from .support.service import NOW_S, Clock, both_stores, opened

JAN1 = date(2026, 1, 1)


def at(*moment: int, zone: str = "UTC") -> float:
    return datetime(*moment, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type,misc]


async def spend(tracker: CostTracker, clock: Clock, at_s: float, who: Identity | str, model: str, tokens: int) -> None:
    clock.now_s = at_s
    await tracker.record_usage(who, model, input_tokens=tokens, output_tokens=1)


async def three_days(tracker: CostTracker, clock: Clock) -> None:
    ann, bob = (Identity(tenant="acme", user=name, key="k1", team="t1") for name in ("ann", "bob"))
    await spend(tracker, clock, NOW_S + 60, ann, "big", 998)
    await spend(tracker, clock, NOW_S + 3600, bob, "small", 98)
    await spend(tracker, clock, NOW_S + 2 * 86_400, ann, "big", 1998)
    await spend(tracker, clock, NOW_S + 2 * 86_400, Identity(tenant="globex", user="ann"), "small", 8)
    await spend(tracker, clock, NOW_S + 9 * 86_400, "acme", "big", 8)


@both_stores
async def test_a_tenants_report_has_every_day_model_and_user_exactly(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        await three_days(tracker, clock)
        report = await tracker.usage_report("tenant=acme", first=JAN1, last=date(2026, 1, 3))
        assert (report.scope, report.zone) == ("tenant=acme", "UTC")
        assert (report.period_start, report.period_end) == (
            datetime(2026, 1, 1, tzinfo=UTC),
            datetime(2026, 1, 4, tzinfo=UTC),
        )
        assert report.total == ReportLine("total", 3, 3094, 3, 3_010_000)
        assert report.by_day == (
            ReportLine("2026-01-01", 2, 1096, 2, 1_010_000),
            ReportLine("2026-01-02", 0, 0, 0, 0),
            ReportLine("2026-01-03", 1, 1998, 1, 2_000_000),
        )
        assert report.by_model == (
            ReportLine("big", 2, 2996, 2, 3_000_000),
            ReportLine("small", 1, 98, 1, 10_000),
        )
        assert report.by_user == (
            ReportLine("ann", 2, 2996, 2, 3_000_000),
            ReportLine("bob", 1, 98, 1, 10_000),
        )
        assert report.by_tenant == ()


@both_stores
async def test_a_report_of_everything_counts_every_call_once(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        await three_days(tracker, clock)
        report = await tracker.usage_report(first=JAN1, last=date(2026, 1, 31))
        assert report.total.cost_nano_usd == 3_010_000 + 1_000 + 10_000
        assert [(line.value, line.requests) for line in report.by_tenant] == [("acme", 4), ("globex", 1)]
        assert [(line.value, line.requests) for line in report.by_user] == [("ann", 3), ("bob", 1)]
        assert sum(line.cost_nano_usd for line in report.by_day) == report.total.cost_nano_usd
        assert (await tracker.get_spend("global", start=JAN1, end=date(2026, 1, 31))).cost_nano_usd == 3_021_000
        everything = await tracker.get_spend(Scope(model="big"), start=JAN1, end=date(2026, 1, 31))
        assert everything.cost_nano_usd == 3_010_000


STRANGE = ("*", "a,b=c", "=1", "50%", "%2A", "deleted?", "\n", "ü|x", "tenant=y")


@both_stores
async def test_whatever_tenants_and_users_are_called_each_has_its_line(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        for number, name in enumerate(STRANGE, 1):
            await tracker.record_usage(Identity(tenant=name, user=name), "big", input_tokens=number)
        report = await tracker.usage_report(first=JAN1, last=JAN1)
        expected = [(name, number * 1000) for number, name in enumerate(STRANGE, 1)][::-1]
        assert [(line.value, line.cost_nano_usd) for line in report.by_tenant] == expected
        assert [(line.value, line.cost_nano_usd) for line in report.by_user] == expected
        for name, cost in expected:
            one = await tracker.usage_report(Scope(tenant=name), first=JAN1, last=JAN1)
            assert [(line.value, line.cost_nano_usd) for line in (one.total, *one.by_user)] == [
                ("total", cost),
                (name, cost),
            ]


@both_stores
@pytest.mark.parametrize(
    ("scope", "requests"), [("key=k1", 3), ("user=ann", 3), ("team=t1", 3), ("tenant=acme,user=ann", 2)]
)
async def test_keys_users_teams_and_a_tenants_user_have_reports_of_their_own(
    kind: str, scope: str, requests: int, tmp_path: Path
) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        await three_days(tracker, clock)
        report = await tracker.usage_report(scope, first=JAN1, last=date(2026, 1, 31))
        assert report.total.requests == requests
        assert (report.by_user, report.by_tenant) == ((), ())
        assert (await tracker.get_spend(scope, start=JAN1, end=date(2026, 1, 31))).total_requests == requests


async def test_days_are_those_of_the_zone_also_when_the_clocks_change(tmp_path: Path) -> None:
    clock = Clock()
    zone = "Europe/Berlin"
    async with opened("memory", tmp_path, clock=clock) as tracker:
        # The 29th of March 2026 has 23 hours there, the 25th of October 25.
        for moment in ((2026, 3, 28, 23, 59), (2026, 3, 29, 0, 0), (2026, 3, 29, 23, 59), (2026, 3, 30, 0, 0)):
            await spend(tracker, clock, at(*moment, zone=zone), "acme", "big", 8)
        for moment in ((2026, 10, 25, 0, 0), (2026, 10, 25, 23, 59), (2026, 10, 26, 0, 0)):
            await spend(tracker, clock, at(*moment, zone=zone), "acme", "big", 8)
        march = await tracker.usage_report("tenant=acme", first=date(2026, 3, 28), last=date(2026, 3, 30), zone=zone)
        assert [line.requests for line in march.by_day] == [1, 2, 1]
        october = await tracker.usage_report(
            "tenant=acme", first=date(2026, 10, 25), last=date(2026, 10, 26), zone=zone
        )
        assert [line.requests for line in october.by_day] == [2, 1]
        assert october.period_end - october.period_start == timedelta(hours=49)
        one = await tracker.get_spend("tenant=acme", start=date(2026, 3, 29), end=date(2026, 3, 29), zone=zone)
        assert (one.total_requests, one.period_end - one.period_start) == (2, timedelta(hours=23))


async def test_where_midnight_is_half_past_an_hour_the_report_says_which_hours_it_counted(tmp_path: Path) -> None:
    clock = Clock()
    async with opened("memory", tmp_path, clock=clock) as tracker:
        # Midnight in India is 18:30 UTC; sums begin with whole hours.
        for minute in (0, 30):
            await spend(tracker, clock, at(2026, 1, 1, 18, minute), "acme", "big", 8)
        await spend(tracker, clock, at(2026, 1, 1, 19, 0), "acme", "big", 8)
        report = await tracker.usage_report("tenant=acme", first=JAN1, last=date(2026, 1, 2), zone="Asia/Kolkata")
        assert [line.requests for line in report.by_day] == [2, 1]
        assert report.period_start == datetime(2025, 12, 31, 19, tzinfo=UTC)
        assert report.period_end == datetime(2026, 1, 2, 19, tzinfo=UTC)
        today = await tracker.get_spend("tenant=acme", "daily", zone="Asia/Kolkata")
        assert (today.total_requests, today.period_start) == (1, datetime(2026, 1, 1, 19, tzinfo=UTC))


async def test_naive_moments_are_those_of_the_zone(tmp_path: Path) -> None:
    clock = Clock()
    async with opened("memory", tmp_path, clock=clock) as tracker:
        await spend(tracker, clock, at(2026, 1, 1, 5), "acme", "big", 8)
        naive = datetime(2026, 1, 1), datetime(2026, 1, 2)  # noqa: DTZ001 - what is tested
        for zone, requests in (("UTC", 1), ("America/New_York", 1), ("America/Los_Angeles", 0)):
            found = await tracker.get_spend("tenant=acme", start=naive[0], end=naive[1], zone=zone)
            assert found.total_requests == requests


@pytest.mark.parametrize(
    ("scope", "first", "last", "zone"),
    [
        ("tenant=acme,model=big", JAN1, JAN1, "UTC"),
        ("tenant=acme,team=t", JAN1, JAN1, "UTC"),
        ("colour=red", JAN1, JAN1, "UTC"),
        ("tenant=acme", JAN1, date(2025, 12, 31), "UTC"),
        ("tenant=acme", JAN1, date(2027, 2, 5), "UTC"),
        ("tenant=acme", JAN1, JAN1, "Mars/Olympus"),
        ("tenant=acme", JAN1, JAN1, "../../etc/passwd"),
        ("tenant=acme", date.max, date.max, "UTC"),
        ("tenant=acme", date.min, date.min, "Asia/Tokyo"),
    ],
)
async def test_what_no_report_can_answer_is_refused(
    scope: str, first: date, last: date, zone: str, tmp_path: Path
) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ValueError, match=r".+"):
            await tracker.usage_report(scope, first=first, last=last, zone=zone)


async def test_four_hundred_days_are_one_report(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        report = await tracker.usage_report("tenant=acme", first=JAN1, last=JAN1 + timedelta(days=399))
        assert len(report.by_day) == 400


async def test_coins_are_those_of_the_present_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with opened("memory", tmp_path, clock=clock) as tracker:
        await three_days(tracker, clock)
        monkeypatch.setenv(RATE_VARIABLE, "3e-1")
        table = (await tracker.usage_report("tenant=acme", first=JAN1, last=JAN1)).table()
        assert table["exchange_rate"] == 0.3
        assert table["total"] == {
            "value": "total",
            "requests": 2,
            "input_tokens": 1096,
            "output_tokens": 2,
            "cost_usd": "0.00101",
            "cost_askii_coins": "0.000303",
        }
        assert table["period_end"] == "2026-01-02T00:00:00+00:00"
        assert [line["value"] for line in table["by_model"]] == ["big", "small"]


# Comma-separated values ----------------------------------------------------------------------------------------------


def report(*users: str) -> UsageReport:
    rate = parse_rate("1000000")
    line = ReportLine("total", 1, 2, 3, -1_500)
    return UsageReport(
        scope="global",
        zone="UTC",
        period_start=datetime(2026, 1, 1, tzinfo=UTC),
        period_end=datetime(2026, 1, 2, tzinfo=UTC),
        exchange_rate=rate.value,
        rate=rate,
        total=line,
        by_day=(),
        by_model=(),
        by_provider=(),
        by_user=tuple(ReportLine(user, 1, 2, 3, 4) for user in users),
        by_tenant=(),
    )


def test_a_csv_has_exact_amounts_and_a_line_for_each_part() -> None:
    assert report_csv(report("ann")) == (
        "part,value,requests,input_tokens,output_tokens,cost_usd,cost_askii_coins\r\n"
        "total,total,1,2,3,-0.0000015,-1.5\r\n"
        "user,ann,1,2,3,0.000000004,0.004\r\n"
    )


@pytest.mark.parametrize(
    "value", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\n=1", "\uff1d1", "\uff0b1", '=cmd|"/c calc"!A1']
)
def test_no_spreadsheet_runs_what_others_are_called(value: str) -> None:
    (row,) = [row for row in csv.reader(io.StringIO(report_csv(report(value)), newline="")) if row[0] == "user"]
    assert row[1] == f"'{value}"


@given(st.text(max_size=20))
def test_every_name_comes_through_a_csv_in_one_field_that_is_no_formula(value: str) -> None:
    rows = list(csv.reader(io.StringIO(report_csv(report(value)), newline="")))
    assert len(rows) == 3
    assert rows[2][1] == csv_text(value)
    assert not rows[2][1].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert rows[2][1].removeprefix("'") == value.removeprefix("'")


# Edges ---------------------------------------------------------------------------------------------------------------


@given(
    st.dates(min_value=date(1990, 1, 1), max_value=date(2060, 1, 1)),
    st.sampled_from(
        ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe", "Asia/Beirut"]
    ),
)
def test_days_follow_one_another_without_gap_or_overlap(day: date, zone: str) -> None:
    starts = [hours_edge(day_start_s(day + timedelta(days=n), zone)) for n in range(3)]
    assert all(start % 3600 == 0 for start in starts)
    assert all(23 * 3600 <= b - a <= 25 * 3600 for a, b in pairwise(starts))
    assert 0 <= starts[0] - day_start_s(day, zone) < 3600
