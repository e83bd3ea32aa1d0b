"""Cohere: chat in both versions, and generate.

A stream of version 2 ends with `message-end`, one of version 1 with `stream-end`, whose `response` is the whole answer.
Source: cohere SDK 7.3 (`raw_base_client.py`, `v2/raw_client.py`, `types/`), recorded answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report
from .base import CallRequest, Refusal
from .bounds import Bound, chat_bound, text_bound
from .cohere_common import CohereApi, absorb_end, absorb_plain
from .counts import member, text, text_bytes
from .fields import MAX_OUTPUT_LIMIT, is_set, read_bool, read_int, read_model
from .openai_stream import CALL_TOKENS


class ChatV2Api(CohereApi):
    """`POST …/v2/chat`."""

    name = "cohere.chat"
    family = "cohere.chat"
    kind = "text"
    suffixes = ("/v2/chat",)
    limit = "max_tokens"

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "messages" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        raw = fields.get("messages")
        # Its parts are texts, documents in the request, and images: only with these there is more than text.
        bound = chat_bound(fields, body_bytes) if raw and b"image" in bytes(raw) else text_bound(body_bytes)
        return CallRequest(
            model=read_model(fields),
            stream=read_bool(fields, "stream"),
            output_limit=read_int(fields, "max_tokens", minimum=0, maximum=MAX_OUTPUT_LIMIT),
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            fields=fields,
        )

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        if text(answer, "type") in _V2_EVENTS:
            return "message" not in answer
        return "finish_reason" in answer and "message" in answer and "choices" not in answer

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        kind = answer.get("type")
        delta = member(answer, "delta")
        if kind == "message-start":
            report.provider_request_id = report.provider_request_id or text(answer, "id")
        elif kind == "message-end":
            report.finished = True
            report.failed = report.failed or bool(delta.get("error")) or delta.get("finish_reason") == "ERROR"
            absorb_end(report, {"usage": delta.get("usage")})
        elif kind == "tool-call-start":
            called = member(member(member(delta, "message"), "tool_calls"), "function")
            report.frame_tokens += CALL_TOKENS + text_bytes(called.get("name"))
            _count(report, called.get("arguments"))
        elif type(kind) is str and kind.endswith("-delta"):
            _count_v2(report, member(delta, "message"))
        elif kind is None:
            absorb_plain(report, answer)
            report.failed = report.failed or answer.get("finish_reason") == "ERROR"
            if report.usage is None and "finish_reason" in answer:  # the whole answer, not only its head
                _count_v2(report, member(answer, "message"))

    def shows_output(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - thinking passes too
        # Citations, of documents and of what tools found, are generated besides.
        return not (is_set(request.fields, "documents") or b'"tool"' in bytes(request.fields["messages"]))

    def cut(self, report: Report, refusal: Refusal) -> bytes:  # noqa: ARG002 - the id came with the first event
        tokens = {"input_tokens": 0, "output_tokens": report.visible_tokens}
        delta = {"finish_reason": "MAX_TOKENS", "usage": {"tokens": tokens}}
        event = msgspec.json.encode({"type": "message-end", "delta": delta})
        return b"event: message-end\ndata: " + event + b"\n\n"


class ChatV1Api(CohereApi):
    """`POST …/v1/chat`. Its connectors search, and its conversations are kept elsewhere."""

    name = "cohere.chat_v1"
    family = "cohere.chat_v1"
    kind = "text"
    suffixes = ("/v1/chat",)
    stream_types = (b"application/stream+json", b"text/event-stream")
    limit = "max_tokens"

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "message" in fields and bytes(fields["message"])[:1] == b'"'

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        return _text_request(
            fields,
            text_bound(body_bytes),
            remote=any(is_set(fields, name) for name in ("connectors", "conversation_id")),
        )

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return text(answer, "event_type") in _V1_EVENTS or ("text" in answer and "generation_id" in answer)

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        _absorb_v1(report, answer)

    def stream_error(self, refusal: Refusal) -> bytes:
        ending = {
            "is_finished": True,
            "event_type": "stream-end",
            "finish_reason": "ERROR",
            "response": {"text": "", "finish_reason": "ERROR", "meta": {"warnings": [refusal.message]}},
        }
        return msgspec.json.encode(ending) + b"\n"


class GenerateApi(ChatV1Api):
    """`POST …/v1/generate`, which Cohere keeps for old models. The model has to be named: the path says little."""

    name = "cohere.generate"
    family = "cohere.generate"
    suffixes = ("/v1/generate",)
    default_output_limit = 20

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return is_set(fields, "model") and "prompt" in fields and "messages" not in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        request = _text_request(fields, text_bound(body_bytes), remote=is_set(fields, "preset"))
        choices = read_int(fields, "num_generations", minimum=1, maximum=100) or 1
        return msgspec.structs.replace(request, choices=choices)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return "generations" in answer and "meta" in answer


_V2_EVENTS = frozenset(
    (
        *("message-start", "message-end", "content-start", "content-delta", "content-end", "tool-plan-delta"),
        *("tool-call-start", "tool-call-delta", "tool-call-end", "citation-start", "citation-end"),
    )
)
_V1_EVENTS = frozenset(
    (
        *("stream-start", "stream-end", "text-generation", "citation-generation", "search-results"),
        *("search-queries-generation", "tool-calls-generation", "tool-calls-chunk", "stream-error", "debug"),
    )
)


def _text_request(fields: dict[str, msgspec.Raw], bound: Bound, *, remote: bool) -> CallRequest:
    return CallRequest(
        model=read_model(fields),
        stream=read_bool(fields, "stream"),
        output_limit=read_int(fields, "max_tokens", minimum=0, maximum=MAX_OUTPUT_LIMIT),
        input_bound=bound.tokens,
        input_estimate=bound.estimate,
        remote_input=bound.remote or remote,
        fields=fields,
    )


def _absorb_v1(report: Report, answer: Mapping[str, Any]) -> None:
    kind = answer.get("event_type")
    if kind == "stream-end":
        report.finished = True
        report.failed = report.failed or answer.get("finish_reason") == "ERROR"
        absorb_end(report, member(answer, "response"))
    elif kind == "stream-error":
        report.failed = True
    elif kind is None:
        absorb_plain(report, answer)
        if report.usage is None:
            _count(report, answer.get("text"), answer.get("generations"))
    else:
        report.provider_request_id = report.provider_request_id or text(answer, "generation_id")
        delta = member(answer, "tool_call_delta")
        _count(report, answer.get("text"), delta.get("parameters"))


def _count_v2(report: Report, message: Mapping[str, Any]) -> None:
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else [calls]
    arguments = [member(call, "function").get("arguments") for call in calls if isinstance(call, dict)]
    _count(report, message.get("content"), message.get("tool_plan"), *arguments)


def _count(report: Report, *pieces: object) -> None:
    for piece in pieces:
        size = text_bytes(piece)
        report.visible_bytes += size
        report.visible_deltas += size > 0
