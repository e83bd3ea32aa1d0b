"""Scopes, budgets, windows, and which budgets a call meets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from askii_middleware.admission import BudgetTerms, Window, applicable
from askii_middleware.budgets import DIMENSIONS, FOREVER_S, Budget, BudgetIndex, Scope, scope_text, window
from askii_middleware.errors import ConfigurationError

HOUR = 3600
DAY = 24 * HOUR


def at(text: str) -> int:
    """Unix seconds of an ISO 8601 moment with its offset."""
    return int(datetime.fromisoformat(text).timestamp())


def span(start: str, end: str) -> Window:
    return Window(at(start), at(end))


# Scopes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "text"),
    [
        (Scope(), "global"),
        (Scope(tenant="acme"), "tenant=acme"),
        (Scope(tenant="*"), "tenant=*"),
        (Scope(model="gpt-4o", tenant="acme"), "tenant=acme,model=gpt-4o"),
        (Scope(team="research", provider="openai"), "team=research,provider=openai"),
        (Scope(tag="batch", tenant="*"), "tenant=*,tag=batch"),
        (Scope(deployment="eu", end_user="e", user="u", key="k"), "key=k,user=u,end_user=e,deployment=eu"),
    ],
)
def test_a_scope_is_written_in_canonical_order_and_read_back(scope: Scope, text: str) -> None:
    assert scope.text == str(scope) == text
    assert Scope.parse(text) == scope


@pytest.mark.parametrize("text", ["", "  ", "global", " global "])
def test_no_dimension_at_all_means_everything(text: str) -> None:
    assert Scope.parse(text) == Scope()
    assert Scope().shape == ()


def test_order_and_blanks_between_pairs_do_not_matter() -> None:
    assert Scope.parse(" model=gpt-4o , tenant=acme ").text == "tenant=acme,model=gpt-4o"


@pytest.mark.parametrize(
    "text",
    ["tenant", "tenant=", "=acme", "colour=red", "tenant=a,tenant=b", "tenant=acme,", "Tenant=acme", "global,tenant=a"],
)
def test_a_scope_with_unknown_repeated_or_empty_parts_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="dimension=value"):
        Scope.parse(text)


@pytest.mark.parametrize("text", ["model=gpt-*", "tenant=**", "tenant=%2A"])
def test_a_star_is_neither_a_pattern_nor_a_value(text: str) -> None:
    with pytest.raises(ConfigurationError, match="stands alone"):
        Scope.parse(text)


def test_a_scope_that_is_not_percent_encoded_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded"):
        Scope.parse("tenant=%FF")


@pytest.mark.parametrize("values", [{"tenant": ""}, {"model": 4}, {"tag": ("a", "b")}])
def test_a_scope_takes_only_text(values: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        Scope(**values)


HOSTILE = [
    "a,b",
    "a=b",
    "a|daily",
    "100%",
    "%2C",
    "a*b",
    " a ",
    "a\nb",
    "global",
    "\u00e9",
    "e\u0301",
    "\ud800",
    "\\ud800",
    "\x1f",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_survive_the_text_form(value: str) -> None:
    text = Scope(tenant=value, model="m").text
    assert Scope.parse(text) == Scope(tenant=value, model="m")
    assert text.count(",") == 1
    assert text.count("=") == 2
    assert text.isascii()
    assert text.isprintable()
    assert not set("|* ") & set(text)


values_st = st.text(min_size=1, max_size=12) | st.sampled_from(HOSTILE)


@given(values_st, values_st)
def test_different_values_never_share_a_text(one: str, other: str) -> None:
    assert (scope_text({"tenant": one}) == scope_text({"tenant": other})) == (one == other)


@given(st.dictionaries(st.sampled_from(DIMENSIONS), values_st.filter(lambda v: v != "*") | st.just("*")))
def test_every_scope_reads_back_as_itself(values: dict[str, str]) -> None:
    assert Scope.parse(Scope(**values).text) == Scope(**values)


# Budgets -------------------------------------------------------------------------------------------------------------


def test_a_budget_takes_its_scope_as_text_or_value() -> None:
    assert Budget(scope="tenant=acme", limit_usd=1) == Budget(scope=Scope(tenant="acme"), limit_usd=1)
    assert Budget(scope="tenant=acme", period="7d").key == "tenant=acme|7d"


@pytest.mark.parametrize(
    ("limit", "nano_usd"),
    [
        (0, 0),
        (10, 10_000_000_000),
        (0.1, 100_000_000),
        ("0.000000001", 1),
        (Decimal("1.9999999999"), 1_999_999_999),
        ("9007199.254740991", 2**53 - 1),
    ],
)
def test_a_limit_in_usd_becomes_nano_usd_rounded_down(limit: Decimal | float | str, nano_usd: int) -> None:
    assert Budget(scope="global", limit_usd=limit).terms == BudgetTerms(limit_nano_usd=nano_usd)


@pytest.mark.parametrize(
    ("limit", "text"), [(5, "5"), ("1e3", "1000"), (0.25, "0.25"), ("1E-30", "0." + "0" * 29 + "1")]
)
def test_a_limit_in_coins_is_kept_as_a_plain_decimal(limit: float | str, text: str) -> None:
    assert Budget(scope="global", limit_coins=limit).terms == BudgetTerms(limit_coins=text)


def test_no_limit_at_all_is_an_exemption() -> None:
    assert Budget(scope="tenant=acme").terms == BudgetTerms(limit_nano_usd=None, limit_coins=None)


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        ({"limit_usd": -1}, "limit_usd"),
        ({"limit_usd": "ten"}, "limit_usd"),
        ({"limit_usd": float("nan")}, "limit_usd"),
        ({"limit_usd": float("inf")}, "limit_usd"),
        ({"limit_usd": True}, "limit_usd"),
        ({"limit_usd": "9007199.254740992"}, "limit_usd"),
        ({"limit_usd": 10**30}, "limit_usd"),
        ({"limit_coins": -0.5}, "limit_coins"),
        ({"limit_coins": "1e-999999999"}, "limit_coins"),
        ({"limit_coins": "0e-999999999"}, "limit_coins"),
        ({"limit_coins": "1e999999999"}, "limit_coins"),
        ({"limit_usd": 1, "limit_coins": 1}, "not both"),
        ({"period": "hourly"}, "period"),
        ({"period": "0h"}, "period"),
        ({"period": "07d"}, "period"),
        ({"period": "1w"}, "period"),
        ({"period": "1h\n"}, "period"),
        ({"zone": "Mars/Olympus"}, "time zone"),
        ({"zone": "../../etc/passwd"}, "time zone"),
        ({"zone": ""}, "time zone"),
        ({"alert_at": (0.0,)}, "alert_at"),
        ({"alert_at": (0.5, 1.01)}, "alert_at"),
        ({"scope": 5}, "scope|Scope"),
        ({"scope": "colour=red"}, "scope"),
    ],
)
def test_an_unusable_budget_is_refused_and_says_why(budget: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Budget(**{"scope": "tenant=acme", **budget})  # type: ignore[arg-type]


def test_the_same_scope_and_period_twice_is_refused_and_different_periods_are_not() -> None:
    daily, monthly = Budget(scope="tenant=*", limit_usd=1), Budget(scope="tenant=*", limit_usd=20, period="monthly")
    assert set(BudgetIndex([daily, monthly]).declared) == {"tenant=*|daily", "tenant=*|monthly"}
    with pytest.raises(ConfigurationError, match="twice"):
        BudgetIndex([daily, monthly, Budget(scope="tenant=*", limit_usd=2, zone="Asia/Tokyo")])


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


# Matching ------------------------------------------------------------------------------------------------------------

CALL = {"tenant": "acme", "key": "k1", "user": None, "team": "", "tag": None, "model": "gpt-4o", "provider": "openai"}


Value = str | tuple[str, ...] | None


def keys_by_level(index: BudgetIndex, values: Mapping[str, Value]) -> dict[str, list[list[str]]]:
    return {m.counter: [[ref.key for ref in level] for level in m.levels] for m in index.matches(values)}


def test_without_budgets_a_call_meets_none() -> None:
    assert BudgetIndex().matches(CALL) == ()
    assert BudgetIndex().windows(0) == {}


def test_a_call_meets_one_counter_for_each_form_it_fills() -> None:
    index = BudgetIndex(
        [
            Budget(scope="global", limit_usd=100),
            Budget(scope="tenant=*", limit_usd=10),
            Budget(scope="tenant=globex", limit_usd=1),
            Budget(scope="tenant=*", limit_usd=200, period="monthly"),
        ]
    )
    assert keys_by_level(index, CALL) == {
        "global|daily": [["global|daily"]],
        "tenant=acme|daily": [["tenant=acme|daily"], ["tenant=*|daily"]],
        "tenant=acme|monthly": [["tenant=acme|monthly"], ["tenant=*|monthly"]],
    }


def test_an_absent_or_empty_dimension_never_matches_a_star() -> None:
    index = BudgetIndex([Budget(scope=f"{name}=*", limit_usd=1) for name in ("user", "team", "end_user", "tag")])
    assert index.matches(CALL) == ()
    assert index.matches({**CALL, "tag": ()}) == ()


def test_levels_go_from_exact_over_partly_starred_to_all_stars() -> None:
    index = BudgetIndex([Budget(scope="tenant=*,model=*", limit_usd=1)])
    assert keys_by_level(index, CALL) == {
        "tenant=acme,model=gpt-4o|daily": [
            ["tenant=acme,model=gpt-4o|daily"],
            ["tenant=*,model=gpt-4o|daily", "tenant=acme,model=*|daily"],
            ["tenant=*,model=*|daily"],
        ]
    }


def governing(budgets: list[Budget], **stored: BudgetTerms) -> list[str]:
    index = BudgetIndex(budgets)
    (match,) = index.matches(CALL)
    return [key for key, _ in applicable(match, stored)]


EXACT = Budget(scope="tenant=acme,model=gpt-4o", limit_usd=1)
BY_TENANT = Budget(scope="tenant=acme,model=*", limit_usd=2)
BY_MODEL = Budget(scope="tenant=*,model=gpt-4o", limit_usd=3)
ALL = Budget(scope="tenant=*,model=*", limit_usd=4)


def test_exact_beats_partly_starred_and_that_beats_all_stars() -> None:
    assert governing([ALL, BY_TENANT, EXACT]) == [EXACT.key]
    assert governing([ALL, BY_TENANT]) == [BY_TENANT.key]
    assert governing([ALL]) == [ALL.key]


def test_ties_all_apply() -> None:
    assert sorted(governing([ALL, BY_MODEL, BY_TENANT])) == sorted([BY_MODEL.key, BY_TENANT.key])


def test_no_limit_exempts_and_a_disabled_budget_falls_back() -> None:
    exempt = Budget(scope="tenant=acme,model=gpt-4o", limit_usd=None)
    off = Budget(scope="tenant=acme,model=gpt-4o", limit_usd=1, enabled=False)
    assert governing([ALL, exempt]) == [exempt.key]
    assert governing([ALL, off]) == [ALL.key]


def test_a_tenant_called_star_is_not_everybody() -> None:
    index = BudgetIndex([Budget(scope="tenant=*", limit_usd=1)])
    assert keys_by_level(index, {"tenant": "*"}) == {"tenant=%2A|daily": [["tenant=%2A|daily"], ["tenant=*|daily"]]}


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_tenant_gets_a_counter_of_its_own(value: str) -> None:
    index = BudgetIndex([Budget(scope="tenant=*", limit_usd=1), Budget(scope="tenant=*,model=*", limit_usd=1)])
    hostile = {m.counter for m in index.matches({"tenant": value, "model": "m"})}
    for other in ("acme", "a", "b", "a,b", "global") + (() if value == "*" else ("*",)):
        if other != value:
            assert not hostile & {m.counter for m in index.matches({"tenant": other, "model": "m"})}
    assert all(counter.count("|") == 1 for counter in hostile)


def test_each_tag_of_a_call_has_its_counter_once() -> None:
    index = BudgetIndex([Budget(scope="tenant=*,tag=*", limit_usd=1)])
    found = index.matches({"tenant": "acme", "tag": ("a", "b", "a")})
    assert [m.counter for m in found] == ["tenant=acme,tag=a|daily", "tenant=acme,tag=b|daily"]


def test_a_declared_budget_travels_with_its_terms() -> None:
    index = BudgetIndex([Budget(scope="tenant=acme", limit_usd=3, zone="Asia/Tokyo")])
    ((exact,), (starred,)) = index.matches(CALL)[0].levels
    assert exact.declared == BudgetTerms(limit_nano_usd=3_000_000_000, zone="Asia/Tokyo")
    assert starred.declared is None


def test_forms_that_only_the_store_knows_are_met_after_an_update() -> None:
    index = BudgetIndex([Budget(scope="tenant=*", limit_usd=1)])
    assert index.version == -1
    assert not index.by_model
    before = index.matches(CALL)
    index.update(3, [("tenant,model", "monthly", "Asia/Tokyo"), ("", "total", "UTC")])
    assert index.version == 3
    assert index.by_model
    counters = [m.counter for m in index.matches(CALL)]
    assert sorted(counters) == ["global|total", "tenant=acme,model=gpt-4o|monthly", "tenant=acme|daily"]
    assert set(index.windows(at(NOON))) == {"daily|UTC", "monthly|Asia/Tokyo", "total|UTC"}
    index.update(4, [])
    assert index.matches(CALL) == before
    assert set(index.windows(at(NOON))) == {"daily|UTC"}


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


dims_st = st.lists(st.sampled_from(["tenant", "key", "model", "provider"]), unique=True, max_size=4)


@given(
    st.lists(st.tuples(dims_st, st.integers(0, 15), st.sampled_from(["daily", "1h"])), max_size=8),
    st.dictionaries(st.sampled_from(["tenant", "key", "model", "provider"]), st.sampled_from(["a", "b", "*"])),
)
def test_matching_agrees_with_trying_every_budget(
    shapes: list[tuple[list[str], int, str]], call: dict[str, str]
) -> None:
    """A budget can govern a call if each of its dimensions is present and either starred or equal."""
    budgets = {}
    for dimensions, stars, period in shapes:
        scope = Scope(**{name: "*" if stars >> i & 1 else "a" for i, name in enumerate(dimensions)})
        budget = Budget(scope=scope, limit_usd=1, period=period)
        budgets[budget.key] = budget
    expected = {
        key
        for key, budget in budgets.items()
        if isinstance(budget.scope, Scope)
        and all(name in call and getattr(budget.scope, name) in ("*", call[name]) for name in budget.scope.shape)
        and not any(call[name] == "*" and getattr(budget.scope, name) == "a" for name in budget.scope.shape)
    }
    index = BudgetIndex(budgets.values())
    reachable = {
        ref.key for m in index.matches(call) for level in m.levels for ref in level if ref.declared is not None
    }
    assert reachable == expected
    for match in index.matches(call):
        assert [{ref.key.count("=*") for ref in level} for level in match.levels] == [
            {n} for n in range(len(match.levels))
        ]
