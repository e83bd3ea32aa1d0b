"""What an answer says that it cost, read exactly: decimals as they are written, never products of binary floats."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from ..usage import Report

MAX_USD = 1_000_000
"""A call that is said to cost more is a defect of who says it, and counts as not reported."""
MAX_DIGITS = 64
_NANO = 10**9
_NOTHING = -30
"""Below this power of ten an amount is nothing (and its exact fraction could be of any size)."""

LITELLM_COST = b"x-litellm-response-cost"
"""In the answers of LiteLLM's proxy, in USD (docs.litellm.ai/docs/proxy/response_headers). On streams it is missing,
for the headers go out first.
"""
COST_HEADERS = frozenset((LITELLM_COST,))


def as_usd(value: object) -> Fraction | None:
    """An amount as JSON or a header has it: a number, or its text. None for what is not a finite amount from 0 to
    `MAX_USD`. A float is the decimal that it was written as.
    """
    if type(value) is int:
        return Fraction(value) if 0 <= value <= MAX_USD else None
    if type(value) is float:
        value = repr(value)
    if type(value) is not str or len(value) > MAX_DIGITS:
        return None
    try:
        amount = Decimal(value)
    except (InvalidOperation, ValueError):
        return None
    if not amount.is_finite() or amount.is_signed() or amount > MAX_USD:
        return Fraction(0) if amount == 0 else None
    return Fraction(amount) if amount.adjusted() > _NOTHING else Fraction(0)


def to_nano_usd(usd: Fraction | None) -> int | None:
    """Rounded half-even once; None stays None."""
    return None if usd is None else round(usd * _NANO)


def absorb_cost_headers(report: Report, headers: Mapping[bytes, bytes]) -> None:
    """The cost that a gateway's headers tell. It stands above one from the body: the gateway is nearer, and may pass on
    what a provider behind it said. LiteLLM also says 0 for what it could not price, so 0 says nothing.
    """
    value = headers.get(LITELLM_COST)
    if value is not None:
        cost = to_nano_usd(as_usd(value.decode("latin-1").strip()))
        report.cost_nano_usd = cost or report.cost_nano_usd
