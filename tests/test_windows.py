"""Windows of every period across time zones, and an index that keeps them."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from askii_middleware.admission import Window
from askii_middleware.budgets import FOREVER_S, Budget, BudgetIndex, window
from askii_middleware.errors import ConfigurationError

HOUR = 3600
DAY = 24 * HOUR


def at(text: str) -> int:
    """Unix seconds of an ISO 8601 moment with its offset."""
    return int(datetime.fromisoformat(text).timestamp())


def span(start: str, end: str) -> Window:
    return Window(at(start), at(end))


# Windows -------------------------------------------------------------------------------------------------------------

NOON = "2026-03-04T12:00:00+00:00"


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("daily", "2026-03-04T00:00+00:00", "2026-03-05T00:00+00:00"),
        ("weekly", "2026-03-02T00:00+00:00", "2026-03-09T00:00+00:00"),
        ("monthly", "2026-03-01T00:00+00:00", "2026-04-01T00:00+00:00"),
        ("yearly", "2026-01-01T00:00+00:00", "2027-01-01T00:00+00:00"),
        ("5m", "2026-03-04T12:00+00:00", "2026-03-04T12:05+00:00"),
        ("8h", "2026-03-04T08:00+00:00", "2026-03-04T16:00+00:00"),
        ("1d", "2026-03-04T00:00+00:00", "2026-03-05T00:00+00:00"),
    ],
)
def test_a_window_in_utc_holds_the_moment(period: str, start: str, end: str) -> None:
    assert window(period, "UTC", at(NOON)) == span(start, end)


def test_total_has_one_window_for_ever() -> None:
    assert window("total", "Asia/Tokyo", at(NOON)) == Window(0, FOREVER_S)
    assert datetime.fromtimestamp(FOREVER_S - 1, UTC).isoformat() == "9999-12-31T23:59:59+00:00"


@pytest.mark.parametrize(
    ("zone", "moment", "start", "end", "hours"),
    [
        # New York: 23 and 25 hours.
        ("America/New_York", "2026-03-08T12:00-04:00", "2026-03-08T00:00-05:00", "2026-03-09T00:00-04:00", 23),
        ("America/New_York", "2026-11-01T12:00-05:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00", 25),
        # Lord Howe moves by half an hour.
        ("Australia/Lord_Howe", "2026-10-04T12:00+11:00", "2026-10-04T00:00+10:30", "2026-10-05T00:00+11:00", 23.5),
        ("Australia/Lord_Howe", "2026-04-05T12:00+10:30", "2026-04-05T00:00+11:00", "2026-04-06T00:00+10:30", 24.5),
        # Kathmandu stands at +05:45, Tokyo never changes.
        ("Asia/Kathmandu", "2026-03-04T00:00+05:45", "2026-03-04T00:00+05:45", "2026-03-05T00:00+05:45", 24),
        ("Asia/Kathmandu", "2026-03-03T23:59:59+05:45", "2026-03-03T00:00+05:45", "2026-03-04T00:00+05:45", 24),
        ("Asia/Tokyo", "2026-03-03T15:00+00:00", "2026-03-04T00:00+09:00", "2026-03-05T00:00+09:00", 24),
        # Sao Paulo had no midnight on 2018-11-04: the day begins at 01:00, the day before ends there.
        ("America/Sao_Paulo", "2018-11-04T12:00-02:00", "2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00", 23),
        ("America/Sao_Paulo", "2018-11-03T23:59:59-03:00", "2018-11-03T00:00-03:00", "2018-11-04T01:00-02:00", 24),
        # And 23:00 twice on 2018-02-17.
        ("America/Sao_Paulo", "2018-02-17T23:30-03:00", "2018-02-17T00:00-02:00", "2018-02-18T00:00-03:00", 25),
        # Havana has midnight twice: the first one counts.
        ("America/Havana", "2026-11-01T00:30-05:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00", 25),
        # St. John's went from 00:01 back to 23:01: the day that had begun goes on.
        ("America/St_Johns", "2010-11-06T23:30-03:30", "2010-11-07T00:00-02:30", "2010-11-08T00:00-03:30", 25),
        ("America/St_Johns", "2010-11-06T23:30-02:30", "2010-11-06T00:00-02:30", "2010-11-07T00:00-02:30", 24),
        # Apia left out 2011-12-30.
        ("Pacific/Apia", "2011-12-29T23:00-10:00", "2011-12-29T00:00-10:00", "2011-12-31T00:00+14:00", 24),
        ("Pacific/Apia", "2011-12-31T00:00+14:00", "2011-12-31T00:00+14:00", "2012-01-01T00:00+14:00", 24),
    ],
)
def test_a_day_runs_between_local_midnights(zone: str, moment: str, start: str, end: str, hours: float) -> None:
    found = window("daily", zone, at(moment))
    assert found == span(start, end)
    assert found.end_s - found.start_s == hours * HOUR


@pytest.mark.parametrize(
    ("period", "zone", "moment", "start", "end"),
    [
        # Monday 00:00 begins a week, Sunday's last second ends it.
        ("weekly", "UTC", "2026-03-01T23:59:59+00:00", "2026-02-23T00:00+00:00", "2026-03-02T00:00+00:00"),
        ("weekly", "UTC", "2026-03-02T00:00+00:00", "2026-03-02T00:00+00:00", "2026-03-09T00:00+00:00"),
        ("weekly", "Asia/Tokyo", "2026-03-01T15:00+00:00", "2026-03-02T00:00+09:00", "2026-03-09T00:00+09:00"),
        ("weekly", "America/New_York", "2026-03-08T12:00-04:00", "2026-03-02T00:00-05:00", "2026-03-09T00:00-04:00"),
        ("weekly", "UTC", "2027-01-01T00:00+00:00", "2026-12-28T00:00+00:00", "2027-01-04T00:00+00:00"),
        # Leap days.
        ("daily", "UTC", "2028-02-29T12:00+00:00", "2028-02-29T00:00+00:00", "2028-03-01T00:00+00:00"),
        ("monthly", "UTC", "2028-02-29T12:00+00:00", "2028-02-01T00:00+00:00", "2028-03-01T00:00+00:00"),
        ("monthly", "UTC", "2027-02-28T23:59:59+00:00", "2027-02-01T00:00+00:00", "2027-03-01T00:00+00:00"),
        ("monthly", "UTC", "2100-02-28T12:00+00:00", "2100-02-01T00:00+00:00", "2100-03-01T00:00+00:00"),
        ("monthly", "UTC", "2026-01-31T12:00+00:00", "2026-01-01T00:00+00:00", "2026-02-01T00:00+00:00"),
        ("monthly", "UTC", "2026-12-31T23:59:59+00:00", "2026-12-01T00:00+00:00", "2027-01-01T00:00+00:00"),
        ("yearly", "UTC", "2028-02-29T12:00+00:00", "2028-01-01T00:00+00:00", "2029-01-01T00:00+00:00"),
        # A year's local end is not UTC's.
        ("yearly", "Asia/Tokyo", "2026-12-31T15:00+00:00", "2027-01-01T00:00+09:00", "2028-01-01T00:00+09:00"),
        ("monthly", "America/Sao_Paulo", "2018-11-20T00:00-02:00", "2018-11-01T00:00-03:00", "2018-12-01T00:00-02:00"),
        # N days count from 1970-01-01 local, also across a change of clocks; hours and minutes from the epoch.
        ("7d", "UTC", "2026-03-04T12:00+00:00", "2026-02-26T00:00+00:00", "2026-03-05T00:00+00:00"),
        ("7d", "America/New_York", "2026-03-10T12:00-04:00", "2026-03-05T00:00-05:00", "2026-03-12T00:00-04:00"),
        ("30d", "UTC", "1970-01-30T23:59:59+00:00", "1970-01-01T00:00+00:00", "1970-01-31T00:00+00:00"),
        ("1h", "Asia/Kathmandu", "2026-03-04T12:59:59+00:00", "2026-03-04T12:00+00:00", "2026-03-04T13:00+00:00"),
        ("90m", "UTC", "1970-01-01T01:30+00:00", "1970-01-01T01:30+00:00", "1970-01-01T03:00+00:00"),
    ],
)
def test_longer_windows_begin_and_end_at_local_midnights(
    period: str, zone: str, moment: str, start: str, end: str
) -> None:
    assert window(period, zone, at(moment)) == span(start, end)


def test_a_fraction_of_a_second_before_midnight_is_still_the_old_day() -> None:
    midnight = at("2026-03-05T00:00+00:00")
    just_before = math.nextafter(midnight, 0)
    assert window("daily", "UTC", just_before).end_s == midnight
    assert window("1m", "UTC", just_before).end_s == midnight


def test_an_unknown_period_or_zone_is_named() -> None:
    with pytest.raises(ConfigurationError, match="fortnightly"):
        window("fortnightly", "UTC", 0)
    with pytest.raises(ConfigurationError, match="Nowhere"):
        window("daily", "Nowhere", 0)


ZONES = [
    "UTC",
    "America/New_York",
    "Asia/Tokyo",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "America/Havana",
    "America/St_Johns",
    "Pacific/Apia",
    "Africa/Cairo",
    "Asia/Tehran",
    "America/Nuuk",
    "Antarctica/Troll",
]


@given(
    st.sampled_from(["daily", "weekly", "monthly", "yearly", "5m", "7h", "1d", "10d"]),
    st.sampled_from(ZONES),
    st.integers(at("1971-01-01T00:00+00:00"), at("2090-01-01T00:00+00:00")),
)
@example("daily", "America/St_Johns", at("2010-11-07T02:31+00:00"))
@example("daily", "America/Sao_Paulo", at("2018-11-04T03:00+00:00"))
@example("10d", "Pacific/Apia", at("2011-12-30T10:00+00:00"))
def test_windows_hold_their_moment_and_follow_each_other_without_gap(period: str, zone: str, moment: int) -> None:
    found = window(period, zone, moment)
    assert found.start_s <= moment < found.end_s
    assert window(period, zone, found.start_s) == found
    assert window(period, zone, found.end_s - 1) == found
    assert window(period, zone, found.end_s).start_s == found.end_s


@given(st.sampled_from(ZONES), st.dates(date(1980, 1, 1), date(2090, 1, 1)))
def test_a_day_is_as_long_as_the_clock_says(zone: str, day: date) -> None:
    """Against an independent reading: the seconds of the calendar day, one quarter of an hour at a time."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=ZoneInfo(zone))
    found = window("daily", zone, noon.timestamp())
    steps = range(found.start_s - 2 * HOUR, found.end_s + 2 * HOUR, 900)
    inside = {datetime.fromtimestamp(s, noon.tzinfo).date() for s in steps if found.start_s <= s < found.end_s}
    first_seen = next(s for s in steps if datetime.fromtimestamp(s, noon.tzinfo).date() >= noon.date())
    assert noon.date() in inside
    assert inside <= {noon.date(), noon.date() - timedelta(days=1)}  # the latter where clocks went back over midnight
    assert 0 <= first_seen - found.start_s < 900


def test_an_index_gives_the_current_and_the_next_window_of_every_zone_in_use() -> None:
    index = BudgetIndex(
        [
            Budget(scope="tenant=*", limit_usd=1, zone="Asia/Kathmandu"),
            Budget(scope="global", limit_usd=1),
            Budget(scope="key=*", limit_usd=1, period="total"),
        ]
    )
    forever = Window(0, FOREVER_S)
    assert index.windows(at("2026-03-04T18:15+00:00")) == {
        "daily|Asia/Kathmandu": (
            span("2026-03-05T00:00+05:45", "2026-03-06T00:00+05:45"),
            span("2026-03-06T00:00+05:45", "2026-03-07T00:00+05:45"),
        ),
        "daily|UTC": (
            span("2026-03-04T00:00+00:00", "2026-03-05T00:00+00:00"),
            span("2026-03-05T00:00+00:00", "2026-03-06T00:00+00:00"),
        ),
        "total|UTC": (forever, forever),
    }


def test_windows_move_on_with_the_clock_and_back_with_it() -> None:
    index = BudgetIndex([Budget(scope="global", limit_usd=1, period="1h")])
    for moment in (0, HOUR - 1, HOUR, 50 * HOUR, 3 * HOUR):
        start = moment // HOUR * HOUR
        assert index.windows(moment) == {
            "1h|UTC": (Window(start, start + HOUR), Window(start + HOUR, start + 2 * HOUR))
        }


def test_the_next_window_after_a_short_day_begins_where_it_ends() -> None:
    index = BudgetIndex([Budget(scope="global", limit_usd=1, zone="America/Sao_Paulo")])
    now, following = index.windows(at("2018-11-03T12:00-03:00"))["daily|America/Sao_Paulo"]
    assert now.end_s == following.start_s == at("2018-11-04T01:00-02:00")
    assert following.end_s - following.start_s == DAY - HOUR
