"""What a call costs in the end. Pure: the table of endings, the bill, the record and the settlement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from .aggregates import aggregates
from .currency import split_coins
from .records import CallOutcome, Charge, UsageCounts, UsageRecord, encode_settled_part
from .stores.base import Settlement
from .usage import Report, TokenUsage

if TYPE_CHECKING:
    from .calls import Call
    from .pricing import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a call ended, as its edge saw it.

    Attributes:
        status: the HTTP status the application answered with; None where it never began to answer.
        complete: the answer's last byte was handed to the server.
        client_left: the client went away before that.
        called: the application has read the whole request, so a provider may have been called.
        cut: we ended the stream, because its budgets had no more room.
    """

    status: int | None = None
    complete: bool = False
    client_left: bool = False
    called: bool = True
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be charged. `usage` None: nothing, the hold is released. `deferred`: nothing yet."""

    usage: TokenUsage | None
    outcome: CallOutcome = "completed"
    estimated: bool = False
    deferred: bool = False


RELEASE = Verdict(usage=None)
DEFERRED = Verdict(usage=None, deferred=True)


def judge(call: Call, report: Report, ending: Ending) -> Verdict:
    """Every way out of a call, decided once.

    Reported usage is always charged, raised to what visibly passed where the answer broke off after it. Without any:
    a complete answer costs what passed, else the hold; one whose client left, the prompt as estimated and what
    passed; one that broke off, the prompt's bound and what passed; an error or a redirect (which brings the client
    back with a call of its own), or no answer at all, costs nothing. Where the provider counts the output only, the
    prompt is estimated; where the request alone says what a call is billed, every answer costs that.
    """
    if ending.cut:
        return _judge_cut(call, report)
    refused = ending.status is not None and ending.status >= 300
    whole = report.finished or (ending.complete and not report.failed)
    outcome: CallOutcome = "completed"
    if not whole:
        outcome = "client_disconnected" if ending.client_left else "upstream_error"
    elif refused or report.failed:
        outcome = "upstream_error"
    if report.deferred and not refused:
        return DEFERRED
    if report.usage is not None:
        if report.finished or refused:
            return Verdict(usage=report.usage, outcome=outcome)
        usage, raised = _at_least(report.usage, report.visible_tokens)
        return Verdict(usage=usage, outcome=outcome, estimated=raised or not whole)
    if refused or (ending.status is None and not (ending.client_left and ending.called)):
        return RELEASE
    # An exact bound may be less than what bytes make likely.
    likely = min(call.spec.input_estimate, call.input_bound)
    if report.generated_tokens is not None:
        made = max(report.generated_tokens, report.visible_tokens if not report.finished else 0)
        counted = TokenUsage(input=likely, output=made)
        return Verdict(usage=counted, outcome=outcome, estimated=True)
    asked = call.spec.billed_by_request
    if asked is not None and (call.price is None or call.price.covers(asked)):
        # Only a bound is known of the seconds in a file.
        return Verdict(usage=asked, outcome=outcome, estimated=asked.second > 0)
    passed = report.visible_tokens
    if ending.client_left and not whole:
        return Verdict(usage=TokenUsage(input=likely, output=passed), outcome=outcome, estimated=True)
    if not whole:
        return Verdict(usage=TokenUsage(input=call.input_bound, output=passed), outcome=outcome, estimated=True)
    if passed:
        return Verdict(usage=TokenUsage(input=likely, output=passed), outcome=outcome, estimated=True)
    held = TokenUsage(input=call.input_bound, output=call.covered_tokens)
    return Verdict(usage=held, outcome=outcome, estimated=True)


def _judge_cut(call: Call, report: Report) -> Verdict:
    """A stream that was cut: the prompt as reported, else as estimated, and the output as far as it was held for."""
    usage = report.usage or TokenUsage(input=min(call.spec.input_estimate, call.input_bound))
    usage, _ = _at_least(usage, report.visible_tokens)
    over = usage.output_tokens - call.covered_tokens
    if over > 0:
        fields = {name: getattr(usage, name) for name in usage.__struct_fields__}
        for name in ("output", "reasoning", "output_audio", "output_image"):
            less = min(over, fields[name])
            fields[name] -= less
            over -= less
        usage = TokenUsage(**fields)
    return Verdict(usage=usage, outcome="cut", estimated=True)


def _at_least(usage: TokenUsage, output_tokens: int) -> tuple[TokenUsage, bool]:
    """A cumulative usage from mid-stream, raised to what visibly passed since it was reported."""
    missing = output_tokens - usage.output_tokens
    if missing <= 0:
        return usage, False
    fields = {name: getattr(usage, name) for name in usage.__struct_fields__}
    fields["output"] += missing
    return TokenUsage(**fields), True


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of one model and the price they are charged at; None: no price is known."""

    model: str
    price: Price | None
    usage: TokenUsage


@dataclass(frozen=True, slots=True)
class Billed:
    """The exact charge of a call: each part is priced from its whole usage and rounded once."""

    nano_usd: int
    charges: tuple[Charge, ...]
    unpriced: bool


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a call's end comes to, before it is written."""

    verdict: Verdict
    parts: tuple[Part, ...] = ()
    billed: Billed = Billed(0, (), False)
    flagged: bool = False
    """The served model has no price; the requested one's was used."""
    service_tier: str | None = None
    provider_request_id: str | None = None
    provider_cost_nano_usd: int | None = None
    """What the provider itself says the call cost."""
    seen_output: int = 0
    """Of a deferred call: the tokens of output that its own answer has shown already."""


def bill(parts: Sequence[Part]) -> Billed:
    """Price every part at its own model. Buckets of further models carry the model's name before a colon."""
    charges: list[Charge] = []
    total, unpriced = 0, False
    for part in parts:
        if part.price is None:
            unpriced = True
            continue
        priced = part.price.charge(part.usage)
        total += priced.nano_usd
        unpriced = unpriced or priced.unpriced
        charges.extend(
            priced.charges
            if part.model == parts[0].model
            else (
                Charge(bucket=f"{part.model}:{c.bucket}", quantity=c.quantity, nano_usd=c.nano_usd)
                for c in priced.charges
            )
        )
    return Billed(total, tuple(charges), unpriced)


def timestamp_text(at_s: float) -> str:
    """RFC 3339 in UTC with milliseconds, as records carry it."""
    ms = int(at_s * 1000 + 0.5)
    return f"{_second_text(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=64)
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def build(
    call: Call,
    parts: Sequence[Part],
    billed: Billed,
    *,
    subscription: str,
    price_version: str,
    ending_status: int | None = None,
    outcome: CallOutcome = "completed",
    estimated: bool = False,
    flagged: bool = False,
    service_tier: str | None = None,
    provider_request_id: str | None = None,
    provider_cost_nano_usd: int | None = None,
    duration_ms: float = 0.0,
    provider: str = "",
) -> tuple[UsageRecord, Settlement]:
    """The record of a finished call and the settlement that writes it. Pure, so a journal can hold the result."""
    counts = [_counts(part.usage) for part in parts]
    total = counts[0] if len(counts) == 1 else _sum(counts)
    identity, spec = call.identity, call.spec
    served = parts[0].model if parts else call.model
    record = UsageRecord(
        call_id=call.id,
        timestamp=timestamp_text(call.admitted_at_s),
        tenant=identity.tenant,
        subscription=subscription,
        key=identity.key,
        user=identity.user,
        team=identity.team,
        end_user=identity.end_user,
        tags=identity.tags,
        metadata=dict(spec.metadata),
        api=spec.api,
        provider=provider,
        deployment=spec.deployment,
        requested_model=spec.model,
        served_model=served,
        fallback_reason=call.fallback_reason,
        service_tier=service_tier,
        provider_request_id=provider_request_id,
        stream=spec.stream,
        outcome=outcome,
        status=ending_status,
        estimated=estimated,
        anomalous=flagged or any(part.usage.anomalous for part in parts),
        unpriced=billed.unpriced,
        shadow=call.shadow,
        duration_ms=duration_ms,
        usage=total,
        charges=billed.charges,
        cost_nano_usd=billed.nano_usd,
        provider_cost_nano_usd=provider_cost_nano_usd,
        price_version=price_version,
        exchange_rate=call.rate.value,
    )
    coins, pico = split_coins(billed.nano_usd, call.rate)
    return record, Settlement(
        call_id=call.id,
        admitted_at_s=call.admitted_at_s,
        cost_nano_usd=billed.nano_usd,
        matches=call.matches,
        windows=call.windows,
        rate=call.rate.ratio,
        subscription=subscription,
        coins=coins,
        pico_coins=pico,
        tenant=identity.tenant,
        aggregates=tuple(aggregates(record)),
        record=encode_settled_part(record),
    )


def _counts(usage: TokenUsage) -> UsageCounts:
    return UsageCounts(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=usage.reasoning,
        audio_input_tokens=usage.audio_input_tokens,
        audio_output_tokens=usage.output_audio,
    )


def _sum(counts: Sequence[UsageCounts]) -> UsageCounts:
    return UsageCounts(**{name: sum(getattr(c, name) for c in counts) for name in UsageCounts.__struct_fields__})
