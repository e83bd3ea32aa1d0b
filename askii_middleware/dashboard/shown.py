"""Amounts, counts and times as people read them: the filters of the templates. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from math import floor
from typing import Any, Final

from ..budget_status import plain
from ..currency import Rate, nano_to_coins
from ..errors import LAST_S

NONE: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"


REFUSED: Final = {
    "spent": "for want of money",
    "held": "while running calls held the rest",
    "missing": "without a key",
    "unknown": "with an unknown key",
    "revoked": "with a revoked key",
    "expired": "with an expired key",
    "malformed": "with a key that cannot be read",
    "ambiguous": "with several keys or names at once",
    "refused": "with a token that was not accepted",
    "invalid": "with values that cannot be used",
    "suspended": "of suspended tenants",
    "unreadable": "with a body that cannot be read",
    "too_large": "with too large a body",
    "not_priced": "for models without a price",
    "not_allowed": "for models that the key may not call",
    "unmetered": "on routes that are not metered",
    "mints": "on routes that hand out the provider's keys",
    "unavailable": "while the ledger was away",
}
"""Why a call was refused, by the reason it is counted under."""


def usd_text(nano_usd: int) -> str:
    """Nano-USD as `dollars` shows it."""
    return dollars(Decimal(nano_usd).scaleb(-9))


def dollars(amount: Decimal | None) -> str:
    """An amount in USD, rounded to what matters: cents from one dollar on, else four places; never 0 for what is not.
    Coins stand beside it, and are exact.
    """
    if amount is None:
        return NONE
    size = abs(amount)
    places = 2 if size >= 1 or not size else 4 if size >= Decimal("0.0001") else 9
    text = f"{_rounded(size, places):,f}"
    return f"{MINUS if amount < 0 else ''}${text.rstrip('0') if places == 9 else text}"


def limit(amount: Decimal | None) -> str:
    """An amount in USD with all its places, cents at least."""
    if amount is None:
        return NONE
    whole, _, places = f"{amount:,f}".partition(".")
    return f"${whole}.{places.rstrip('0').ljust(2, '0')}"


def limit_of(nano_usd: int) -> str:
    """Nano-USD as `limit` shows it."""
    return limit(Decimal(nano_usd).scaleb(-9))


def coins_text(amount: Decimal | None) -> str:
    """Coins: whole ones from 1,000, else three decimals at most; more where that would show nothing."""
    if amount is None:
        return NONE
    size = abs(amount)
    if size >= 1000:
        text = f"{_rounded(size, 0):,f}"
    else:
        places = 3 if size >= Decimal("0.001") or not size else 12
        text = plain(_rounded(size, places))
    return f"{MINUS if amount < 0 else ''}{text} {'coin' if text == '1' else 'coins'}"


def coins_of(nano_usd: int, rate: Rate) -> str:
    """Nano-USD in coins at a rate."""
    sign = -1 if nano_usd < 0 else 1
    return coins_text(sign * nano_to_coins(abs(nano_usd), rate))


def exact(amount: Decimal | None) -> str:
    """An amount to its last place, without exponents or empty places."""
    return NONE if amount is None else str(plain(amount))


def count(number: int) -> str:
    """A whole number with its thousands apart."""
    return f"{number:,}"


def percent(share: float) -> str:
    """A share of 1 in percent, rounded down: only what is full is 100 %."""
    tenths = floor(share * 1000 + 1e-9)
    return f"{tenths // 10} %" if tenths >= 100 or not tenths else f"{tenths / 10:.1f} %"


def moment(at: datetime | float | str | None) -> str:
    """A moment to the minute, in UTC and saying so."""
    found = _datetime(at)
    return NONE if found is None else f"{found:%Y-%m-%d %H:%M} UTC"


def machine(at: datetime | float | str | None) -> str:
    """A moment for `<time datetime=…>`."""
    found = _datetime(at)
    return "" if found is None else found.isoformat(timespec="seconds").replace("+00:00", "Z")


def refused(reason: str) -> str:
    """Why calls were refused, behind their number."""
    return REFUSED.get(reason) or f"for another reason ({cut(reason, 40)})"


def cut(text: str, most: int = 60) -> str:
    """Long text with its middle left out."""
    return text if len(text) <= most else f"{text[: most - 12]}…{text[-11:]}"


def _datetime(at: datetime | float | str | None) -> datetime | None:
    if at is None or at == "":
        return None
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError:
            return None
    if isinstance(at, datetime):
        return at.astimezone(UTC)
    return datetime.fromtimestamp(min(max(at, 0), LAST_S), UTC)


def _rounded(amount: Decimal, places: int) -> Decimal:
    return amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "usd": usd_text,
    "dollars": dollars,
    "limit": limit,
    "limit_of": limit_of,
    "coins": coins_text,
    "coins_of": coins_of,
    "exact": exact,
    "count": count,
    "percent": percent,
    "moment": moment,
    "machine": machine,
    "cut": cut,
    "refused": refused,
}
