"""A deferred call as the ledger keeps it, so that any worker can charge it later."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .admission import Match, Window
from .calls import Call, CallSpec
from .currency import Rate
from .identity import Identity
from .usage import TokenUsage

if TYPE_CHECKING:
    from .pricing import Price

MAX_TEXT_CHARS = 256
VERSION = 1
"""Of the kept form. New fields with defaults do not change it; what an older version would misread does."""


class KeptCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A deferred call, as the ledger keeps it: what of it still matters once it is admitted."""

    version: int
    identity: Identity
    model: str
    requested: str
    api: str
    operation: str | None
    held: bool
    held_nano_usd: int
    input_bound: int
    output_bound: int
    matches: tuple[Match, ...]
    windows: dict[str, tuple[Window, Window]]
    rate: Rate
    admitted_at_s: float
    price_provider: str | None = None
    """Whose price was held at; None: there was no price."""
    fallback_reason: str | None = None
    kind: str = "text"
    provider: str | None = None
    deployment: str | None = None
    input_estimate: int = 0
    stream: bool = False
    service_tier: str | None = None
    billed_by_request: TokenUsage | None = None
    metadata: Mapping[str, Any] = {}
    seen_output: int = 0
    """Tokens of output that the call's own answer has shown before it was deferred."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(KeptCall).decode


def keep(call: Call, operation: str | None, seen_output: int = 0) -> bytes:
    """What the ledger is to keep of a call, and the provider's id for what goes on."""
    spec = call.spec
    kept = KeptCall(
        version=VERSION,
        identity=call.identity,
        model=call.model,
        requested=spec.model,
        api=spec.api,
        operation=operation and operation[:MAX_TEXT_CHARS].encode(errors="replace").decode(),
        held=call.held,
        held_nano_usd=call.held_nano_usd,
        input_bound=call.input_bound,
        output_bound=call.output_bound,
        matches=call.matches,
        windows=call.windows,
        rate=call.rate,
        admitted_at_s=call.admitted_at_s,
        price_provider=None if call.price is None else call.price.provider,
        fallback_reason=call.fallback_reason,
        kind=spec.kind,
        provider=spec.provider,
        deployment=spec.deployment,
        input_estimate=spec.input_estimate,
        stream=spec.stream,
        service_tier=spec.service_tier,
        billed_by_request=spec.billed_by_request,
        metadata=dict(spec.metadata),
        seen_output=seen_output,
    )
    return _encode(kept)


def read_kept(payload: bytes) -> KeptCall:
    """Raises ValueError for what another version has written and this one cannot read."""
    kept = _decode(payload)
    if kept.version > VERSION:
        raise ValueError(f"it is in form {kept.version}, and {VERSION} is known here")
    return kept


def restore(kept: KeptCall, call_id: str, price: Price | None, now_s: float) -> Call:
    """The call again, to be charged and nothing else. `now_s`: Unix seconds, for the duration."""
    spec = CallSpec(
        model=kept.requested,
        api=kept.api,
        kind=kept.kind,
        provider=kept.provider,
        deployment=kept.deployment,
        input_estimate=kept.input_estimate,
        stream=kept.stream,
        service_tier=kept.service_tier,
        billed_by_request=kept.billed_by_request,
        metadata=kept.metadata,
    )
    return Call(
        id=call_id,
        spec=spec,
        identity=kept.identity,
        model=kept.model,
        price=price,
        held_nano_usd=kept.held_nano_usd,
        held=kept.held,
        input_bound=kept.input_bound,
        output_bound=kept.output_bound,
        covered_tokens=kept.output_bound,
        clamped=False,
        write_output_limit=None,
        matches=kept.matches,
        windows=kept.windows,
        rate=kept.rate,
        admitted_at_s=kept.admitted_at_s,
        started_s=time.perf_counter() - max(now_s - kept.admitted_at_s, 0.0),
        fallback_reason=kept.fallback_reason,
        closed=True,
    )
