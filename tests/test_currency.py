from __future__ import annotations

import logging
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import currency
from askii_middleware.currency import (
    DEFAULT_RATE,
    MAX_NANO_USD,
    NANO,
    PICO,
    RATE_VARIABLE,
    Rate,
    RateSource,
    askii_coins_to_usd,
    convert_budget_to_askii_coins,
    current_rate,
    get_askii_coin_exchange_rate,
    nano_to_coins,
    nano_to_coins_text,
    nano_to_usd_text,
    parse_rate,
    split_coins,
    usd_to_askii_coins,
    usd_to_nano,
)

INVALID = ["invalid", "", "  ", "0", "0.0", "-1", "-1e6", "inf", "-inf", "Infinity", "nan", "1e400", "1e-400", "9" * 65]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RATE_VARIABLE, raising=False)
    monkeypatch.setattr(currency, "_reported_rates", set())


def test_without_the_variable_a_usd_is_a_million_coins() -> None:
    assert get_askii_coin_exchange_rate() == 1_000_000.0
    assert usd_to_askii_coins(1.5) == 1_500_000.0
    assert askii_coins_to_usd(250_000) == 0.25


@pytest.mark.parametrize(
    ("text", "coins"), [("1000", 1000.0), ("1e6", 1e6), ("2.5E+3", 2500.0), (" 7 ", 7.0), ("0.5", 0.5), ("1e-3", 0.001)]
)
def test_the_rate_is_read_at_each_call_and_may_be_scientific(
    monkeypatch: pytest.MonkeyPatch, text: str, coins: float
) -> None:
    monkeypatch.setenv(RATE_VARIABLE, text)
    assert get_askii_coin_exchange_rate() == coins
    assert usd_to_askii_coins(2) == 2 * coins
    monkeypatch.setenv(RATE_VARIABLE, "10")
    assert get_askii_coin_exchange_rate() == 10.0


@pytest.mark.parametrize("text", INVALID)
def test_an_invalid_rate_falls_back_and_logs_an_error_once_per_value(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    monkeypatch.setenv(RATE_VARIABLE, text)
    with caplog.at_level(logging.ERROR):
        assert [get_askii_coin_exchange_rate() for _ in range(3)] == [1_000_000.0] * 3
    assert len(caplog.records) == 1
    assert RATE_VARIABLE in caplog.records[0].message
    with pytest.raises(ValueError, match=RATE_VARIABLE):
        parse_rate(text)


def test_every_new_invalid_value_is_logged_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1005):
        monkeypatch.setenv(RATE_VARIABLE, f"bad{number}")
        get_askii_coin_exchange_rate()
    assert len(caplog.records) == 1000


def test_a_running_process_keeps_the_last_valid_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    source = RateSource(told.append)
    monkeypatch.setenv(RATE_VARIABLE, "1000")
    assert source.current().value == 1000.0
    for bad in ("zero", "zero", "-1"):
        monkeypatch.setenv(RATE_VARIABLE, bad)
        assert source.current().value == 1000.0
        assert source.current().value == 1000.0
        assert not source.valid
    monkeypatch.setenv(RATE_VARIABLE, "5")
    assert source.current() == Rate(5, 1, 5.0)
    assert source.valid
    monkeypatch.setenv(RATE_VARIABLE, "zero")
    assert source.current().value == 5.0
    assert len(told) == len(caplog.records) == 2
    assert "keeping 1000" in caplog.records[0].message


def test_a_process_started_with_an_invalid_rate_uses_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "nan")
    source = RateSource()
    assert source.current() is DEFAULT_RATE
    assert not source.valid
    assert current_rate() is DEFAULT_RATE


def test_amounts_for_people_reject_nan_and_infinities_and_floor_negatives_at_zero() -> None:
    assert usd_to_askii_coins(-3) == 0.0
    assert usd_to_askii_coins(0) == 0.0
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match="not an amount"):
            usd_to_askii_coins(value)
        with pytest.raises(ValueError, match="not an amount"):
            askii_coins_to_usd(value)


def test_no_limit_stays_no_limit_in_coins() -> None:
    assert convert_budget_to_askii_coins(None) is None
    assert convert_budget_to_askii_coins(10) == 10_000_000.0
    assert convert_budget_to_askii_coins(0) == 0.0


@pytest.mark.parametrize(
    ("usd", "nano"),
    [("0.1", 100_000_000), (0.1, 100_000_000), (10, 10 * NANO), (Decimal("0.0000000019"), 1), ("1e-9", 1), (0, 0)],
)
def test_a_limit_in_usd_becomes_whole_nano_usd_rounded_down(usd: Decimal | float | str, nano: int) -> None:
    assert usd_to_nano(usd) == nano


@pytest.mark.parametrize("usd", ["x", "-0.01", "nan", "inf", "9007199.254740993", "1e30"])
def test_what_is_no_limit_is_refused(usd: str) -> None:
    with pytest.raises(ValueError, match=r"USD|number|amount"):
        usd_to_nano(usd)


def test_the_largest_limit_is_the_largest_counter() -> None:
    assert usd_to_nano("9007199.254740991") == MAX_NANO_USD


def test_amounts_read_as_exact_plain_decimals() -> None:
    assert nano_to_usd_text(1) == "0.000000001"
    assert nano_to_usd_text(174_000) == "0.000174"
    assert nano_to_usd_text(5 * NANO) == "5"
    assert nano_to_usd_text(MAX_NANO_USD) == "9007199.254740991"
    assert nano_to_coins_text(174_000, DEFAULT_RATE) == "174"
    assert nano_to_coins_text(150, DEFAULT_RATE) == "0.15"
    assert nano_to_coins_text(100 * NANO, DEFAULT_RATE) == "100000000"
    assert nano_to_coins(1, parse_rate("1e-3")) == Decimal("1e-12")


def test_a_coin_split_is_exact_where_the_rate_divides() -> None:
    assert split_coins(150, DEFAULT_RATE) == (0, 150_000_000_000)
    assert split_coins(174_500, DEFAULT_RATE) == (174, 500_000_000_000)
    assert split_coins(NANO, parse_rate("1234567")) == (1_234_567, 0)
    assert split_coins(0, DEFAULT_RATE) == (0, 0)


def test_the_last_place_of_a_split_is_rounded_half_even() -> None:
    # 1e-4 coins per USD: one nano-USD is a tenth of 10⁻¹² coin.
    rate = parse_rate("1e-4")
    assert [split_coins(n, rate)[1] for n in (4, 5, 6, 15, 25, 26)] == [0, 0, 1, 2, 2, 3]


@given(
    st.integers(0, MAX_NANO_USD),
    st.sampled_from(["1", "1000", "1000000", "1234567", "0.3", "1e-4", "3e17", "0.333333333"]),
)
def test_a_split_is_within_half_a_unit_of_its_last_place(nano_usd: int, text: str) -> None:
    rate = parse_rate(text)
    coins, pico = split_coins(nano_usd, rate)
    assert 0 <= pico < PICO
    exact = Fraction(nano_usd, NANO) * Fraction(*rate.ratio)
    assert abs(coins + Fraction(pico, PICO) - exact) <= Fraction(1, 2 * PICO)
    assert nano_to_coins(nano_usd, rate) == coins + Decimal(pico).scaleb(-12)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.sampled_from(["1", "1000", "1e6", "1234567"])), max_size=60))
def test_carried_fractions_keep_the_sum_of_whole_coins_within_one(charges: list[tuple[int, str]]) -> None:
    sent = carry = 0
    exact = Fraction(0)
    for nano_usd, text in charges:
        rate = parse_rate(text)
        coins, pico = split_coins(nano_usd, rate)
        overflow, carry = divmod(carry + pico, PICO)
        sent += coins + overflow
        exact += Fraction(nano_usd, NANO) * Fraction(*rate.ratio)
    assert 0 <= exact - sent < 1


@pytest.mark.parametrize(("nano_usd", "text"), [(-1500, "-1.5"), (-1, "-0.001"), (0, "0"), (1500, "1.5")])
def test_credits_in_coins_have_the_sign_and_not_another_amount(nano_usd: int, text: str) -> None:
    assert nano_to_coins_text(nano_usd, parse_rate("1000000")) == text
