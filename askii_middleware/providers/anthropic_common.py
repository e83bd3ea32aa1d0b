"""What the APIs share that speak Anthropic's messages format, wherever they are served: usage and events, error bodies.

`input_tokens` excludes what was read from or written to the cache; thinking is part of `output_tokens`. In a stream
`message_start` brings a first usage, and each `message_delta` cumulative counts that replace those it names; the
split of cache writes by life time comes in `message_start` only. `usage.iterations` names what the totals leave out:
compactions, an adviser's tokens, which belong to another model, and the attempts of models that declined before a
fallback answered.
Source: anthropic SDK 2.12 (`types/usage.py`, `types/message_delta_usage.py`, `types/beta/beta_*_iteration_usage.py`,
`types/shared/error_type.py`) and recorded streams (2026-11).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from ..usage import Report, TokenUsage
from .base import Refusal
from .body import Absorb
from .counts import GARBAGE, count, member, part, text, text_bytes, total
from .fields import DECODE_ERRORS, MAX_OUTPUT_LIMIT, read_int, read_value
from .openai_common import absorb_cost, absorb_head, details
from .sse import SseReader

FAST = "fast"
"""Fast mode is asked for and reported as `speed`, beside `service_tier`; it is the dearer of the two."""
EVENTS = frozenset(
    (
        *("message", "message_start", "message_delta", "message_stop", "ping", "error"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
    )
)
"""What `type` says in an answer and in the events of a stream."""
BLOCK_TOKENS = 64
"""What a call of a tool is billed at most beside its name and what stands in it."""
_FALLBACK = "fallback_message"
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


_CACHE_TOTALS = ("cache_read_input_tokens", "cache_creation_input_tokens")


def absorb_messages(report: Report, answer: Mapping[str, Any]) -> None:
    """Merge a whole answer or one event of a stream."""
    kind = answer.get("type")
    if kind == "content_block_delta":
        _count(report, member(answer, "delta"), ("text", "thinking", "partial_json"))
    elif kind == "content_block_start":
        block = member(answer, "content_block")
        _count(report, block, ("text", "thinking"))
        report.open_block = count(answer.get("index")) or 0
        if block.get("name"):
            report.frame_tokens += BLOCK_TOKENS + text_bytes(block["name"])
    elif kind == "content_block_stop":
        report.open_block = None
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
    one_hour = _over(cache, "ephemeral_1h_input_tokens", known.cache_write_1h)
    if usage.get("cache_creation_input_tokens") is None and cache:
        written = max(written, part(cache, "ephemeral_5m_input_tokens") + one_hour)
    elif "ephemeral_1h_input_tokens" not in cache:
        one_hour = min(one_hour, written)  # said at the stream's start, of what has become less since
    built = TokenUsage.from_totals(
        fresh + read + written,
        output,
        cached_input_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=one_hour,
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
    if report.usage is None and total(usage, "input_tokens", *_CACHE_TOTALS) is None:
        # A stream whose start said nothing: its prompt is open.
        report.generated_tokens = total(usage, "output_tokens")
    else:
        report.usage = anthropic_usage(usage, report.usage)
    was_fast = report.service_tier == FAST
    absorb_cost(report, usage)
    speed = text(usage, "speed")
    if speed == FAST or (speed is None and was_fast):
        report.service_tier = FAST  # whatever `service_tier` says beside it
    else:
        report.service_tier = text(usage, "service_tier") or report.service_tier
    iterations = usage.get("iterations")
    if isinstance(iterations, list):
        entries = [entry for entry in iterations if isinstance(entry, dict)]
        report.model = next((text(e, "model") for e in entries if e.get("type") == _FALLBACK), None) or report.model
        report.other_usage = tuple(_outside(entries, report.model))


def _outside(entries: list[dict[str, Any]], served: str | None) -> Iterator[tuple[str, TokenUsage]]:
    """What the totals leave out: the adviser, compactions (by the model that answers), and, where a fallback answered,
    the attempts before it, which are told from the fallback's own tool loop by their model.
    """
    fell_back = any(entry.get("type") == _FALLBACK for entry in entries)
    for entry in entries:
        kind, model = entry.get("type"), text(entry, "model")
        declined = fell_back and kind == "message" and model not in (None, served)
        if declined or kind in ("advisor_message", "compaction"):
            usage = anthropic_usage(entry)
            if usage is not None:
                yield model or served or "", usage


def _count(report: Report, block: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        size = text_bytes(block.get(name))
        if size:
            report.visible_bytes += size
            report.visible_deltas += 1


def cut_messages(report: Report, refusal: Refusal) -> bytes:
    """The events that end a message as its own limit would."""
    events: list[dict[str, Any]] = []
    if report.provider_request_id is None:
        usage = {"input_tokens": 0, "output_tokens": 0}
        message: dict[str, Any] = {"id": refusal.call_id, "type": "message", "role": "assistant"}
        message["model"] = report.model or ""
        message |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        events.append({"type": "message_start", "message": message})
    if report.open_block is not None:
        events.append({"type": "content_block_stop", "index": report.open_block})
    delta = {"stop_reason": "max_tokens", "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": report.visible_tokens}})
    events.append({"type": "message_stop"})
    return b"".join(
        [b"event: %s\ndata: %s\n\n" % (event["type"].encode(), msgspec.json.encode(event)) for event in events]
    )


def other_models(fields: Mapping[str, msgspec.Raw]) -> tuple[str, ...]:
    """The adviser's model and the models of the provider's own fallbacks, which it may bill beside the main one."""
    advisers = (tool for tool in _entries(fields, "tools") if str(tool.get("type")).startswith("advisor_"))
    named = (text(entry, "model") for entry in (*_entries(fields, "fallbacks"), *advisers))
    return tuple(model for model in named if model is not None)


def message_limit(fields: Mapping[str, msgspec.Raw]) -> int | None:
    """The largest limit of any attempt: a fallback may have one of its own. 0 is allowed: it fills the prompt cache
    without an answer.
    """
    limit = read_int(fields, "max_tokens", minimum=0, maximum=MAX_OUTPUT_LIMIT)
    own = (count(entry.get("max_tokens")) for entry in _entries(fields, "fallbacks"))
    return limit if limit is None else max(limit, *(found for found in own if found is not None), 0)


def _entries(fields: Mapping[str, msgspec.Raw], name: str) -> list[dict[str, Any]]:
    """The objects of a list in which models may be named; empty, and nothing decoded, where none is."""
    if name not in fields or b"model" not in bytes(fields[name]):
        return []
    entries = read_value(fields, name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def error_body(refusal: Refusal) -> dict[str, Any]:
    """The error envelope."""
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

    _prefixes: ClassVar[frozenset[bytes]] = frozenset((b"event: content_block_delta\ndata: ",))

    def __init__(self, absorb: Absorb = absorb_messages) -> None:
        super().__init__(absorb)

    def _piece_of(self, data: bytes) -> str | None:
        event = _decode_delta(data)
        return event.delta.text or event.delta.thinking or event.delta.partial_json

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
