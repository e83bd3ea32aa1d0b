"""The `x-askii-…` response headers."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from .currency import nano_to_coins_text
from .errors import LAST_S

if TYPE_CHECKING:
    from .admission import BudgetState
    from .calls import Call

RawHeaders = list[tuple[bytes, bytes]]
OWN_PREFIX = b"x-askii-"
OWN_DIMENSIONS = ("tenant=", "key=", "user=")


def header_value(text: str) -> bytes:
    """Text as a header value: printable ASCII stays, anything else is percent-encoded, so nothing can be injected."""
    if text.isascii() and text.isprintable():
        return text.encode("ascii")
    return quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}", errors="replace").encode("ascii")


@lru_cache(maxsize=1024)
def iso(at_s: float) -> str:
    """A moment as ISO 8601 in UTC, to the second; the last one there is, for a window without an end."""
    return datetime.fromtimestamp(min(at_s, LAST_S), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def scarcest_own(call: Call) -> BudgetState | None:
    """Of the budgets scoped to the caller's own tenant, key or user, the one with the least left at admission."""
    best: BudgetState | None = None
    least = 0
    for state in call.states:
        left = state.remaining_nano_usd
        if left is None or not state.scope.startswith(OWN_DIMENSIONS) or "," in state.scope:
            continue
        if best is None or left < least:
            best, least = state, left
    return best


def call_headers(call: Call, *, cost_coins: str | None, expose_amounts: bool) -> RawHeaders:
    """The headers of an answer to an admitted call. `cost_coins` where it is known before the headers go out."""
    headers: RawHeaders = [
        (b"x-askii-call-id", call.id.encode()),
        (b"x-askii-model", header_value(call.model)),
    ]
    if call.fallback_reason is not None:
        headers.append((b"x-askii-requested-model", header_value(call.spec.model)))
        headers.append((b"x-askii-fallback-reason", call.fallback_reason.encode()))
    if call.clamped:
        headers.append((b"x-askii-clamped-max-tokens", b"%d" % (call.write_output_limit or 0)))
    if not expose_amounts:
        return headers
    if cost_coins is not None:
        headers.append((b"x-askii-cost-coins", cost_coins.encode()))
    state = scarcest_own(call)
    if state is not None and state.limit_nano_usd is not None:
        left = state.remaining_nano_usd or 0
        headers.append((b"x-askii-budget-limit-coins", nano_to_coins_text(state.limit_nano_usd, call.rate).encode()))
        headers.append((b"x-askii-budget-remaining-coins", nano_to_coins_text(left, call.rate).encode()))
        headers.append((b"x-askii-budget-reset", iso(state.resets_at_s).encode()))
    return headers
