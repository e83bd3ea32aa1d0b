"""What a call is and costs, on the OpenTelemetry span that is current when it is admitted.

Nothing of OpenTelemetry is ever imported here: where nobody else has imported it, no span can be current. Names are
those of the GenAI semantic conventions (open-telemetry/semantic-conventions-genai, `gen_ai.inference.client`, read in
2026-11; all of them in development), where `gen_ai.provider.name` has replaced `gen_ai.system`; ours begin with
`askii.`. No attribute holds any part of a prompt or an answer.

A server's span may be over as soon as the last byte of its answer is sent, and a charge is written after that. So what
a call comes to is set just before that byte, and set again with what was charged where the span still records. Several
calls in one span add up.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from .currency import NANO
from .log_fields import fields

if TYPE_CHECKING:
    from .calls import Call, CallSpec
    from .errors import BudgetExceededError
    from .identity import Identity
    from .settling import Conclusion

logger = logging.getLogger(__name__)

Attributes = dict[str, str | bool | int | float]

PROVIDERS = {
    "aws": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "x-ai": "x_ai",
}
"""Our names and the convention's, where they differ; others stand as they are."""
COMPLETIONS = frozenset(
    ("openai.completions", "azure.completions", "ollama.generate", "cohere.generate", "mistral.fim")
)
_COUNTS = (
    ("gen_ai.usage.input_tokens", "input_tokens"),
    ("gen_ai.usage.output_tokens", "output_tokens"),
    ("gen_ai.usage.cache_read.input_tokens", "cached_input_tokens"),
    ("gen_ai.usage.cache_creation.input_tokens", "cache_write_tokens"),
    ("gen_ai.usage.reasoning.output_tokens", "reasoning"),
    ("gen_ai.usage.audio.input_tokens", "audio_input_tokens"),
    ("gen_ai.usage.audio.output_tokens", "output_audio"),
)
"""The parts of the totals are told where there are any: what a provider did not report is 0 here, and the convention
wants to tell these apart.
"""


_CALLS = "askii.calls"
_NANO_USD = "askii.cost_nano_usd"
"""Summed up as integers, and told in USD."""


class Span(Protocol):
    """As much of OpenTelemetry's as is used."""

    def is_recording(self) -> bool: ...
    def set_attributes(self, attributes: Mapping[str, str | bool | int | float]) -> None: ...
    def set_status(self, status: Any, description: str | None = None) -> None: ...


class Trace:
    """A call's span, within the span that was the call's before a block took it over."""

    __slots__ = ("outer", "share", "span", "sums", "told")

    def __init__(self, span: Span, sums: dict[str, float], outer: Trace | None) -> None:
        self.span = span
        self.sums = sums
        """Of all calls on this span, by attribute."""
        self.share: dict[str, float] = {}
        """What this call has added to `sums` so far."""
        self.told: Attributes = {}
        """What was said of its end: to say it again costs as much as the first time."""
        self.outer = outer

    def add(self, share: dict[str, float]) -> dict[str, float]:
        """The sums with this as the call's share, in place of what it was before."""
        for name, value in self.share.items():
            self.sums[name] -= value
        for name, value in share.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.share = share
        return self.sums


class Tracing:
    """Writes to the spans of others; makes none.

    Args:
        enabled: False: no span is looked at.
        tenant: whether spans tell who pays.
    """

    def __init__(self, *, enabled: bool = True, tenant: bool = True) -> None:
        self._enabled = enabled
        self._tenant = tenant
        self._sums: WeakKeyDictionary[Span, dict[str, float]] = WeakKeyDictionary()
        self._failed = False

    def admitted(self, call: Call) -> None:
        """The call belongs to the current span from now on, if that records."""
        span = self._current()
        if span is None or (call.trace is not None and call.trace.span is span):
            return
        try:
            sums = self._sums.setdefault(span, {})
        except TypeError:  # a span that cannot be a key: each of its calls tells of itself alone
            sums = {}
        call.trace = Trace(span, sums, call.trace)
        spec = call.spec
        attributes = self._asked(call.id, call.identity, spec)
        provider = (call.price.provider if call.price is not None else None) or spec.provider
        if provider:
            attributes["gen_ai.provider.name"] = provider_name(provider, spec.api)
        limit = call.write_output_limit
        if limit is None and spec.output_tokens is not None:
            limit = spec.output_tokens // spec.choices
        if limit is not None:
            attributes["gen_ai.request.max_tokens"] = limit
        if call.model != spec.model:
            attributes["askii.model"] = call.model
        if call.fallback_reason is not None:
            attributes["askii.fallback_reason"] = call.fallback_reason
        self._set(span, attributes)

    def denied(self, call_id: str, identity: Identity, spec: CallSpec, error: BudgetExceededError) -> None:
        """A budget has refused a call. Whether that is an error of the span is for whoever hears of it to say."""
        span = self._current()
        if span is not None:
            attributes = self._asked(call_id, identity, spec)
            attributes["askii.refusal.reason"] = error.reason
            attributes["askii.refusal.scope"] = ",".join(part.partition("=")[0] for part in error.scope.split(","))
            self._set(span, attributes)

    def refused(self, code: str, reason: str, scope_kind: str, call_id: str) -> None:
        """A request is answered by a refusal, and that is an error of its span."""
        span = self._current()
        if span is not None:
            self._set(
                span,
                {
                    "askii.call_id": call_id,
                    "askii.outcome": "refused",
                    "askii.refusal.reason": reason,
                    "askii.refusal.scope": scope_kind,
                    "error.type": code,
                },
                error=code,
            )

    def concluded(self, call: Call, conclusion: Conclusion) -> None:
        """What a call comes to. The last word counts, if the span still records."""
        trace = call.trace
        while trace is not None and not self._records(trace.span):
            trace = trace.outer
        if trace is None:
            return
        verdict = conclusion.verdict
        if verdict.usage is None:
            self._set(trace.span, {"askii.outcome": "deferred" if verdict.deferred else "released"})
            return
        attributes: Attributes = {"askii.outcome": verdict.outcome}
        if conclusion.parts:
            attributes["gen_ai.response.model"] = conclusion.parts[0].model
        if conclusion.provider_request_id:
            attributes["gen_ai.response.id"] = conclusion.provider_request_id
        if verdict.estimated:
            attributes["askii.estimated"] = True
        nano_usd = conclusion.billed.nano_usd
        share: dict[str, float] = {
            _CALLS: 1,
            _NANO_USD: nano_usd,
            "askii.cost_coins": nano_usd * call.rate.value / NANO,
            "gen_ai.usage.input_tokens": 0,
            "gen_ai.usage.output_tokens": 0,
        }
        for part in conclusion.parts:
            for name, field in _COUNTS:
                count = getattr(part.usage, field)
                if count:
                    share[name] = share.get(name, 0) + count
        sums = trace.add(share)
        attributes |= sums
        attributes["askii.cost_usd"] = sums[_NANO_USD] / NANO
        del attributes[_NANO_USD]
        if sums[_CALLS] == 1:
            del attributes[_CALLS]
        if attributes != trace.told:
            trace.told = attributes
            self._set(trace.span, attributes)

    def _current(self) -> Span | None:
        api = sys.modules.get("opentelemetry.trace") if self._enabled else None
        get = getattr(api, "get_current_span", None)  # not there yet while another thread imports it
        if get is None:
            return None
        span: Span = get()
        return span if self._records(span) else None

    def _records(self, span: Span) -> bool:
        """Spans are others' code: whatever they raise, here or below, no call and no charge is lost by it."""
        try:
            return span.is_recording()
        except Exception:
            if self._is_first_failure():
                logger.exception("a span did not say whether it records; told once", extra=fields("span_failed"))
            return False

    def _asked(self, call_id: str, identity: Identity, spec: CallSpec) -> Attributes:
        attributes: Attributes = {
            "askii.call_id": call_id,
            "gen_ai.operation.name": operation_name(spec),
            "gen_ai.request.model": spec.model,
        }
        if spec.stream:
            attributes["gen_ai.request.stream"] = True
        if spec.choices != 1:
            attributes["gen_ai.request.choice.count"] = spec.choices
        if self._tenant:
            attributes["askii.tenant"] = identity.tenant
        return attributes

    def _set(self, span: Span, attributes: Attributes, *, error: str | None = None) -> None:
        try:
            span.set_attributes(attributes)
            if error is not None:
                span.set_status(sys.modules["opentelemetry.trace"].StatusCode.ERROR, error)
        except Exception:
            if self._is_first_failure():
                logger.exception("a span did not take its attributes; told once", extra=fields("span_failed"))

    def _is_first_failure(self) -> bool:
        failed, self._failed = self._failed, True
        return not failed


def provider_name(provider: str, api: str) -> str:
    """A provider as the conventions name it. What a cloud serves is the cloud's, whoever made the model."""
    cloud = next((name for mark, name in _CLOUDS if mark in api), None)
    return cloud or PROVIDERS.get(provider, provider)


_CLOUDS = (("bedrock", "aws.bedrock"), ("vertex", "gcp.vertex_ai"), ("azure", "azure.ai.openai"))


def operation_name(spec: CallSpec) -> str:
    """`chat`, `text_completion`, `generate_content`, `embeddings`; for what the conventions do not know, our kind."""
    if spec.kind == "embedding":
        return "embeddings"
    if spec.kind != "text":
        return spec.kind
    if spec.api.startswith("gemini."):
        return "generate_content"
    return "text_completion" if spec.api in COMPLETIONS else "chat"
