"""Amounts, shares and times as the pages show them."""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import refusals
from askii_middleware.currency import DEFAULT_RATE, parse_rate
from askii_middleware.dashboard import Desk, shown
from askii_middleware.dashboard import desk as desk_module
from askii_middleware.errors import MissingExtraError, Reason
from askii_middleware.identify import IdentityFailure
from askii_middleware.tracker import CostTracker

from .site import TOKEN


@pytest.mark.parametrize(
    ("nano_usd", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (1_500, "$0.0000015"),
        (100_000, "$0.0001"),
        (123_450_000, "$0.1234"),  # half-even
        (1_000_000_000, "$1.00"),
        (1_999_999_999, "$2.00"),
        (1_234_567_890_000_000, "$1,234,567.89"),
        (-2_500_000_000, "\N{MINUS SIGN}$2.50"),
    ],
)
def test_usd_has_cents_from_a_dollar_on_and_is_never_nothing(nano_usd: int, text: str) -> None:
    assert shown.usd_text(nano_usd) == text


@given(st.integers(1, 2**53 - 1))
def test_no_charge_is_shown_as_zero(nano_usd: int) -> None:
    assert any(digit in shown.usd_text(nano_usd) for digit in "123456789")
    assert any(digit in shown.coins_of(nano_usd, DEFAULT_RATE) for digit in "123456789")


@pytest.mark.parametrize(
    ("nano_usd", "rate", "text"),
    [
        (1_000_000_000, "1000000", "1,000,000 coins"),
        (1_000, "1000000", "1 coin"),
        (150, "1000000", "0.15 coins"),
        (1, "0.001", "0.000000000001 coins"),
        (-3_000, "1e6", "\N{MINUS SIGN}3 coins"),
        (0, "1e6", "0 coins"),
    ],
)
def test_coins_follow_the_rate(nano_usd: int, rate: str, text: str) -> None:
    assert shown.coins_of(nano_usd, parse_rate(rate)) == text


@given(st.integers(0, 2**53 - 1))
def test_a_limit_keeps_all_its_places(nano_usd: int) -> None:
    assert Decimal(shown.limit_of(nano_usd).removeprefix("$").replace(",", "")) == Decimal(nano_usd).scaleb(-9)


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.004, "0.4 %"), (0.0999, "9.9 %"), (0.9999, "99 %"), (1, "100 %"), (2.5, "250 %")]
)
def test_only_what_is_full_is_a_hundred_percent(share: float, text: str) -> None:
    assert shown.percent(share) == text


def test_times_are_in_utc_and_say_so() -> None:
    assert shown.moment("2026-01-01T01:30:00+02:00") == "2025-12-31 23:30 UTC"
    assert shown.moment(0.0) == "1970-01-01 00:00 UTC"
    assert shown.moment(1e15) == "9999-12-31 23:59 UTC"
    assert shown.machine("2026-01-01T00:00:00.123Z") == "2026-01-01T00:00:00Z"
    for nothing in (None, "", "yesterday"):
        assert (shown.moment(nothing), shown.machine(nothing)) == ("\N{EN DASH}", "")


def test_long_text_loses_its_middle() -> None:
    assert shown.cut("x" * 60) == "x" * 60
    assert shown.cut("a" * 100 + "b" * 100) == "a" * 48 + "\N{HORIZONTAL ELLIPSIS}" + "b" * 11


def test_without_its_extra_the_dashboard_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    desk_module._templates.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"askii-middleware\[dashboard\]"):
        Desk(CostTracker(store="memory://"), admin_token=TOKEN)


def test_every_reason_of_a_refusal_is_said_in_words() -> None:
    kinds = get_args(get_type_hints(IdentityFailure)["kind"])
    r = refusals
    made = [make("c") for make in (r.tenant_suspended, r.unmetered_route, r.mints_refused, r.ledger_unavailable)]
    said = (r.invalid_request, r.unreadable_body, r.model_not_priced, r.model_not_allowed)
    made += [r.body_too_large(1, "c"), *(make("m", "c") for make in said)]
    reasons = {*get_args(Reason), *kinds, *(refused.reason for refused in made)}
    assert reasons == shown.REFUSED.keys()
    assert shown.refused("not_priced") == "for models without a price"
    assert shown.refused("new") == "for another reason (new)"
