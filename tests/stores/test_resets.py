"""Resets at local midnight, through a store under a fake clock: nothing runs at midnight, and none is late."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from .support import Client, budget

DAYS = [
    ("Asia/Tokyo", "2026-03-29", 24),
    ("America/New_York", "2026-03-08", 23),
    ("America/New_York", "2026-11-01", 25),
    ("Asia/Kathmandu", "2026-03-29", 24),
    ("Australia/Lord_Howe", "2026-04-05", 24.5),
    ("Australia/Lord_Howe", "2026-10-04", 23.5),
]
"""A local day of each zone, and how many hours it has."""


def midnight_s(zone: str, day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(("zone", "day", "hours"), DAYS)
async def test_the_last_call_before_local_midnight_is_refused_and_the_first_after_it_admitted(
    client: Client, zone: str, day: str, hours: float
) -> None:
    today = date.fromisoformat(day)
    began_s, ends_s = midnight_s(zone, today), midnight_s(zone, today + timedelta(days=1))
    assert ends_s - began_s == hours * 3600
    client.clock.now_s = began_s
    await client.store.heartbeat("v", 3 * 86_400)
    await client.set(budget("tenant=*", 100, zone=zone))
    windows = client.index.windows(began_s)  # of a client that last looked when the day began
    await client.reserve("first", 100, worker="v", windows=windows)
    await client.settle("first", 100)
    client.clock.now_s = ends_s - 1
    refused = await client.reserve("last", 100, worker="v", windows=windows)
    assert (refused.candidate, refused.reason) == (None, "spent")
    assert refused.deciding is not None
    assert refused.deciding.resets_at_s == ends_s
    client.clock.now_s = ends_s + 1
    admitted = await client.reserve("next", 100, worker="v", windows=windows)
    assert (admitted.candidate, admitted.states[0].spent_nano_usd) == (0, 0)
    assert (await client.reserve("more", 1, worker="v")).reason == "held"


@pytest.mark.parametrize(("zone", "day", "hours"), DAYS)
async def test_at_midnight_itself_the_new_day_has_begun(client: Client, zone: str, day: str, hours: float) -> None:
    del hours
    ends_s = midnight_s(zone, date.fromisoformat(day) + timedelta(days=1))
    client.clock.now_s = ends_s - 0.001
    await client.store.heartbeat("v", 3 * 86_400)
    await client.set(budget("tenant=*", 100, zone=zone))
    await client.reserve("a", 100, worker="v")
    assert (await client.reserve("b", 100, worker="v")).candidate is None
    client.clock.now_s = ends_s
    assert (await client.reserve("b", 100, worker="v")).candidate == 0


async def test_a_call_over_midnight_is_charged_to_the_day_it_was_admitted_in(client: Client) -> None:
    zone = "Australia/Lord_Howe"
    ends_s = midnight_s(zone, date(2026, 4, 6))
    client.clock.now_s = ends_s - 1
    await client.store.heartbeat("v", 3 * 86_400)
    await client.set(budget("tenant=*", 100, zone=zone))
    await client.reserve("a", 100, worker="v")
    admitted_at_s = client.clock.now_s
    client.clock.advance(60)
    await client.settle("a", 100, at_s=admitted_at_s)
    assert await client.spent_held() == (0, 0)
    client.clock.advance(-61)
    assert await client.spent_held() == (100, 0)
