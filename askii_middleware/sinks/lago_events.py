"""Usage records as Lago events. Pure: the same record gives the same bytes, in every process and every release.

Facts: lago-api and lago-openapi 1.51.0 (2026-08). Lago keeps the `transaction_id` of every event for ever, so sending
the same bytes again is safe and bills once. It answers 200 to events that it will never bill: those of unknown
subscriptions and codes, and amounts that are not plain fixed-point decimals of at most 12 integer digits. Such events
are refused here instead.

A code always has the same form of id: events of coins bear the call's id, those of tokens the call's id and their
code. So no setting can make Lago take for new what it has had before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from askii_middleware.errors import SinkError
from askii_middleware.records import UsageRecord

from .lago_properties import Properties
from .lago_tokens import token_counts

CODE: Final = "askii_coins"
COINS_PROPERTY: Final = "askii_coins"
"""What the metric of the coins sums."""
TOKENS_PROPERTY: Final = "value"
"""What the metrics of tokens sum, as lago-agent-sdk sends it."""
COIN_PROPERTIES: Final = frozenset({COINS_PROPERTY, "call_id", "model", "input_tokens", "output_tokens"})
TOKEN_PROPERTIES: Final = frozenset({TOKENS_PROPERTY, "model", "provider"})
MAX_COINS: Final = 999_999_999_999
"""12 integer digits: larger amounts count as 0 in Lago's ClickHouse store."""
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_encode = msgspec.json.Encoder().encode


class UnbillableError(SinkError, ValueError):
    """A record or amount that Lago would accept and never bill, or that would break the batch it is in."""


class MissingSubscriptionError(UnbillableError):
    """A record that names nobody to bill."""


class Event(NamedTuple):
    transaction_id: str
    body: bytes


EventsOf = Callable[[UsageRecord], list[Event]]
"""All events of a record; none where there is nothing to bill. Raises UnbillableError."""


def coin_events(code: str = CODE, properties: Properties | None = None) -> EventsOf:
    """One event for each record, also of no coins: a free call shows. A correction of no coins sends nothing: what it
    takes back waits in the carry, and what it adds to has been sent.
    """

    def events(record: UsageRecord) -> list[Event]:
        if record.kind == "adjustment" and not record.askii_coins:
            return []
        return [Event(record.call_id, encode_event(record, code, properties))]

    return events


def token_events(codes: Mapping[str, str], properties: Properties | None = None) -> EventsOf:
    """One event for each kind of tokens that a call used and that has a code. Corrections are of money: they send
    nothing.
    """
    chosen = tuple(codes.items())

    def events(record: UsageRecord) -> list[Event]:
        if record.kind == "adjustment":
            return []
        counts = token_counts(record)
        used = [(code, counts[name]) for name, code in chosen if counts.get(name, 0) > 0]
        if not used:
            return []
        timestamp, further = _checked(record, properties)
        model, provider, found = record.served_model, record.provider, []
        for code, count in used:
            if count > MAX_COINS:
                raise UnbillableError(f"{count} tokens for {code}: Lago bills 0 to {MAX_COINS} per event")
            own = {TOKENS_PROPERTY: str(count), "model": model, "provider": provider, **further}
            found.append(_event(f"{record.call_id}:{code}", record.subscription, code, timestamp, own))
        return found

    return events


def encode_event(record: UsageRecord, code: str = CODE, properties: Properties | None = None) -> bytes:
    """The event of a record's coins as JSON. Raises UnbillableError."""
    if not 0 <= record.askii_coins <= MAX_COINS:
        raise UnbillableError(f"{record.askii_coins} coins: Lago bills 0 to {MAX_COINS} per event")
    timestamp, further = _checked(record, properties)
    own = {
        COINS_PROPERTY: str(record.askii_coins),
        "call_id": record.call_id,
        "model": record.served_model,
        "input_tokens": str(record.usage.input_tokens),
        "output_tokens": str(record.usage.output_tokens),
        **further,
    }
    return _event(record.call_id, record.subscription, code, timestamp, own).body


def _checked(record: UsageRecord, properties: Properties | None) -> tuple[str, Mapping[str, str]]:
    """The timestamp and the further properties of a record that can be billed. Raises UnbillableError."""
    if not record.subscription.strip():
        raise MissingSubscriptionError("no subscription to bill")
    if not record.call_id or "\0" in record.call_id + record.subscription + record.served_model + record.provider:
        raise UnbillableError("an empty call id, or a NUL character, which would break the whole batch")
    return unix_seconds(record.timestamp), NOTHING if properties is None else properties.of(record)


def _event(transaction_id: str, subscription: str, code: str, timestamp: str, properties: dict[str, str]) -> Event:
    body = _encode(
        {
            "transaction_id": transaction_id,
            "external_subscription_id": subscription,
            "code": code,
            "timestamp": timestamp,
            "properties": properties,
        }
    )
    return Event(transaction_id, body)


def unix_seconds(timestamp: str) -> str:
    """RFC 3339 to Unix seconds with three decimals, cut (not rounded) to milliseconds. Raises UnbillableError."""
    try:
        moment = datetime.fromisoformat(timestamp)
        milliseconds = (moment - _EPOCH) // _MILLISECOND
    except (ValueError, TypeError):
        raise UnbillableError(f"timestamp {timestamp[:64]!r} is not RFC 3339 with an offset") from None
    if milliseconds < 0:
        raise UnbillableError(f"timestamp {timestamp!r} lies before 1970")
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def whole_coins(cost: float) -> int:
    """An amount that can be billed as it is: finite, whole, 0 to 12 digits. Raises UnbillableError (a ValueError)."""
    try:
        # False for NaN, and never reaches `int` with an infinity.
        billable = not isinstance(cost, bool) and 0 <= cost <= MAX_COINS and cost == int(cost)
    except (ArithmeticError, TypeError):  # Decimal("NaN") has no order, nor has what is no number
        billable = False
    if not billable:
        raise UnbillableError(f"cost {shown(cost)}: Lago is sent whole coins from 0 to {MAX_COINS}")
    return int(cost)


def shown(value: object) -> str:
    """A value for an error: a number can have more digits than Python converts, and a text a megabyte."""
    try:
        text = repr(value)
    except ValueError:
        return "of more digits than can be shown"
    return text if len(text) <= 64 else f"{text[:64]}…"
