"""Gemini: `generateContent` and `streamGenerateContent`, on AI Studio and on Vertex.

The model, and whether the answer is streamed, stand in the path. `modelVersion` is the model that answered.
Source: google-genai SDK 3.4 (`models.py`, `types.py`), recorded traffic of AI Studio and Vertex (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report
from .base import CallRequest, Refusal, Rewrite, StreamReader
from .body import read_body
from .counts import member, text, text_bytes
from .fields import encode_members, is_set, read_raw_object, read_text, read_value
from .gemini_bounds import contents_bound, limits, with_limit
from .gemini_common import (
    GeminiApi,
    add_searches,
    billed_searches,
    either,
    gemini_usage,
    labelled_user,
    served_tier,
    snake,
)
from .gemini_stream import GeminiStreamReader, PathsReader
from .openai_stream import CALL_TOKENS
from .visible import hides, shows_text

_PATHS = (
    ("usageMetadata",),
    ("modelVersion",),
    ("responseId",),
    ("error",),
    ("candidates", "*", "groundingMetadata", "webSearchQueries"),
)
_NOT_OURS = frozenset(
    (
        *("serverContent", "server_content", "setupComplete", "setup_complete", "toolCall", "tool_call"),
        *("embedding", "embeddings", "predictions"),
    )
)
"""What answers with a `usageMetadata` have that are Live's or an embedding."""


class GenerateContentApi(GeminiApi):
    """`POST …/models/{model}:generateContent`."""

    name = "gemini.generate"
    kind = "text"
    suffixes: tuple[str, ...] = ("/{model}:generateContent",)
    streams = False

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "contents" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        bound = contents_bound(fields, body_bytes, "contents", "systemInstruction")
        answer = limits(fields)
        tier = read_text(fields, "serviceTier") or read_text(fields, "service_tier")
        return CallRequest(
            model=None,
            stream=self.streams,
            output_limit=answer.output,
            choices=answer.choices,
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media or answer.media,
            remote_input=bound.remote,
            end_user=labelled_user(fields),
            service_tier=tier.lower() if tier is not None else None,
            fields=fields,
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        if change.output_limit is None:
            return encode_members(request.fields)
        return encode_members(with_limit(request.fields, change.output_limit))

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return GeminiStreamReader(self.absorb, _PATHS)

    def body_reader(self) -> StreamReader:
        return PathsReader(self.absorb, _PATHS)

    def read_body(self, body: bytes) -> Report:
        report = read_body(self.absorb, self.answer_members, body)
        if b'"webSearchQueries"' in body:
            reader = self.body_reader()
            reader.feed(body)
            reader.finish()
            add_searches(report, reader.report.usage.web_search if reader.report.usage else 0)
        return report

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        if not _NOT_OURS.isdisjoint(answer):
            return False
        return "candidates" in answer or either(answer, "usageMetadata") is not None or "modelVersion" in answer

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        report.model = text(answer, "modelVersion") or text(answer, "model_version") or report.model
        identifier = text(answer, "responseId") or text(answer, "response_id")
        report.provider_request_id = report.provider_request_id or identifier
        report.failed = report.failed or bool(answer.get("error"))
        metadata = either(answer, "usageMetadata")
        searches = report.usage.web_search if report.usage is not None else 0
        usage = gemini_usage(metadata, web_search=searches)
        if usage is not None:
            report.usage = usage
            report.service_tier = served_tier(metadata) or report.service_tier
        blocked = member(answer, "promptFeedback", "prompt_feedback").get("blockReason")
        report.finished = report.finished or bool(blocked)
        candidates = answer.get("candidates")
        if isinstance(candidates, list) and candidates:
            # Only the last event that has candidates tells: others go on when one has finished.
            ended = [_absorb_candidate(report, each) for each in candidates if isinstance(each, dict)]
            report.finished = any(ended)


class StreamGenerateContentApi(GenerateContentApi):
    """`POST …/models/{model}:streamGenerateContent`."""

    name = "gemini.stream_generate"
    suffixes = ("/{model}:streamGenerateContent",)
    stream_types = (b"text/event-stream", b"application/json")
    streams = True

    def recognises(self, answer: Mapping[str, Any]) -> bool:  # noqa: ARG002 - chunks are like whole answers
        return False

    counts_as_it_goes = True

    def shows_output(self, request: CallRequest, model: str) -> bool:
        # Media in the answer, and tools that Google runs, are billed by more than the text.
        if not _asks_for_text(request.fields):
            return False
        name = model.lower()
        return shows_text(model) or (_FLASH in name and not hides(name) and _thinks_not(request.fields))

    def cut(self, report: Report, refusal: Refusal) -> bytes:
        candidates = [
            {"content": {"parts": [{"text": ""}], "role": "model"}, "finishReason": "MAX_TOKENS", "index": index}
            for index in range(report.choices)
        ]
        chunk: dict[str, Any] = {"candidates": candidates, "responseId": report.provider_request_id or refusal.call_id}
        if report.model is not None:
            chunk["modelVersion"] = report.model
        return b"data: " + msgspec.json.encode(chunk) + b"\r\n\r\n"


class TunedApi(GenerateContentApi):
    """`POST …/tunedModels/{model}:generateContent` and `…/endpoints/{model}:generateContent`: a model of the caller's
    own, which no other can stand in for under that path.
    """

    name = "gemini.tuned"
    suffixes = ("/tunedModels/{model}:generateContent", "/endpoints/{model}:generateContent")
    names_deployment = True

    def accepts(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - the path does not fit any other
        return False

    def recognises(self, answer: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the answers are the same
        return False


class StreamTunedApi(TunedApi):
    """The same, streamed."""

    name = "gemini.stream_tuned"
    suffixes = ("/tunedModels/{model}:streamGenerateContent", "/endpoints/{model}:streamGenerateContent")
    stream_types = StreamGenerateContentApi.stream_types
    streams = True


_FLASH = "gemini-2.5-flash"
"""The one generation whose thinking can be turned off."""


def _asks_for_text(fields: Mapping[str, msgspec.Raw]) -> bool:
    config = read_raw_object(fields, _named(fields, "generationConfig"))
    return not (is_set(config, _named(config, "responseModalities")) or contents_bound(fields, 0).remote)


def _thinks_not(fields: Mapping[str, msgspec.Raw]) -> bool:
    config = read_raw_object(fields, _named(fields, "generationConfig"))
    thinking = read_raw_object(config, _named(config, "thinkingConfig"))
    name = _named(thinking, "thinkingBudget")
    return is_set(thinking, name) and read_value(thinking, name) == 0


def _named(fields: Mapping[str, msgspec.Raw], name: str) -> str:
    """A member's name in whichever spelling it came."""
    return name if name in fields else snake(name)


def _absorb_candidate(report: Report, candidate: Mapping[str, Any]) -> bool:
    """Count what a candidate shows; whether it has finished."""
    grounding = candidate.get("groundingMetadata") or candidate.get("grounding_metadata")
    if isinstance(grounding, dict):
        add_searches(report, billed_searches(either(grounding, "webSearchQueries"), report.model))
    parts = member(candidate, "content").get("parts")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict):
            size = text_bytes(part.get("text")) + _call_bytes(part)
            report.visible_bytes += size
            report.visible_deltas += size > 0
            if member(part, "functionCall", "function_call"):
                report.frame_tokens += CALL_TOKENS
    return bool(candidate.get("finishReason") or candidate.get("finish_reason"))


def _call_bytes(part: Mapping[str, Any]) -> int:
    """What a function call or a piece of code that the model wrote comes to."""
    call = member(part, "functionCall", "function_call")
    code = member(part, "executableCode", "executable_code")
    arguments = call.get("args")
    if not arguments:
        return text_bytes(call.get("name")) + text_bytes(code.get("code"))
    try:
        return text_bytes(call.get("name")) + len(msgspec.json.encode(arguments))
    except (TypeError, ValueError, RecursionError):
        return text_bytes(call.get("name"))
