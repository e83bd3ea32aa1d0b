"""The usage record: the immutable account of one finished call, as JSON and as a typed value."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

CallOutcome = Literal["completed", "client_disconnected", "upstream_error", "cut", "deferred_estimate"]

# Out of the cyclic garbage collector's sight (`gc=False`): nothing in them can refer back to them, for `metadata` is a
# copy as JSON has it. Delivery makes thousands a second; each full collection they would bring about stops the event
# loop for 10 to 20 ms.


class UsageCounts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens as a reader expects them: `input_tokens` and `output_tokens` are totals, the others parts of them.
    What a provider did not report is 0.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0


class Charge(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one price bucket adds. The charges of a record sum to its `cost_nano_usd`."""

    bucket: str
    quantity: int
    nano_usd: int


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One finished call, or an adjustment: a correction by hand or by repricing, whose cost may be negative and which
    has no tokens. Units stand in the names; `timestamp` is the moment of admission, RFC 3339 in UTC with
    milliseconds. `charges` of another model than `served_model` name it before a colon in `bucket`.
    """

    kind: Literal["usage", "adjustment"] = "usage"
    call_id: str
    timestamp: str
    tenant: str
    subscription: str
    key: str | None = None
    user: str | None = None
    team: str | None = None
    end_user: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    reason: str | None = None
    """Of an adjustment: why it was made."""
    reference: str | None = None
    """Of an adjustment: the call it corrects; None where it corrects none in particular."""
    api: str
    provider: str
    deployment: str | None = None
    requested_model: str
    served_model: str
    fallback_reason: str | None = None
    service_tier: str | None = None
    provider_request_id: str | None = None
    stream: bool = False
    outcome: CallOutcome = "completed"
    status: int | None = None
    estimated: bool = False
    anomalous: bool = False
    unpriced: bool = False
    """No price was known for what was used; the charge is 0 or the configured default."""
    shadow: str | None = None
    """In shadow mode: what would have happened."""
    duration_ms: float = 0.0
    """From admission to the record; of an adjustment, from the admission of the call it corrects."""
    usage: UsageCounts
    charges: tuple[Charge, ...] = ()
    cost_nano_usd: int
    provider_cost_nano_usd: int | None = None
    """What the provider or a gateway behind us says the call cost; charged only where `trust_provider_cost` says so."""
    price_version: str
    exchange_rate: float
    late: bool = False
    askii_coins: int = 0


decode_record = msgspec.json.Decoder(UsageRecord).decode
"""Bytes of a complete record to a `UsageRecord`. Raises msgspec.DecodeError or msgspec.ValidationError."""

EXTERNAL = "external"
"""The `api` of what was computed elsewhere, under ids of its callers' own."""


def external_id(subscription: str, call_id: str) -> str:
    """What a caller's own id, unique for its subscription, is in the ledger. No two have the same."""
    return f"{EXTERNAL}:{subscription.replace('%', '%25').replace(':', '%3A')}:{call_id}"


def unique_id(record: UsageRecord) -> str:
    """An id that no other record has, also of another subscription: the one the ledger knows it by."""
    is_own = record.api == EXTERNAL and record.kind == "usage"
    return external_id(record.subscription, record.call_id) if is_own else record.call_id


_encode = msgspec.json.Encoder().encode
_TAIL = b',"late":false,"askii_coins":0}'


def encode_settled_part(record: UsageRecord) -> bytes:
    """The record without `late` and `askii_coins`, which the store appends in the settling transaction."""
    if record.late or record.askii_coins:
        raise ValueError(f"record {record.call_id}: late and askii_coins are the store's to say")
    return _encode(record)[: -len(_TAIL)] + b"}"
