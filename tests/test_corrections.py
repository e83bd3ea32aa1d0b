"""Amounts of corrections: exact, or refused by a typed error."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.corrections import AdjustmentError, nano_of
from askii_middleware.currency import MAX_NANO_USD


@pytest.mark.parametrize(
    ("usd", "nano_usd"),
    [
        ("1", 10**9),
        ("-1.25", -1_250_000_000),
        ("+0.000000001", 1),
        (2, 2 * 10**9),
        (0.1, 100_000_000),
        (-1e-09, -1),
        (Decimal("-0.1"), -100_000_000),
        (Decimal("1E+2"), 100 * 10**9),
        (Decimal("1.0000000000000"), 10**9),
        ("9007199.254740991", MAX_NANO_USD),
    ],
)
def test_an_amount_is_read_exactly(usd: Any, nano_usd: int) -> None:
    assert nano_of(usd) == nano_usd


@pytest.mark.parametrize(
    "usd",
    [
        *(
            "",
            " 1",
            "1 ",
            "1,5",
            "1_000",
            "1e3",
            "-1E-3",
            "1e400",
            "nan",
            "inf",
            "-Infinity",
            "0x1",
            "½",
            "\u0661",
            ".5",
            "5.",
        ),
        *("0", "-0.0", 0, -0.0, Decimal(0), "0.0000000001", "1.0000000000", "1\0", "1" * 65, "--1"),
        *(float("nan"), float("inf"), float("-inf"), 0.1 + 0.2, 1e300, -1e300, 5e-324, 1e-10),
        *(
            Decimal("NaN"),
            Decimal("sNaN"),
            Decimal("Infinity"),
            Decimal("1e400"),
            Decimal("1E-999999"),
            Decimal("1e-10"),
        ),
        *(10**400, 10**5000, -(10**400), "9007199.254740992", "-9007199.254740992", "1" * 40),
        *(True, None, [], b"1", 1j, "\ud800"),
    ],
    ids=lambda usd: repr(usd)[:24] if not isinstance(usd, int) or abs(usd) < 10**20 else "huge",
)
def test_what_is_no_exact_amount_is_refused_by_a_typed_error(usd: Any) -> None:
    with pytest.raises(AdjustmentError):
        nano_of(usd)


@given(st.integers(-MAX_NANO_USD, MAX_NANO_USD).filter(bool))
def test_every_amount_a_counter_holds_survives_its_text(nano_usd: int) -> None:
    sign, whole = "-" if nano_usd < 0 else "", abs(nano_usd)
    text = f"{sign}{whole // 10**9}.{whole % 10**9:09d}"
    assert nano_of(text) == nano_of(Decimal(text)) == nano_usd


@given(st.floats())
def test_a_float_is_its_shortest_decimal_or_refused(usd: float) -> None:
    try:
        nano_usd = nano_of(usd)
    except AdjustmentError:
        return
    assert Decimal(nano_usd).scaleb(-9) == Decimal(repr(usd))
