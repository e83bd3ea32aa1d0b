"""Anthropic messages.

`input_tokens` excludes what was read from or written to the cache; thinking is part of `output_tokens`. In a stream
`message_start` brings a first usage, and each `message_delta` cumulative counts that replace those it names; the
split of cache writes by life time comes in `message_start` only. `usage.iterations` names what the totals leave out:
compactions, and an adviser's tokens, which belong to another model.
Source: anthropic SDK 2.12 (`types/usage.py`, `types/message_delta_usage.py`, `types/beta/beta_*_iteration_usage.py`,
`types/shared/error_type.py`) and recorded streams (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import Api, CallRequest, Refusal, Rewrite, StreamReader
from .body import BodyReader, read_body
from .bounds import messages_bound
from .counts import GARBAGE, count, member, text, text_bytes
from .fields import (
    DECODE_ERRORS,
    MAX_OUTPUT_LIMIT,
    as_end_user,
    encode_members,
    is_set,
    raw_value,
    read_bool,
    read_int,
    read_model,
    read_text,
    read_value,
)
from .openai_common import absorb_head, details, retry_headers
from .sse import SseReader

FAST = "fast"
"""Fast mode is asked for and reported as `speed`, beside `service_tier`; it is the dearer of the two."""
_EVENTS = frozenset(
    (
        *("message", "message_start", "message_delta", "message_stop", "ping", "error"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
    )
)
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


class MessagesApi(Api):
    """`POST …/messages`."""

    name = "anthropic.messages"
    family = "anthropic"
    kind = "text"
    provider = "anthropic"
    suffixes = ("/messages",)

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "messages" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        bound = messages_bound(fields, body_bytes)
        metadata = read_value(fields, "metadata")
        return CallRequest(
            model=read_model(fields),
            other_models=_other_models(fields),
            stream=read_bool(fields, "stream"),
            # 0 is allowed: it fills the prompt cache without an answer.
            output_limit=read_int(fields, "max_tokens", minimum=0, maximum=MAX_OUTPUT_LIMIT),
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            end_user=as_end_user(metadata.get("user_id")) if isinstance(metadata, dict) else None,
            service_tier=FAST if read_text(fields, "speed") == FAST else read_text(fields, "service_tier"),
            fields=fields,
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = dict(request.fields)
        if change.model is not None:
            fields["model"] = raw_value(change.model)
        if change.output_limit is not None:
            fields["max_tokens"] = raw_value(change.output_limit)
        return encode_members(fields)

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return MessagesReader(self.absorb)

    def body_reader(self) -> StreamReader:
        return BodyReader(self.absorb, self.answer_members)

    def read_body(self, body: bytes) -> Report:
        return read_body(self.absorb, self.answer_members, body)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        kind = answer.get("type")
        return type(kind) is str and kind in _EVENTS

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        kind = answer.get("type")
        if kind == "content_block_delta":
            _count(report, member(answer, "delta"), ("text", "thinking", "partial_json"))
        elif kind == "content_block_start":
            _count(report, member(answer, "content_block"), ("text", "thinking"))
        elif kind in ("message_start", "message_stop"):
            _absorb_message(report, member(answer, "message"))
        elif kind == "message_delta":
            _absorb_usage(report, answer.get("usage"))
            report.finished = report.finished or member(answer, "delta").get("stop_reason") is not None
        elif kind == "error" or answer.get("error"):
            report.failed = True
        elif kind in ("message", None):
            _absorb_message(report, answer)
            report.finished = True
            content = answer.get("content")
            for block in content if isinstance(content, list) else ():
                if isinstance(block, dict):
                    _count(report, block, ("text", "thinking"))
        report.finished = report.finished or kind == "message_stop"

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return msgspec.json.encode(_error(refusal)), retry_headers(refusal)

    def stream_error(self, refusal: Refusal) -> bytes:
        return b"event: error\ndata: " + msgspec.json.encode(_error(refusal)) + b"\n\n"


def anthropic_usage(usage: Mapping[str, Any], previous: TokenUsage | None = None) -> TokenUsage | None:
    """A usage object laid over an earlier one: each count it reports replaces the earlier one, in either direction.
    None if neither the prompt nor the answer is counted anywhere.
    """
    cache = member(usage, "cache_creation")
    known = previous or TokenUsage()
    counts = (
        _over(usage, "input_tokens", known.input),
        _over(usage, "cache_read_input_tokens", known.cache_read),
        _over(usage, "cache_creation_input_tokens", known.cache_write_tokens),
        _over(usage, "output_tokens", known.output_tokens),
    )
    if previous is None and all(count(usage.get(name)) is None for name in ("input_tokens", "output_tokens")):
        return None
    fresh, read, written, output = (max(value, 0) for value in counts)
    built = TokenUsage.from_totals(
        fresh + read + written,
        output,
        cached_input_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=_over(cache, "ephemeral_1h_input_tokens", known.cache_write_1h),
        reasoning_tokens=_over(member(usage, "output_tokens_details"), "thinking_tokens", known.reasoning),
        web_search=_over(member(usage, "server_tool_use"), "web_search_requests", known.web_search),
    )
    return msgspec.structs.replace(built, anomalous=True) if min(counts) < 0 else built


def _over(source: Mapping[str, Any], name: str, previous: int) -> int:
    value = source.get(name)
    if value is None:
        return previous
    counted = count(value)
    return GARBAGE if counted is None else counted


def _absorb_message(report: Report, message: Mapping[str, Any]) -> None:
    absorb_head(report, message)
    _absorb_usage(report, message.get("usage"))
    report.finished = report.finished or message.get("stop_reason") is not None


def _absorb_usage(report: Report, usage: object) -> None:
    if not isinstance(usage, dict):
        return
    report.usage = anthropic_usage(usage, report.usage)
    speed = text(usage, "speed")
    if speed == FAST or (speed is None and report.service_tier == FAST):
        report.service_tier = FAST  # whatever `service_tier` says beside it
    else:
        report.service_tier = text(usage, "service_tier") or report.service_tier
    iterations = usage.get("iterations")
    if isinstance(iterations, list):
        report.other_usage = tuple(
            (text(entry, "model") or report.model or "", extra)
            for entry in iterations
            if isinstance(entry, dict)
            and entry.get("type") in ("advisor_message", "compaction")
            and (extra := anthropic_usage(entry)) is not None
        )


def _count(report: Report, block: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        size = text_bytes(block.get(name))
        if size:
            report.visible_bytes += size
            report.visible_deltas += 1


def _other_models(fields: Mapping[str, msgspec.Raw]) -> tuple[str, ...]:
    """The adviser's model and the models of the provider's own fallbacks, which it may bill beside the main one."""
    found: list[str] = []
    for name in ("fallbacks", "tools"):
        if name in fields and is_set(fields, name) and b"model" in bytes(fields[name]):
            entries = read_value(fields, name)
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and (name == "fallbacks" or str(entry.get("type")).startswith("advisor_")):
                    model = text(entry, "model")
                    if model is not None:
                        found.append(model)
    return tuple(found)


def _error(refusal: Refusal) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error")
    if refusal.code == "budget_exceeded":
        kind = "billing_error"
    error = {"type": kind, "message": refusal.message, "code": refusal.code}
    return {"type": "error", "error": error | details(refusal), "request_id": refusal.call_id}


class _Delta(msgspec.Struct, gc=False):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _DeltaEvent(msgspec.Struct, gc=False):
    type: str
    delta: _Delta


_decode_delta = msgspec.json.Decoder(_DeltaEvent).decode


class MessagesReader(SseReader):
    """A stream of messages events."""

    _prefixes = frozenset((b"event: content_block_delta\ndata: ",))

    def _ordinary(self, data: bytes) -> bool:
        try:
            event = _decode_delta(data)
        except DECODE_ERRORS:
            return False
        if event.type != "content_block_delta":
            return False
        piece = event.delta.text or event.delta.thinking or event.delta.partial_json
        if piece:
            report = self.report
            report.visible_bytes += len(piece) if piece.isascii() else len(piece.encode())
            report.visible_deltas += 1
        return True
