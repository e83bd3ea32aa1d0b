"""What Bedrock's APIs share: usage and events of Converse (which Nova's own form has too), headers and errors.

`inputTokens` excludes what was read from or written to the cache. The answers name no model: the price is that of the
identifier in the path, which also says the region that is paid for (`us.`, `global.`).
Source: botocore 1.44 (`data/bedrock-runtime/2023-09-30/service-2.json`), recorded answers (2026-11).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .anthropic_common import BLOCK_TOKENS
from .base import Api, Refusal, StreamReader
from .body import BodyReader, read_body
from .counts import GARBAGE, MAX_COUNT, count, member, text, text_bytes
from .eventstream import CONTENT_TYPE, EventStreamReader, encode_frame
from .openai_common import details, retry_headers

OPTIMIZED = "optimized"
"""Latency-optimised serving is asked for and reported beside the service tier, and has prices of its own."""
_COUNT_HEADERS = {
    "input": b"x-amzn-bedrock-input-token-count",
    "output": b"x-amzn-bedrock-output-token-count",
    "read": b"x-amzn-bedrock-cache-read-input-token-count",
    "written": b"x-amzn-bedrock-cache-write-input-token-count",
}
_TIER_HEADER = b"x-amzn-bedrock-service-tier"
_LATENCY_HEADER = b"x-amzn-bedrock-performanceconfig-latency"
_ID_HEADER = b"x-amzn-requestid"
_ERROR_TYPES = {
    400: "ValidationException",
    401: "AccessDeniedException",
    402: "ServiceQuotaExceededException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    413: "ValidationException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}
_STREAM_EXCEPTIONS = {
    400: "validationException",
    429: "throttlingException",
    500: "internalServerException",
    503: "serviceUnavailableException",
}
"""The errors that a stream has members for; others go out as `error` messages, which name themselves."""


class BedrockApi(Api):
    """The parts that do not differ between Bedrock's APIs."""

    provider = "aws"
    stream_types = (CONTENT_TYPE,)
    answer_headers = frozenset((*_COUNT_HEADERS.values(), _TIER_HEADER, _LATENCY_HEADER, _ID_HEADER))

    @abstractmethod
    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None: ...

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return EventStreamReader(self.absorb)

    def body_reader(self) -> StreamReader:
        return BodyReader(self.absorb, self.answer_members)

    def read_body(self, body: bytes) -> Report:
        return read_body(self.absorb, self.answer_members, body)

    def absorb_headers(self, report: Report, headers: Mapping[bytes, bytes]) -> None:
        if report.usage is None:
            counts = {name: _header_count(headers.get(header)) for name, header in _COUNT_HEADERS.items()}
            if counts["input"] is not None:
                report.usage = bedrock_usage(
                    counts["input"], counts["output"] or 0, read=counts["read"] or 0, written=counts["written"] or 0
                )
        _note_tier(report, _header_text(headers.get(_TIER_HEADER)), _header_text(headers.get(_LATENCY_HEADER)))
        report.provider_request_id = report.provider_request_id or _header_text(headers.get(_ID_HEADER))

    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        body = {"message": refusal.message, "code": refusal.code} | details(refusal)
        kind = (b"x-amzn-errortype", _error_type(refusal).encode())
        return msgspec.json.encode(body), [
            kind,
            (b"x-amzn-requestid", refusal.call_id.encode()),
            *retry_headers(refusal),
        ]

    def stream_error(self, refusal: Refusal) -> bytes:
        exception = _STREAM_EXCEPTIONS.get(refusal.status)
        if exception is None:
            head = {
                ":message-type": "error",
                ":error-code": _error_type(refusal),
                ":error-message": refusal.message[:1000],
            }
            return encode_frame(head, b"")
        head = {":message-type": "exception", ":exception-type": exception, ":content-type": "application/json"}
        return encode_frame(head, msgspec.json.encode({"message": refusal.message}))


def bedrock_usage(fresh: int, output: int, *, read: int = 0, written: int = 0, written_1h: int = 0) -> TokenUsage:
    """Counts of which the input excludes the cache; negative ones become 0 and set `anomalous`."""
    built = TokenUsage.from_totals(
        max(fresh, 0) + max(read, 0) + max(written, 0),
        output,
        cached_input_tokens=max(read, 0),
        cache_write_tokens=max(written, 0),
        cache_write_1h_tokens=written_1h,
    )
    return msgspec.structs.replace(built, anomalous=True) if min(fresh, read, written) < 0 else built


def absorb_converse(report: Report, answer: Mapping[str, Any]) -> None:
    """Merge a whole answer of Converse, or one event of its stream as `{kind: payload}`."""
    if "contentBlockDelta" in answer:
        block = member(answer, "contentBlockDelta")
        report.open_block = count(block.get("contentBlockIndex"))
        delta = member(block, "delta")
        count_text(report, delta.get("text"))
        count_text(report, member(delta, "reasoningContent").get("text"))
        count_text(report, member(delta, "toolUse").get("input"))
        return
    if "contentBlockStart" in answer:
        block = member(answer, "contentBlockStart")
        report.open_block = count(block.get("contentBlockIndex"))
        name = member(member(block, "start"), "toolUse").get("name")
        if name:
            report.frame_tokens += BLOCK_TOKENS + text_bytes(name)
        return
    if "contentBlockStop" in answer:
        report.open_block = None
    holder = member(answer, "metadata") or answer
    report.usage = converse_usage(member(holder, "usage")) or report.usage
    _note_tier(report, text(member(holder, "serviceTier"), "type"), _latency(holder))
    # A prompt router chooses the model, and says which.
    report.model = text(member(member(holder, "trace"), "promptRouter"), "invokedModelId") or report.model
    report.finished = report.finished or any(name in answer for name in ("metadata", "messageStop", "stopReason"))
    content = member(member(answer, "output"), "message").get("content")
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict):
            count_text(report, block.get("text"))
            count_text(report, member(member(block, "reasoningContent"), "reasoningText").get("text"))


def cut_converse(report: Report) -> bytes:
    """The frames that end an answer as its own limit would."""
    usage = {"inputTokens": 0, "outputTokens": report.visible_tokens, "totalTokens": report.visible_tokens}
    events: dict[str, dict[str, Any]] = {}
    if report.open_block is not None:
        events["contentBlockStop"] = {"contentBlockIndex": report.open_block}
    events["messageStop"] = {"stopReason": "max_tokens"}
    events["metadata"] = {"usage": usage, "metrics": {"latencyMs": 0}}
    head = {":message-type": "event", ":content-type": "application/json"}
    return b"".join(
        [encode_frame({":event-type": kind, **head}, msgspec.json.encode(event)) for kind, event in events.items()]
    )


def is_error(answer: Mapping[str, Any]) -> bool:
    """Whether an answer is an error: plain ones have a message only, in streams they are members of their own."""
    if any(type(answer.get(name)) is str for name in ("message", "Message", "__type")):
        return True
    return any(name.endswith("Exception") for name in answer)


def converse_usage(usage: Mapping[str, Any]) -> TokenUsage | None:
    """A usage object of Converse or of Nova's own form; None where the prompt is not counted."""
    fresh, output = count(usage.get("inputTokens")), count(usage.get("outputTokens"))
    if fresh is None:
        return None
    found = usage.get("cacheDetails")
    details_1h = [e for e in found if isinstance(e, dict) and e.get("ttl") == "1h"] if isinstance(found, list) else []
    return bedrock_usage(
        fresh,
        0 if output is None else output,
        read=_first(usage, "cacheReadInputTokens", "cacheReadInputTokenCount"),
        written=_first(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount"),
        written_1h=sum(_first(entry, "inputTokens") for entry in details_1h),
    )


def _first(source: Mapping[str, Any], *names: str) -> int:
    """The first of these that is reported: 0 where none is, `GARBAGE` for what is no count."""
    for name in names:
        value = source.get(name)
        if value is not None:
            found = count(value)
            return GARBAGE if found is None else found
    return 0


def count_text(report: Report, piece: object) -> None:
    """Count a piece of generated text."""
    size = text_bytes(piece)
    if size:
        report.visible_bytes += size
        report.visible_deltas += 1


def _latency(source: Mapping[str, Any]) -> str | None:
    return text(member(source, "performanceConfig"), "latency")


def _note_tier(report: Report, tier: str | None, latency: str | None) -> None:
    if latency == OPTIMIZED:
        report.service_tier = OPTIMIZED
    elif tier is not None and report.service_tier != OPTIMIZED:
        report.service_tier = tier


def _header_count(value: bytes | None) -> int | None:
    if value is None or len(value) > 12 or not value.strip().isdigit():
        return None
    found = int(value)
    return found if found <= MAX_COUNT else None


def _header_text(value: bytes | None) -> str | None:
    return None if value is None else value[:256].decode("latin-1").strip() or None


def _error_type(refusal: Refusal) -> str:
    return _ERROR_TYPES.get(
        refusal.status, "InternalServerException" if refusal.status >= 500 else "ValidationException"
    )
