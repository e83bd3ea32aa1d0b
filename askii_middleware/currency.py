"""Money: integer nano-USD (10⁻⁹ USD) in the ledger, Askii Coins as a view of it at a rate.

The rate comes from `ASKII_COIN_EXCHANGE_RATE` (coins per USD, default 1,000,000). Amounts for people are floats, as
the guides have them; nothing here that decides or bills is a float.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from decimal import ROUND_FLOOR, Decimal, InvalidOperation, localcontext
from typing import NamedTuple

from .log_fields import fields

RATE_VARIABLE = "ASKII_COIN_EXCHANGE_RATE"
DEFAULT_RATE_TEXT = "1000000"
NANO = 1_000_000_000
PICO = 1_000_000_000_000
MAX_NANO_USD = 2**53 - 1
"""Counters stay exactly representable in every engine; about 9 million USD."""

logger = logging.getLogger(__name__)


class Rate(NamedTuple):
    """Coins per USD as an exact fraction, and as the float that records and people see."""

    numerator: int
    denominator: int
    value: float

    @property
    def ratio(self) -> tuple[int, int]:
        return self.numerator, self.denominator


def parse_rate(text: str) -> Rate:
    """Read coins per USD. Raises ValueError unless it is a finite number above 0 (scientific notation allowed)."""
    stripped = text.strip()
    try:
        number = Decimal(stripped) if len(stripped) <= 64 else Decimal("nan")
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or number <= 0 or abs(number.adjusted()) > 30:
        raise ValueError(f"{RATE_VARIABLE}={text[:64]!r} is not a finite number above 0 (coins per USD)")
    numerator, denominator = number.as_integer_ratio()
    return Rate(numerator, denominator, float(number))


DEFAULT_RATE = parse_rate(DEFAULT_RATE_TEXT)


class RateSource:
    """The current rate of a running process: the environment's, or the last valid one while that is invalid.

    Args:
        on_invalid: called once for every invalid value, with the message.
    """

    def __init__(self, on_invalid: Callable[[str], None] | None = None) -> None:
        self._on_invalid = on_invalid
        self._text: str | None = None
        self._rate = DEFAULT_RATE
        self._reported: set[str] = set()
        self.valid = True

    def current(self) -> Rate:
        text = os.environ.get(RATE_VARIABLE, DEFAULT_RATE_TEXT)
        if text != self._text:
            self._text = text
            try:
                self._rate = parse_rate(text)
                self.valid = True
            except ValueError as error:
                self.valid = False
                if text not in self._reported and len(self._reported) < 1000:
                    self._reported.add(text)
                    logger.error(  # noqa: TRY400 - one line
                        "%s; keeping %s",
                        error,
                        format(self._rate.value, "g"),
                        extra=fields("rate_invalid", exchange_rate=self._rate.value),
                    )
                    if self._on_invalid:
                        self._on_invalid(str(error))
        return self._rate


_reported_rates: set[str] = set()


def get_askii_coin_exchange_rate() -> float:
    """Coins per USD from the environment, read at each call. An invalid value gives the default, 1,000,000, and logs
    an error once for each value.
    """
    return current_rate().value


def current_rate() -> Rate:
    """The environment's rate as an exact fraction; see `get_askii_coin_exchange_rate`."""
    text = os.environ.get(RATE_VARIABLE, DEFAULT_RATE_TEXT)
    try:
        return parse_rate(text)
    except ValueError as error:
        if text not in _reported_rates and len(_reported_rates) < 1000:
            _reported_rates.add(text)
            logger.error(  # noqa: TRY400 - one line, no trace
                "%s; using %s",
                error,
                DEFAULT_RATE_TEXT,
                extra=fields("rate_invalid", exchange_rate=DEFAULT_RATE.value),
            )
        return DEFAULT_RATE


def usd_to_askii_coins(usd: float) -> float:
    """Coins for an amount in USD at the current rate; 0.0 for a negative one. NaN and infinities raise ValueError."""
    if not math.isfinite(usd):
        raise ValueError(f"{usd!r} is not an amount")
    rate = get_askii_coin_exchange_rate()
    coins = float(usd) * rate if usd > 0 else 0.0
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug(
            "%r USD = %r Askii Coins at %r coins per USD",
            float(usd),
            coins,
            rate,
            extra=fields("converted", usd=str(usd), coins=str(coins), exchange_rate=rate),
        )
    return coins


def askii_coins_to_usd(coins: float) -> float:
    """USD for an amount in coins at the current rate. NaN and infinities raise ValueError."""
    if not math.isfinite(coins):
        raise ValueError(f"{coins!r} is not an amount")
    return float(coins) / get_askii_coin_exchange_rate()


def convert_budget_to_askii_coins(usd: float | None) -> float | None:
    """A limit in coins at the current rate; None (no limit) stays None."""
    return None if usd is None else usd_to_askii_coins(usd)


def usd_to_nano(usd: Decimal | float | str) -> int:
    """Nano-USD for an amount, rounded down: a limit never grows by its conversion. Raises ValueError for what is not
    a finite amount of at least 0, and for amounts beyond what counters hold.
    """
    try:
        amount = Decimal(str(usd))
    except InvalidOperation:
        raise ValueError(f"{usd!r} is not a number") from None
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{usd!r} is not a finite amount of at least 0")
    if amount * NANO > MAX_NANO_USD:
        raise ValueError(f"{usd!r} USD is more than a budget holds (about 9 million USD)")
    return int((amount * NANO).to_integral_value(ROUND_FLOOR))


def nano_to_usd_text(nano_usd: int) -> str:
    """Nano-USD as an exact decimal string in USD."""
    return _plain(Decimal(nano_usd).scaleb(-9))


def nano_to_coins(nano_usd: int, rate: Rate) -> Decimal:
    """Nano-USD in coins, rounded to 10⁻¹² coin."""
    coins, pico = split_coins(nano_usd, rate)
    with localcontext(prec=60):
        return Decimal(coins) + Decimal(pico).scaleb(-12)


def nano_to_coins_text(nano_usd: int, rate: Rate) -> str:
    """Nano-USD in coins as a decimal string, exact to 10⁻¹² coin."""
    coins, pico = split_coins(abs(nano_usd), rate)
    text = f"{coins}.{pico:012d}".rstrip("0") if pico else str(coins)
    return f"-{text}" if nano_usd < 0 and text != "0" else text


def _plain(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def split_coins(nano_usd: int, rate: Rate) -> tuple[int, int]:
    """A charge in coins as whole coins and an integer of 10⁻¹² coin, rounded half-even at the last place."""
    numerator = nano_usd * rate.numerator * (PICO // NANO)
    pico, rest = divmod(numerator, rate.denominator)
    if 2 * rest > rate.denominator or (2 * rest == rate.denominator and pico % 2):
        pico += 1
    return divmod(pico, PICO)
