"""The headers of an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.admission import BudgetState
from askii_middleware.headers import call_headers, header_value, iso, scarcest_own

from .support.calls import make_call

DAY_END_S = 1_767_312_000


def line(scope: str, limit: int | None, spent: int = 0, held: int = 0) -> BudgetState:
    return BudgetState(
        counter=f"{scope}|daily|UTC|0",
        scope=scope,
        period="daily",
        limit_nano_usd=limit,
        spent_nano_usd=spent,
        held_nano_usd=held,
        resets_at_s=DAY_END_S,
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("gpt-4o", b"gpt-4o"),
        ("openai/gpt 4o:free", b"openai/gpt 4o:free"),
        ("a\r\nset-cookie: x", b"a%0D%0Aset-cookie: x"),
        ("modèle", b"mod%C3%A8le"),
        ("\x00\x7f", b"%00%7F"),
        ("\ud800", b"?"),
        ("", b""),
    ],
)
def test_a_value_is_printable_ascii(text: str, value: bytes) -> None:
    assert header_value(text) == value


@given(st.text(alphabet=st.characters()))
def test_no_text_can_end_a_header(text: str) -> None:
    value = header_value(text)
    assert all(0x20 <= byte < 0x7F for byte in value)


def test_a_moment_is_iso_8601_also_at_the_end_of_time() -> None:
    assert iso(DAY_END_S) == "2026-01-02T00:00:00Z"
    assert iso(253_402_300_800) == "9999-12-31T23:59:59Z"


def test_the_scarcest_of_the_callers_own_budgets_is_told() -> None:
    states = (
        line("global", 1),
        line("team=research", 2),
        line("tenant=acme", 900, spent=100, held=100),
        line("key=k1", 800, spent=99),
        line("user=ann", None),
    )
    found = scarcest_own(make_call(states=states))
    assert found is not None
    assert found.scope == "tenant=acme"
    assert scarcest_own(make_call(states=states[:2])) is None
    assert scarcest_own(make_call()) is None


def test_all_headers_of_a_downgraded_call() -> None:
    call = make_call(
        id="id-1", model="gpt-4o-mini", fallback_reason="budget", states=(line("tenant=acme", 1_500, spent=2_000),)
    )
    assert dict(call_headers(call, cost_coins="0.15", expose_amounts=True)) == {
        b"x-askii-call-id": b"id-1",
        b"x-askii-model": b"gpt-4o-mini",
        b"x-askii-requested-model": b"gpt-4o",
        b"x-askii-fallback-reason": b"budget",
        b"x-askii-cost-coins": b"0.15",
        b"x-askii-budget-limit-coins": b"1.5",
        b"x-askii-budget-remaining-coins": b"0",
        b"x-askii-budget-reset": b"2026-01-02T00:00:00Z",
    }


def test_amounts_can_be_kept_back() -> None:
    call = make_call(id="id-1", states=(line("tenant=acme", 1_500),))
    assert dict(call_headers(call, cost_coins="0.15", expose_amounts=False)) == {
        b"x-askii-call-id": b"id-1",
        b"x-askii-model": b"gpt-4o",
    }
